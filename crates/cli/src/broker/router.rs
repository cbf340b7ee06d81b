//! Who answers which request: groups and offsets here, everything else the storage crate's services.
//!
//! Fetch is theirs too, but waiting is ours. Their service looks twice in `max_wait_ms` and sleeps in between, found
//! or not, which makes a record wait a quarter of a second in an idle cluster. It is asked with no wait at all, and
//! asked again when something was produced.

use std::{fmt, net::SocketAddr, sync::Arc, time::Duration};

use bytes::Bytes;
use rama::{Context, Service};
use tansu_broker::{coordinator::group::administrator::Controller, service};
use tansu_sans_io::{Body, ErrorCode, FetchRequest, Frame, Header};
use tansu_service::FrameRouteService;
use tokio::{
    sync::watch,
    time::{Instant, timeout_at},
};
use tracing::{Dispatch, dispatcher};

use super::{BrokerError, groups::Groups, offsets::Offsets, storage::Storage};

/// Fetches that found nothing look again this often, even if nobody said that something was produced.
const LONGEST_WAIT: Duration = Duration::from_secs(30);

/// What to do with the connection a request came from.
pub(super) enum Reply {
    /// Send this.
    Bytes(Bytes),
    /// The client does not want to hear (produce with `acks=0`).
    Nothing,
    /// The request made no sense, and the stream can't be trusted any more.
    Close,
}

/// Answers requests. Clones share everything.
#[derive(Clone)]
pub(super) struct Router {
    shared: Arc<Shared>,
}

struct Shared {
    inner: FrameRouteService<(), tansu_broker::Error>,
    groups: Groups,
    offsets: Offsets,
    appended: watch::Sender<()>,
    /// Where the host of the broker logs; the broker's own threads log nowhere.
    log: Dispatch,
}

impl fmt::Debug for Router {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Router").finish_non_exhaustive()
    }
}

impl Router {
    pub(super) fn new(storage: Arc<Storage>, log: Dispatch) -> Result<Self, BrokerError> {
        let engine = storage.engine.clone();
        let routes = service::storage::services(FrameRouteService::builder(), engine.clone())?;
        // Never reached: they are there for the list of versions, which is made from the routes.
        let routes = service::coordinator::services(routes, Controller::with_storage(engine)?)?;
        let inner = routes.build().map_err(tansu_broker::Error::from)?;
        let offsets = Offsets::open(Arc::clone(&storage))
            .map_err(|source| BrokerError::DataDir { path: storage.directory.clone(), source })?;
        Ok(Self {
            shared: Arc::new(Shared {
                inner,
                groups: Groups::new(),
                offsets,
                appended: watch::Sender::new(()),
                log,
            }),
        })
    }

    pub(super) fn groups(&self) -> &Groups {
        &self.shared.groups
    }

    /// Answers one request.
    pub(super) async fn answer(&self, request: Bytes, peer: SocketAddr) -> Reply {
        match self.try_answer(request, peer).await {
            Ok(reply) => reply,
            Err(error) => {
                dispatcher::with_default(&self.shared.log, || {
                    tracing::warn!(%peer, error = ?error, "the embedded broker refused a request");
                });
                Reply::Close
            }
        }
    }

    async fn try_answer(&self, request: Bytes, peer: SocketAddr) -> Result<Reply, tansu_broker::Error> {
        let request = Frame::request_from_bytes(request)?;
        let (key, version) = (request.api_key()?, request.api_version()?);
        let correlation_id = request.correlation_id()?;
        let client = request.client_id()?.unwrap_or("client").to_owned();
        let shared = &*self.shared;
        let body = match request.body {
            Body::JoinGroupRequest(join) => shared.groups.join(join, &client, peer, version).await,
            Body::SyncGroupRequest(sync) => shared.groups.sync(sync).await,
            Body::HeartbeatRequest(beat) => shared.groups.heartbeat(&beat),
            Body::LeaveGroupRequest(leave) => shared.groups.leave(leave),
            Body::OffsetCommitRequest(commit) => {
                let member = commit.member_id.as_deref().unwrap_or_default();
                let generation = commit.generation_id_or_member_epoch.unwrap_or(-1);
                let allowed = shared.groups.may_commit(&commit.group_id, member, generation);
                shared.offsets.commit(commit, allowed).await
            }
            Body::OffsetFetchRequest(fetch) => shared.offsets.fetch(fetch).await,
            Body::DescribeGroupsRequest(describe) => {
                let mut ids = Vec::new();
                for id in describe.groups.unwrap_or_default() {
                    let any = shared.offsets.any(&id).await;
                    ids.push((id, any));
                }
                shared.groups.describe(ids)
            }
            // The protocol of KIP-848. Clients ask it first and fall back when a group is not of that kind.
            Body::ConsumerGroupDescribeRequest(describe) => Groups::not_next_generation(describe),
            Body::ListGroupsRequest(list) => {
                let stored = shared.ask(request.header, list.into()).await?;
                shared.groups.list(stored)
            }
            Body::FetchRequest(fetch) => shared.fetch(request.header, fetch).await?,
            Body::ProduceRequest(produce) => {
                let silent = produce.acks == 0;
                let body = shared.ask(request.header, Body::ProduceRequest(produce)).await?;
                shared.appended.send_replace(());
                if silent {
                    return Ok(Reply::Nothing);
                }
                body
            }
            body => shared.ask(request.header, body).await?,
        };
        let response = Frame::response(Header::Response { correlation_id }, body, key, version)?;
        Ok(Reply::Bytes(response))
    }
}

impl Shared {
    async fn ask(&self, header: Header, body: Body) -> Result<Body, tansu_broker::Error> {
        let frame = Frame { size: 0, header, body };
        let answered = self.inner.serve(Context::default(), frame).await?;
        Ok(answered.body)
    }

    async fn fetch(&self, header: Header, fetch: FetchRequest) -> Result<Body, tansu_broker::Error> {
        let wait = Duration::from_millis(u64::try_from(fetch.max_wait_ms).unwrap_or_default());
        let deadline = Instant::now() + wait.min(LONGEST_WAIT);
        let wanted = fetch.min_bytes > 0;
        let mut appended = self.appended.subscribe();
        loop {
            appended.mark_unchanged();
            let look = fetch.clone().max_wait_ms(0);
            let found = self.ask(header.clone(), look.into()).await?;
            if !wanted || has_news(&found) || Instant::now() >= deadline {
                return Ok(found);
            }
            if !matches!(timeout_at(deadline, appended.changed()).await, Ok(Ok(()))) {
                return Ok(found);
            }
        }
    }
}

/// Whether a fetch found a record, or something the client must hear about.
fn has_news(found: &Body) -> bool {
    let Body::FetchResponse(found) = found else { return true };
    let failed = |code: i16| code != i16::from(ErrorCode::None);
    let topics = found.responses.iter().flatten();
    let mut partitions = topics.flat_map(|topic| topic.partitions.iter().flatten());
    found.error_code.is_some_and(failed)
        || partitions.any(|partition| partition.records.is_some() || failed(partition.error_code))
}

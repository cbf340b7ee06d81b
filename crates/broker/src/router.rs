//! Routes requests: groups and offsets are handled here, everything else by the storage crate's
//! services.
//!
//! Those services also handle fetches, but the waiting is ours. Their fetch checks twice in
//! `max_wait_ms` and always sleeps in between, which delays a record by a quarter of a second in an
//! idle cluster. We call it without a wait, and again after something has been produced.

use std::{fmt, net::SocketAddr, sync::Arc, time::Duration};

use bytes::Bytes;
use rama::{Context, Service};
use tansu_broker::{coordinator::group::administrator::Controller, service};
use tansu_sans_io::{
    ApiKey as _, ApiVersionsRequest, Body, ConsumerGroupDescribeRequest, CreateTopicsRequest,
    DeleteTopicsRequest, DescribeClusterRequest, DescribeConfigsRequest, DescribeGroupsRequest,
    DescribeTopicPartitionsRequest, ErrorCode, FetchRequest, FindCoordinatorRequest, Frame,
    GetTelemetrySubscriptionsRequest, Header, HeartbeatRequest, InitProducerIdRequest,
    JoinGroupRequest, LeaveGroupRequest, ListGroupsRequest, ListOffsetsRequest, MetadataRequest,
    OffsetCommitRequest, OffsetFetchRequest, ProduceRequest, SyncGroupRequest,
};
use tansu_service::FrameRouteService;
use tokio::{
    sync::{RwLock, watch},
    time::{Instant, timeout_at},
};
use tracing::{Dispatch, dispatcher};

use super::{
    BrokerError, apart,
    groups::Groups,
    offsets::Offsets,
    producers::{self, Producers, Refused},
    quiet::{Asked, LONGEST_QUIET, LastFetch, Writes, Written},
    screen::screen,
    storage::Storage,
    topic_names,
};

/// The APIs that are served. The engine has routes for more, but some of them make it panic and end
/// (`DeleteRecords`, transaction requests, and half of `IncrementalAlterConfigs`), and others would
/// contradict the groups kept here. Those are neither announced nor answered.
const SERVED: &[i16] = &[
    ProduceRequest::KEY,
    FetchRequest::KEY,
    ListOffsetsRequest::KEY,
    MetadataRequest::KEY,
    OffsetCommitRequest::KEY,
    OffsetFetchRequest::KEY,
    FindCoordinatorRequest::KEY,
    JoinGroupRequest::KEY,
    HeartbeatRequest::KEY,
    LeaveGroupRequest::KEY,
    SyncGroupRequest::KEY,
    DescribeGroupsRequest::KEY,
    ListGroupsRequest::KEY,
    ApiVersionsRequest::KEY,
    CreateTopicsRequest::KEY,
    DeleteTopicsRequest::KEY,
    InitProducerIdRequest::KEY,
    DescribeConfigsRequest::KEY,
    DescribeClusterRequest::KEY,
    ConsumerGroupDescribeRequest::KEY,
    GetTelemetrySubscriptionsRequest::KEY,
    DescribeTopicPartitionsRequest::KEY,
];

/// The newest version of `ApiVersions` that the codec knows.
const NEWEST_API_VERSIONS: i16 = 4;

/// What to do with the connection that a request came from.
pub(super) enum Reply {
    /// Send this response.
    Bytes(Bytes),
    /// Send nothing (produce with `acks=0`).
    Nothing,
    /// Close the connection: the request was malformed, so the stream can no longer be trusted.
    Close,
}

/// Answers requests. Clones share all state.
#[derive(Clone)]
pub(super) struct Router {
    shared: Arc<Shared>,
}

struct Shared {
    inner: FrameRouteService<(), tansu_broker::Error>,
    groups: Groups,
    offsets: Offsets,
    producers: Producers,
    /// Deleting topics takes this lock exclusively: the engine does not survive a batch for a
    /// deleted topic.
    topics: RwLock<()>,
    /// Writes that could change the result of a fetch.
    writes: watch::Sender<Writes>,
    /// The logger of the process; the broker's own threads do not log.
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
        // These routes are never reached. The list of API versions is built from the routes.
        let routes = service::coordinator::services(routes, Controller::with_storage(engine)?)?;
        let inner = routes.build().map_err(tansu_broker::Error::from)?;

        let failed = |source| BrokerError::DataDir { path: storage.directory.clone(), source };
        let offsets = Offsets::open(Arc::clone(&storage)).map_err(failed)?;
        let producers = Producers::open(Arc::clone(&storage)).map_err(failed)?;

        Ok(Self {
            shared: Arc::new(Shared {
                inner,
                groups: Groups::new(),
                offsets,
                producers,
                topics: RwLock::new(()),
                writes: watch::Sender::new(Writes::default()),
                log,
            }),
        })
    }

    pub(super) fn groups(&self) -> &Groups {
        &self.shared.groups
    }

    /// Answers one request of a connection. `last` is the connection's last fetch.
    pub(super) async fn answer(
        &self,
        request: Bytes,
        peer: SocketAddr,
        last: &mut LastFetch,
    ) -> Reply {
        match self.try_answer(request, peer, last).await {
            Ok(reply) => reply,
            Err(error) => {
                dispatcher::with_default(&self.shared.log, || {
                    tracing::warn!(%peer, error = ?error, "the embedded broker rejected a request and closes the connection");
                });
                Reply::Close
            }
        }
    }

    async fn try_answer(
        &self,
        request: Bytes,
        peer: SocketAddr,
        last: &mut LastFetch,
    ) -> Result<Reply, tansu_broker::Error> {
        if let Some(correlation_id) = newer_api_versions(&request) {
            return self.list_versions(correlation_id).await;
        }
        let (request, malformed) = screen(request);
        let request = Frame::request_from_bytes(request)?;
        let (key, version) = (request.api_key()?, request.api_version()?);
        let correlation_id = request.correlation_id()?;
        let client = request.client_id()?.unwrap_or("client").to_owned();

        let shared = &*self.shared;

        if !SERVED.contains(&key) {
            dispatcher::with_default(&shared.log, || {
                tracing::warn!(%peer, api = key, "the embedded broker does not support this Kafka API");
            });
            return Ok(Reply::Close);
        }

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
                    let any = shared.offsets.has_commits(&id).await;
                    ids.push((id, any));
                }
                shared.groups.describe(ids)
            }
            // The KIP-848 protocol. Clients try it first and fall back if the group is of another
            // kind.
            Body::ConsumerGroupDescribeRequest(describe) => Groups::not_next_generation(describe),
            Body::ListGroupsRequest(list) => {
                let stored = shared.serve_by_engine(request.header, list.into()).await?;
                shared.groups.list(stored)
            }
            body @ Body::ApiVersionsRequest(_) => {
                only_served(shared.serve_by_engine(request.header, body).await?)
            }
            Body::FetchRequest(fetch) => shared.fetch(request.header, fetch, last).await?,
            Body::ProduceRequest(produce) => {
                let silent = produce.acks == 0;
                let body = shared.produce(request.header, produce, malformed).await?;
                if silent {
                    return Ok(Reply::Nothing);
                }
                body
            }
            Body::InitProducerIdRequest(init) => match Producers::fresh(init) {
                Ok(fresh) => shared.serve_by_engine(request.header, fresh.into()).await?,
                Err(refused) => refused.into(),
            },
            Body::DeleteTopicsRequest(delete) => {
                let _alone = shared.topics.write().await;
                let body = shared.serve_by_engine(request.header, delete.into()).await?;
                shared.writes.send_modify(Writes::note_everywhere);
                body
            }
            Body::CreateTopicsRequest(mut create) => {
                let refused = topic_names::refuse_invalid(&mut create);
                let mut body = shared.serve_by_engine(request.header, create.into()).await?;
                if let Body::CreateTopicsResponse(response) = &mut body {
                    response.topics.get_or_insert_default().extend(refused);
                }
                shared.writes.send_modify(Writes::note_everywhere);
                body
            }
            body => shared.serve_by_engine(request.header, body).await?,
        };

        let response = Frame::response(Header::Response { correlation_id }, body, key, version)?;
        Ok(Reply::Bytes(response))
    }
}

impl Router {
    /// Answers a client that asks for the versions in a version that is not known here: in version
    /// 0, with an error and what is supported, so that the client asks again (KIP-511).
    async fn list_versions(&self, correlation_id: i32) -> Result<Reply, tansu_broker::Error> {
        let key = ApiVersionsRequest::KEY;
        let header =
            Header::Request { api_key: key, api_version: 0, correlation_id, client_id: None };
        let body = ApiVersionsRequest::default().into();
        let mut body = only_served(self.shared.serve_by_engine(header, body).await?);
        if let Body::ApiVersionsResponse(versions) = &mut body {
            versions.error_code = ErrorCode::UnsupportedVersion.into();
        }

        let response = Frame::response(Header::Response { correlation_id }, body, key, 0)?;
        Ok(Reply::Bytes(response))
    }
}

impl Shared {
    async fn serve_by_engine(
        &self,
        header: Header,
        body: Body,
    ) -> Result<Body, tansu_broker::Error> {
        let frame = Frame { size: 0, header, body };
        let answered = self.inner.serve(Context::default(), frame).await?;
        Ok(answered.body)
    }

    async fn produce(
        &self,
        header: Header,
        mut produce: ProduceRequest,
        malformed: Refused,
    ) -> Result<Body, tansu_broker::Error> {
        let _topics = self.topics.read().await;

        let written = Written::of(&produce);
        let admission = self.producers.admit(&mut produce, malformed).await;

        let asked = self.serve_by_engine(header, produce.into()).await;
        // After a failed request, it is unknown what was written.
        self.writes.send_modify(|writes| writes.note(&written));

        let mut body = asked?;
        if let Body::ProduceResponse(response) = &mut body {
            producers::complete(response, admission.refused);
        }

        Ok(body)
    }

    async fn fetch(
        &self,
        header: Header,
        fetch: FetchRequest,
        last: &mut LastFetch,
    ) -> Result<Body, tansu_broker::Error> {
        let wait = Duration::from_millis(u64::try_from(fetch.max_wait_ms).unwrap_or_default());
        let deadline = Instant::now() + wait.min(LONGEST_QUIET);
        let wanted = fetch.min_bytes > 0;
        let look = fetch.max_wait_ms(0);

        let mut writes = self.writes.subscribe();

        loop {
            let found = self.look(&header, &look, last, &mut writes).await?;
            if has_news(&found) || !wanted || Instant::now() >= deadline {
                return Ok(found);
            }
            if !matches!(timeout_at(deadline, writes.changed()).await, Ok(Ok(()))) {
                return Ok(found);
            }
        }
    }

    /// Returns what a fetch finds now.
    async fn look(
        &self,
        header: &Header,
        look: &FetchRequest,
        last: &mut LastFetch,
        writes: &mut watch::Receiver<Writes>,
    ) -> Result<Body, tansu_broker::Error> {
        let (asked, now) = (Asked::of(look), Instant::now().into_std());
        let before = {
            let writes = writes.borrow_and_update();
            if let Some(nothing) = last.found_nothing(&asked, &writes, now) {
                return Ok(nothing);
            }
            writes.count()
        };

        let found = match self.serve_by_engine(header.clone(), look.clone().into()).await {
            Ok(found) => found,
            Err(_) => self.look_apart(header, look).await?,
        };
        if !has_news(&found) {
            last.keep(asked, before, now, found.clone());
        }
        Ok(found)
    }
}

impl Shared {
    /// Returns what a fetch finds that fails as a whole, so that one unreadable batch does not hide
    /// other partitions.
    async fn look_apart(
        &self,
        header: &Header,
        look: &FetchRequest,
    ) -> Result<Body, tansu_broker::Error> {
        let (mut answers, mut failed) = (Vec::new(), None);
        let (alone, mut readable) = (apart::split(look), 0);
        for one in &alone {
            match self.serve_by_engine(header.clone(), one.clone().into()).await {
                Ok(Body::FetchResponse(found)) => {
                    readable += 1;
                    answers.extend(found.responses.into_iter().flatten());
                }
                Ok(_) => {}
                Err(error) => {
                    answers.extend(apart::unreadable(one));
                    failed = Some(error);
                }
            }
        }

        match failed {
            // The engine itself has failed, not a single batch.
            Some(error) if readable == 0 && alone.len() > 1 => Err(error),
            _ => Ok(apart::join(answers)),
        }
    }
}

/// Returns the correlation id of an `ApiVersions` request in a version that the codec does not know.
/// All versions of all requests begin alike: length, API key, version and correlation id.
fn newer_api_versions(request: &[u8]) -> Option<i32> {
    let (_, rest) = request.split_first_chunk::<4>()?;
    let (key, rest) = rest.split_first_chunk::<2>()?;
    let (version, rest) = rest.split_first_chunk::<2>()?;
    let (correlation_id, _) = rest.split_first_chunk::<4>()?;

    let is_newer = i16::from_be_bytes(*key) == ApiVersionsRequest::KEY
        && i16::from_be_bytes(*version) > NEWEST_API_VERSIONS;
    is_newer.then(|| i32::from_be_bytes(*correlation_id))
}

/// Removes unserved APIs from the list of versions.
fn only_served(mut versions: Body) -> Body {
    if let Body::ApiVersionsResponse(versions) = &mut versions {
        versions
            .api_keys
            .iter_mut()
            .for_each(|keys| keys.retain(|api| SERVED.contains(&api.api_key)));
    }
    versions
}

/// Returns whether a fetch found a record or something else that the client must know.
fn has_news(found: &Body) -> bool {
    let Body::FetchResponse(found) = found else { return true };
    let failed = |code: i16| code != i16::from(ErrorCode::None);
    let topics = found.responses.iter().flatten();
    let mut partitions = topics.flat_map(|topic| topic.partitions.iter().flatten());
    found.error_code.is_some_and(failed)
        || partitions.any(|partition| partition.records.is_some() || failed(partition.error_code))
}

#[cfg(test)]
#[path = "reading_tests.rs"]
mod reading_tests;

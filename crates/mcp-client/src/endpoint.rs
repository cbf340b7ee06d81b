//! One endpoint: its session, if it has one, and requests in the era that it speaks.
//!
//! Whether a rejected request means that the server has forgotten our session is decided by
//! `fleet_wire::session`.

mod handshake;

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use fleet_job::outcome::Failure;
use fleet_wire::session::{Keeper, Lease, Pinged, Step};
use http::{HeaderMap, HeaderValue};
use parking_lot::{Mutex, MutexGuard};
use serde_json::{Map, json};
use url::Url;

use crate::{
    body::Sent,
    classify::{self, Broken},
    config::{Era, label},
    transport::{Answer, Post, Reply, Transport},
    wire::{self, News, Request, SESSION_ID},
};

/// The id of handshake requests and of pings that check a session. Ids need to be unique only
/// within a session, and calls count from 1.
const HANDSHAKE_ID: u64 = 0;

/// An endpoint and what is known of it.
#[derive(Debug)]
pub(crate) struct Endpoint {
    url: Url,
    /// The endpoint's name in messages.
    pub(crate) label: String,
    era: Era,
    handshake_timeout: Duration,
    /// Held by the request that finds out the era.
    asking: tokio::sync::Mutex<()>,
    /// Held by the request that finds out whether the session is lost.
    inquiry: tokio::sync::Mutex<()>,
    known: Mutex<Known>,
}

#[derive(Debug, Default)]
struct Known {
    dialect: Option<Dialect>,
    /// The number of handshakes so far.
    rounds: u64,
    /// The failure of the last handshake, if it failed.
    failure: Option<Failure>,
    keeper: Keeper,
}

/// The era that an endpoint speaks.
#[derive(Debug, Clone)]
pub(crate) enum Dialect {
    Modern,
    Legacy(Arc<Session>),
}

/// A session from the legacy handshake, shared by calls.
#[derive(Debug)]
pub(crate) struct Session {
    id: Option<HeaderValue>,
    version: HeaderValue,
    lease: Lease,
}

impl Session {
    fn headers(&self) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(wire::PROTOCOL_VERSION, self.version.clone());
        if let Some(id) = &self.id {
            headers.insert(SESSION_ID, id.clone());
        }
        headers
    }
}

impl Dialect {
    /// Returns the session that requests name and that the server may have forgotten.
    fn lease(&self) -> Option<Lease> {
        match self {
            Self::Legacy(session) if session.id.is_some() => Some(session.lease),
            Self::Legacy(_) | Self::Modern => None,
        }
    }

    fn is(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Modern, Self::Modern) => true,
            (Self::Legacy(a), Self::Legacy(b)) => Arc::ptr_eq(a, b),
            (Self::Modern, Self::Legacy(_)) | (Self::Legacy(_), Self::Modern) => false,
        }
    }
}

impl Endpoint {
    pub(crate) fn new(url: Url, era: Era, handshake_timeout: Duration) -> Self {
        Self {
            label: label(&url),
            url,
            era,
            handshake_timeout,
            asking: tokio::sync::Mutex::default(),
            inquiry: tokio::sync::Mutex::default(),
            known: Mutex::default(),
        }
    }

    /// Returns the era that the endpoint is known to speak.
    pub(crate) fn known(&self) -> Option<Dialect> {
        self.lock().dialect.clone()
    }

    /// Returns the era that the endpoint speaks, and finds it out if it is not known. The handshake
    /// is rare and therefore boxed, so that calls do not reserve memory for it.
    pub(crate) async fn dialect(
        &self,
        transport: &Transport,
        sent: &Sent,
    ) -> Result<Dialect, Failure> {
        match self.known() {
            Some(dialect) => Ok(dialect),
            None => Box::pin(self.make_handshake(transport, sent)).await,
        }
    }

    /// Forgets the era and session, unless they are no longer those that the caller found wrong.
    pub(crate) fn forget(&self, stale: &Dialect) {
        let mut known = self.lock();
        if known.dialect.as_ref().is_some_and(|dialect| dialect.is(stale)) {
            known.dialect = None;
        }
    }

    /// Returns whether to send a rejected request again, because the server had forgotten its
    /// session and there is a new one now. `resent` tells whether the request was sent again
    /// already.
    ///
    /// # Errors
    ///
    /// Returns an error if the session is lost and the handshake for a new one failed.
    pub(crate) async fn renews_session(
        &self,
        transport: &Transport,
        dialect: &Dialect,
        reply: &Reply,
        resent: bool,
    ) -> Result<bool, Failure> {
        let (Some(lease), Some(rejection)) = (dialect.lease(), reply.rejection()) else {
            return Ok(false);
        };
        let doubt = self.lock().keeper.doubt(lease, rejection, resent);
        let Some(mut doubt) = doubt else { return Ok(false) };

        let _turn = self.inquiry.lock().await;
        let mut step = self.lock().keeper.next(&doubt);
        loop {
            step = match step {
                Step::Stand => return Ok(false),
                Step::Resend => return Ok(true),
                Step::Ping => {
                    let pinged = self.ping(transport, dialect).await;
                    self.lock().keeper.pinged(&mut doubt, pinged)
                }
                Step::Renew => {
                    tracing::info!(
                        endpoint = self.label,
                        ?rejection,
                        "the server has forgotten the session; making a new one"
                    );
                    self.forget(dialect);
                    let found = self.dialect(transport, &Sent::default()).await;
                    let keeper = &mut self.lock().keeper;
                    match found {
                        Ok(_) => keeper.renewed(&doubt),
                        Err(_) => keeper.not_renewed(&doubt),
                    }
                }
                // The failure is kept until a handshake succeeds. Then there is a session in which
                // to send the request.
                Step::Failed => return self.lock().failure.clone().map_or(Ok(true), Err),
            }
        }
    }

    /// Pings the server in the session of `dialect`.
    async fn ping(&self, transport: &Transport, dialect: &Dialect) -> Pinged {
        let request = Request::new("ping", Map::new());
        let sent = Sent::default();
        let exchange = self.exchange(transport, dialect, &request, HANDSHAKE_ID, None, &sent);
        match tokio::time::timeout(self.handshake_timeout, exchange).await {
            Ok(Ok(reply)) => reply.rejection().map_or(Pinged::Answered, Pinged::Rejected),
            Ok(Err(_)) | Err(_) => Pinged::Unanswered,
        }
    }

    /// Sends a request in the endpoint's era and reads its answer.
    pub(crate) async fn exchange(
        &self,
        transport: &Transport,
        dialect: &Dialect,
        request: &Request,
        id: u64,
        progress: Option<&News>,
        sent: &Sent,
    ) -> Result<Reply, Broken> {
        let (headers, body) = match dialect {
            Dialect::Modern => {
                (request.modern_headers(), request.modern_body(id, &transport.client_info))
            }
            Dialect::Legacy(session) => (session.headers(), request.legacy_body(id)),
        };

        let mut cancel = match dialect {
            Dialect::Modern => None,
            Dialect::Legacy(_) => Some(CancelOnDrop {
                transport,
                url: &self.url,
                headers: headers.clone(),
                id,
                sent,
                armed: true,
            }),
        };

        let post = Post { url: &self.url, headers, body, id, progress, sent };
        let reply = transport.post(post).await;
        if let (Some(cancel), Ok(_) | Err(Broken::NotSent(_))) = (&mut cancel, &reply) {
            cancel.armed = false;
        }
        reply
    }

    /// Ends the session, if there is one.
    pub(crate) async fn close(&self, transport: &Transport) {
        let dialect = self.lock().dialect.take();
        if let Some(Dialect::Legacy(session)) = dialect
            && session.id.is_some()
        {
            transport.delete(&self.url, &session.headers()).await;
        }
    }

    fn lock(&self) -> MutexGuard<'_, Known> {
        self.known.lock()
    }

    /// Returns the failure for a reply without a result.
    pub(crate) fn failure(&self, reply: &Reply) -> Failure {
        match &reply.answer {
            Answer::Error(error) if (200..300).contains(&reply.head.status) => {
                classify::classify_rpc(error, &self.label)
            }
            Answer::Error(error) => {
                classify::classify_http(&reply.head, Some(error), SystemTime::now(), &self.label)
            }
            Answer::Nothing | Answer::Result(_) => {
                classify::classify_http(&reply.head, None, SystemTime::now(), &self.label)
            }
        }
    }
}

/// Tells a legacy server that nobody waits for the answer any more. In that era, closing the stream
/// does not cancel a call.
struct CancelOnDrop<'a> {
    transport: &'a Transport,
    url: &'a Url,
    headers: HeaderMap,
    id: u64,
    sent: &'a Sent,
    armed: bool,
}

impl Drop for CancelOnDrop<'_> {
    fn drop(&mut self) {
        if !self.armed || !self.sent.get() {
            return;
        }
        // Without a runtime nothing can be sent, and the process is ending anyway.
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            let (transport, url, headers) =
                (self.transport.clone(), self.url.clone(), self.headers.clone());
            let params = json!({"requestId": self.id, "reason": "the caller no longer waits"});
            let body = wire::notification("notifications/cancelled", Some(params));
            runtime.spawn(async move { drop(transport.notify(&url, &headers, body).await) });
        }
    }
}

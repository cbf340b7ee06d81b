//! One endpoint: which era it speaks, and its session where it has one.
//!
//! The first request asks, and the answer is kept until the endpoint's behaviour contradicts it.
//! Only one request asks at a time; those that waited for it share its answer, also when that is a
//! failure, so that an endpoint that hangs does not make a thousand calls hang one after another.
//!
//! A handshake that fails is never a job's fault: nothing of the job has been sent. What would be
//! permanent for a call (a wrong path, say) is therefore an unavailable server here, and jobs wait
//! for it to be put right.
//!
//! Whether a rejected request means that the server has forgotten our session is decided by
//! `fleet_wire::session`.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use fleet_job::outcome::{ErrorKind, Failure, FailureClass, JobError};
use fleet_wire::{
    revision,
    session::{Keeper, Lease, Pinged, Step},
};
use http::{HeaderMap, HeaderValue};
use parking_lot::{Mutex, MutexGuard};
use serde_json::{Map, Value, json};
use url::Url;

use crate::{
    body::Sent,
    classify::{self, Broken},
    config::{Era, label},
    transport::{Answer, Post, Reply, Transport},
    wire::{self, News, Request, SESSION_ID},
};

/// The id of handshake requests, and of pings that ask about a session. Ids need to be unique
/// within a session only, and calls count from 1.
const HANDSHAKE_ID: u64 = 0;

/// For how long an answer to `server/discover` is waited for before `initialize` is tried; a third
/// of the time for the whole handshake, where that is less.
const DISCOVER_PATIENCE: Duration = Duration::from_secs(10);

/// See the module's documentation.
#[derive(Debug)]
pub(crate) struct Endpoint {
    url: Url,
    /// How it is called in messages.
    pub(crate) label: String,
    era: Era,
    handshake_timeout: Duration,
    asking: tokio::sync::Mutex<()>,
    /// The turn of the request that finds out whether the session is lost.
    inquiry: tokio::sync::Mutex<()>,
    known: Mutex<Known>,
}

#[derive(Debug, Default)]
struct Known {
    dialect: Option<Dialect>,
    /// How often the endpoint has been asked.
    rounds: u64,
    /// What came of it last, where it failed.
    failure: Option<Failure>,
    keeper: Keeper,
}

/// What an endpoint speaks.
#[derive(Debug, Clone)]
pub(crate) enum Dialect {
    Modern,
    Legacy(Arc<Session>),
}

/// What the legacy handshake agreed on. Calls share it.
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
    /// The session that requests name, and that the server may have forgotten.
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

/// What `server/discover` tells about an endpoint.
enum Discovered {
    Modern,
    /// It answered, and not as a modern server does.
    NotModern(Failure),
    /// It can't be told now.
    Failed(Failure),
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

    /// What the endpoint is known to speak.
    pub(crate) fn known(&self) -> Option<Dialect> {
        self.lock().dialect.clone()
    }

    /// What the endpoint speaks; asks it if that is not known, which is rare: a call should not
    /// have to hold the room that asking takes.
    pub(crate) async fn dialect(
        &self,
        transport: &Transport,
        sent: &Sent,
    ) -> Result<Dialect, Failure> {
        match self.known() {
            Some(dialect) => Ok(dialect),
            None => Box::pin(self.find_out(transport, sent)).await,
        }
    }

    async fn find_out(&self, transport: &Transport, sent: &Sent) -> Result<Dialect, Failure> {
        let rounds = {
            let known = self.lock();
            if let Some(dialect) = &known.dialect {
                return Ok(dialect.clone());
            }
            known.rounds
        };
        let _turn = self.asking.lock().await;
        {
            let known = self.lock();
            match (&known.dialect, &known.failure) {
                (Some(dialect), _) => return Ok(dialect.clone()),
                (None, Some(failure)) if known.rounds != rounds => return Err(failure.clone()),
                _ => {}
            }
        }
        let asked = tokio::time::timeout(self.handshake_timeout, self.ask(transport, sent)).await;
        let result = asked.unwrap_or_else(|_| {
            let broken = if sent.get() {
                Broken::TimedOut(self.handshake_timeout)
            } else {
                Broken::NotSent(format!(
                    "no connection within {} ms",
                    self.handshake_timeout.as_millis()
                ))
            };
            Err(classify::broken(&broken, &self.label))
        });
        let result = result.map_err(not_the_jobs_fault);
        let mut known = self.lock();
        known.rounds += 1;
        known.dialect = result.as_ref().ok().cloned();
        known.failure = result.as_ref().err().cloned();
        result
    }

    /// Drops what is known, if it still is what the caller found wrong.
    pub(crate) fn forget(&self, stale: &Dialect) {
        let mut known = self.lock();
        if known.dialect.as_ref().is_some_and(|dialect| dialect.is(stale)) {
            known.dialect = None;
        }
    }

    /// Whether a rejected request should be sent again, because the server had forgotten its
    /// session and there is a new one now. `resent` if it was sent again already.
    ///
    /// # Errors
    ///
    /// If the session is lost and no new one can be had.
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
                        "the session is lost; making a new one"
                    );
                    self.forget(dialect);
                    let found = self.dialect(transport, &Sent::default()).await;
                    let keeper = &mut self.lock().keeper;
                    match found {
                        Ok(_) => keeper.renewed(&doubt),
                        Err(_) => keeper.not_renewed(&doubt),
                    }
                }
                // The failure is kept until an attempt succeeds; then there is a session to send
                // the request in.
                Step::Failed => return self.lock().failure.clone().map_or(Ok(true), Err),
            }
        }
    }

    async fn ping(&self, transport: &Transport, dialect: &Dialect) -> Pinged {
        let request = Request::new("ping", Map::new());
        let sent = Sent::default();
        let exchange = self.exchange(transport, dialect, &request, HANDSHAKE_ID, None, &sent);
        match tokio::time::timeout(self.handshake_timeout, exchange).await {
            Ok(Ok(reply)) => reply.rejection().map_or(Pinged::Answered, Pinged::Rejected),
            Ok(Err(_)) | Err(_) => Pinged::Unanswered,
        }
    }

    /// Sends a request in the endpoint's dialect and reads its answer.
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

    /// Gives the session back, if there is one.
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

    async fn ask(&self, transport: &Transport, sent: &Sent) -> Result<Dialect, Failure> {
        let not_modern = match self.era {
            Era::Legacy => return self.initialize(transport, sent).await,
            Era::Modern | Era::Auto => match self.discover(transport, sent).await {
                Discovered::Modern => return Ok(Dialect::Modern),
                Discovered::Failed(failure) => return Err(failure),
                Discovered::NotModern(failure) if self.era == Era::Modern => return Err(failure),
                Discovered::NotModern(failure) => failure,
            },
        };
        self.initialize(transport, sent).await.map_err(|mut failure| {
            let message = &failure.error.message;
            failure.error.message = format!(
                "{message} (legacy handshake, tried because: {})",
                not_modern.error.message
            );
            failure
        })
    }

    async fn discover(&self, transport: &Transport, sent: &Sent) -> Discovered {
        let request = Request::new("server/discover", Map::new());
        let exchange =
            self.exchange(transport, &Dialect::Modern, &request, HANDSHAKE_ID, None, sent);
        let patience = DISCOVER_PATIENCE.min(self.handshake_timeout / 3);
        let reply = match tokio::time::timeout(patience, exchange).await {
            // Some older servers leave a method that they do not know without an answer.
            Err(_) if sent.get() => {
                return Discovered::NotModern(classify::broken(
                    &Broken::TimedOut(patience),
                    &self.label,
                ));
            }
            Err(_) => {
                let why = format!("no connection within {} ms", patience.as_millis());
                return Discovered::Failed(classify::broken(&Broken::NotSent(why), &self.label));
            }
            Ok(reply) => reply,
        };
        let reply = match reply {
            Ok(reply) => reply,
            Err(broken @ (Broken::NotSent(_) | Broken::Lost(_) | Broken::TimedOut(_))) => {
                return Discovered::Failed(classify::broken(&broken, &self.label));
            }
            Err(broken) => return Discovered::NotModern(classify::broken(&broken, &self.label)),
        };
        let speaks_modern = |versions: Option<&Value>| {
            let mut versions = versions.and_then(Value::as_array).into_iter().flatten();
            versions.any(|version| version == wire::MODERN)
        };
        if let Answer::Result(result) = &reply.answer {
            return if speaks_modern(result.get("supportedVersions")) {
                Discovered::Modern
            } else {
                let message = format!("{} does not speak revision {}", self.label, wire::MODERN);
                Discovered::NotModern(Failure::permanent(JobError::new(
                    ErrorKind::Protocol,
                    message,
                )))
            };
        }
        // Whatever it did not like about the question: it says that it speaks what we do.
        if let Answer::Error(error) = &reply.answer
            && error.code == wire::UNSUPPORTED_VERSION
            && speaks_modern(error.data.as_ref().and_then(|data| data.get("supported")))
        {
            return Discovered::Modern;
        }
        let failure = self.failure(&reply);
        let code = match &reply.answer {
            Answer::Error(error) => Some(error.code),
            Answer::Result(_) | Answer::Nothing => None,
        };
        match (reply.head.status, code) {
            // Busy, broken, redirected or locked: that says nothing about the era.
            (300..=399 | 401 | 403 | 407 | 408 | 421 | 425 | 429 | 502..=504, _)
            // Only a modern server knows these.
            | (_, Some(wire::HEADER_MISMATCH | wire::MISSING_CAPABILITY)) => Discovered::Failed(failure),
            _ => Discovered::NotModern(failure),
        }
    }

    async fn initialize(&self, transport: &Transport, sent: &Sent) -> Result<Dialect, Failure> {
        let reply = self.ask_initialize(transport, wire::LEGACY, sent).await?;
        let listed = match &reply.answer {
            Answer::Error(error) => revision::listed(error.data.as_ref(), wire::LEGACY),
            Answer::Result(_) | Answer::Nothing => None,
        };
        let reply = match listed {
            Some(version) => self.ask_initialize(transport, version, sent).await?,
            None => reply,
        };
        self.begin_session(transport, reply).await
    }

    async fn ask_initialize(
        &self,
        transport: &Transport,
        version: &str,
        sent: &Sent,
    ) -> Result<Reply, Failure> {
        sent.reset();
        let params = json!({
            "protocolVersion": version,
            "capabilities": {},
            "clientInfo": transport.client_info,
        });
        let params = match params {
            Value::Object(params) => params,
            _ => Map::new(),
        };
        let body = Request::new("initialize", params).legacy_body(HANDSHAKE_ID);
        let post = Post {
            url: &self.url,
            headers: HeaderMap::new(),
            body,
            id: HANDSHAKE_ID,
            progress: None,
            sent,
        };
        transport.post(post).await.map_err(|broken| classify::broken(&broken, &self.label))
    }

    async fn begin_session(&self, transport: &Transport, reply: Reply) -> Result<Dialect, Failure> {
        let Answer::Result(result) = &reply.answer else { return Err(self.failure(&reply)) };
        let version = result.get("protocolVersion").and_then(Value::as_str).unwrap_or_default();
        let Some(version) = revision::LEGACY.into_iter().find(|known| *known == version) else {
            let message = format!(
                "{} speaks revision {:?}, which is not known here",
                self.label,
                classify::quote(version)
            );
            return Err(Failure::permanent(JobError::new(ErrorKind::Protocol, message)));
        };
        let mut session = Session {
            id: reply.session,
            version: HeaderValue::from_static(version),
            lease: self.lock().keeper.current(),
        };
        let body = wire::notification("notifications/initialized", None);
        let head = transport.notify(&self.url, &session.headers(), body).await;
        let head = head.map_err(|broken| classify::broken(&broken, &self.label))?;
        if !(200..300).contains(&head.status) {
            return Err(classify::http(&head, None, SystemTime::now(), &self.label));
        }
        session.lease = self.lock().keeper.issue();
        Ok(Dialect::Legacy(Arc::new(session)))
    }

    /// The failure in a reply that holds no result.
    pub(crate) fn failure(&self, reply: &Reply) -> Failure {
        match &reply.answer {
            Answer::Error(error) if (200..300).contains(&reply.head.status) => {
                classify::rpc(error, &self.label)
            }
            Answer::Error(error) => {
                classify::http(&reply.head, Some(error), SystemTime::now(), &self.label)
            }
            Answer::Nothing | Answer::Result(_) => {
                classify::http(&reply.head, None, SystemTime::now(), &self.label)
            }
        }
    }
}

fn not_the_jobs_fault(mut failure: Failure) -> Failure {
    if failure.class == FailureClass::Permanent {
        failure.class = FailureClass::Unavailable;
    }
    failure
}

/// Tells a legacy server that nobody waits for the answer any more: closing the stream does not say
/// so there.
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
        // Without a runtime there is no way to say it, and the process is ending anyway.
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            let (transport, url, headers) =
                (self.transport.clone(), self.url.clone(), self.headers.clone());
            let params = json!({"requestId": self.id, "reason": "the caller no longer waits"});
            let body = wire::notification("notifications/cancelled", Some(params));
            runtime.spawn(async move { drop(transport.notify(&url, &headers, body).await) });
        }
    }
}

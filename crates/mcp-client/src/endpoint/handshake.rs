//! The handshake: finding out which era an endpoint speaks, and opening a session in the legacy era.
//!
//! The first request makes the handshake, and the result is kept until the endpoint's behaviour
//! contradicts it. Only one request at a time makes it. Requests that waited share the result, even
//! if it is a failure, so that an endpoint that hangs does not make a thousand calls hang one after
//! another.
//!
//! A failed handshake is never the fault of a job, of which nothing has been sent. A failure that
//! would be permanent for a call (such as a wrong path) therefore counts as an unavailable server
//! here, and jobs wait until it is fixed.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use fleet_job::outcome::{ErrorKind, Failure, FailureClass, JobError};
use fleet_wire::revision;
use http::{HeaderMap, HeaderValue};
use serde_json::{Map, Value, json};

use super::{Dialect, Endpoint, HANDSHAKE_ID, Session};
use crate::{
    body::Sent,
    classify::{self, Broken},
    config::Era,
    transport::{Answer, Post, Reply, Transport},
    wire::{self, Request},
};

/// How long to wait for the answer to `server/discover` before `initialize` is tried; at most a
/// third of the time limit for the handshake.
const DISCOVER_PATIENCE: Duration = Duration::from_secs(10);

/// The outcome of `server/discover`.
enum Discovered {
    Modern,
    /// The endpoint answered, but not as a modern server does.
    NotModern(Failure),
    /// The era cannot be determined at present.
    Failed(Failure),
}

impl Endpoint {
    /// Makes the handshake, unless another request has made it in the meantime.
    pub(super) async fn make_handshake(
        &self,
        transport: &Transport,
        sent: &Sent,
    ) -> Result<Dialect, Failure> {
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

        let asked =
            tokio::time::timeout(self.handshake_timeout, self.find_dialect(transport, sent)).await;
        let result = asked.unwrap_or_else(|_| {
            let broken = if sent.get() {
                Broken::TimedOut(self.handshake_timeout)
            } else {
                Broken::NotSent(format!(
                    "no connection within {} ms",
                    self.handshake_timeout.as_millis()
                ))
            };
            Err(classify::classify_broken(&broken, &self.label))
        });

        let result = result.map_err(not_the_jobs_fault);

        let mut known = self.lock();
        known.rounds += 1;
        known.dialect = result.as_ref().ok().cloned();
        known.failure = result.as_ref().err().cloned();
        result
    }

    /// Makes the handshake: finds out the era, and opens a session in the legacy era.
    async fn find_dialect(&self, transport: &Transport, sent: &Sent) -> Result<Dialect, Failure> {
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
                "{message} (in the legacy handshake, tried because: {})",
                not_modern.error.message
            );
            failure
        })
    }

    /// Asks the endpoint whether it speaks the modern era.
    async fn discover(&self, transport: &Transport, sent: &Sent) -> Discovered {
        let request = Request::new("server/discover", Map::new());
        let exchange =
            self.exchange(transport, &Dialect::Modern, &request, HANDSHAKE_ID, None, sent);
        let patience = DISCOVER_PATIENCE.min(self.handshake_timeout / 3);

        let reply = match tokio::time::timeout(patience, exchange).await {
            // Some older servers do not answer methods that they do not know.
            Err(_) if sent.get() => {
                return Discovered::NotModern(classify::classify_broken(
                    &Broken::TimedOut(patience),
                    &self.label,
                ));
            }
            Err(_) => {
                let why = format!("no connection within {} ms", patience.as_millis());
                return Discovered::Failed(classify::classify_broken(
                    &Broken::NotSent(why),
                    &self.label,
                ));
            }
            Ok(reply) => reply,
        };

        let reply = match reply {
            Ok(reply) => reply,
            Err(broken @ (Broken::NotSent(_) | Broken::Lost(_) | Broken::TimedOut(_))) => {
                return Discovered::Failed(classify::classify_broken(&broken, &self.label));
            }
            Err(broken) => {
                return Discovered::NotModern(classify::classify_broken(&broken, &self.label));
            }
        };

        let speaks_modern = |versions: Option<&Value>| {
            let mut versions = versions.and_then(Value::as_array).into_iter().flatten();
            versions.any(|version| version == wire::MODERN)
        };
        if let Answer::Result(result) = &reply.answer {
            return if speaks_modern(result.get("supportedVersions")) {
                Discovered::Modern
            } else {
                let message = format!("{} does not support revision {}", self.label, wire::MODERN);
                Discovered::NotModern(Failure::permanent(JobError::new(
                    ErrorKind::Protocol,
                    message,
                )))
            };
        }
        // Whatever was wrong with the request, the server says that it supports our revision.
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
            // Busy, broken, redirecting or refusing: this says nothing about the era.
            (300..=399 | 401 | 403 | 407 | 408 | 421 | 425 | 429 | 502..=504, _)
            // Only a modern server knows these codes.
            | (_, Some(wire::HEADER_MISMATCH | wire::MISSING_CAPABILITY)) => Discovered::Failed(failure),
            _ => Discovered::NotModern(failure),
        }
    }

    /// Makes the legacy handshake, a second time if the server lists another known revision.
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

    /// Sends `initialize` for this revision.
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
        transport.post(post).await.map_err(|broken| classify::classify_broken(&broken, &self.label))
    }

    /// Accepts the result of `initialize` and opens the session.
    async fn begin_session(&self, transport: &Transport, reply: Reply) -> Result<Dialect, Failure> {
        let Answer::Result(result) = &reply.answer else { return Err(self.failure(&reply)) };
        let version = result.get("protocolVersion").and_then(Value::as_str).unwrap_or_default();
        let Some(version) = revision::LEGACY.into_iter().find(|known| *known == version) else {
            let message = format!(
                "{} speaks revision {:?}, which this client does not support",
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
        let head = head.map_err(|broken| classify::classify_broken(&broken, &self.label))?;
        if !(200..300).contains(&head.status) {
            return Err(classify::classify_http(&head, None, SystemTime::now(), &self.label));
        }

        session.lease = self.lock().keeper.issue();
        Ok(Dialect::Legacy(Arc::new(session)))
    }
}

/// Turns a permanent failure into an unavailable server.
fn not_the_jobs_fault(mut failure: Failure) -> Failure {
    if failure.class == FailureClass::Permanent {
        failure.class = FailureClass::Unavailable;
    }
    failure
}

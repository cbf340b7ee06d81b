//! The client: choosing endpoints, one deadline for everything, and what may be sent again.
//!
//! A request is sent to another endpoint, or to the same one again, only if the first try cannot
//! have been carried out: it was never sent, or it was refused before any tool was involved
//! (credentials, a forgotten session, a revision, a missing header). All other repeats are left to
//! the worker, because they cost the job an attempt.

mod annotations;
mod pages;

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use fleet_job::outcome::{ErrorKind, Failure, FailureClass, JobError, Outcome, WaitReason};
use parking_lot::{Mutex, MutexGuard};
use serde_json::{Map, Value};

use self::{
    annotations::Annotations,
    pages::{MAX_PAGES, Next, Pages, warn_of_circle},
};
use crate::{
    balance::Balancer,
    body::Sent,
    classify::{self, Broken},
    config::{ClientConfig, ConfigError, Era, Secret},
    endpoint::{Dialect, Endpoint},
    transport::{Answer, Transport},
    wire::{self, Input, News, Request},
};

/// One call of a tool.
#[derive(Debug, Clone, Default)]
pub struct ToolCall {
    /// The name of the tool.
    pub name: String,
    /// The arguments of the call.
    pub arguments: Map<String, Value>,
    /// Keys for `_meta`: job id, attempt, idempotency key, trace context. The protocol's own keys
    /// cannot be set.
    pub meta: Map<String, Value>,
    /// The time limit for the call, including connecting; `None` means the client's default.
    pub timeout: Option<Duration>,
    /// Where to report the tool's progress. Nobody waits for it to be read: newer progress replaces
    /// it.
    pub progress: Option<News>,
    /// What the tool may ask the caller for, and the answers so far; `None` if nobody can be asked.
    pub input: Option<Input>,
}

impl ToolCall {
    /// Creates a call of the tool `name` with these arguments.
    pub fn new(name: impl Into<String>, arguments: Map<String, Value>) -> Self {
        Self { name: name.into(), arguments, ..Self::default() }
    }
}

/// A client for MCP servers. It is cheap to clone; clones share connections, sessions and what is
/// known of the endpoints.
#[derive(Clone)]
pub struct McpClient(Arc<Inner>);

struct Inner {
    config: ClientConfig,
    transport: Transport,
    endpoints: Vec<Endpoint>,
    balancer: Mutex<Balancer>,
    annotations: Annotations,
    next_id: AtomicU64,
}

/// The progress of a request through the endpoints, for use when the deadline strikes.
#[derive(Default)]
struct Track {
    sent: Sent,
    endpoint: AtomicUsize,
}

/// Why an endpoint gave no result.
struct Refusal {
    failure: Failure,
    /// Whether another endpoint may be tried, since this one cannot have started on the request.
    untouched: bool,
}

impl Refusal {
    fn untouched(failure: Failure) -> Self {
        Self { failure, untouched: true }
    }
}

/// A request that counts as in flight at an endpoint until this is dropped.
struct Seat<'a> {
    inner: &'a Inner,
    index: usize,
}

impl Drop for Seat<'_> {
    fn drop(&mut self) {
        self.inner.balancer().release(self.index);
    }
}

impl fmt::Debug for McpClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("McpClient").field("config", &self.0.config).finish_non_exhaustive()
    }
}

impl McpClient {
    /// Creates a client for these endpoints. It connects to them when they are first used.
    ///
    /// # Errors
    ///
    /// Returns an error if there is no endpoint, a header is not allowed, or TLS cannot be set up.
    pub fn new(config: ClientConfig) -> Result<Self, ConfigError> {
        if config.endpoints.is_empty() {
            return Err(ConfigError::NoEndpoint);
        }
        let endpoint =
            |url: &url::Url| Endpoint::new(url.clone(), config.era, config.handshake_timeout);
        let endpoints: Vec<Endpoint> = config.endpoints.iter().map(endpoint).collect();
        Ok(Self(Arc::new(Inner {
            transport: Transport::new(&config)?,
            balancer: Mutex::new(Balancer::new(endpoints.len(), rand::random())),
            endpoints,
            config,
            annotations: Annotations::default(),
            next_id: AtomicU64::new(1),
        })))
    }

    /// Uses another bearer token, or none, from the next request on, in all clones of this client.
    ///
    /// # Errors
    ///
    /// Returns an error if HTTP does not allow the token in a header; the one before stays in use.
    pub fn replace_bearer_token(&self, token: Option<Secret>) -> Result<(), ConfigError> {
        self.0.transport.replace_token(token.as_ref())
    }

    /// Calls a tool and returns the outcome, which includes every failure.
    ///
    /// Dropping the future cancels the call.
    pub async fn call_tool(&self, call: ToolCall) -> Outcome {
        let ToolCall { name, arguments, meta, timeout, progress, input } = call;

        let mut params = Map::new();
        params.insert("name".to_owned(), name.into());
        params.insert("arguments".to_owned(), arguments.into());

        let mut request = Request::new("tools/call", params);
        request.meta = meta;
        request.wants_progress = progress.is_some();

        let may_ask = input.is_some();
        request.input = input;

        let limit = timeout.unwrap_or(self.0.config.default_timeout);

        match self.0.send_within(limit, &mut request, progress.as_ref()).await {
            Ok((result, endpoint)) => classify::classify_result(result, may_ask, &endpoint.label),
            Err(failure) => Outcome::Failed(failure),
        }
    }

    /// Checks that at least one endpoint is able to answer.
    ///
    /// # Errors
    ///
    /// Returns what is wrong with the endpoints.
    pub async fn probe(&self) -> Result<(), Failure> {
        let mut tried = Vec::new();
        let mut failures = Vec::new();
        while let Some(seat) = self.0.take_seat(&tried) {
            tried.push(seat.index);
            match self.0.probe(&self.0.endpoints[seat.index]).await {
                Ok(()) => {
                    self.0.balancer().answered(seat.index);
                    return Ok(());
                }
                Err(failure) => {
                    self.0.balancer().put_aside(seat.index, Instant::now(), failure.retry_after);
                    failures.push(failure);
                }
            }
        }
        Err(merge_failures(failures))
    }

    /// Lists all tools of the server that can be called over HTTP, with the server's descriptions.
    ///
    /// # Errors
    ///
    /// Returns an error if a page cannot be fetched, or if there are always more tools.
    pub async fn list_tools(&self) -> Result<Vec<Value>, Failure> {
        let mut tools = Vec::new();
        let mut pages = Pages::default();

        for _ in 0..MAX_PAGES {
            let mut request = Request::new("tools/list", pages.params());
            let limit = self.0.config.default_timeout;
            let (page, endpoint) = self.0.send_within(limit, &mut request, None).await?;
            match pages.add_page(page, &mut tools) {
                Next::Page => continue,
                Next::End => {}
                Next::Circle => warn_of_circle(&endpoint.label),
            }
            tools.retain(|tool| self.0.annotations.remember(tool).is_some());
            return Ok(tools);
        }

        let message = format!("the list of tools did not end after {MAX_PAGES} pages");
        Err(Failure::permanent(JobError::new(ErrorKind::Protocol, message)))
    }

    /// Ends the sessions that legacy servers keep for this client. Later calls open new ones.
    pub async fn close(&self) {
        for endpoint in &self.0.endpoints {
            endpoint.close(&self.0.transport).await;
        }
    }
}

impl Inner {
    fn balancer(&self) -> MutexGuard<'_, Balancer> {
        self.balancer.lock()
    }

    fn take_seat(&self, tried: &[usize]) -> Option<Seat<'_>> {
        let index = self.balancer().pick(Instant::now(), tried)?;
        Some(Seat { inner: self, index })
    }

    /// Sends the request within a deadline.
    async fn send_within(
        &self,
        limit: Duration,
        request: &mut Request,
        progress: Option<&News>,
    ) -> Result<(Value, &Endpoint), Failure> {
        let track = Track::default();

        let Ok(result) = tokio::time::timeout(limit, self.send(request, progress, &track)).await
        else {
            let index = track.endpoint.load(Ordering::Relaxed);
            let broken = if track.sent.get() {
                Broken::TimedOut(limit)
            } else {
                self.balancer().put_aside(index, Instant::now(), None);
                Broken::NotSent(format!("no connection within {} ms", limit.as_millis()))
            };
            return Err(classify::classify_broken(&broken, &self.endpoints[index].label));
        };
        result
    }

    /// Sends the request to one endpoint after another until one accepts it.
    async fn send(
        &self,
        request: &mut Request,
        progress: Option<&News>,
        track: &Track,
    ) -> Result<(Value, &Endpoint), Failure> {
        let mut tried = Vec::new();
        let mut failures = Vec::new();
        while let Some(seat) = self.take_seat(&tried) {
            tried.push(seat.index);
            track.endpoint.store(seat.index, Ordering::Relaxed);
            let endpoint = &self.endpoints[seat.index];

            let Refusal { failure, untouched } =
                match self.ask(endpoint, request, progress, &track.sent).await {
                    Ok(result) => {
                        self.balancer().answered(seat.index);
                        return Ok((result, endpoint));
                    }
                    Err(refusal) => refusal,
                };

            if is_away(&failure) || is_busy(&failure) {
                tracing::debug!(endpoint = endpoint.label, error = %failure.error, "set an endpoint aside");
                self.balancer().put_aside(seat.index, Instant::now(), failure.retry_after);
            } else {
                self.balancer().answered(seat.index);
            }

            if !untouched {
                return Err(failure);
            }
            failures.push(failure);
        }
        Err(merge_failures(failures))
    }

    /// Sends the request to one endpoint. It is sent again only after a refusal that a new session,
    /// era or header can lift, and once for each of these. Rare steps are boxed, so that thousands
    /// of calls in flight do not reserve memory for them.
    async fn ask(
        &self,
        endpoint: &Endpoint,
        request: &mut Request,
        progress: Option<&News>,
        sent: &Sent,
    ) -> Result<Value, Refusal> {
        let mut resent = false;
        let mut may_ask_again = true;
        let mut may_annotate = request.method == "tools/call";

        loop {
            sent.reset();
            let dialect =
                endpoint.dialect(&self.transport, sent).await.map_err(Refusal::untouched)?;
            sent.reset();
            self.annotations.apply(request);

            let id = self.next_id.fetch_add(1, Ordering::Relaxed);
            let reply =
                endpoint.exchange(&self.transport, &dialect, request, id, progress, sent).await;
            let reply = match reply {
                Ok(reply) => reply,
                Err(broken) => {
                    let failure = classify::classify_broken(&broken, &endpoint.label);
                    if matches!(broken, Broken::ContentType(_)) {
                        Box::pin(self.check_presence(endpoint, &dialect)).await?;
                    }
                    return Err(Refusal {
                        failure,
                        untouched: matches!(broken, Broken::NotSent(_)),
                    });
                }
            };

            let code = match &reply.answer {
                Answer::Result(_) => None,
                Answer::Error(error) => Some(error.code),
                Answer::Nothing => None,
            };

            if let Answer::Result(result) = reply.answer {
                return Ok(result);
            }

            let renewal =
                Box::pin(endpoint.renews_session(&self.transport, &dialect, &reply, resent)).await;
            if renewal.map_err(Refusal::untouched)? {
                resent = true;
                continue;
            }

            let unspoken = code == Some(wire::UNSUPPORTED_VERSION) && self.config.era == Era::Auto;
            if unspoken && std::mem::take(&mut may_ask_again) {
                endpoint.forget(&dialect);
                continue;
            }

            if code == Some(wire::HEADER_MISMATCH)
                && std::mem::take(&mut may_annotate)
                && Box::pin(self.learn_annotations(endpoint, &dialect, request, sent)).await
            {
                continue;
            }

            let failure = endpoint.failure(&reply);
            if matches!((reply.head.status, &reply.answer), (404 | 405, Answer::Nothing)) {
                Box::pin(self.check_presence(endpoint, &dialect)).await?;
            }
            let untouched = may_be_taken_elsewhere(&failure);
            return Err(Refusal { failure, untouched });
        }
    }

    /// Asks the endpoint for its era again after an answer that no MCP server gives. Behind a proxy
    /// whose route is gone, every call looks like a permanent failure, but it is the server that is
    /// missing.
    async fn check_presence(&self, endpoint: &Endpoint, dialect: &Dialect) -> Result<(), Refusal> {
        endpoint.forget(dialect);
        match endpoint.dialect(&self.transport, &Sent::default()).await {
            Err(failure) if failure.class == FailureClass::Unavailable => {
                Err(Refusal::untouched(failure))
            }
            Ok(_) | Err(_) => Ok(()),
        }
    }

    /// Checks that an endpoint is able to answer.
    async fn probe(&self, endpoint: &Endpoint) -> Result<(), Failure> {
        let sent = Sent::default();
        let limit = self.config.handshake_timeout;
        let Some(dialect) = endpoint.known() else {
            return endpoint.dialect(&self.transport, &sent).await.map(drop);
        };

        let method = match dialect {
            Dialect::Modern => "server/discover",
            Dialect::Legacy(_) => "ping",
        };
        let mut request = Request::new(method, Map::new());

        match tokio::time::timeout(limit, self.ask(endpoint, &mut request, None, &sent)).await {
            Ok(Ok(_)) => Ok(()),
            // A server that answers "unknown method" is available.
            Ok(Err(refusal))
                if refusal.failure.error.kind == ErrorKind::JsonRpc && !refusal.untouched =>
            {
                Ok(())
            }
            Ok(Err(refusal)) => Err(refusal.failure),
            Err(_) if sent.get() => {
                Err(classify::classify_broken(&Broken::TimedOut(limit), &endpoint.label))
            }
            Err(_) => Err(classify::classify_broken(
                &Broken::NotSent(format!("no connection within {} ms", limit.as_millis())),
                &endpoint.label,
            )),
        }
    }
}

/// Returns whether the endpoint cannot be used.
fn is_away(failure: &Failure) -> bool {
    failure.class == FailureClass::Unavailable
}

/// Returns whether the endpoint asked for a delay.
fn is_busy(failure: &Failure) -> bool {
    match failure.class {
        FailureClass::Retry => {
            failure.retry_after.is_some() || matches!(failure.error.code, Some(429 | 502..=504))
        }
        // A reason that concerns a server behind the endpoint, or a rate limit, is no reason to
        // avoid the endpoint.
        FailureClass::Held(_) => !classify::gives_reason(&failure.error),
        FailureClass::Unavailable | FailureClass::Permanent => false,
    }
}

/// Returns whether the call was refused before anything was done for it, so that another endpoint
/// may accept it: this endpoint is unavailable or full, or a server that it hosts is unavailable
/// there.
fn may_be_taken_elsewhere(failure: &Failure) -> bool {
    is_away(failure)
        || failure.class == FailureClass::Held(WaitReason::ServerUnavailable)
        || (matches!(failure.class, FailureClass::Held(_)) && is_busy(failure))
}

/// Combines the failures of all endpoints. The server counts as unavailable only if all endpoints
/// are.
fn merge_failures(failures: Vec<Failure>) -> Failure {
    let others: Vec<String> =
        failures.iter().map(|failure| failure.error.message.clone()).collect();
    let chosen = failures.into_iter().reduce(|a, b| match (a.class, b.class) {
        (FailureClass::Unavailable, class) if class != FailureClass::Unavailable => b,
        _ => a,
    });

    let Some(mut failure) = chosen else {
        // There is at least one endpoint, so at least one was tried.
        return Failure::unavailable(JobError::new(ErrorKind::Connect, "no endpoint was tried"));
    };

    if others.len() > 1 {
        failure.error.message = classify::quote(&format!(
            "none of {} endpoints accepted the request: {}",
            others.len(),
            others.join("; ")
        ));
    }

    failure
}

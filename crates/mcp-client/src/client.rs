//! The client: endpoints in turn, one deadline over everything, and what may be sent a second time.
//!
//! A request goes to another endpoint, or to the same one again, only where the first can't have
//! been carried out: it was never sent, or was refused before any tool was looked at (credentials,
//! a forgotten session, a revision, a missing header). Everything else is the worker's to repeat,
//! because it costs the job an attempt.

use std::{
    collections::HashMap,
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

use crate::{
    balance::Balancer,
    body::Sent,
    classify::{self, Broken},
    config::{ClientConfig, ConfigError, Era},
    endpoint::{Dialect, Endpoint},
    params::{self, ParamHeader},
    transport::{Answer, Transport},
    wire::{self, Input, News, Request},
};

/// The most pages of tools that are read; more is a server that goes in circles.
const MAX_PAGES: usize = 1000;

/// How many tools' header annotations are remembered before all are forgotten.
const MAX_ANNOTATED: usize = 256;

/// One call of a tool.
#[derive(Debug, Clone, Default)]
pub struct ToolCall {
    /// The tool's name.
    pub name: String,
    /// Its arguments.
    pub arguments: Map<String, Value>,
    /// Keys for `_meta`: job id, attempt, idempotency key, trace context. The protocol's own keys
    /// can't be set.
    pub meta: Map<String, Value>,
    /// How long the call may take, connecting included; the client's default if not given.
    pub timeout: Option<Duration>,
    /// Where to put news of the tool's progress. Nobody waits for it to be read: newer news
    /// replaces it.
    pub progress: Option<News>,
    /// What the tool may ask for, where there is somebody to answer, and what was answered.
    pub input: Option<Input>,
}

impl ToolCall {
    /// A call of the tool `name` with these arguments.
    pub fn new(name: impl Into<String>, arguments: Map<String, Value>) -> Self {
        Self { name: name.into(), arguments, ..Self::default() }
    }
}

/// Calls MCP servers. Cheap to clone; clones share connections, sessions and what is known of the
/// endpoints.
#[derive(Clone)]
pub struct McpClient(Arc<Inner>);

struct Inner {
    config: ClientConfig,
    transport: Transport,
    endpoints: Vec<Endpoint>,
    balancer: Mutex<Balancer>,
    annotated: Mutex<HashMap<String, Arc<Vec<ParamHeader>>>>,
    next_id: AtomicU64,
}

/// Where a request stands, for the deadline that may strike at any time.
#[derive(Default)]
struct Track {
    sent: Sent,
    endpoint: AtomicUsize,
}

/// Why an endpoint gave no result.
struct Refusal {
    failure: Failure,
    /// Whether another endpoint may be asked: this one can't have begun to carry the request out.
    untouched: bool,
}

impl Refusal {
    fn untouched(failure: Failure) -> Self {
        Self { failure, untouched: true }
    }
}

/// A request's place at an endpoint.
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
    /// A client for these endpoints. Connects to nothing yet.
    ///
    /// # Errors
    ///
    /// If there is no endpoint, a header is not allowed, or TLS can't be set up.
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
            annotated: Mutex::default(),
            next_id: AtomicU64::new(1),
        })))
    }

    /// Calls a tool and says what it came to. Never fails otherwise: every failure is an outcome.
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
        match self.0.within(limit, &mut request, progress.as_ref()).await {
            Ok((result, endpoint)) => classify::tool_result(result, may_ask, &endpoint.label),
            Err(failure) => Outcome::Failed(failure),
        }
    }

    /// Whether any endpoint is able to answer.
    ///
    /// # Errors
    ///
    /// What keeps them from it.
    pub async fn probe(&self) -> Result<(), Failure> {
        let mut tried = Vec::new();
        let mut failures = Vec::new();
        while let Some(seat) = self.0.seat(&tried) {
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
        Err(merge(failures))
    }

    /// All tools that the server offers and that can be called over HTTP, as it describes them.
    ///
    /// # Errors
    ///
    /// If a page could not be had, or the server's pages go in circles.
    pub async fn list_tools(&self) -> Result<Vec<Value>, Failure> {
        let mut tools = Vec::new();
        let mut cursor: Option<Value> = None;
        for _ in 0..MAX_PAGES {
            let mut request = Request::new("tools/list", cursor_params(cursor.as_ref()));
            let limit = self.0.config.default_timeout;
            let (page, _) = self.0.within(limit, &mut request, None).await?;
            let next = add_page(page, &mut tools);
            if next.is_none() || next == cursor {
                tools.retain(|tool| self.0.remember_annotations(tool).is_some());
                return Ok(tools);
            }
            cursor = next;
        }
        let message = format!("the list of tools did not end after {MAX_PAGES} pages");
        Err(Failure::permanent(JobError::new(ErrorKind::Protocol, message)))
    }

    /// Gives back the sessions that legacy servers keep for this client. Calls made later open new
    /// ones.
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

    fn annotated(&self) -> MutexGuard<'_, HashMap<String, Arc<Vec<ParamHeader>>>> {
        self.annotated.lock()
    }

    fn seat(&self, tried: &[usize]) -> Option<Seat<'_>> {
        let index = self.balancer().pick(Instant::now(), tried)?;
        Some(Seat { inner: self, index })
    }

    /// Sends the request under one deadline.
    async fn within(
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
            return Err(classify::broken(&broken, &self.endpoints[index].label));
        };
        result
    }

    /// Sends the request to one endpoint after another until one takes it.
    async fn send(
        &self,
        request: &mut Request,
        progress: Option<&News>,
        track: &Track,
    ) -> Result<(Value, &Endpoint), Failure> {
        let mut tried = Vec::new();
        let mut failures = Vec::new();
        while let Some(seat) = self.seat(&tried) {
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
                tracing::debug!(endpoint = endpoint.label, error = %failure.error, "endpoint put aside");
                self.balancer().put_aside(seat.index, Instant::now(), failure.retry_after);
            } else {
                self.balancer().answered(seat.index);
            }
            if !untouched {
                return Err(failure);
            }
            failures.push(failure);
        }
        Err(merge(failures))
    }

    /// Sends the request to one endpoint. It is sent again only after a refusal that a new session,
    /// era or header can lift, and once for each. What is rare is boxed, so that thousands of calls
    /// in flight do not hold room for it.
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
            self.annotate(request);
            let id = self.next_id.fetch_add(1, Ordering::Relaxed);
            let reply =
                endpoint.exchange(&self.transport, &dialect, request, id, progress, sent).await;
            let reply = match reply {
                Ok(reply) => reply,
                Err(broken) => {
                    let failure = classify::broken(&broken, &endpoint.label);
                    if matches!(broken, Broken::ContentType(_)) {
                        Box::pin(self.still_there(endpoint, &dialect)).await?;
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
                Box::pin(self.still_there(endpoint, &dialect)).await?;
            }
            let untouched = may_be_taken_elsewhere(&failure);
            return Err(Refusal { failure, untouched });
        }
    }

    /// Asks again what the endpoint speaks, after an answer that no MCP server gives. Behind a
    /// proxy whose route has gone every call looks like a permanent failure; then it is the server
    /// that is missing.
    async fn still_there(&self, endpoint: &Endpoint, dialect: &Dialect) -> Result<(), Refusal> {
        endpoint.forget(dialect);
        match endpoint.dialect(&self.transport, &Sent::default()).await {
            Err(failure) if failure.class == FailureClass::Unavailable => {
                Err(Refusal::untouched(failure))
            }
            Ok(_) | Err(_) => Ok(()),
        }
    }

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
            // A server that says "unknown method" is there.
            Ok(Err(refusal))
                if refusal.failure.error.kind == ErrorKind::JsonRpc && !refusal.untouched =>
            {
                Ok(())
            }
            Ok(Err(refusal)) => Err(refusal.failure),
            Err(_) if sent.get() => {
                Err(classify::broken(&Broken::TimedOut(limit), &endpoint.label))
            }
            Err(_) => Err(classify::broken(
                &Broken::NotSent(format!("no connection within {} ms", limit.as_millis())),
                &endpoint.label,
            )),
        }
    }

    /// Gives the request the headers that its tool is known to want.
    fn annotate(&self, request: &mut Request) {
        let Some(name) = request.params.get("name").and_then(Value::as_str) else { return };
        let Some(annotations) = self.annotated().get(name).cloned() else { return };
        if let Some(arguments) = request.params.get("arguments").and_then(Value::as_object) {
            request.param_headers = params::headers(&annotations, arguments);
        }
    }

    /// Notes which headers a tool wants; whether there are any, and `None` where it wants what
    /// can't be done.
    fn remember_annotations(&self, tool: &Value) -> Option<bool> {
        let name = tool.get("name").and_then(Value::as_str)?;
        let found = match params::annotations(tool.get("inputSchema").unwrap_or(&Value::Null)) {
            Ok(found) => found,
            Err(error) => {
                tracing::warn!(tool = name, %error, "the tool can't be called");
                return None;
            }
        };
        let any = !found.is_empty();
        let mut annotated = self.annotated();
        if any {
            if annotated.len() >= MAX_ANNOTATED {
                annotated.clear();
            }
            annotated.insert(name.to_owned(), Arc::new(found));
        } else {
            annotated.remove(name);
        }
        Some(any)
    }

    /// Looks up which headers the request's tool wants; whether there are any.
    async fn learn_annotations(
        &self,
        endpoint: &Endpoint,
        dialect: &Dialect,
        request: &Request,
        sent: &Sent,
    ) -> bool {
        let Some(name) = request.params.get("name").and_then(Value::as_str) else { return false };
        let mut cursor = None;
        for _ in 0..MAX_PAGES {
            let list = Request::new("tools/list", cursor_params(cursor.as_ref()));
            let id = self.next_id.fetch_add(1, Ordering::Relaxed);
            let reply = endpoint.exchange(&self.transport, dialect, &list, id, None, sent).await;
            let Ok(Answer::Result(page)) = reply.map(|reply| reply.answer) else { return false };
            let mut tools = Vec::new();
            let next = add_page(page, &mut tools);
            if let Some(tool) =
                tools.iter().find(|tool| tool.get("name").and_then(Value::as_str) == Some(name))
            {
                return self.remember_annotations(tool).unwrap_or_default();
            }
            if next.is_none() || next == cursor {
                return false;
            }
            cursor = next;
        }
        false
    }
}

fn cursor_params(cursor: Option<&Value>) -> Map<String, Value> {
    cursor.map(|cursor| ("cursor".to_owned(), cursor.clone())).into_iter().collect()
}

/// Takes the tools of a page and returns the cursor of the next.
fn add_page(mut page: Value, tools: &mut Vec<Value>) -> Option<Value> {
    if let Some(found) = page.get_mut("tools").and_then(Value::as_array_mut) {
        tools.append(found);
    }
    page.get("nextCursor").filter(|cursor| cursor.is_string()).cloned()
}

/// Whether the endpoint can't be used.
fn is_away(failure: &Failure) -> bool {
    failure.class == FailureClass::Unavailable
}

/// Whether the endpoint asked for time.
fn is_busy(failure: &Failure) -> bool {
    match failure.class {
        FailureClass::Retry => {
            failure.retry_after.is_some() || matches!(failure.error.code, Some(429 | 502..=504))
        }
        // What an endpoint says of a server behind it, or of an allowance, is no reason to leave
        // the endpoint alone.
        FailureClass::Held(_) => !classify::gives_reason(&failure.error),
        FailureClass::Unavailable | FailureClass::Permanent => false,
    }
}

/// Whether the call was turned away before anything was done for it, and another endpoint may take
/// it: this one is away or full, or what it hosts is away there.
fn may_be_taken_elsewhere(failure: &Failure) -> bool {
    is_away(failure)
        || failure.class == FailureClass::Held(WaitReason::ServerUnavailable)
        || (matches!(failure.class, FailureClass::Held(_)) && is_busy(failure))
}

/// One failure for what all endpoints said. The server counts as unavailable only if each of them
/// is.
fn merge(failures: Vec<Failure>) -> Failure {
    let others: Vec<String> =
        failures.iter().map(|failure| failure.error.message.clone()).collect();
    let chosen = failures.into_iter().reduce(|a, b| match (a.class, b.class) {
        (FailureClass::Unavailable, class) if class != FailureClass::Unavailable => b,
        _ => a,
    });
    let Some(mut failure) = chosen else {
        // The list of endpoints is not empty, so there is always one that was tried.
        return Failure::unavailable(JobError::new(ErrorKind::Connect, "no endpoint was tried"));
    };
    if others.len() > 1 {
        failure.error.message = classify::quote(&format!(
            "none of {} endpoints took the request: {}",
            others.len(),
            others.join("; ")
        ));
    }
    failure
}

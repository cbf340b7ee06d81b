//! Connections to remote servers that know only the transport of 2024: a stream for what they say, and an endpoint,
//! which its first event names, to post to.
//!
//! The endpoint is the server's own word for where our messages and credentials go, so it must be of the origin that
//! policy was asked about.

use std::{sync::Arc, time::Duration};

use futures::StreamExt;
use reqwest::{Client, StatusCode, header};
use rmcp::{
    RoleClient,
    service::{RxJsonRpcMessage, TxJsonRpcMessage},
    transport::Transport,
};
use tokio::sync::{mpsc, watch};
use tokio_util::{
    sync::{CancellationToken, DropGuard},
    task::AbortOnDropHandle,
};
use url::Url;

use super::{launch::RemoteSpec, stdout::MAX_LINE};

/// How many messages wait for us before the server has to.
const QUEUE: usize = 64;
/// How long a server may take to say that it has a message.
const POST_TIME: Duration = Duration::from_secs(60);
/// How much of the answer to a post is read, so that its connection can be used again. It says nothing.
const MAX_POST_ANSWER: usize = 64 * 1024;

/// The transport to a remote server.
pub struct SseTransport {
    client: Client,
    spec: RemoteSpec,
    endpoint: watch::Receiver<Endpoint>,
    incoming: mpsc::Receiver<RxJsonRpcMessage<RoleClient>>,
    closed: CancellationToken,
    _close: DropGuard,
    _reader: AbortOnDropHandle<()>,
}

/// What is known about where to post.
#[derive(Clone)]
enum Endpoint {
    Unknown,
    Known(Url),
    Gone(Arc<SseError>),
}

/// Why a message can't be sent.
#[derive(Debug, thiserror::Error)]
pub enum SseError {
    /// The server can't be reached.
    #[error("the stream could not be opened")]
    Open(#[source] reqwest::Error),
    /// A message could not be posted.
    #[error("a message could not be posted")]
    Post(#[source] reqwest::Error),
    /// The server has refused.
    #[error("the server answered {what} with HTTP status {status}")]
    Status {
        /// What was asked.
        what: &'static str,
        /// Its answer.
        status: StatusCode,
    },
    /// What was opened is no stream of events.
    #[error("the server's answer is no event stream")]
    NoStream,
    /// The stream broke off.
    #[error("the stream broke off")]
    Broken(#[source] reqwest::Error),
    /// An event never ended.
    #[error("the server sent an event of more than {MAX_LINE} bytes")]
    TooLarge,
    /// The stream has ended.
    #[error("the stream has ended")]
    Ended,
    /// The endpoint is elsewhere.
    #[error("the endpoint that the server names is not of its own origin")]
    ForeignEndpoint,
    /// The stream is gone, for a reason that came up before.
    #[error(transparent)]
    Gone(Arc<SseError>),
}

impl SseTransport {
    /// A transport over a client that obeys policy. The stream is opened at once, and nothing is waited for.
    pub fn new(spec: &RemoteSpec, client: Client) -> Self {
        let (found, endpoint) = watch::channel(Endpoint::Unknown);
        let (queue, incoming) = mpsc::channel(QUEUE);
        let reading = (spec.clone(), client.clone());
        let reader = tokio::spawn(async move {
            let (spec, client) = reading;
            let error = match read(&spec, &client, &found, &queue).await {
                Ok(()) => SseError::Ended,
                Err(error) => error,
            };
            found.send_replace(Endpoint::Gone(Arc::new(error)));
        });
        let closed = CancellationToken::new();
        Self {
            client,
            spec: spec.clone(),
            endpoint,
            incoming,
            _close: closed.clone().drop_guard(),
            closed,
            _reader: AbortOnDropHandle::new(reader),
        }
    }
}

impl Transport<RoleClient> for SseTransport {
    type Error = SseError;

    fn send(
        &mut self,
        item: TxJsonRpcMessage<RoleClient>,
    ) -> impl Future<Output = Result<(), SseError>> + Send + 'static {
        let (client, headers, mut endpoint) =
            (self.client.clone(), self.spec.headers.clone(), self.endpoint.clone());
        let closed = self.closed.clone();
        async move {
            let post = async {
                let known = endpoint.wait_for(|endpoint| !matches!(endpoint, Endpoint::Unknown)).await;
                let endpoint = known.map_err(|_| SseError::Ended)?.clone();
                match endpoint {
                    Endpoint::Known(url) => post(&client, url, &headers, &item).await,
                    Endpoint::Gone(error) => Err(SseError::Gone(error)),
                    Endpoint::Unknown => Err(SseError::Ended),
                }
            };
            tokio::select! {
                result = post => result,
                () = closed.cancelled() => Err(SseError::Ended),
            }
        }
    }

    async fn receive(&mut self) -> Option<RxJsonRpcMessage<RoleClient>> {
        self.incoming.recv().await
    }

    async fn close(&mut self) -> Result<(), SseError> {
        self.closed.cancel();
        self.incoming.close();
        Ok(())
    }
}

async fn post(
    client: &Client,
    endpoint: Url,
    headers: &[(http::HeaderName, http::HeaderValue)],
    message: &TxJsonRpcMessage<RoleClient>,
) -> Result<(), SseError> {
    // The URL holds the session, and may hold more.
    let failed = |error: reqwest::Error| SseError::Post(error.without_url());
    let request = client.post(endpoint).headers(headers.iter().cloned().collect()).timeout(POST_TIME);
    let mut response = request.json(message).send().await.map_err(failed)?;
    let status = response.status();
    let mut length = 0;
    while let Ok(Some(chunk)) = response.chunk().await {
        length += chunk.len();
        if length > MAX_POST_ANSWER {
            break;
        }
    }
    if status.is_success() { Ok(()) } else { Err(SseError::Status { what: "a message", status }) }
}

/// Reads the stream to its end.
async fn read(
    spec: &RemoteSpec,
    client: &Client,
    endpoint: &watch::Sender<Endpoint>,
    queue: &mpsc::Sender<RxJsonRpcMessage<RoleClient>>,
) -> Result<(), SseError> {
    let request = client.get(spec.url.clone()).headers(spec.headers.iter().cloned().collect());
    let request =
        request.header(header::ACCEPT, "text/event-stream").header(header::CACHE_CONTROL, "no-store");
    let response = request.send().await.map_err(|error| SseError::Open(error.without_url()))?;
    let status = response.status();
    if !status.is_success() {
        return Err(SseError::Status { what: "the request for a stream", status });
    }
    let kind = response.headers().get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok());
    if !kind.is_some_and(|kind| kind.to_ascii_lowercase().starts_with("text/event-stream")) {
        return Err(SseError::NoStream);
    }
    let mut chunks = response.bytes_stream();
    let mut parser = Parser::new(MAX_LINE);
    while let Some(chunk) = chunks.next().await {
        let chunk = chunk.map_err(|error| SseError::Broken(error.without_url()))?;
        for event in parser.push(&chunk)? {
            match event.name.as_str() {
                "endpoint" if matches!(*endpoint.borrow(), Endpoint::Unknown) => {
                    let url = own_endpoint(&spec.url, &event.data).ok_or(SseError::ForeignEndpoint)?;
                    endpoint.send_replace(Endpoint::Known(url));
                }
                "" | "message" => match serde_json::from_str(&event.data) {
                    Ok(message) => {
                        if queue.send(message).await.is_err() {
                            return Ok(());
                        }
                    }
                    Err(error) => tracing::debug!(%error, "an event is no JSON-RPC message"),
                },
                _ => {}
            }
        }
    }
    Ok(())
}

/// The endpoint that a server names, where it is of the server's own origin.
fn own_endpoint(server: &Url, named: &str) -> Option<Url> {
    let url = server.join(named.trim()).ok()?;
    let plain = url.username().is_empty() && url.password().is_none();
    (plain && url.origin() == server.origin()).then_some(url)
}

/// One event of a stream.
#[derive(Debug, Default, PartialEq, Eq)]
struct Event {
    name: String,
    data: String,
}

/// Takes events out of a stream of bytes, of which it keeps no more than one event may have.
struct Parser {
    limit: usize,
    line: Vec<u8>,
    /// A line ended with a carriage return, so a line feed that comes next belongs to it.
    after_return: bool,
    event: Event,
}

impl Parser {
    fn new(limit: usize) -> Self {
        Self { limit, line: Vec::new(), after_return: false, event: Event::default() }
    }

    /// The events that are whole with these bytes.
    fn push(&mut self, bytes: &[u8]) -> Result<Vec<Event>, SseError> {
        let mut events = Vec::new();
        let mut rest = bytes;
        while !rest.is_empty() {
            if std::mem::take(&mut self.after_return) && rest[0] == b'\n' {
                rest = &rest[1..];
                continue;
            }
            let end = rest.iter().position(|byte| matches!(byte, b'\r' | b'\n'));
            let part = &rest[..end.unwrap_or(rest.len())];
            if self.line.len() + self.event.data.len() + part.len() > self.limit {
                return Err(SseError::TooLarge);
            }
            self.line.extend_from_slice(part);
            let Some(end) = end else { break };
            self.after_return = rest[end] == b'\r';
            rest = &rest[end + 1..];
            let line = std::mem::take(&mut self.line);
            events.extend(self.end_of_line(&line));
        }
        Ok(events)
    }

    fn end_of_line(&mut self, line: &[u8]) -> Option<Event> {
        if line.is_empty() {
            let mut event = std::mem::take(&mut self.event);
            // Every line of data has brought a line feed, of which the last one is too many.
            return event.data.pop().map(|_| event);
        }
        let line = String::from_utf8_lossy(line);
        let line = line.strip_prefix('\u{feff}').unwrap_or(&line);
        let (field, value) = line.split_once(':').unwrap_or((line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match field {
            "event" => value.clone_into(&mut self.event.name),
            "data" => {
                self.event.data.push_str(value);
                self.event.data.push('\n');
            }
            _ => {}
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn event(name: &str, data: &str) -> Event {
        Event { name: name.to_owned(), data: data.to_owned() }
    }

    #[test]
    fn events_are_read_in_every_spelling() {
        let check = |text: &str, expected: &[Event]| {
            assert_eq!(Parser::new(100).push(text.as_bytes()).unwrap(), expected, "{text:?}");
        };
        check("event: endpoint\ndata: /m?s=1\n\n", &[event("endpoint", "/m?s=1")]);
        check(
            "event:a\r\ndata:1\r\n\r\ndata: 2\r\rdata: 3\n\n",
            &[event("a", "1"), event("", "2"), event("", "3")],
        );
        check(": ping\n\nevent: a\n\nid: 1\ndata: x\ndata: y\n\ndata: cut", &[event("", "x\ny")]);
        check("\u{feff}data\n\n", &[event("", "")]);
    }

    #[test]
    fn an_event_without_end_is_an_error() {
        assert!(matches!(Parser::new(100).push(&[b'x'; 101]), Err(SseError::TooLarge)));
        let mut parser = Parser::new(100);
        let result = (0..30).try_for_each(|_| parser.push(b"data: xxxxxxx\n").map(drop));
        assert!(matches!(result, Err(SseError::TooLarge)));
        parser = Parser::new(100);
        (0..1000).for_each(|_| drop(parser.push(b"data: xxxxxxx\n\n").unwrap()));
    }

    #[test]
    fn endpoints_are_of_the_servers_own_origin() {
        let server = Url::parse("https://mcp.example.com/a/sse?key=1").unwrap();
        let check = |named: &str, expected: Option<&str>| {
            assert_eq!(own_endpoint(&server, named).as_ref().map(Url::as_str), expected, "{named}");
        };
        check("/message?sessionId=1", Some("https://mcp.example.com/message?sessionId=1"));
        check("message", Some("https://mcp.example.com/a/message"));
        check("https://mcp.example.com:443/x", Some("https://mcp.example.com/x"));
        for foreign in [
            "//evil.example/x",
            "http://mcp.example.com/x",
            "https://mcp.example.com:8443/x",
            "https://u:p@mcp.example.com/x",
            "file:///etc/passwd",
        ] {
            check(foreign, None);
        }
    }

    proptest! {
        #[test]
        fn it_does_not_matter_how_a_stream_is_cut(text in "(data|event|id)?:? ?[a-z:]{0,3}(\r|\n|\r\n)?(.|\r\n|\n\n){0,20}", at in 0_usize..40) {
            let bytes = text.as_bytes();
            let whole = Parser::new(1000).push(bytes).unwrap();
            let mut parser = Parser::new(1000);
            let (head, tail) = bytes.split_at(at.min(bytes.len()));
            let mut parts = parser.push(head).unwrap();
            parts.extend(parser.push(tail).unwrap());
            prop_assert_eq!(parts, whole);
        }
    }
}

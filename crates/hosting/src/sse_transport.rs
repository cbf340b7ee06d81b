//! The HTTP+SSE transport of 2024, for remotes that have no other: a stream of the server's
//! messages, and an endpoint for ours, which the first event of the stream names.
//!
//! The server chooses the endpoint, to which our messages and credentials go. So it must have the
//! origin that policy has allowed.
//!
//! All answers come on the one stream, so an event may answer any open request, as a line of a
//! child may. They are read by the same code ([`Inbound`]), and an answer that can't be read ends
//! its call.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use fleet_ops::tls::FollowedClient;
use fleet_policy::current::CurrentPolicy;
use fleet_wire::{
    body::{Body, BodyError},
    encoding::DecodeError,
    head::{Media, moved},
    sse::{Decoder, Event, EventTooLarge, MAX_EVENT},
};
use http::HeaderMap;
use reqwest::{Client, RequestBuilder, Response, StatusCode, header};
use rmcp::{
    RoleClient,
    model::{JsonRpcMessage, RequestId},
    service::{RxJsonRpcMessage, TxJsonRpcMessage},
    transport::Transport,
};
use tokio::{
    sync::{mpsc, watch},
    time::Instant,
};
use tokio_util::{
    sync::{CancellationToken, DropGuard},
    task::AbortOnDropHandle,
};
use url::Url;

use super::{
    inbound::Inbound,
    launch::RemoteSpec,
    remote::exchange::discard_body,
    remote_headers::{SentHeaders, ServerHeaders},
    remote_tokens::NoToken,
};

/// How many events may wait before we stop reading the stream.
const QUEUE: usize = 64;
/// How long a server may take to acknowledge a message.
const POST_TIME: Duration = Duration::from_secs(60);

/// The transport to a remote.
pub(crate) struct SseTransport {
    client: FollowedClient,
    headers: ServerHeaders,
    endpoint: watch::Receiver<Endpoint>,
    incoming: mpsc::Receiver<Incoming>,
    /// The requests that could not be posted, so that no event answers them.
    unsent: mpsc::UnboundedReceiver<RequestId>,
    note_unsent: mpsc::UnboundedSender<RequestId>,
    inbound: Inbound,
    /// Messages that were read but not passed on yet.
    ready: VecDeque<RxJsonRpcMessage<RoleClient>>,
    closed: CancellationToken,
    _close: DropGuard,
    _reader: AbortOnDropHandle<()>,
}

/// What comes on the stream.
enum Incoming {
    Event(Event),
    /// An event that is too large to be read, which ends the stream.
    TooLarge,
}

/// What is known about the endpoint for our messages.
#[derive(Clone)]
enum Endpoint {
    Unknown,
    Known(Url),
    Gone(Arc<SseError>),
}

/// Why a message can't be sent.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SseError {
    /// The server can't be reached.
    #[error("could not open the event stream")]
    Open(#[source] reqwest::Error),
    /// A message could not be posted.
    #[error("could not post a message")]
    Post(#[source] reqwest::Error),
    /// There is no access token.
    #[error(transparent)]
    NoToken(NoToken),
    /// The server refused a request.
    #[error("the server answered {what} with HTTP status {status}")]
    Status {
        /// The request.
        what: &'static str,
        /// The status.
        status: StatusCode,
    },
    /// The answer is not an event stream.
    #[error("the server's answer is not an event stream")]
    NoStream,
    /// The connection was lost during the stream.
    #[error("the event stream was interrupted")]
    Broken(#[source] reqwest::Error),
    /// An event is too large.
    #[error("the server sent an event of more than {MAX_EVENT} bytes")]
    TooLarge,
    /// The encoding of the stream is not supported, or wrong.
    #[error("the Content-Encoding of the server's event stream can't be decoded")]
    Encoding,
    /// The stream has ended.
    #[error("the event stream has ended")]
    Ended,
    /// The endpoint has another origin.
    #[error("the endpoint that the server names has another origin than the server")]
    ForeignEndpoint,
    /// The stream has failed before.
    #[error(transparent)]
    Gone(Arc<SseError>),
}

impl SseTransport {
    /// Creates a transport over a client that obeys policy, and starts to open the stream.
    pub(crate) fn new(
        server: &str,
        spec: &RemoteSpec,
        client: FollowedClient,
        policy: CurrentPolicy,
    ) -> Self {
        let (found, endpoint) = watch::channel(Endpoint::Unknown);
        let (queue, incoming) = mpsc::channel(QUEUE);
        let (note_unsent, unsent) = mpsc::unbounded_channel();
        let headers = spec.headers.of_server(server, policy);
        let reading = (spec.url.clone(), headers.clone(), client.current());
        let reader = tokio::spawn(async move {
            let (server, headers, client) = reading;
            let error = match read_stream(&server, &headers, &client, &found, &queue).await {
                Ok(()) => SseError::Ended,
                Err(error) => error,
            };
            if matches!(error, SseError::TooLarge) {
                // The receiver may be gone.
                _ = queue.send(Incoming::TooLarge).await;
            }
            found.send_replace(Endpoint::Gone(Arc::new(error)));
        });
        let closed = CancellationToken::new();
        Self {
            client,
            headers,
            endpoint,
            incoming,
            unsent,
            note_unsent,
            inbound: Inbound::new(spec.secrets.clone()),
            ready: VecDeque::new(),
            _close: closed.clone().drop_guard(),
            closed,
            _reader: AbortOnDropHandle::new(reader),
        }
    }

    fn take_incoming(&mut self, incoming: Incoming) {
        let passed = match incoming {
            Incoming::Event(event) => self.inbound.read_event(&event, Instant::now()),
            Incoming::TooLarge => {
                self.inbound.end_nameless(format!("it is larger than {MAX_EVENT} bytes"))
            }
        };
        self.ready.extend(passed);
    }
}

impl Transport<RoleClient> for SseTransport {
    type Error = SseError;

    fn send(
        &mut self,
        item: TxJsonRpcMessage<RoleClient>,
    ) -> impl Future<Output = Result<(), SseError>> + Send + 'static {
        let (client, headers, mut endpoint) =
            (self.client.clone(), self.headers.clone(), self.endpoint.clone());
        let closed = self.closed.clone();
        self.inbound.note_sent(&item);
        let note_unsent = self.note_unsent.clone();
        async move {
            let post = async {
                let known =
                    endpoint.wait_for(|endpoint| !matches!(endpoint, Endpoint::Unknown)).await;
                let endpoint = known.map_err(|_| SseError::Ended)?.clone();
                match endpoint {
                    Endpoint::Known(url) => {
                        post_message(&client.current(), url, &headers, &item).await
                    }
                    Endpoint::Gone(error) => Err(SseError::Gone(error)),
                    Endpoint::Unknown => Err(SseError::Ended),
                }
            };
            let result = tokio::select! {
                result = post => result,
                () = closed.cancelled() => Err(SseError::Ended),
            };
            if let (Err(_), JsonRpcMessage::Request(request)) = (&result, &item) {
                // Without a receiver, nobody reads answers either.
                _ = note_unsent.send(request.id.clone());
            }
            result
        }
    }

    // rmcp drops the future whenever it sends something, so this must be cancel safe.
    async fn receive(&mut self) -> Option<RxJsonRpcMessage<RoleClient>> {
        loop {
            if let Some(message) = self.ready.pop_front() {
                return Some(message);
            }
            tokio::select! {
                Some(id) = self.unsent.recv() => self.ready.extend(self.inbound.forget(&id)),
                incoming = self.incoming.recv() => self.take_incoming(incoming?),
            }
        }
    }

    async fn close(&mut self) -> Result<(), SseError> {
        self.closed.cancel();
        self.incoming.close();
        Ok(())
    }
}

async fn post_message(
    client: &Client,
    endpoint: Url,
    headers: &ServerHeaders,
    message: &TxJsonRpcMessage<RoleClient>,
) -> Result<(), SseError> {
    let request = |url| client.post(url).json(message).timeout(POST_TIME);
    let response = send_with(headers, &endpoint, request, SseError::Post).await?;

    let status = response.status();
    discard_body(response).await;
    if status.is_success() { Ok(()) } else { Err(SseError::Status { what: "a message", status }) }
}

/// Sends a request with the configured headers, and once more if their secrets are out of date.
async fn send_with(
    headers: &ServerHeaders,
    url: &Url,
    request: impl Fn(Url) -> RequestBuilder,
    failed: fn(reqwest::Error) -> SseError,
) -> Result<Response, SseError> {
    let sent = headers.now().await.map_err(SseError::NoToken)?;
    let send = async |sent: &SentHeaders| {
        let all: HeaderMap = sent.iter().collect();
        let response = send_following_redirect(url, |url| request(url).headers(all.clone())).await;
        // The URL contains the session, and perhaps other secrets.
        let response = response.map_err(|error| failed(error.without_url()))?;
        if response.status().is_success() {
            headers.note_accepted(sent);
        }
        Ok(response)
    };

    let response = send(&sent).await?;
    if response.status() != StatusCode::UNAUTHORIZED {
        return Ok(response);
    }
    // Whoever answers 401 has not taken the message.
    match headers.after_refusal(&sent).await.map_err(SseError::NoToken)? {
        Some(renewed) => {
            discard_body(response).await;
            send(&renewed).await
        }
        None => Ok(response),
    }
}

/// Sends a request, and follows one redirect that stays on the server.
async fn send_following_redirect(
    url: &Url,
    request: impl Fn(Url) -> RequestBuilder,
) -> reqwest::Result<Response> {
    let response = request(url.clone()).send().await?;
    let location =
        response.headers().get(header::LOCATION).and_then(|location| location.to_str().ok());
    match moved(response.status().as_u16(), url, location) {
        Some(url) => request(url).send().await,
        None => Ok(response),
    }
}

/// Opens the stream, and reads it to its end.
async fn read_stream(
    server: &Url,
    headers: &ServerHeaders,
    client: &Client,
    endpoint: &watch::Sender<Endpoint>,
    queue: &mpsc::Sender<Incoming>,
) -> Result<(), SseError> {
    let request = |url| {
        client
            .get(url)
            .header(header::ACCEPT, "text/event-stream")
            .header(header::CACHE_CONTROL, "no-store")
    };
    let response = send_with(headers, server, request, SseError::Open).await?;
    let status = response.status();
    if !status.is_success() {
        return Err(SseError::Status { what: "the request for a stream", status });
    }

    let text = |name| {
        let value = response.headers().get(name).and_then(|value| value.to_str().ok());
        value.map(str::to_owned)
    };
    if Media::of(text(header::CONTENT_TYPE).as_deref()) != Media::EventStream {
        return Err(SseError::NoStream);
    }

    let encoding = text(header::CONTENT_ENCODING);
    let body = Body::new(response.bytes_stream(), encoding.as_deref(), None, MAX_EVENT);
    let mut body = body.map_err(|_| SseError::Encoding)?;
    let mut decoder = Decoder::new(MAX_EVENT);
    while let Some(mut chunk) = body.chunk().await.map_err(to_sse_error)? {
        while let Some(event) =
            decoder.next_event(&mut chunk).map_err(|EventTooLarge| SseError::TooLarge)?
        {
            if take_event(event, server, endpoint, queue).await? == Listener::Gone {
                return Ok(());
            }
        }
    }
    Ok(())
}

/// Whether anybody receives the events.
#[derive(PartialEq)]
enum Listener {
    Here,
    Gone,
}

/// Notes the endpoint that an event names, or passes the event on.
async fn take_event(
    event: Event,
    server: &Url,
    endpoint: &watch::Sender<Endpoint>,
    queue: &mpsc::Sender<Incoming>,
) -> Result<Listener, SseError> {
    if event.name == "endpoint" {
        if matches!(*endpoint.borrow(), Endpoint::Unknown) {
            let named = String::from_utf8_lossy(&event.data);
            let url = own_endpoint(server, &named).ok_or(SseError::ForeignEndpoint)?;
            endpoint.send_replace(Endpoint::Known(url));
        }
        return Ok(Listener::Here);
    }

    match queue.send(Incoming::Event(event)).await {
        Ok(()) => Ok(Listener::Here),
        Err(_) => Ok(Listener::Gone),
    }
}

fn to_sse_error(error: BodyError<reqwest::Error>) -> SseError {
    match error {
        BodyError::Lost(error) => SseError::Broken(error.without_url()),
        BodyError::Encoding(DecodeError::TooLarge) => SseError::TooLarge,
        BodyError::Encoding(DecodeError::Unknown(_) | DecodeError::Broken(_)) => SseError::Encoding,
    }
}

/// Returns the endpoint that a server names, if it has the server's own origin.
fn own_endpoint(server: &Url, named: &str) -> Option<Url> {
    let url = server.join(named.trim()).ok()?;
    let plain = url.username().is_empty() && url.password().is_none();
    (plain && url.origin() == server.origin()).then_some(url)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_must_have_the_servers_own_origin() {
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
}

//! Connections to remote servers that know only the transport of 2024: a stream for what they say,
//! and an endpoint, which its first event names, to post to.
//!
//! The endpoint is the server's own word for where our messages and credentials go, so it must be
//! of the origin that policy was asked about.

use std::{sync::Arc, time::Duration};

use fleet_job::number;
use fleet_wire::{
    body::{Body, BodyError},
    encoding::DecodeError,
    head::{Media, moved},
    sse::{Decoder, Event, EventTooLarge, MAX_EVENT},
};
use reqwest::{Client, RequestBuilder, Response, StatusCode, header};
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

use super::{
    launch::RemoteSpec,
    remote::{exchange::discard_body, messages::messages_in},
};

/// How many messages wait for us before the server has to.
const QUEUE: usize = 64;
/// How long a server may take to say that it has a message.
const POST_TIME: Duration = Duration::from_secs(60);

/// The transport to a remote server.
pub(crate) struct SseTransport {
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
pub(crate) enum SseError {
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
    #[error("the server sent an event of more than {MAX_EVENT} bytes")]
    TooLarge,
    /// The stream is encoded in a way that can't be read.
    #[error("the server's stream has a Content-Encoding that can't be read")]
    Encoding,
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
    /// A transport over a client that obeys policy. The stream is opened at once, and nothing is
    /// waited for.
    pub(crate) fn new(spec: &RemoteSpec, client: Client) -> Self {
        let (found, endpoint) = watch::channel(Endpoint::Unknown);
        let (queue, incoming) = mpsc::channel(QUEUE);
        let reading = (spec.clone(), client.clone());
        let reader = tokio::spawn(async move {
            let (spec, client) = reading;
            let error = match read_stream(&spec, &client, &found, &queue).await {
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
                let known =
                    endpoint.wait_for(|endpoint| !matches!(endpoint, Endpoint::Unknown)).await;
                let endpoint = known.map_err(|_| SseError::Ended)?.clone();
                match endpoint {
                    Endpoint::Known(url) => post_message(&client, url, &headers, &item).await,
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

async fn post_message(
    client: &Client,
    endpoint: Url,
    headers: &[(http::HeaderName, http::HeaderValue)],
    message: &TxJsonRpcMessage<RoleClient>,
) -> Result<(), SseError> {
    let request = |url| client.post(url).headers(headers.iter().cloned().collect()).json(message);
    let sent = send_following_redirect(&endpoint, |url| request(url).timeout(POST_TIME)).await;
    // The URL holds the session, and may hold more.
    let response = sent.map_err(|error| SseError::Post(error.without_url()))?;

    let status = response.status();
    discard_body(response).await;
    if status.is_success() { Ok(()) } else { Err(SseError::Status { what: "a message", status }) }
}

/// Sends a request, and once more where the server itself redirects it to.
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

/// Reads the stream to its end.
async fn read_stream(
    spec: &RemoteSpec,
    client: &Client,
    endpoint: &watch::Sender<Endpoint>,
    queue: &mpsc::Sender<RxJsonRpcMessage<RoleClient>>,
) -> Result<(), SseError> {
    let request = |url| {
        let request = client.get(url).headers(spec.headers.iter().cloned().collect());
        request
            .header(header::ACCEPT, "text/event-stream")
            .header(header::CACHE_CONTROL, "no-store")
    };
    let response = send_following_redirect(&spec.url, request)
        .await
        .map_err(|error| SseError::Open(error.without_url()))?;
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
            if take_event(&event, spec, endpoint, queue).await? == Listener::Gone {
                return Ok(());
            }
        }
    }
    Ok(())
}

/// Whether anybody takes the messages.
#[derive(PartialEq)]
enum Listener {
    Here,
    Gone,
}

/// Takes the endpoint that an event names, or passes its messages on.
async fn take_event(
    event: &Event,
    spec: &RemoteSpec,
    endpoint: &watch::Sender<Endpoint>,
    queue: &mpsc::Sender<RxJsonRpcMessage<RoleClient>>,
) -> Result<Listener, SseError> {
    if event.name == "endpoint" && matches!(*endpoint.borrow(), Endpoint::Unknown) {
        let named = String::from_utf8_lossy(&event.data);
        let url = own_endpoint(&spec.url, &named).ok_or(SseError::ForeignEndpoint)?;
        endpoint.send_replace(Endpoint::Known(url));
    } else if event.is_message() {
        // What rmcp does not know even so is nothing that is waited for.
        let messages = messages_in(&event.data, None, &spec.secrets).into_iter();
        for message in messages.filter_map(|message| number::read(message).ok()) {
            if queue.send(message).await.is_err() {
                return Ok(Listener::Gone);
            }
        }
    }
    Ok(Listener::Here)
}

fn to_sse_error(error: BodyError<reqwest::Error>) -> SseError {
    match error {
        BodyError::Lost(error) => SseError::Broken(error.without_url()),
        BodyError::Encoding(DecodeError::TooLarge) => SseError::TooLarge,
        BodyError::Encoding(DecodeError::Unknown(_) | DecodeError::Broken(_)) => SseError::Encoding,
    }
}

/// The endpoint that a server names, where it is of the server's own origin.
fn own_endpoint(server: &Url, named: &str) -> Option<Url> {
    let url = server.join(named.trim()).ok()?;
    let plain = url.username().is_empty() && url.password().is_none();
    (plain && url.origin() == server.origin()).then_some(url)
}

#[cfg(test)]
mod tests {
    use super::*;

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
}

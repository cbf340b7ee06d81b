//! One message to a remote server over Streamable HTTP, and its answer with all that rmcp's own client leaves out of its
//! errors: status, `Retry-After`, and whether the request was sent at all.

use std::{fmt, sync::Arc, time::Duration};

use futures::{StreamExt, stream::BoxStream};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use reqwest::Response;
use rmcp::{
    model::{
        ClientJsonRpcMessage, ClientRequest, ErrorData, JsonRpcError, JsonRpcMessage, RequestId,
        ServerJsonRpcMessage,
    },
    transport::streamable_http_client::SseError,
};
use sse_stream::{Sse, SseStream};

use crate::hosting::away::Away;

/// The session of a request.
pub(super) const SESSION_ID: HeaderName = HeaderName::from_static("mcp-session-id");
const LAST_EVENT_ID: HeaderName = HeaderName::from_static("last-event-id");
const EVENT_STREAM: &str = "text/event-stream";
/// The largest answer that is read, and the largest event of a stream.
const MAX_ANSWER: usize = 16 << 20;
/// How much is read of the body of an error, and of what answers no request.
const MAX_ERROR_BODY: usize = 64 << 10;
/// How much of the other side's text goes into a message.
const SHOWN: usize = 256;
/// The longest delay that a server can ask for.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(24 * 3600);

/// Why a message came to nothing.
#[derive(Debug, Clone, thiserror::Error)]
pub(crate) enum HttpFailure {
    /// The connection failed, before or after the message was sent.
    #[error(transparent)]
    Connection(Arc<reqwest::Error>),
    /// The server rejected the message.
    #[error("the server answered {0}")]
    Rejected(Arc<Rejected>),
    /// The answer can't be read.
    #[error("{0}")]
    Unreadable(String),
    /// The server has forgotten our session, and a new handshake failed. The message has not run.
    #[error("the server turned our session away, and a new handshake failed")]
    NoSession(#[source] Box<HttpFailure>),
}

impl HttpFailure {
    /// Why the server did not take the message, if it did not.
    pub(crate) fn away(&self) -> Option<Away> {
        match self {
            Self::Connection(error) => error.is_connect().then_some(Away::UNAVAILABLE),
            Self::Rejected(rejected) => Away::of_status(rejected.status.as_u16(), rejected.retry_after),
            Self::Unreadable(_) => None,
            Self::NoSession(cause) => Some(cause.away().unwrap_or(Away::UNAVAILABLE)),
        }
    }

    /// The HTTP status of the answer.
    pub(crate) fn status(&self) -> Option<u16> {
        match self {
            Self::Rejected(rejected) => Some(rejected.status.as_u16()),
            Self::Connection(_) | Self::Unreadable(_) | Self::NoSession(_) => None,
        }
    }
}

impl From<reqwest::Error> for HttpFailure {
    fn from(error: reqwest::Error) -> Self {
        // The query of a URL may hold a key.
        Self::Connection(Arc::new(error.without_url()))
    }
}

/// An answer that is no result.
#[derive(Debug)]
pub(crate) struct Rejected {
    pub(super) status: StatusCode,
    pub(super) retry_after: Option<Duration>,
    location: Option<String>,
    text: String,
    /// The JSON-RPC error in the body.
    pub(super) error: Option<JsonRpcError>,
}

impl fmt::Display for Rejected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "HTTP {}", self.status)?;
        if let Some(location) = &self.location {
            write!(f, " to {location:?}")?;
        }
        match &self.error {
            Some(error) => write!(f, ": error {}: {}", error.error.code.0, error.error.message),
            None if self.text.trim().is_empty() => Ok(()),
            None => write!(f, ": {}", self.text.trim()),
        }
    }
}

/// What came back.
pub(super) enum Answer {
    /// The message was taken; nothing more is said here.
    Accepted,
    /// A message, and the session that was handed out with it.
    Message(Box<ServerJsonRpcMessage>, Option<Arc<str>>),
    /// A stream of messages, likewise.
    Stream(BoxStream<'static, Result<Sse, SseError>>, Option<Arc<str>>),
    /// An error of HTTP or JSON-RPC.
    Rejected(Box<Rejected>),
}

/// The id of a request.
pub(super) fn request_id(message: &ClientJsonRpcMessage) -> Option<&RequestId> {
    match message {
        JsonRpcMessage::Request(request) => Some(&request.id),
        _ => None,
    }
}

/// Posts a message.
pub(super) async fn post(
    client: &reqwest::Client,
    uri: &str,
    headers: HeaderMap,
    message: &ClientJsonRpcMessage,
) -> Result<Answer, HttpFailure> {
    let request =
        client.post(uri).headers(headers).header(header::ACCEPT, "application/json, text/event-stream");
    let mut response = request.json(message).send().await?;
    let status = response.status();
    let session = response.headers().get(&SESSION_ID).and_then(|id| id.to_str().ok()).map(Arc::from);
    if !status.is_success() {
        return Ok(Answer::Rejected(Box::new(read_rejection(response).await)));
    }
    if request_id(message).is_none() {
        // Whatever is said to a notification or an answer. An unread body would cost the connection.
        drop(read_prefix(&mut response).await);
        return Ok(Answer::Accepted);
    }
    if matches!(status, StatusCode::ACCEPTED | StatusCode::NO_CONTENT) {
        return Ok(Answer::Accepted);
    }
    let kind = media_type(&response);
    if kind == EVENT_STREAM {
        return Ok(Answer::Stream(events(response), session));
    }
    if kind != "application/json" && !kind.ends_with("+json") {
        return Err(HttpFailure::Unreadable(format!("unexpected content type: {kind:?}")));
    }
    let body = read_whole(&mut response).await?;
    match serde_json::from_slice(&body) {
        Ok(JsonRpcMessage::Error(error)) => {
            let (retry_after, location, text) = (None, None, String::new());
            Ok(Answer::Rejected(Box::new(Rejected {
                status,
                retry_after,
                location,
                text,
                error: Some(error),
            })))
        }
        Ok(message) => Ok(Answer::Message(Box::new(message), session)),
        Err(error) => {
            let shown = shorten(&String::from_utf8_lossy(&body));
            Err(HttpFailure::Unreadable(format!("the answer is no JSON-RPC message: {error}: {shown}")))
        }
    }
}

/// Opens a stream of what the server says by itself, or of an answer that broke off.
pub(super) async fn get(
    client: &reqwest::Client,
    uri: &str,
    headers: HeaderMap,
    last_event: Option<&str>,
) -> Result<BoxStream<'static, Result<Sse, SseError>>, HttpFailure> {
    let mut request = client.get(uri).headers(headers).header(header::ACCEPT, EVENT_STREAM);
    if let Some(last_event) = last_event {
        request = request.header(LAST_EVENT_ID, last_event);
    }
    let response = request.send().await?;
    if !response.status().is_success() {
        return Err(HttpFailure::Rejected(Arc::new(read_rejection(response).await)));
    }
    match media_type(&response) {
        kind if kind == EVENT_STREAM => Ok(events(response)),
        kind => Err(HttpFailure::Unreadable(format!("unexpected content type: {kind:?}"))),
    }
}

/// What a legacy server that rejects `server/discover` by a status is taken to have said, so that rmcp tries `initialize`.
pub(super) fn not_discovered(
    message: &ClientJsonRpcMessage,
    rejected: &Rejected,
) -> Option<ServerJsonRpcMessage> {
    let JsonRpcMessage::Request(request) = message else { return None };
    let locked = matches!(rejected.status, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN);
    if !matches!(request.request, ClientRequest::DiscoverRequest(_))
        || !rejected.status.is_client_error()
        || locked
    {
        return None;
    }
    let error = match &rejected.error {
        Some(error) => error.error.clone(),
        None => ErrorData::invalid_request(format!("server/discover was answered with {rejected}"), None),
    };
    Some(ServerJsonRpcMessage::error(error, Some(request.id.clone())))
}

async fn read_rejection(mut response: Response) -> Rejected {
    let text = |name| response.headers().get(name).and_then(|value: &HeaderValue| value.to_str().ok());
    let retry_after = text(header::RETRY_AFTER).and_then(|text| {
        let delay = text.trim().parse().map(Duration::from_secs).ok();
        delay.or_else(|| {
            let at = httpdate::parse_http_date(text).ok()?;
            Some(at.duration_since(std::time::SystemTime::now()).unwrap_or_default())
        })
    });
    let location = text(header::LOCATION).map(shorten);
    let (status, html) = (response.status(), media_type(&response).ends_with("html"));
    let body = read_prefix(&mut response).await;
    let error = match serde_json::from_slice::<ServerJsonRpcMessage>(&body) {
        Ok(JsonRpcMessage::Error(error)) => Some(error),
        _ => None,
    };
    let text = if html { String::new() } else { shorten(&String::from_utf8_lossy(&body)) };
    let retry_after = retry_after.map(|delay| delay.min(MAX_RETRY_AFTER));
    Rejected { status, retry_after, location, text, error }
}

/// The media type without parameters, in lower case.
fn media_type(response: &Response) -> String {
    let value = response.headers().get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    value.unwrap_or_default().split(';').next().unwrap_or_default().trim().to_ascii_lowercase()
}

async fn read_whole(response: &mut Response) -> Result<Vec<u8>, HttpFailure> {
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await? {
        if body.len() + chunk.len() > MAX_ANSWER {
            return Err(HttpFailure::Unreadable(format!("the answer is larger than {MAX_ANSWER} bytes")));
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body)
}

/// The beginning of a body. If it breaks or is too long, the rest is left out: the status has said what matters.
async fn read_prefix(response: &mut Response) -> Vec<u8> {
    let mut body = Vec::new();
    while let Ok(Some(chunk)) = response.chunk().await {
        let room = MAX_ERROR_BODY - body.len();
        body.extend_from_slice(&chunk[..chunk.len().min(room)]);
        if body.len() == MAX_ERROR_BODY {
            break;
        }
    }
    body
}

/// Text of the other side's, of bounded length.
fn shorten(text: &str) -> String {
    text.chars().take(SHOWN).collect()
}

/// The events of a stream, which ends with an error at one that is too large.
fn events(response: Response) -> BoxStream<'static, Result<Sse, SseError>> {
    let mut limit = EventLimit::default();
    let chunks = response.bytes_stream().map(move |chunk| {
        let chunk = chunk.map_err(|error| std::io::Error::other(error.without_url()))?;
        if limit.admits(&chunk) {
            Ok(chunk)
        } else {
            Err(std::io::Error::other(format!("an event is larger than {MAX_ANSWER} bytes")))
        }
    });
    SseStream::from_bytes_stream(chunks).boxed()
}

/// Counts the bytes of the event that is being read.
#[derive(Default)]
struct EventLimit {
    size: usize,
    in_line: bool,
    after_return: bool,
}

impl EventLimit {
    /// Whether no event is too large with these bytes.
    fn admits(&mut self, bytes: &[u8]) -> bool {
        for byte in bytes {
            let after_return = std::mem::replace(&mut self.after_return, *byte == b'\r');
            match byte {
                b'\n' if after_return => {}
                b'\r' | b'\n' => {
                    // A blank line ends an event.
                    if !std::mem::take(&mut self.in_line) {
                        self.size = 0;
                    }
                }
                _ => {
                    self.in_line = true;
                    self.size += 1;
                }
            }
            if self.size > MAX_ANSWER {
                return false;
            }
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_events_that_are_too_large_are_refused() {
        let mut limit = EventLimit::default();
        let line = vec![b'x'; MAX_ANSWER / 2];
        for end in [b"\n\n".as_slice(), b"\r\n\r\n", b"\r\r"] {
            for _ in 0..4 {
                assert!(limit.admits(&line) && limit.admits(end));
            }
        }
        assert!(limit.admits(&line) && limit.admits(b"\n") && limit.admits(&line));
        assert!(!limit.admits(b"x"));
    }
}

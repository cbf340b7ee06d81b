//! One message to a remote server over Streamable HTTP, and its answer with all that rmcp's own
//! client leaves out of its errors: status, `Retry-After`, and whether the request was sent at all.

use std::{
    error::Error as _,
    fmt,
    sync::Arc,
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use fleet_ops::errors::chain;
use fleet_wire::{
    Answer as Found, Message, Reply, RpcError, answer_in,
    body::{BodyError, drain},
    encoding::DecodeError,
    head::{Media, moved, retry_after},
    is_cut, quote,
};
use futures::{StreamExt, stream::BoxStream};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, Version, header};
use reqwest::{RequestBuilder, Response};
use rmcp::model::{
    ClientJsonRpcMessage, ErrorData, JsonRpcMessage, RequestId, ServerJsonRpcMessage,
};
use url::Url;

use super::{
    events::{Events, describe_decode_error, read_events},
    messages::to_response,
};
use crate::{
    inbound::{to_error_data, wire_id},
    outage::Outage,
    secrets::Secrets,
    unreadable::unreadable_answer,
};

/// The session of a request.
pub(super) const SESSION_ID: HeaderName = HeaderName::from_static("mcp-session-id");
const LAST_EVENT_ID: HeaderName = HeaderName::from_static("last-event-id");
/// The largest answer that is read, and the largest event of a stream.
pub(super) const MAX_ANSWER: usize = fleet_wire::sse::MAX_EVENT;
/// How much is read of the body of an error, and of what answers no request.
const MAX_ERROR_BODY: usize = 64 << 10;
/// How long the rest of a body that nobody wants may take.
const DISCARD_TIME: Duration = Duration::from_millis(500);
/// How much of the other side's text goes into a message.
pub(super) const SHOWN: usize = 256;

/// The body of a response.
pub(super) type Body = fleet_wire::body::Body<BoxStream<'static, reqwest::Result<Bytes>>>;

/// Why a message came to nothing.
#[derive(Debug, Clone, thiserror::Error)]
pub(crate) enum HttpFailure {
    /// The connection failed, before or after the message was sent.
    #[error(transparent)]
    Connection(Arc<reqwest::Error>),
    /// The server rejected the message.
    #[error("the server answered {0}")]
    Rejected(Arc<Rejected>),
    /// The answer has come whole, and can't be read.
    #[error("{0}")]
    Unreadable(String),
    /// The connection ended in the middle of the answer, for all that can be told.
    #[error("the connection ended in the middle of the answer")]
    Cut,
    /// The server has forgotten our session, and a new handshake failed. The message has not run.
    #[error("the server turned our session away, and a new handshake failed")]
    NoSession(#[source] Box<HttpFailure>),
}

impl HttpFailure {
    /// Why the server did not take the message, if it did not.
    pub(crate) fn outage(&self) -> Option<Outage> {
        match self {
            Self::Connection(error) => error.is_connect().then_some(Outage::UNAVAILABLE),
            Self::Rejected(rejected) => {
                Outage::of_status(rejected.status.as_u16(), rejected.retry_after)
            }
            Self::Unreadable(_) | Self::Cut => None,
            Self::NoSession(cause) => Some(cause.outage().unwrap_or(Outage::UNAVAILABLE)),
        }
    }

    /// The HTTP status of the answer.
    pub(crate) fn status(&self) -> Option<u16> {
        match self {
            Self::Rejected(rejected) => Some(rejected.status.as_u16()),
            Self::Connection(_) | Self::Unreadable(_) | Self::Cut | Self::NoSession(_) => None,
        }
    }

    /// What is wrong with an answer that has come, and can't be read.
    pub(crate) fn unreadable(&self) -> Option<String> {
        match self {
            Self::Unreadable(why) => Some(why.clone()),
            Self::Connection(error) if has_too_large_head(error) => Some(chain(error)),
            Self::Connection(_) | Self::Rejected(_) | Self::Cut | Self::NoSession(_) => None,
        }
    }
}

/// Whether an answer has come whose head is too large to be read.
fn has_too_large_head(error: &reqwest::Error) -> bool {
    let mut source = error.source();
    while let Some(cause) = source {
        if cause.downcast_ref().is_some_and(hyper::Error::is_parse_too_large) {
            return true;
        }
        source = cause.source();
    }
    false
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
    pub(super) error: Option<RpcRefusal>,
}

/// A JSON-RPC error in answer to a request.
#[derive(Debug)]
pub(super) struct RpcRefusal {
    pub(super) error: ErrorData,
    /// Whether it names the request's id, as errors of whatever carries requests out do.
    pub(super) addressed: bool,
}

impl RpcRefusal {
    fn new(error: RpcError, addressed: bool) -> Self {
        Self { error: to_error_data(error), addressed }
    }
}

impl Rejected {
    /// A rejection of which HTTP says nothing.
    fn by(refusal: RpcRefusal, status: StatusCode) -> Self {
        Self {
            status,
            retry_after: None,
            location: None,
            text: String::new(),
            error: Some(refusal),
        }
    }
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
    /// The message was taken, with this status; nothing more is said here.
    Accepted(StatusCode),
    /// A message, and the session that was handed out with it.
    Message(Box<ServerJsonRpcMessage>, Option<Arc<str>>),
    /// A stream of messages, likewise.
    Stream(Events, Option<Arc<str>>),
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

/// Reads what nobody wants to know: an unread body would cost the connection. One that does not end
/// is left, and costs it.
pub(crate) async fn discard_body(response: Response) {
    let read = drain(response.bytes_stream(), MAX_ERROR_BODY);
    _ = tokio::time::timeout(DISCARD_TIME, read).await;
}

/// The way to one server.
pub(super) struct RemoteLink {
    client: reqwest::Client,
    url: Url,
    /// What the log must not show.
    secrets: Secrets,
}

impl RemoteLink {
    pub(super) fn new(client: reqwest::Client, url: Url, secrets: Secrets) -> Self {
        Self { client, url, secrets }
    }

    /// Posts a message.
    pub(super) async fn post(
        &self,
        mut headers: HeaderMap,
        message: &ClientJsonRpcMessage,
    ) -> Result<Answer, HttpFailure> {
        const BOTH: HeaderValue = HeaderValue::from_static("application/json, text/event-stream");
        headers.insert(header::ACCEPT, BOTH);
        let request = |url| self.client.post(url).headers(headers.clone()).json(message);
        let response = self.send(request).await?;

        let id = request_id(message);
        if !response.status().is_success() {
            return Ok(read_rejection(response, id, &self.secrets).await.map_or_else(
                |result| Answer::Message(result, None),
                |rejected| Answer::Rejected(Box::new(rejected)),
            ));
        }
        match id {
            Some(id) => read_answer(response, id, &self.secrets).await,
            None => {
                // Whatever is said to a notification or an answer.
                let status = response.status();
                discard_body(response).await;
                Ok(Answer::Accepted(status))
            }
        }
    }

    /// Opens a stream of what the server says by itself, or of an answer that broke off.
    pub(super) async fn get(
        &self,
        mut headers: HeaderMap,
        last_event: Option<&str>,
    ) -> Result<Events, HttpFailure> {
        headers.insert(header::ACCEPT, HeaderValue::from_static("text/event-stream"));
        if let Some(Ok(last_event)) = last_event.map(HeaderValue::try_from) {
            headers.insert(LAST_EVENT_ID, last_event);
        }
        let response = self.send(|url| self.client.get(url).headers(headers.clone())).await?;

        if !response.status().is_success() {
            return match read_rejection(response, None, &self.secrets).await {
                Ok(rejected) => Err(HttpFailure::Rejected(Arc::new(rejected))),
                Err(_) => Err(HttpFailure::Unreadable("it is not an event stream".to_owned())),
            };
        }
        match media_of(&response) {
            Media::EventStream => Ok(read_events(body_of(response)?, None, self.secrets.clone())),
            other => Err(unexpected_media(&other)),
        }
    }

    /// Gives a session back.
    pub(super) async fn delete(&self, headers: HeaderMap) -> Result<(), HttpFailure> {
        self.send(|url| self.client.delete(url).headers(headers.clone())).await.map(drop)
    }

    /// Sends a request, and once more where the server itself redirects it to.
    async fn send(&self, request: impl Fn(Url) -> RequestBuilder) -> Result<Response, HttpFailure> {
        let response = request(self.url.clone()).send().await?;
        match moved(response.status().as_u16(), &self.url, header_text(&response, header::LOCATION))
        {
            Some(url) => Ok(request(url).send().await?),
            None => Ok(response),
        }
    }
}

/// Reads the answer to a request.
async fn read_answer(
    response: Response,
    id: &RequestId,
    secrets: &Secrets,
) -> Result<Answer, HttpFailure> {
    let (status, media, is_framed) = (response.status(), media_of(&response), is_framed(&response));
    let session = header_text(&response, SESSION_ID).map(Arc::from);
    let mut body = body_of(response)?;
    if media == Media::EventStream {
        let events = read_events(body, Some(id.clone()), secrets.clone());
        return Ok(Answer::Stream(events, session));
    }

    let answer = |message| Ok(Answer::Message(Box::new(message), session));
    let unreadable =
        |why: &str| ServerJsonRpcMessage::error(unreadable_answer(why), Some(id.clone()));
    let text = match body.whole().await {
        Ok(text) => text,
        Err(BodyError::Lost(error)) => return Err(error.into()),
        Err(BodyError::Encoding(DecodeError::TooLarge)) => {
            return answer(unreadable(&format!("it is larger than {MAX_ANSWER} bytes")));
        }
        Err(BodyError::Encoding(error)) => {
            return Err(HttpFailure::Unreadable(describe_decode_error(&error)));
        }
    };
    let labelled = media == Media::Json;
    let is_blank = text.trim_ascii().is_empty();
    if matches!(status, StatusCode::ACCEPTED | StatusCode::NO_CONTENT) && (is_blank || !labelled) {
        return Ok(Answer::Accepted(status));
    }
    if !is_framed && is_cut(&text) {
        return Err(HttpFailure::Cut);
    }

    let shown = || quote(&String::from_utf8_lossy(&text), SHOWN);
    match answer_in(&text, &wire_id(id)) {
        Some(Found::Result(result)) => answer(to_response(id.clone(), result, secrets)),
        Some(Found::Unreadable(why)) => answer(unreadable(&why)),
        Some(Found::Error { error, addressed }) if labelled || addressed => {
            Ok(Answer::Rejected(Box::new(Rejected::by(RpcRefusal::new(error, addressed), status))))
        }
        // What is not called JSON may be the answer, and is believed only if it says so.
        _ if !labelled && media.is_page() => Err(unexpected_media(&media)),
        _ if !labelled => Err(HttpFailure::Unreadable(format!("it is not JSON: {}", shown()))),
        Some(Found::Malformed(why)) => Err(HttpFailure::Unreadable(format!("{why}: {}", shown()))),
        Some(Found::Error { .. }) | None => match error_in(&text, Some(id)) {
            // Some servers have an id of their own for errors of their transport.
            Some(refusal) => Ok(Answer::Rejected(Box::new(Rejected::by(refusal, status)))),
            None => {
                let why = format!("it is not the answer to this request: {}", shown());
                Err(HttpFailure::Unreadable(why))
            }
        },
    }
}

/// Reads an HTTP error.
///
/// # Errors
///
/// If the result of the request stands in it, the result: the request has been carried out, whatever
/// the status says.
async fn read_rejection(
    response: Response,
    id: Option<&RequestId>,
    secrets: &Secrets,
) -> Result<Rejected, Box<ServerJsonRpcMessage>> {
    let (status, media) = (response.status(), media_of(&response));
    let max = if media == Media::Json { MAX_ANSWER } else { MAX_ERROR_BODY };
    let retry_after = header_text(&response, header::RETRY_AFTER)
        .and_then(|text| retry_after(text, SystemTime::now()));
    let location = header_text(&response, header::LOCATION).map(|location| quote(location, SHOWN));
    // The status counts, also if the body is encoded in a way that can't be read.
    let body = match body_of(response) {
        Ok(mut body) => body.prefix(max).await,
        Err(_) => Vec::new(),
    };

    if let Some(id) = id
        && let Some(Found::Result(result)) = answer_in(&body, &wire_id(id))
    {
        return Err(Box::new(to_response(id.clone(), result, secrets)));
    }
    let error = error_in(&body, id);
    let text = match media.is_page() {
        true => String::new(),
        false => quote(&String::from_utf8_lossy(&body), SHOWN),
    };
    Ok(Rejected { status, retry_after, location, text, error })
}

/// Whether the end of the body is told from the end of the connection.
fn is_framed(response: &Response) -> bool {
    let has = |name| response.headers().contains_key(name);
    response.version() >= Version::HTTP_2
        || has(header::CONTENT_LENGTH)
        || has(header::TRANSFER_ENCODING)
}

/// The JSON-RPC error in a text, whichever request it names.
fn error_in(text: &[u8], id: Option<&RequestId>) -> Option<RpcRefusal> {
    fleet_wire::read(text).into_iter().find_map(|message| match message {
        Message::Reply(found, Reply::Error(error)) => {
            let addressed = found.zip(id).is_some_and(|(found, id)| found.is(&wire_id(id)));
            Some(RpcRefusal::new(error, addressed))
        }
        _ => None,
    })
}

fn body_of(response: Response) -> Result<Body, HttpFailure> {
    let encoding = header_text(&response, header::CONTENT_ENCODING).map(str::to_owned);
    let length = response.content_length();
    Body::new(response.bytes_stream().boxed(), encoding.as_deref(), length, MAX_ANSWER)
        .map_err(|error| HttpFailure::Unreadable(describe_decode_error(&error)))
}

fn media_of(response: &Response) -> Media {
    Media::of(header_text(response, header::CONTENT_TYPE))
}

fn header_text(response: &Response, name: HeaderName) -> Option<&str> {
    response.headers().get(name).and_then(|value| value.to_str().ok())
}

fn unexpected_media(media: &Media) -> HttpFailure {
    let name = match media {
        Media::Json => "application/json",
        Media::EventStream => "text/event-stream",
        Media::Other(name) => name,
    };
    HttpFailure::Unreadable(format!("its content type is {:?}", quote(name, SHOWN)))
}

//! Sends one message to a remote over Streamable HTTP, and reads the answer with everything that
//! rmcp's own client leaves out of its errors: status, `Retry-After`, and whether the request was
//! sent at all.

use std::{
    error::Error as _,
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use fleet_ops::{clock, errors::chain, tls::FollowedClient};
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
    ClientJsonRpcMessage, ClientRequest, ErrorData, JsonRpcMessage, RequestId, ServerJsonRpcMessage,
};
use url::Url;

use super::{
    events::{Events, describe_decode_error, read_events},
    messages::to_response,
};
use crate::{
    inbound::{to_error_data, wire_id},
    outage::Outage,
    remote_headers::{SentHeaders, ServerHeaders},
    remote_tokens::NoToken,
    secrets::Secrets,
    unreadable::unreadable_answer,
};

/// The header that names the session of a request.
pub(super) const SESSION_ID: HeaderName = HeaderName::from_static("mcp-session-id");
const LAST_EVENT_ID: HeaderName = HeaderName::from_static("last-event-id");
/// The largest answer, or event of a stream, that is read, in bytes.
pub(super) const MAX_ANSWER: usize = fleet_wire::sse::MAX_EVENT;
/// The most bytes of the body of an error, or of an unneeded answer, that are read.
const MAX_ERROR_BODY: usize = 64 << 10;
/// How long requests get connections of their own after one was closed when it was used again.
const WITHOUT_REUSE: Duration = Duration::from_secs(600);
/// How long reading an unneeded body may take.
const DISCARD_TIME: Duration = Duration::from_millis(500);
/// The longest part of the server's text in a message, in bytes.
pub(super) const SHOWN: usize = 256;

/// The body of a response.
pub(super) type Body = fleet_wire::body::Body<BoxStream<'static, reqwest::Result<Bytes>>>;

/// Why a message has no answer.
#[derive(Debug, Clone, thiserror::Error)]
pub(crate) enum HttpFailure {
    /// The connection failed, before or after the message was sent.
    #[error(transparent)]
    Connection(Arc<reqwest::Error>),
    /// There is no access token, so the message was not sent.
    #[error(transparent)]
    NoToken(NoToken),
    /// The server rejected the message.
    #[error("the server answered {0}")]
    Rejected(Arc<Rejected>),
    /// The whole answer has come but is unreadable.
    #[error("{0}")]
    Unreadable(String),
    /// The connection apparently ended during the answer.
    #[error("the connection ended during the answer")]
    Cut,
    /// The server has lost our session, and a new handshake failed. The message has not run.
    #[error("the server rejected our session, and a new handshake failed")]
    NoSession(#[source] Box<HttpFailure>),
}

impl HttpFailure {
    /// Returns the outage because of which the server did not take the message, if it did not.
    pub(crate) fn outage(&self) -> Option<Outage> {
        match self {
            Self::Connection(error) => error.is_connect().then_some(Outage::UNAVAILABLE),
            Self::Rejected(rejected) => {
                Outage::of_status(rejected.status.as_u16(), rejected.retry_after)
            }
            Self::NoToken(_) => Some(Outage::UNAUTHORIZED),
            Self::Unreadable(_) | Self::Cut => None,
            Self::NoSession(cause) => Some(cause.outage().unwrap_or(Outage::UNAVAILABLE)),
        }
    }

    /// Returns the HTTP status of the answer.
    pub(crate) fn status(&self) -> Option<u16> {
        match self {
            Self::Rejected(rejected) => Some(rejected.status.as_u16()),
            Self::Connection(_)
            | Self::NoToken(_)
            | Self::Unreadable(_)
            | Self::Cut
            | Self::NoSession(_) => None,
        }
    }

    /// Returns what is wrong with an answer that has come but is unreadable.
    pub(crate) fn unreadable(&self) -> Option<String> {
        match self {
            Self::Unreadable(why) => Some(why.clone()),
            Self::Connection(error) if has_too_large_head(error) => Some(chain(error)),
            Self::Connection(_)
            | Self::NoToken(_)
            | Self::Rejected(_)
            | Self::Cut
            | Self::NoSession(_) => None,
        }
    }
}

/// Returns whether the head of an answer was too large to be read.
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
        // The query of a URL may contain a key.
        Self::Connection(Arc::new(error.without_url()))
    }
}

/// A rejection of a message, by HTTP status or JSON-RPC error.
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
    /// Whether the error has the request's id, as errors from processing the request do.
    pub(super) addressed: bool,
}

impl RpcRefusal {
    fn new(error: RpcError, addressed: bool) -> Self {
        Self { error: to_error_data(error), addressed }
    }
}

impl Rejected {
    /// Creates a rejection from a JSON-RPC error in an otherwise successful answer.
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

/// The answer to a message.
pub(super) enum Answer {
    /// The message was accepted with this status, without content.
    Accepted(StatusCode),
    /// A message, and the new session's id if there is one.
    Message(Box<ServerJsonRpcMessage>, Option<Arc<str>>),
    /// A stream of messages, and the new session's id if there is one.
    Stream(Events, Option<Arc<str>>),
    /// An HTTP or JSON-RPC error.
    Rejected(Box<Rejected>),
}

/// Returns the id of a request.
pub(super) fn request_id(message: &ClientJsonRpcMessage) -> Option<&RequestId> {
    match message {
        JsonRpcMessage::Request(request) => Some(&request.id),
        _ => None,
    }
}

/// Reads and discards a body, so that the connection can be reused. Gives up on a long one.
pub(crate) async fn discard_body(response: Response) {
    let read = drain(response.bytes_stream(), MAX_ERROR_BODY);
    _ = tokio::time::timeout(DISCARD_TIME, read).await;
}

/// The HTTP connection to one remote.
pub(super) struct RemoteLink {
    client: FollowedClient,
    url: Url,
    /// The configured headers. Those that a request comes with may be older.
    headers: ServerHeaders,
    /// What the log must not show.
    secrets: Secrets,
    /// Until when every request gets a connection of its own, in milliseconds of the monotonic
    /// clock: a connection that the remote had left open was closed when it was used again.
    reuses_none_until: AtomicU64,
}

impl RemoteLink {
    pub(super) fn new(
        client: FollowedClient,
        url: Url,
        headers: ServerHeaders,
        secrets: Secrets,
    ) -> Self {
        Self { client, url, headers, secrets, reuses_none_until: AtomicU64::new(0) }
    }

    /// Posts a message.
    pub(super) async fn post(
        &self,
        mut headers: HeaderMap,
        message: &ClientJsonRpcMessage,
    ) -> Result<Answer, HttpFailure> {
        const BOTH: HeaderValue = HeaderValue::from_static("application/json, text/event-stream");
        headers.insert(header::ACCEPT, BOTH);
        let request = |url, all| self.client.current().post(url).headers(all).json(message);
        let may_be_reused = self.reuses_connections();
        let response = match self.send_configured(headers.clone(), request).await {
            Err(HttpFailure::Connection(error))
                if may_be_reused && is_lost(&error) && may_be_repeated(message) =>
            {
                let until = clock::monotonic() + WITHOUT_REUSE;
                let until = u64::try_from(until.as_millis()).unwrap_or(u64::MAX);
                self.reuses_none_until.store(until, Ordering::Relaxed);
                self.send_configured(headers, request).await?
            }
            sent => sent?,
        };

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
                // The content of an answer to a notification or response does not matter.
                let status = response.status();
                discard_body(response).await;
                Ok(Answer::Accepted(status))
            }
        }
    }

    /// Opens the stream of the server's own messages, or resumes that of an answer.
    pub(super) async fn get(
        &self,
        mut headers: HeaderMap,
        last_event: Option<&str>,
    ) -> Result<Events, HttpFailure> {
        headers.insert(header::ACCEPT, HeaderValue::from_static("text/event-stream"));
        if let Some(Ok(last_event)) = last_event.map(HeaderValue::try_from) {
            headers.insert(LAST_EVENT_ID, last_event);
        }
        let request = |url, all| self.client.current().get(url).headers(all);
        let response = self.send_configured(headers, request).await?;

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

    /// Deletes a session.
    pub(super) async fn delete(&self, headers: HeaderMap) -> Result<(), HttpFailure> {
        let request = |url, all| self.client.current().delete(url).headers(all);
        self.send_configured(headers, request).await.map(drop)
    }

    /// Sends a request with the configured headers among its own, and once more if their secrets or
    /// the access token were out of date.
    async fn send_configured(
        &self,
        mut headers: HeaderMap,
        request: impl Fn(Url, HeaderMap) -> RequestBuilder,
    ) -> Result<Response, HttpFailure> {
        let sent = self.headers.now().await.map_err(HttpFailure::NoToken)?;
        sent.set_in(&mut headers);
        let response = self.send_noting(&sent, |url| request(url, headers.clone())).await?;
        if response.status() != StatusCode::UNAUTHORIZED {
            return Ok(response);
        }

        // Whoever answers 401 has not taken the message.
        let renewed = self.headers.after_refusal(&sent).await.map_err(HttpFailure::NoToken)?;
        let Some(renewed) = renewed else { return Ok(response) };
        discard_body(response).await;
        renewed.set_in(&mut headers);
        self.send_noting(&renewed, |url| request(url, headers.clone())).await
    }

    /// Sends a request, and notes whether its headers were accepted.
    async fn send_noting(
        &self,
        sent: &SentHeaders,
        request: impl Fn(Url) -> RequestBuilder,
    ) -> Result<Response, HttpFailure> {
        let response = self.send(request).await?;
        if response.status().is_success() {
            self.headers.note_accepted(sent);
        }
        Ok(response)
    }

    /// Whether requests share connections now.
    fn reuses_connections(&self) -> bool {
        clock::monotonic().as_millis() >= self.reuses_none_until.load(Ordering::Relaxed).into()
    }

    /// Sends a request, and follows one redirect that stays on the server.
    async fn send(&self, request: impl Fn(Url) -> RequestBuilder) -> Result<Response, HttpFailure> {
        let is_reused = self.reuses_connections();
        let request = |url| match is_reused {
            true => request(url),
            false => request(url).header(header::CONNECTION, "close"),
        };
        let response = request(self.url.clone()).send().await?;
        match moved(response.status().as_u16(), &self.url, header_text(&response, header::LOCATION))
        {
            Some(url) => Ok(request(url).send().await?),
            None => Ok(response),
        }
    }
}

/// Returns whether a connection ended after a message may have been sent, and before an answer.
fn is_lost(error: &reqwest::Error) -> bool {
    error.is_request() && !error.is_connect() && !error.is_timeout() && !has_too_large_head(error)
}

/// Returns whether a message may be sent again if it may have arrived: all but calls, which may
/// have run.
fn may_be_repeated(message: &ClientJsonRpcMessage) -> bool {
    match message {
        JsonRpcMessage::Request(request) => !matches!(
            request.request,
            ClientRequest::CallToolRequest(_) | ClientRequest::CustomRequest(_)
        ),
        JsonRpcMessage::Notification(_)
        | JsonRpcMessage::Response(_)
        | JsonRpcMessage::Error(_) => true,
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
        // A body that is not declared as JSON counts only if it clearly is the answer.
        _ if !labelled && media.is_page() => Err(unexpected_media(&media)),
        _ if !labelled => Err(HttpFailure::Unreadable(format!("it is not JSON: {}", shown()))),
        Some(Found::Malformed(why)) => Err(HttpFailure::Unreadable(format!("{why}: {}", shown()))),
        Some(Found::Error { .. }) | None => match error_in(&text, Some(id)) {
            // Some servers use an id of their own for errors of their transport.
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
/// Returns the result of the request if the body contains one. Then the request has run, whatever
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
    // The status counts even if the body can't be decoded.
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

/// Returns whether the end of the body can be told from the end of the connection.
fn is_framed(response: &Response) -> bool {
    let has = |name| response.headers().contains_key(name);
    response.version() >= Version::HTTP_2
        || has(header::CONTENT_LENGTH)
        || has(header::TRANSFER_ENCODING)
}

/// Returns the JSON-RPC error in a text, whichever request it names.
fn error_in(text: &[u8], id: Option<&RequestId>) -> Option<RpcRefusal> {
    fleet_wire::read(text).into_iter().find_map(|message| {
        let (found, error) = match message {
            Message::Reply(found, Reply::Error(error)) => (found, error),
            Message::Quoted(found, Reply::Error(error)) => (Some(found), error),
            _ => return None,
        };
        let addressed = found.zip(id).is_some_and(|(found, id)| found.is(&wire_id(id)));
        Some(RpcRefusal::new(error, addressed))
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

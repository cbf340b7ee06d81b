//! One POST and its answer: the only module that reads from the network.
//!
//! Everything that is read counts against a limit as it arrives. Dropping the future closes the
//! connection (HTTP/1.1) or resets the stream (HTTP/2), which cancels a call in the modern era.

use std::error::Error;
use std::time::Duration;

use bytes::Bytes;
use fleet_ops::tls::{ClientTlsFiles, FollowedClient};
use fleet_wire::body::{BodyError, drain};
use fleet_wire::encoding::DecodeError;
use fleet_wire::head::Media;
use fleet_wire::is_cut;
use fleet_wire::session::Rejection;
use fleet_wire::sse::{Decoder, Event, EventTooLarge};
use fleet_wire::stream::{self, Odd, Start};
use futures::StreamExt as _;
use futures::stream::BoxStream;
use http::header::{
    ACCEPT, AUTHORIZATION, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, LOCATION, RETRY_AFTER,
    TRANSFER_ENCODING,
};
use http::{HeaderMap, HeaderValue, Version};
use reqwest::Response;
use serde_json::{Value, json};
use url::Url;

use crate::body::{Sent, TrackedBody};
use crate::classify::{Broken, Head};
use crate::config::{ClientConfig, ConfigError, Secret, label};
use crate::wire::{self, Message, News, RpcError, SESSION_ID};

mod authorization;

use authorization::Authorization;

/// How much of an error page is read, in bytes. Messages quote less.
const MAX_ERROR_BODY: usize = 64 << 10;

/// The largest number of headers of an answer; gateways add dozens.
const MAX_HEADERS: usize = 1000;

/// The time limit for side messages, such as answers to a server's ping and cancellations.
const SIDE_TIMEOUT: Duration = Duration::from_secs(5);

/// The body of a response.
type Body = fleet_wire::body::Body<BoxStream<'static, reqwest::Result<Bytes>>>;

/// The pooled connections and what all requests have in common.
#[derive(Debug, Clone)]
pub(crate) struct Transport {
    client: FollowedClient,
    /// The headers of every request.
    headers: HeaderMap,
    /// The headers of every message: those of every request, and the content types.
    message_headers: HeaderMap,
    /// The value of `Authorization`, in place of what the headers or a URL have.
    authorization: Authorization,
    max_response_bytes: usize,
    /// The `clientInfo` in both eras.
    pub(crate) client_info: Value,
}

/// One request to send.
pub(crate) struct Post<'a> {
    pub(crate) url: &'a Url,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Vec<u8>,
    pub(crate) id: u64,
    pub(crate) progress: Option<&'a News>,
    pub(crate) sent: &'a Sent,
}

/// What a request returned.
#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) head: Head,
    pub(crate) session: Option<HeaderValue>,
    pub(crate) answer: Answer,
    /// Whether the answer came in an event stream.
    streamed: bool,
}

impl Reply {
    /// Returns what this answer means for the session of its request. Returns `None` for a result
    /// and for any answer in an event stream, since a server opens one only in a session that it
    /// knows.
    pub(crate) fn rejection(&self) -> Option<Rejection> {
        let error = match &self.answer {
            Answer::Result(_) => return None,
            Answer::Error(_) if self.streamed => return None,
            Answer::Error(error) => Some(error),
            Answer::Nothing => None,
        };
        Some(Rejection {
            status: self.head.status,
            code: error.map(|error| error.code),
            addressed: error.is_some_and(|error| error.addressed),
        })
    }
}

/// The JSON-RPC part of a reply.
#[derive(Debug)]
pub(crate) enum Answer {
    Result(Value),
    Error(RpcError),
    /// The body of an HTTP error that is not JSON-RPC.
    Nothing,
}

impl Transport {
    pub(crate) fn new(config: &ClientConfig) -> Result<Self, ConfigError> {
        check_tls(config)?;
        let (files, settings) = (config.tls.clone(), config.clone());
        let client = FollowedClient::new(
            move || files.clone(),
            move |tls| {
                let mut builder = reqwest::Client::builder();
                if settings.endpoints.iter().all(|url| url.scheme() == "http") {
                    // The system's root certificates are not needed, and a slim container may have
                    // none, in which case the client could not be created. Trust no certificate at all
                    // then.
                    builder = builder.tls_certs_only([]);
                }

                tls.apply(builder)
                    .user_agent(format!("{}/{}", settings.client_name, settings.client_version))
                    .connect_timeout(settings.connect_timeout)
                    .pool_max_idle_per_host(settings.pool_max_idle_per_host)
                    .pool_idle_timeout(settings.pool_idle_timeout)
                    .redirect(reqwest::redirect::Policy::none())
                    .referer(false)
                    .http1_max_headers(MAX_HEADERS)
                    .tcp_nodelay(true)
                    .tcp_keepalive(Duration::from_secs(30))
                    .build()
            },
        )?;

        let headers = config.header_map()?;
        let mut message_headers = headers.clone();
        message_headers
            .insert(ACCEPT, HeaderValue::from_static("application/json, text/event-stream"));
        message_headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));

        Ok(Self {
            client,
            headers,
            message_headers,
            authorization: Authorization::new(config)?,
            max_response_bytes: config.max_response_bytes,
            client_info: json!({"name": config.client_name, "version": config.client_version}),
        })
    }

    /// Uses another token, or none, from the next request on.
    pub(crate) fn replace_token(&self, token: Option<&Secret>) -> Result<(), ConfigError> {
        self.authorization.replace(token)
    }

    /// Sends a request and reads its answer.
    pub(crate) async fn post(&self, mut post: Post<'_>) -> Result<Reply, Broken> {
        let body = Bytes::from(std::mem::take(&mut post.body));
        let mut response = self.send(post.url, &post, body.clone()).await?;
        if let Some(url) = redirect_target(&response, post.url) {
            post.sent.reset();
            response = self.send(&url, &post, body).await?;
        }

        let mut head = head(&response);
        let session = response.headers().get(&SESSION_ID).cloned();
        let kind = media(&response);
        let is_framed = is_framed(&response);
        let limit = self.max_response_bytes;
        let body = body_of(response, limit);

        if !(200..300).contains(&head.status) {
            // The status is used even if the body's encoding cannot be read. But a result of the
            // request takes precedence, since the request has been carried out.
            let max = if kind == Media::Json { limit } else { MAX_ERROR_BODY };
            let text = match body {
                Ok(mut body) => body.prefix(max).await,
                Err(_) => Vec::new(),
            };

            let answer = match pick_answer(wire::read(&text, post.id)) {
                Some(Message::Result(result)) => Answer::Result(result),
                Some(Message::Error(error)) => Answer::Error(error),
                _ => Answer::Nothing,
            };

            if matches!(answer, Answer::Nothing) && !kind.is_page() {
                head.text = String::from_utf8_lossy(&text).into_owned();
            }
            return Ok(Reply { head, session, answer, streamed: false });
        }

        let mut body = body?;
        let (answer, streamed) = match kind {
            Media::Json => {
                let text = read_whole(&mut body, is_framed, limit).await?;
                (require_answer(wire::read(&text, post.id))?, false)
            }
            Media::EventStream => (
                self.read_events(body, post.url, &post.headers, post.id, post.progress).await?,
                true,
            ),
            Media::Other(_) if matches!(head.status, 202 | 204) => return Err(Broken::Unanswered),
            Media::Other(name) => {
                let text = read_whole(&mut body, is_framed, limit).await?;
                (find_unlabelled_answer(&text, name, post.id)?, false)
            }
        };
        Ok(Reply { head, session, answer, streamed })
    }

    /// Sends a request. One that is refused for its access token was not carried out, and is sent
    /// again with another.
    async fn send(&self, url: &Url, post: &Post<'_>, body: Bytes) -> Result<Response, Broken> {
        let credential = self.authorization.for_call().await?;
        let response = self.send_once(url, post, body.clone(), credential.header()).await?;
        if !credential.is_refused_by(&response) {
            return Ok(response);
        }

        // Until another request is sent, nothing is on its way.
        post.sent.reset();
        match self.authorization.after_refusal(&credential).await? {
            Some(other) => self.send_once(url, post, body, other.header()).await,
            None => Ok(response),
        }
    }

    async fn send_once(
        &self,
        url: &Url,
        post: &Post<'_>,
        body: Bytes,
        authorization: Option<HeaderValue>,
    ) -> Result<Response, Broken> {
        let body = reqwest::Body::wrap(TrackedBody::new(body, post.sent.clone()));
        let request = self.message(url, &post.headers, authorization).body(body);
        request.send().await.map_err(|error| {
            let not_sent = error.is_connect() || !post.sent.get();
            let is_answered = has_too_large_head(&error);
            let why = causes(error);
            match (not_sent, is_answered) {
                (true, _) => Broken::NotSent(why),
                (false, true) => Broken::Unreadable(why),
                (false, false) => Broken::Lost(why),
            }
        })
    }

    /// Sends a message that expects no answer, and returns the HTTP response to it.
    pub(crate) async fn notify(
        &self,
        url: &Url,
        headers: &HeaderMap,
        body: Vec<u8>,
    ) -> Result<Head, Broken> {
        let authorization = self.authorization.for_side_message().await;
        let send = async |url: &Url, body: Vec<u8>| {
            let message = self.message(url, headers, authorization.clone());
            let sent = message.body(body).timeout(SIDE_TIMEOUT).send().await;
            sent.map_err(|error| {
                if error.is_connect() {
                    Broken::NotSent(causes(error))
                } else {
                    Broken::Lost(causes(error))
                }
            })
        };

        let mut response = send(url, body.clone()).await?;
        if let Some(url) = redirect_target(&response, url) {
            response = send(&url, body).await?;
        }

        let head = head(&response);
        drain(response.bytes_stream(), MAX_ERROR_BODY).await;
        Ok(head)
    }

    /// Ends a legacy session.
    pub(crate) async fn delete(&self, url: &Url, headers: &HeaderMap) {
        let authorization = self.authorization.for_side_message().await;
        let send = async |url: &Url| {
            let mut all = self.headers.clone();
            all.extend(authorization.clone().map(|value| (AUTHORIZATION, value)));
            let request = self.client.current().delete(url.clone()).headers(all);
            request.headers(headers.clone()).timeout(SIDE_TIMEOUT).send().await
        };

        let mut sent = send(url).await;
        if let Some(url) = sent.as_ref().ok().and_then(|response| redirect_target(response, url)) {
            sent = send(&url).await;
        }
        if let Err(error) = sent {
            tracing::debug!(error = causes(error), "could not end the session");
        }
    }

    /// Starts a message to the server with the common headers and these. (The builder handles
    /// credentials in a URL.)
    fn message(
        &self,
        url: &Url,
        headers: &HeaderMap,
        authorization: Option<HeaderValue>,
    ) -> reqwest::RequestBuilder {
        let mut all = self.message_headers.clone();
        all.extend(headers.iter().map(|(name, value)| (name.clone(), value.clone())));
        all.extend(authorization.map(|value| (AUTHORIZATION, value)));
        self.client.current().post(url.clone()).headers(all)
    }

    /// Answers a request from the server. A failure is only logged.
    async fn answer_server(&self, url: &Url, headers: &HeaderMap, method: &str, id: &Value) {
        let answer = wire::answer_to_server(method, id);
        if let Err(error) = Box::pin(self.notify(url, headers, answer)).await {
            tracing::debug!(?error, method, "could not answer a request from the server");
        }
    }

    /// Reads the answer from an event stream, and handles other messages on the way.
    async fn read_events(
        &self,
        mut body: Body,
        url: &Url,
        headers: &HeaderMap,
        id: u64,
        progress: Option<&News>,
    ) -> Result<Answer, Broken> {
        let limit = self.max_response_bytes;
        let mut decoder = Decoder::new(limit);
        let mut start = Start::default();
        let mut odd = None;
        while let Some(mut chunk) = body.chunk().await.map_err(|error| read_error(error, limit))? {
            match start.take(&chunk) {
                0 => {}
                length if length > limit => return Err(Broken::TooLarge(limit)),
                _ => continue,
            }

            while let Some(event) =
                decoder.next_event(&mut chunk).map_err(|EventTooLarge| Broken::TooLarge(limit))?
            {
                match self.take_event(&event, url, headers, id, progress).await {
                    Taken::Answer(message) => return require_answer(vec![message]),
                    Taken::Odd(Odd { why, is_end: true }) => return Err(Broken::Unreadable(why)),
                    Taken::Odd(Odd { why, is_end: false }) => odd = Some(why),
                    // Only the last event can replace the answer.
                    Taken::Aside if !event.data.is_empty() => odd = None,
                    Taken::Aside => {}
                }
            }
        }

        if let Start::Text(text) = start {
            return require_answer(wire::read(&text, id));
        }
        // Some servers omit the last blank line. An incomplete event was cut with its connection.
        let last = decoder.finish().filter(|event| event.is_message() && !is_cut(&event.data));
        match last.and_then(|event| pick_answer(wire::read(&event.data, id))) {
            Some(message) if !matches!(message, Message::Malformed(_)) => {
                require_answer(vec![message])
            }
            _ => Err(odd.map_or_else(
                || Broken::Lost("the event stream ended before the answer".to_owned()),
                Broken::Unreadable,
            )),
        }
    }

    /// Handles one event of the stream.
    async fn take_event(
        &self,
        event: &Event,
        url: &Url,
        headers: &HeaderMap,
        id: u64,
        progress: Option<&News>,
    ) -> Taken {
        let mut taken = stream::odd(event).map_or(Taken::Aside, Taken::Odd);
        for message in wire::read(&event.data, id) {
            match message {
                message if is_answer(&message) => return Taken::Answer(message),
                // An event of another type may contain the answer, but nothing else.
                _ if !event.is_message() => continue,
                Message::Malformed(_) => continue,
                message @ Message::Error(_) => return Taken::Answer(message),
                Message::Foreign => {
                    let why = "it is the answer to another request".to_owned();
                    taken = Taken::Odd(Odd { why, is_end: false });
                    continue;
                }
                // Progress is not guaranteed: a slow listener gets only the newest.
                Message::Progress(news) => {
                    drop(progress.map(|sender| sender.send_replace(Some(news))))
                }
                Message::Request { method, id } => {
                    self.answer_server(url, headers, &method, &id).await
                }
                Message::Other | Message::Result(_) | Message::Unreadable(_) => {}
            }
            taken = Taken::Aside;
        }
        taken
    }
}

/// The meaning of an event.
enum Taken {
    Answer(Message),
    /// Something unexpected instead of an answer.
    Odd(Odd),
    /// Something other than the answer, which has been handled.
    Aside,
}

/// Returns whether a message is certainly the answer to the request.
fn is_answer(message: &Message) -> bool {
    match message {
        Message::Result(_) | Message::Unreadable(_) => true,
        Message::Error(error) => error.addressed,
        _ => false,
    }
}

/// Returns the answer in a body that is not declared as JSON. If it is the answer to this request,
/// the tool has run, and a wrong content type is no reason to run it again.
fn find_unlabelled_answer(text: &[u8], name: String, id: u64) -> Result<Answer, Broken> {
    match pick_answer(wire::read(text, id)) {
        Some(
            message @ (Message::Result(_)
            | Message::Error(RpcError { addressed: true, .. })
            | Message::Unreadable(_)),
        ) => require_answer(vec![message]),
        _ => Err(Broken::ContentType(if name.is_empty() { "nothing".to_owned() } else { name })),
    }
}

/// Returns the message that ends the request. A certain answer takes precedence over a possible
/// one.
fn pick_answer(messages: Vec<Message>) -> Option<Message> {
    let (malformed, others): (Vec<_>, Vec<_>) =
        messages.into_iter().partition(|message| matches!(message, Message::Malformed(_)));
    let mut candidates = others.into_iter().chain(malformed);
    candidates.find(|message| {
        !matches!(
            message,
            Message::Progress(_) | Message::Request { .. } | Message::Foreign | Message::Other
        )
    })
}

/// Reads a whole body. If only the end of the connection marks its end, an incomplete body was cut.
async fn read_whole(body: &mut Body, is_framed: bool, limit: usize) -> Result<Vec<u8>, Broken> {
    let text = body.whole().await.map_err(|error| read_error(error, limit))?;
    if !is_framed && is_cut(&text) {
        return Err(Broken::Lost("the connection ended in the middle of the answer".to_owned()));
    }
    Ok(text)
}

/// Returns whether the end of the body is distinguishable from the end of the connection.
fn is_framed(response: &Response) -> bool {
    let has = |name| response.headers().contains_key(name);
    response.version() >= Version::HTTP_2 || has(CONTENT_LENGTH) || has(TRANSFER_ENCODING)
}

/// Returns whether an answer arrived whose head is too large.
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

/// Returns the answer among the messages, which must contain one.
fn require_answer(messages: Vec<Message>) -> Result<Answer, Broken> {
    match pick_answer(messages) {
        Some(Message::Result(result)) => Ok(Answer::Result(result)),
        Some(Message::Error(error)) => Ok(Answer::Error(error)),
        Some(Message::Unreadable(why) | Message::Malformed(why)) => Err(Broken::Unreadable(why)),
        Some(
            Message::Progress(_) | Message::Request { .. } | Message::Foreign | Message::Other,
        )
        | None => Err(Broken::Unreadable("it is not the answer to this request".to_owned())),
    }
}

fn body_of(response: Response, limit: usize) -> Result<Body, Broken> {
    let encoding =
        response.headers().get(CONTENT_ENCODING).and_then(|encoding| encoding.to_str().ok());
    let encoding = encoding.map(str::to_owned);
    let length = response.content_length();
    let chunks = response.bytes_stream().boxed();
    Body::new(chunks, encoding.as_deref(), length, limit)
        .map_err(|error| decode_error(error, limit))
}

fn read_error(error: BodyError<reqwest::Error>, limit: usize) -> Broken {
    match error {
        BodyError::Lost(error) => Broken::Lost(causes(error)),
        BodyError::Encoding(error) => decode_error(error, limit),
    }
}

fn decode_error(error: DecodeError, limit: usize) -> Broken {
    match error {
        DecodeError::Unknown(name) => {
            Broken::ContentType(format!("encoded as {name}, which was not requested"))
        }
        DecodeError::Broken(why) => {
            Broken::Unreadable(format!("its Content-Encoding is wrong: {why}"))
        }
        DecodeError::TooLarge => Broken::TooLarge(limit),
    }
}

fn head(response: &Response) -> Head {
    let text = |name| response.headers().get(name).and_then(|v| v.to_str().ok()).map(str::to_owned);
    Head {
        status: response.status().as_u16(),
        retry_after: text(RETRY_AFTER),
        location: text(LOCATION),
        text: String::new(),
    }
}

/// Refuses settings of TLS that would have no effect.
fn check_tls(config: &ClientConfig) -> Result<(), ConfigError> {
    let plain = config.endpoints.iter().find(|url| url.scheme() == "http");
    match plain.filter(|_| config.tls != ClientTlsFiles::default()) {
        Some(url) => Err(ConfigError::TlsWithoutHttps { url: label(url) }),
        None => Ok(()),
    }
}

/// Returns the URL to which the request must be sent again, if the server redirects within its
/// origin.
fn redirect_target(response: &Response, from: &Url) -> Option<Url> {
    let location = response.headers().get(LOCATION).and_then(|location| location.to_str().ok());
    fleet_wire::head::moved(response.status().as_u16(), from, location)
}

fn media(response: &Response) -> Media {
    Media::of(response.headers().get(CONTENT_TYPE).and_then(|value| value.to_str().ok()))
}

/// Describes an error with all its causes but without the URL, which may contain a password.
fn causes(error: reqwest::Error) -> String {
    let error = error.without_url();
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.ends_with(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        source = cause.source();
    }
    text
}

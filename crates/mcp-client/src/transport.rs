//! One POST and its answer: the only place that reads from the network.
//!
//! Everything that is read is counted against a limit while it comes in. Dropping the future closes the connection
//! (HTTP/1.1) or resets the stream (HTTP/2), which is how a call is cancelled in the modern era.

use std::error::Error;
use std::time::Duration;

use bytes::Bytes;
use fleet_wire::session::Rejection;
use http::header::{ACCEPT, CONTENT_TYPE, LOCATION, RETRY_AFTER};
use http::{HeaderMap, HeaderValue};
use reqwest::Response;
use serde_json::{Value, json};
use url::Url;

use crate::body::{Sent, TrackedBody};
use crate::classify::{Broken, Head};
use crate::config::{ClientConfig, ConfigError};
use crate::sse::Decoder;
use crate::wire::{self, Message, News, RpcError, SESSION_ID};

/// How much of an error page is read; the message quotes less.
const MAX_ERROR_BODY: usize = 64 << 10;

/// How long side messages (answers to a server's ping, cancellations) may take.
const SIDE_TIMEOUT: Duration = Duration::from_secs(5);

/// The pooled connections, and what every request has in common.
#[derive(Debug, Clone)]
pub(crate) struct Transport {
    client: reqwest::Client,
    /// What every request carries.
    headers: HeaderMap,
    /// The same, and what belongs to a message.
    message_headers: HeaderMap,
    max_response_bytes: usize,
    /// `clientInfo` in both eras.
    pub(crate) client_info: Value,
}

/// One request to be sent.
pub(crate) struct Post<'a> {
    pub(crate) url: &'a Url,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Vec<u8>,
    pub(crate) id: u64,
    pub(crate) progress: Option<&'a News>,
    pub(crate) sent: &'a Sent,
}

/// What came back.
#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) head: Head,
    pub(crate) session: Option<HeaderValue>,
    pub(crate) answer: Answer,
    /// Whether the answer stood in an event stream.
    streamed: bool,
}

impl Reply {
    /// What this answer says about the session of its request; nothing if it is a result, or stood in an event stream,
    /// which only a session that is there opens.
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

/// The JSON-RPC part of what came back.
#[derive(Debug)]
pub(crate) enum Answer {
    Result(Value),
    Error(RpcError),
    /// An HTTP error whose body is not JSON-RPC.
    Nothing,
}

impl Transport {
    pub(crate) fn new(config: &ClientConfig) -> Result<Self, ConfigError> {
        let mut builder = reqwest::Client::builder();
        if config.endpoints.iter().all(|url| url.scheme() == "http") {
            // The system's root certificates are not needed, and a slim container has none to load: without this the
            // client could not be made there. No certificate at all is trusted then.
            builder = builder.tls_certs_only([]);
        }
        let client = builder
            .user_agent(format!("{}/{}", config.client_name, config.client_version))
            .connect_timeout(config.connect_timeout)
            .pool_max_idle_per_host(config.pool_max_idle_per_host)
            .pool_idle_timeout(config.pool_idle_timeout)
            .redirect(reqwest::redirect::Policy::none())
            .referer(false)
            .tcp_nodelay(true)
            .tcp_keepalive(Duration::from_secs(30))
            .build()
            .map_err(ConfigError::Http)?;
        let headers = config.header_map()?;
        let mut message_headers = headers.clone();
        message_headers.insert(ACCEPT, HeaderValue::from_static("application/json, text/event-stream"));
        message_headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        Ok(Self {
            client,
            headers,
            message_headers,
            max_response_bytes: config.max_response_bytes,
            client_info: json!({"name": config.client_name, "version": config.client_version}),
        })
    }

    /// Sends a request and reads until its answer.
    pub(crate) async fn post(&self, post: Post<'_>) -> Result<Reply, Broken> {
        let body = reqwest::Body::wrap(TrackedBody::new(Bytes::from(post.body), post.sent.clone()));
        let request = self.message(post.url, &post.headers).body(body);
        let mut response = request.send().await.map_err(|error| {
            let not_sent = error.is_connect() || !post.sent.get();
            let why = causes(error);
            if not_sent { Broken::NotSent(why) } else { Broken::Lost(why) }
        })?;
        let mut head = head(&response);
        let session = response.headers().get(&SESSION_ID).cloned();
        let kind = content_type(&response);
        let answer = if !response.status().is_success() {
            let body = read_prefix(&mut response, MAX_ERROR_BODY).await;
            match wire::read(&body, post.id) {
                Message::Error(error) => Answer::Error(error),
                _ => {
                    if !kind.ends_with("html") {
                        head.text = String::from_utf8_lossy(&body).into_owned();
                    }
                    Answer::Nothing
                }
            }
        } else if kind == "application/json" || kind.ends_with("+json") {
            let body = self.read_whole(&mut response).await?;
            answer(wire::read(&body, post.id))?
        } else if kind == "text/event-stream" {
            self.read_events(&mut response, post.url, &post.headers, post.id, post.progress).await?
        } else if matches!(head.status, 202 | 204) {
            return Err(Broken::Unanswered);
        } else {
            return Err(Broken::ContentType(if kind.is_empty() { "nothing".to_owned() } else { kind }));
        };
        let streamed = response.status().is_success() && kind == "text/event-stream";
        Ok(Reply { head, session, answer, streamed })
    }

    /// Sends a message that has no answer, and says which HTTP status it met.
    pub(crate) async fn notify(&self, url: &Url, headers: &HeaderMap, body: Vec<u8>) -> Result<Head, Broken> {
        let sent = self.message(url, headers).body(body).timeout(SIDE_TIMEOUT).send().await;
        let mut response = sent.map_err(|error| {
            if error.is_connect() { Broken::NotSent(causes(error)) } else { Broken::Lost(causes(error)) }
        })?;
        // An unread body would cost the connection.
        drop(read_prefix(&mut response, MAX_ERROR_BODY).await);
        Ok(head(&response))
    }

    /// Gives a legacy session back.
    pub(crate) async fn delete(&self, url: &Url, headers: &HeaderMap) {
        let request = self.client.delete(url.clone()).headers(self.headers.clone()).headers(headers.clone());
        if let Err(error) = request.timeout(SIDE_TIMEOUT).send().await {
            tracing::debug!(error = causes(error), "the session could not be given back");
        }
    }

    /// A message to the server, with the headers of all messages and these. (The builder knows of credentials in a URL.)
    fn message(&self, url: &Url, headers: &HeaderMap) -> reqwest::RequestBuilder {
        let mut all = self.message_headers.clone();
        all.extend(headers.iter().map(|(name, value)| (name.clone(), value.clone())));
        self.client.post(url.clone()).headers(all)
    }

    async fn read_whole(&self, response: &mut Response) -> Result<Vec<u8>, Broken> {
        let limit = self.max_response_bytes;
        if response.content_length().is_some_and(|length| length > limit as u64) {
            return Err(Broken::TooLarge(limit));
        }
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(lost)? {
            if body.len() + chunk.len() > limit {
                return Err(Broken::TooLarge(limit));
            }
            body.extend_from_slice(&chunk);
        }
        Ok(body)
    }

    async fn read_events(
        &self,
        response: &mut Response,
        url: &Url,
        headers: &HeaderMap,
        id: u64,
        progress: Option<&News>,
    ) -> Result<Answer, Broken> {
        let mut decoder = Decoder::new(self.max_response_bytes);
        let mut events = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(lost)? {
            let decoded = decoder.push(&chunk, &mut events);
            for event in events.drain(..) {
                match wire::read(&event, id) {
                    // Progress is news and not a promise: of what a slow listener has not seen, the newest is enough.
                    Message::Progress(news) => drop(progress.map(|sender| sender.send_replace(Some(news)))),
                    Message::Request { method, id } => {
                        let answer = wire::answer_to_server(&method, &id);
                        if let Err(error) = Box::pin(self.notify(url, headers, answer)).await {
                            tracing::debug!(?error, method, "the server's own request could not be answered");
                        }
                    }
                    Message::Other => {}
                    message => return answer(message),
                }
            }
            decoded.map_err(|_| Broken::TooLarge(self.max_response_bytes))?;
        }
        Err(Broken::Lost("the event stream ended before the answer".to_owned()))
    }
}

/// The answer in a message, which must be one.
fn answer(message: Message) -> Result<Answer, Broken> {
    match message {
        Message::Result(result) => Ok(Answer::Result(result)),
        Message::Error(error) => Ok(Answer::Error(error)),
        Message::Unreadable(why) => Err(Broken::Unreadable(why.to_owned())),
        Message::Malformed(why) => Err(Broken::Malformed(why.to_owned())),
        Message::Progress(_) | Message::Request { .. } | Message::Other => {
            Err(Broken::Malformed("it is not the answer to this request".to_owned()))
        }
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

/// The media type without parameters, in lower case; empty if there is none.
fn content_type(response: &Response) -> String {
    let value =
        response.headers().get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    value.split(';').next().unwrap_or_default().trim().to_ascii_lowercase()
}

/// The beginning of a body. What breaks or is too long is cut off: the status has said what matters.
async fn read_prefix(response: &mut Response, limit: usize) -> Vec<u8> {
    let mut body = Vec::new();
    while let Ok(Some(chunk)) = response.chunk().await {
        let room = limit - body.len();
        body.extend_from_slice(&chunk[..chunk.len().min(room)]);
        if body.len() == limit {
            break;
        }
    }
    body
}

fn lost(error: reqwest::Error) -> Broken {
    Broken::Lost(causes(error))
}

/// An error with all its causes, without the URL, which may hold a password.
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

//! The HTTP client under rmcp's transport to a remote, which keeps the session.
//!
//! rmcp makes a new session only after a 404, and ends all running calls for it. So it never learns
//! about a lost session: it keeps naming the first one, and this client sends the present one
//! instead. [`fleet_wire::session`] decides whether a session is lost, for this client and the
//! worker's alike.

use std::{collections::HashMap, sync::Arc, time::Duration};

use fleet_ops::errors::chain;
use fleet_wire::session::{Doubt, Keeper, Lease, Pinged, Rejection, Step};
use futures::{StreamExt, stream::BoxStream};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use parking_lot::{Mutex, MutexGuard};
use rmcp::{
    model::{
        ClientJsonRpcMessage, ClientNotification, ClientRequest, InitializedNotification,
        JsonRpcMessage, PingRequest, RequestId, ServerJsonRpcMessage, ServerResult,
    },
    transport::streamable_http_client::{
        SseError, StreamableHttpClient, StreamableHttpError, StreamableHttpPostResponse,
    },
};
use sse_stream::Sse;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::{
    events::Events,
    exchange::{Answer, HttpFailure, Rejected, RemoteLink, SESSION_ID, request_id},
    opening,
};
use crate::changes::News;

/// How long a new handshake, or a ping, may take.
const HANDSHAKE_TIME: Duration = Duration::from_secs(30);
/// How long a useless connection is kept, so that its callers get their errors.
const GRACE: Duration = Duration::from_millis(200);
const PROTOCOL_VERSION: HeaderName = HeaderName::from_static("mcp-protocol-version");

type Failure = StreamableHttpError<HttpFailure>;

/// An HTTP client that replaces lost sessions.
#[derive(Clone)]
pub(crate) struct SessionClient(Arc<Inner>);

struct Inner {
    link: RemoteLink,
    /// How long to wait for an answer to `server/discover`.
    patience: Duration,
    state: Mutex<State>,
    /// Held by the request that finds out whether the session is lost.
    inquiry: tokio::sync::Mutex<()>,
    /// Notified of new sessions.
    news: News,
    /// Cancelled when this connection has become useless.
    over: CancellationToken,
    _over: DropGuard,
}

#[derive(Default)]
struct State {
    keeper: Keeper,
    session: Option<Session>,
    /// The last handshake that failed.
    failure: Option<HttpFailure>,
    /// Why the server did not take `notifications/initialized`, if it did not.
    refused_initialized: Option<String>,
}

/// A session of a server, and the request that makes another one.
#[derive(Clone)]
struct Session {
    lease: Lease,
    /// `None` if the server, after a restart, hands out no ids.
    id: Option<Arc<str>>,
    version: HeaderValue,
    initialize: Arc<ClientJsonRpcMessage>,
}

impl SessionClient {
    /// Creates a client for one server. Also returns a token that is cancelled when the connection
    /// should be replaced.
    pub(super) fn new(
        link: RemoteLink,
        patience: Duration,
        news: News,
    ) -> (Self, CancellationToken) {
        let over = CancellationToken::new();
        let inner = Inner {
            link,
            patience,
            state: Mutex::default(),
            inquiry: tokio::sync::Mutex::default(),
            news,
            _over: over.clone().drop_guard(),
            over: over.clone(),
        };
        (Self(Arc::new(inner)), over)
    }

    /// Returns why the server did not take `notifications/initialized`, if it did not. rmcp then
    /// says only that its channel is closed.
    pub(crate) fn refused_initialized(&self) -> Option<String> {
        self.0.state().refused_initialized.clone()
    }
}

impl Inner {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }

    /// Posts a message outside of any session.
    async fn post_first(
        &self,
        message: ClientJsonRpcMessage,
        headers: HeaderMap,
    ) -> Result<StreamableHttpPostResponse, Failure> {
        if opening::is_discover(&message) {
            return self.discover(&message, headers).await;
        }
        if opening::is_initialize(&message) {
            return self.begin_session(message, headers).await;
        }
        match self.link.post(headers, &message).await.map_err(Failure::Client)? {
            // Without a session, the answer can't come on another stream.
            Answer::Accepted(status) if request_id(&message).is_some() => {
                Err(Failure::Client(unanswered_failure(status)))
            }
            answer => to_rmcp_response(&message, answer),
        }
    }

    /// Sends `server/discover`. If the server does not know the method, in whatever way it answers,
    /// or does not answer, rmcp is made to try `initialize`.
    async fn discover(
        &self,
        message: &ClientJsonRpcMessage,
        headers: HeaderMap,
    ) -> Result<StreamableHttpPostResponse, Failure> {
        let asked = async {
            match self.link.post(headers, message).await? {
                Answer::Stream(stream, _) => {
                    Ok(Answer::Message(Box::new(first_message(stream).await?), None))
                }
                answer => Ok(answer),
            }
        };
        let Ok(answer) = tokio::time::timeout(self.patience, asked).await else {
            let why =
                format!("server/discover was not answered within {} ms", self.patience.as_millis());
            return Ok(StreamableHttpPostResponse::Json(opening::refusal(message, why), None));
        };
        let answer = answer.map_err(Failure::Client)?;
        match opening::not_discovered(message, &answer) {
            Some(refusal) => Ok(StreamableHttpPostResponse::Json(refusal, None)),
            None => to_rmcp_response(message, answer),
        }
    }

    /// Posts `initialize`, and keeps the session that the server may begin.
    async fn begin_session(
        &self,
        mut message: ClientJsonRpcMessage,
        headers: HeaderMap,
    ) -> Result<StreamableHttpPostResponse, Failure> {
        let mut answer = self.ask_initialize(headers.clone(), &message).await?;
        if let Some(other) = opening::in_listed_revision(&message, &answer) {
            message = other;
            answer = self.ask_initialize(headers, &message).await?;
        }

        let (answer, session) = match answer {
            Answer::Message(answer, session) => (*answer, session),
            other => return to_rmcp_response(&message, other),
        };
        if let (Some(id), Some(version)) = (&session, version_of(&answer)) {
            let mut state = self.state();
            let lease = state.keeper.issue();
            let initialize = Arc::new(message);
            state.session = Some(Session { lease, id: Some(id.clone()), version, initialize });
        }
        Ok(StreamableHttpPostResponse::Json(answer, session.map(|id| id.to_string())))
    }

    /// Posts `initialize`, and reads the answer if it is in a stream.
    async fn ask_initialize(
        &self,
        headers: HeaderMap,
        message: &ClientJsonRpcMessage,
    ) -> Result<Answer, Failure> {
        match self.link.post(headers, message).await.map_err(Failure::Client)? {
            Answer::Stream(stream, session) => {
                let answer = first_message(stream).await.map_err(Failure::Client)?;
                Ok(Answer::Message(Box::new(answer), session))
            }
            answer => Ok(answer),
        }
    }

    /// Posts a message in the session, or in a new one if the server has lost the present one.
    async fn post_in_session(
        &self,
        message: ClientJsonRpcMessage,
        headers: HeaderMap,
    ) -> Result<StreamableHttpPostResponse, Failure> {
        let mut resent = false;
        loop {
            let session = self.state().session.clone();
            let headers_now = session
                .as_ref()
                .map_or_else(|| headers.clone(), |session| session.headers(&headers));
            let answer = self.link.post(headers_now, &message).await.map_err(Failure::Client)?;
            let (Answer::Rejected(rejected), Some(_), Some(session)) =
                (&answer, request_id(&message), &session)
            else {
                return to_rmcp_response(&message, answer);
            };

            let rejection = to_rejection(rejected);
            let doubt = self.state().keeper.doubt(session.lease, rejection, resent);
            let Some(doubt) = doubt else { return to_rmcp_response(&message, answer) };
            match self.resolve_doubt(&headers, session, doubt).await {
                Step::Resend => resent = true,
                Step::Failed => {
                    let failure = self.state().failure.clone();
                    let cause =
                        failure.unwrap_or_else(|| HttpFailure::Unreadable(rejected.to_string()));
                    return Err(Failure::Client(HttpFailure::NoSession(Box::new(cause))));
                }
                Step::Stand | Step::Ping | Step::Renew => {
                    return to_rmcp_response(&message, answer);
                }
            }
        }
    }

    /// Finds out whether a session is lost, and makes a new one if so. Returns what to do with the
    /// request.
    async fn resolve_doubt(
        &self,
        headers: &HeaderMap,
        session: &Session,
        mut doubt: Doubt,
    ) -> Step {
        let _turn = self.inquiry.lock().await;
        let mut step = self.state().keeper.next(&doubt);
        loop {
            step = match step {
                Step::Ping => {
                    let pinged = self.ping(headers, session).await;
                    self.state().keeper.pinged(&mut doubt, pinged)
                }
                Step::Renew => match self.handshake(headers, session).await {
                    Ok((id, version)) => {
                        tracing::info!("a hosted remote had lost our session; made a new one");
                        let mut state = self.state();
                        let lease = state.keeper.issue();
                        let initialize = session.initialize.clone();
                        state.session = Some(Session { lease, id, version, initialize });
                        self.news.note_new_session();
                        state.keeper.renewed(&doubt)
                    }
                    Err(failure) => {
                        tracing::info!(
                            %failure,
                            "a hosted remote has lost our session, and a new handshake failed"
                        );
                        let mut state = self.state();
                        let step = state.keeper.not_renewed(&doubt);
                        if step == Step::Failed && speaks_otherwise(&failure) {
                            self.end_connection();
                        }
                        state.failure = Some(failure);
                        step
                    }
                },
                Step::Stand | Step::Resend | Step::Failed => return step,
            }
        }
    }

    /// Ends the connection, so that the next call makes another one. A server that no longer
    /// accepts this handshake may accept a different one.
    fn end_connection(&self) {
        let over = self.over.clone();
        tokio::spawn(async move {
            // Callers that wait for an answer should get the actual error, not that the connection
            // has ended.
            tokio::time::sleep(GRACE).await;
            over.cancel();
        });
    }

    async fn ping(&self, headers: &HeaderMap, session: &Session) -> Pinged {
        let id = RequestId::String("mcp-fleet/ping".into());
        let ping = ClientRequest::PingRequest(PingRequest::default());
        let message = ClientJsonRpcMessage::request(ping, id);
        let exchange = self.link.post(session.headers(headers), &message);
        match tokio::time::timeout(HANDSHAKE_TIME, exchange).await {
            Ok(Ok(Answer::Rejected(rejected))) => Pinged::Rejected(to_rejection(&rejected)),
            Ok(Ok(_)) => Pinged::Answered,
            Ok(Err(_)) | Err(_) => Pinged::Unanswered,
        }
    }

    async fn handshake(
        &self,
        headers: &HeaderMap,
        session: &Session,
    ) -> Result<(Option<Arc<str>>, HeaderValue), HttpFailure> {
        let handshake = self.initialize(headers, session);
        let late = || {
            HttpFailure::Unreadable(format!("no handshake within {} s", HANDSHAKE_TIME.as_secs()))
        };
        tokio::time::timeout(HANDSHAKE_TIME, handshake).await.unwrap_or_else(|_| Err(late()))
    }

    async fn initialize(
        &self,
        headers: &HeaderMap,
        session: &Session,
    ) -> Result<(Option<Arc<str>>, HeaderValue), HttpFailure> {
        let mut first = headers.clone();
        first.remove(PROTOCOL_VERSION);
        let (answer, id) = match self.link.post(first, &session.initialize).await? {
            Answer::Message(answer, id) => (*answer, id),
            Answer::Stream(stream, id) => (first_message(stream).await?, id),
            Answer::Rejected(rejected) => return Err(HttpFailure::Rejected(Arc::from(rejected))),
            Answer::Accepted(_) => {
                return Err(HttpFailure::Unreadable("initialize was not answered".to_owned()));
            }
        };
        let Some(version) = version_of(&answer) else {
            return Err(HttpFailure::Unreadable(
                "the answer to initialize is not its result".to_owned(),
            ));
        };

        let new = Session { id: id.clone(), version: version.clone(), ..session.clone() };
        let initialized =
            ClientNotification::InitializedNotification(InitializedNotification::default());
        let message = ClientJsonRpcMessage::notification(initialized);
        match self.link.post(new.headers(headers), &message).await? {
            Answer::Rejected(rejected) => Err(HttpFailure::Rejected(Arc::from(rejected))),
            Answer::Accepted(_) | Answer::Message(..) | Answer::Stream(..) => Ok((id, version)),
        }
    }
}

impl Session {
    /// Returns the headers of a request in this session.
    fn headers(&self, base: &HeaderMap) -> HeaderMap {
        let mut headers = base.clone();
        headers.insert(PROTOCOL_VERSION, self.version.clone());
        if let Some(Ok(id)) = self.id.as_deref().map(HeaderValue::try_from) {
            headers.insert(SESSION_ID, id);
        }
        headers
    }
}

/// Returns the revision that an answer to `initialize` selects.
fn version_of(answer: &ServerJsonRpcMessage) -> Option<HeaderValue> {
    match answer {
        JsonRpcMessage::Response(response) => match &response.result {
            ServerResult::InitializeResult(result) => {
                HeaderValue::try_from(result.protocol_version.as_str()).ok()
            }
            _ => None,
        },
        _ => None,
    }
}

fn to_rejection(rejected: &Rejected) -> Rejection {
    Rejection {
        status: rejected.status.as_u16(),
        code: rejected.error.as_ref().map(|error| i64::from(error.error.code.0)),
        addressed: rejected.error.as_ref().is_some_and(|error| error.addressed),
    }
}

/// Returns whether a failed handshake means that the server speaks another revision, or is another
/// server.
fn speaks_otherwise(failure: &HttpFailure) -> bool {
    match failure {
        HttpFailure::Rejected(rejected) => {
            failure.outage().is_none()
                && (rejected.error.is_some() || rejected.status.is_client_error())
        }
        HttpFailure::Connection(_)
        | HttpFailure::NoToken(_)
        | HttpFailure::Unreadable(_)
        | HttpFailure::Cut
        | HttpFailure::NoSession(_) => false,
    }
}

/// Returns the answer in a stream.
async fn first_message(mut stream: Events) -> Result<ServerJsonRpcMessage, HttpFailure> {
    while let Some(event) = stream.next().await {
        let event = event.map_err(|error| HttpFailure::Unreadable(error.to_string()))?;
        let data = event.data.unwrap_or_default();
        match serde_json::from_str(&data) {
            Ok(message @ (JsonRpcMessage::Response(_) | JsonRpcMessage::Error(_))) => {
                return Ok(message);
            }
            Ok(_) => {}
            Err(_) if data.trim().is_empty() => {}
            Err(error) => {
                return Err(HttpFailure::Unreadable(format!("an event is not JSON-RPC: {error}")));
            }
        }
    }
    Err(HttpFailure::Unreadable("the stream ended before the answer".to_owned()))
}

fn unanswered_failure(status: StatusCode) -> HttpFailure {
    HttpFailure::Unreadable(format!("the server answered HTTP {status} and nothing else"))
}

/// Converts an answer to rmcp's type. An error that names no request is the answer to this one,
/// since rmcp would wait for another.
fn to_rmcp_response(
    message: &ClientJsonRpcMessage,
    answer: Answer,
) -> Result<StreamableHttpPostResponse, Failure> {
    let rejected = match answer {
        // The answer may come on another stream of the session, unless the status excludes that.
        Answer::Accepted(status @ StatusCode::NO_CONTENT) if request_id(message).is_some() => {
            return Err(Failure::Client(unanswered_failure(status)));
        }
        Answer::Accepted(_) => return Ok(StreamableHttpPostResponse::Accepted),
        Answer::Message(answer, session) => {
            return Ok(StreamableHttpPostResponse::Json(*answer, session.map(|id| id.to_string())));
        }
        Answer::Stream(stream, session) => {
            return Ok(StreamableHttpPostResponse::Sse(stream, session.map(|id| id.to_string())));
        }
        Answer::Rejected(rejected) => rejected,
    };
    // The status tells whether the other transport may work.
    if opening::is_initialize(message) && opening::expects_other_transport(rejected.status.as_u16())
    {
        return Err(Failure::Client(HttpFailure::Rejected(Arc::from(rejected))));
    }
    let failure = HttpFailure::Rejected(Arc::from(rejected));
    let HttpFailure::Rejected(rejected) = &failure else { return Err(Failure::Client(failure)) };
    match (&rejected.error, request_id(message)) {
        (Some(error), Some(id)) if failure.outage().is_none() => {
            let error = ServerJsonRpcMessage::error(error.error.clone(), Some(id.clone()));
            Ok(StreamableHttpPostResponse::Json(error, None))
        }
        _ => Err(Failure::Client(failure)),
    }
}

fn is_initialized(message: &ClientJsonRpcMessage) -> bool {
    matches!(
        message,
        JsonRpcMessage::Notification(notification)
            if matches!(notification.notification, ClientNotification::InitializedNotification(_))
    )
}

/// Returns the headers that rmcp wants to send.
fn header_map(headers: HashMap<HeaderName, HeaderValue>, auth: Option<String>) -> HeaderMap {
    let mut map: HeaderMap = headers.into_iter().collect();
    if let Some(Ok(mut value)) = auth.map(|token| HeaderValue::try_from(format!("Bearer {token}")))
    {
        value.set_sensitive(true);
        map.insert(http::header::AUTHORIZATION, value);
    }
    map
}

impl StreamableHttpClient for SessionClient {
    type Error = HttpFailure;

    async fn post_message(
        &self,
        _uri: Arc<str>,
        message: ClientJsonRpcMessage,
        session_id: Option<Arc<str>>,
        auth_header: Option<String>,
        custom_headers: HashMap<HeaderName, HeaderValue>,
    ) -> Result<StreamableHttpPostResponse, Failure> {
        let headers = header_map(custom_headers, auth_header);
        let is_initialized = is_initialized(&message);
        let result = match session_id {
            None => self.0.post_first(message, headers).await,
            Some(_) => self.0.post_in_session(message, headers).await,
        };

        if let (true, Err(Failure::Client(failure))) = (is_initialized, &result) {
            self.0.state().refused_initialized = Some(chain(failure));
        }
        result
    }

    async fn delete_session(
        &self,
        _uri: Arc<str>,
        _session_id: Arc<str>,
        auth_header: Option<String>,
        custom_headers: HashMap<HeaderName, HeaderValue>,
    ) -> Result<(), Failure> {
        let Some(session) = self.0.state().session.clone() else { return Ok(()) };
        let headers = session.headers(&header_map(custom_headers, auth_header));
        // The server may refuse or be down. There is nothing more to do in any case.
        self.0.link.delete(headers).await.map_err(Failure::Client)
    }

    async fn get_stream(
        &self,
        _uri: Arc<str>,
        session_id: Option<Arc<str>>,
        last_event_id: Option<String>,
        auth_header: Option<String>,
        custom_headers: HashMap<HeaderName, HeaderValue>,
    ) -> Result<BoxStream<'static, Result<Sse, SseError>>, Failure> {
        let headers = header_map(custom_headers, auth_header);
        let session = session_id.and_then(|_| self.0.state().session.clone());
        let headers = session.map_or_else(|| headers.clone(), |session| session.headers(&headers));
        self.0.link.get(headers, last_event_id.as_deref()).await.map_err(|failure| {
            if failure.status() == Some(405) {
                return Failure::ServerDoesNotSupportSse;
            }
            Failure::Client(failure)
        })
    }
}

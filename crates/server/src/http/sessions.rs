//! Sessions of clients of the older protocol, bounded in number, which any replica can serve.
//!
//! A session is a task and a few queues for messages that belong to no single request. Everything
//! else is in the requests. So if this process doesn't have the session of a request (because
//! another replica created it, it was evicted, or the process was restarted), the request restores
//! it, as the client's `initialize` would have created it. A client gets 'session not found' only
//! for a session that it has deleted, for a session of another principal, and for an id that is not
//! one of ours.
//!
//! rmcp can restore sessions from a store itself, but answers 500 if two requests of a missing
//! session arrive at once and one is late, or if a session ends between being found and being used.
//! So this module restores sessions when they are used, under one lock. Only deletions go through
//! rmcp's store.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use axum::{extract::Request, middleware::Next, response::Response};
use fleet_access::Asker;
use fleet_ops::metrics::Counted;
use futures::{
    FutureExt, Stream, StreamExt,
    future::{BoxFuture, Shared},
};
use http::request::Parts;
use parking_lot::{Mutex, MutexGuard};
use rmcp::{
    model::{
        ClientCapabilities, ClientJsonRpcMessage, ClientNotification, ClientRequest, GetExtensions,
        Implementation, InitializeRequest, InitializeRequestParams, InitializedNotification,
        NumberOrString, ProtocolVersion, ServerJsonRpcMessage,
    },
    service::serve_server_with_ct,
    transport::{
        WorkerTransport,
        common::server_side_http::{ServerSseMessage, SessionId},
        streamable_http_server::session::{
            SessionManager, SessionState, SessionStore, SessionStoreError,
            local::{
                LocalSessionHandle, LocalSessionWorker, SessionConfig, SessionError,
                StreamableHttpMessageReceiver, create_local_session,
            },
        },
    },
};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;

use crate::{gateway::Gateway, metrics};

mod id;

use id::SessionScope;

/// The most sessions in this process. Each has a task and a few queues; a client needs one.
pub(super) const MAX_SESSIONS: usize = 1000;
/// The most deleted sessions that are remembered.
const MAX_DELETED: usize = 10_000;
/// How much longer than the longest call a session may be idle. rmcp doesn't count a running call
/// as activity.
const IDLE: Duration = Duration::from_secs(300);

tokio::task_local! {
    /// Who sends the request that the current task serves. rmcp asks for sessions by their ids
    /// alone, but in the task of the request. Only a session's end is reported by another task.
    static ASKER: Option<Asker>;
}

/// Serves a request with the sessions of its principal.
pub(super) async fn serve_for_asker(request: Request, next: Next) -> Response {
    let asker = request.extensions().get::<Asker>().cloned();
    ASKER.scope(asker, next.run(request)).await
}

/// Who sends the current request.
pub(super) fn current_asker() -> Option<Asker> {
    ASKER.try_with(Clone::clone).ok().flatten()
}

/// Whose sessions the current request may use.
fn current_scope() -> SessionScope {
    current_asker().as_ref().map(SessionScope::of).unwrap_or_default()
}

/// The sessions in this process, bounded in number. Clones share them.
#[derive(Clone)]
pub(super) struct Sessions {
    inner: Arc<Inner>,
}

struct Inner {
    gateway: Gateway,
    stop: CancellationToken,
    config: SessionConfig,
    limit: usize,
    clock: AtomicU64,
    known: Mutex<HashMap<SessionId, Arc<Session>>>,
    deleted: id::Deleted,
}

/// Resolves at the end of a session's handshake: `true` if it has succeeded.
type Handshake = Shared<BoxFuture<'static, bool>>;

/// A session in this process.
struct Session {
    handle: LocalSessionHandle,
    origin: SessionOrigin,
    ready: Handshake,
    /// The time of its last use, on a clock that counts the uses of all sessions.
    last: AtomicU64,
    /// The number of open requests.
    open: AtomicUsize,
    _counted: Counted,
}

/// How a session came to be, and thereby who reports its end.
#[derive(Clone, Copy, PartialEq, Eq)]
enum SessionOrigin {
    /// rmcp created it for an `initialize`, and reports its end.
    Initialized,
    /// This module restored it for a request. The number distinguishes restorations of the same
    /// session, because the end of the first must not remove the second.
    Restored(u64),
}

/// An open request of a session. A session with open requests is not evicted.
struct OpenRequest(Arc<Session>);

impl Drop for OpenRequest {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Why a session could not serve a request.
#[derive(Debug, thiserror::Error)]
pub(super) enum SessionsError {
    /// There are too many sessions, and all of them have open requests.
    #[error("all {0} sessions are in use; try again later")]
    TooMany(usize),
    /// The session could not be restored because the server is shutting down.
    #[error("could not restore the session; the server is shutting down")]
    NotRestored,
    /// The session itself failed.
    #[error(transparent)]
    Local(#[from] SessionError),
}

/// The session for a request.
struct Found {
    open: OpenRequest,
    /// The session that was evicted to make room for it.
    evicted: Option<Arc<Session>>,
}

impl Sessions {
    /// Creates an empty set of at most `limit` sessions, which may be idle for longer than
    /// `longest_call`. Cancelling `stop` ends them all.
    pub(super) fn new(
        gateway: Gateway,
        limit: usize,
        longest_call: Duration,
        stop: CancellationToken,
    ) -> Self {
        let mut config = SessionConfig::default();
        config.keep_alive = Some(longest_call.saturating_add(IDLE));
        let (clock, known, deleted) =
            (AtomicU64::new(0), Mutex::default(), id::Deleted::new(MAX_DELETED));
        Self { inner: Arc::new(Inner { gateway, stop, config, limit, clock, known, deleted }) }
    }

    /// Opens a request of a session, and restores the session if necessary. The request is open
    /// until the returned value is dropped.
    async fn open_request(
        &self,
        id: &SessionId,
        version: impl FnOnce() -> ProtocolVersion,
    ) -> Result<OpenRequest, SessionsError> {
        let Found { open, evicted } = self.inner.find_or_make(id, version)?;
        close_evicted(evicted).await;
        if open.0.ready.clone().await {
            return Ok(open);
        }
        self.inner.forget(id, open.0.origin);
        Err(SessionsError::NotRestored)
    }

    /// Opens a request of a session and establishes its stream.
    async fn open_stream<
        F: Future<Output = Result<StreamableHttpMessageReceiver, SessionError>>,
    >(
        &self,
        id: &SessionId,
        version: impl Fn() -> ProtocolVersion,
        establish: impl Fn(LocalSessionHandle) -> F,
    ) -> Result<(OpenRequest, StreamableHttpMessageReceiver), SessionsError> {
        let open = self.open_request(id, &version).await?;
        match establish(open.0.handle.clone()).await {
            Ok(receiver) => Ok((open, receiver)),
            Err(SessionError::SessionServiceTerminated) => {
                // The session has just ended after being idle, and its end is not yet reported.
                self.inner.forget(id, open.0.origin);
                let open = self.open_request(id, version).await?;
                let receiver = establish(open.0.handle.clone()).await?;
                Ok((open, receiver))
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Returns a session that is already in this process, after its handshake. A message that
    /// arrives before the handshake would end the session.
    async fn find_ready(&self, id: &SessionId) -> Option<Arc<Session>> {
        let session = self.inner.touch(id)?;
        session.ready.clone().await.then_some(session)
    }

    async fn open_standalone_stream(
        &self,
        id: &SessionId,
    ) -> Result<StreamableHttpMessageReceiver, SessionsError> {
        let version = || ProtocolVersion::LATEST_WITH_INITIALIZE;
        let establish =
            |handle: LocalSessionHandle| async move { handle.establish_common_channel().await };
        let (_, receiver) = self.open_stream(id, version, establish).await?;
        Ok(receiver)
    }
}

impl Inner {
    fn known(&self) -> MutexGuard<'_, HashMap<SessionId, Arc<Session>>> {
        self.known.lock()
    }

    fn tick(&self) -> u64 {
        self.clock.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// Returns a session that is in this process, and marks it as used.
    fn touch(&self, id: &SessionId) -> Option<Arc<Session>> {
        let session = self.known().get(id).cloned()?;
        session.last.store(self.tick(), Ordering::Relaxed);
        Some(session)
    }

    fn find_or_make(
        self: &Arc<Self>,
        id: &SessionId,
        version: impl FnOnce() -> ProtocolVersion,
    ) -> Result<Found, SessionsError> {
        // Hold the lock throughout, so that a session is not evicted as idle between being found
        // and its request being counted.
        let mut known = self.known();
        let (session, evicted) = match known.get(id) {
            Some(session) => (session.clone(), None),
            None => {
                let evicted = make_room(&mut known, self.limit)?;
                let (handle, worker) = create_local_session(id.clone(), self.config.clone());
                let origin = SessionOrigin::Restored(self.tick());
                let client = initialize_in_place_of_client(version());
                let gateway = self.gateway.for_session_of(current_asker());
                let handshake = Arc::clone(self).restore(
                    gateway,
                    id.clone(),
                    origin,
                    handle.clone(),
                    worker,
                    client,
                );
                // A task of its own goes on if the first request that waits for it is dropped.
                let ready =
                    tokio::spawn(handshake).map(|done| matches!(done, Ok(Ok(())))).boxed().shared();
                let session = Arc::new(Session::new(handle, origin, ready));
                known.insert(id.clone(), session.clone());
                (session, evicted)
            }
        };

        session.last.store(self.tick(), Ordering::Relaxed);
        session.open.fetch_add(1, Ordering::Relaxed);
        Ok(Found { open: OpenRequest(session), evicted })
    }

    /// Starts to serve a session that was created elsewhere, and does the handshake in its client's
    /// place.
    async fn restore(
        self: Arc<Self>,
        gateway: Gateway,
        id: SessionId,
        origin: SessionOrigin,
        handle: LocalSessionHandle,
        worker: LocalSessionWorker,
        initialize: ClientRequest,
    ) -> Result<(), SessionError> {
        let stop = self.stop.child_token();
        tokio::spawn(async move {
            match serve_server_with_ct(gateway, WorkerTransport::spawn(worker), stop).await {
                Ok(service) => drop(service.waiting().await),
                Err(error) => tracing::debug!(%error, "could not restore a session"),
            }
            self.forget(&id, origin);
        });

        handle
            .initialize(ClientJsonRpcMessage::request(initialize, NumberOrString::Number(0)))
            .await?;

        let initialized =
            ClientNotification::InitializedNotification(InitializedNotification::default());
        handle.push_message(ClientJsonRpcMessage::notification(initialized), None).await
    }

    /// Removes a session that has ended, unless it has been restored since.
    fn forget(&self, id: &SessionId, origin: SessionOrigin) -> Option<Arc<Session>> {
        let mut known = self.known();
        if known.get(id).is_some_and(|session| session.origin == origin) {
            known.remove(id)
        } else {
            None
        }
    }
}

impl Session {
    fn new(handle: LocalSessionHandle, origin: SessionOrigin, ready: Handshake) -> Self {
        let counted = Counted::new(&metrics::SESSIONS);
        Self {
            handle,
            origin,
            ready,
            last: AtomicU64::new(0),
            open: AtomicUsize::new(0),
            _counted: counted,
        }
    }
}

/// The request with which the client of the current request would have created its session.
fn initialize_in_place_of_client(version: ProtocolVersion) -> ClientRequest {
    // The client's capabilities are unknown here, so declare none, and ask nothing of it.
    let client = InitializeRequestParams::new(
        ClientCapabilities::default(),
        Implementation::new("session", "0"),
    )
    .with_protocol_version(version);

    let mut request = ClientRequest::InitializeRequest(InitializeRequest::new(client));
    if let Some(asker) = current_asker() {
        request.extensions_mut().insert(asker);
    }
    request
}

/// Removes the session that has been idle longest, if there are too many sessions.
fn make_room(
    known: &mut HashMap<SessionId, Arc<Session>>,
    limit: usize,
) -> Result<Option<Arc<Session>>, SessionsError> {
    if known.len() < limit {
        return Ok(None);
    }

    let idle = known.iter().filter(|(_, session)| session.open.load(Ordering::Relaxed) == 0);
    let oldest = idle.min_by_key(|(_, session)| session.last.load(Ordering::Relaxed));
    let oldest = oldest.map(|(id, _)| id.clone()).ok_or(SessionsError::TooMany(limit))?;
    Ok(known.remove(&oldest))
}

/// Closes a session that has been removed from the set.
async fn close_evicted(session: Option<Arc<Session>>) {
    let Some(session) = session else { return };
    if let Err(error) = session.handle.close().await {
        tracing::debug!(%error, "the session had already ended");
    }
}

/// The protocol revision of a request. A request that names none is of an old revision.
fn revision_of(message: &ClientJsonRpcMessage) -> ProtocolVersion {
    let ClientJsonRpcMessage::Request(message) = message else {
        return ProtocolVersion::LATEST_WITH_INITIALIZE;
    };
    let named = message.request.extensions().get::<Parts>().and_then(|parts| {
        let name = parts.headers.get("mcp-protocol-version")?.to_str().ok()?;
        ProtocolVersion::KNOWN_VERSIONS.iter().find(|version| version.as_str() == name)
    });
    named.cloned().unwrap_or(ProtocolVersion::V_2025_03_26)
}

impl SessionManager for Sessions {
    type Error = SessionsError;
    type Transport = WorkerTransport<LocalSessionWorker>;

    async fn create_session(&self) -> Result<(SessionId, Self::Transport), Self::Error> {
        let id = id::new_id(&current_scope());
        let inner = &self.inner;
        let (handle, worker) = create_local_session(id.clone(), inner.config.clone());
        let session = Session::new(
            handle,
            SessionOrigin::Initialized,
            futures::future::ready(true).boxed().shared(),
        );
        session.last.store(inner.tick(), Ordering::Relaxed);

        let evicted = {
            let mut known = inner.known();
            let evicted = make_room(&mut known, inner.limit)?;
            known.insert(id.clone(), Arc::new(session));
            evicted
        };

        close_evicted(evicted).await;
        Ok((id, WorkerTransport::spawn(worker)))
    }

    async fn initialize_session(
        &self,
        id: &SessionId,
        message: ClientJsonRpcMessage,
    ) -> Result<ServerJsonRpcMessage, Self::Error> {
        let open = self.open_request(id, || ProtocolVersion::LATEST_WITH_INITIALIZE).await?;
        Ok(open.0.handle.initialize(message).await?)
    }

    /// Whether this server serves the session to the current principal. It is restored when it is
    /// used.
    async fn has_session(&self, id: &SessionId) -> Result<bool, Self::Error> {
        Ok(id::is_ours(id, &current_scope()) && !self.inner.deleted.contains(id))
    }

    // rmcp calls this at the end of every session that it has created, and at a deletion, for which
    // it also calls the store.
    async fn close_session(&self, id: &SessionId) -> Result<(), Self::Error> {
        // The report of an end comes from no request, and concerns the session of any principal.
        let is_foreign = ASKER
            .try_with(|asker| {
                let scope = asker.as_ref().map(SessionScope::of).unwrap_or_default();
                !id::is_ours(id, &scope)
            })
            .unwrap_or(false);
        if !is_foreign {
            close_evicted(self.inner.forget(id, SessionOrigin::Initialized)).await;
        }
        Ok(())
    }

    async fn create_stream(
        &self,
        id: &SessionId,
        message: ClientJsonRpcMessage,
    ) -> Result<impl Stream<Item = ServerSseMessage> + Send + Sync + 'static, Self::Error> {
        let establish = |handle: LocalSessionHandle| async move {
            handle.establish_request_wise_channel().await
        };
        let (open, receiver) = self.open_stream(id, || revision_of(&message), establish).await?;
        open.0.handle.push_message(message, receiver.http_request_id).await?;
        // The request is open until its stream is dropped.
        Ok(ReceiverStream::new(receiver.inner).map(move |message| {
            _ = &open;
            message
        }))
    }

    async fn accept_message(
        &self,
        id: &SessionId,
        message: ClientJsonRpcMessage,
    ) -> Result<(), Self::Error> {
        // A notification or response refers to something that is going on in the session. If this
        // process doesn't have the session, nothing is.
        match self.find_ready(id).await {
            Some(session) => match session.handle.push_message(message, None).await {
                Ok(()) | Err(SessionError::SessionServiceTerminated) => Ok(()),
                Err(error) => Err(error.into()),
            },
            None => Ok(()),
        }
    }

    // The stream for messages that the server sends on its own is open until the client leaves,
    // whether it is used or not. So it doesn't protect its session from eviction.
    async fn create_standalone_stream(
        &self,
        id: &SessionId,
    ) -> Result<impl Stream<Item = ServerSseMessage> + Send + Sync + 'static, Self::Error> {
        let receiver = match self.open_standalone_stream(id).await {
            Ok(receiver) => receiver.inner,
            // The session was deleted while it was being restored, for example by a client that
            // opens a stream and leaves at once. Answer with an empty stream.
            Err(_) if self.inner.deleted.contains(id) => tokio::sync::mpsc::channel(1).1,
            Err(error) => return Err(error),
        };
        Ok(ReceiverStream::new(receiver))
    }

    async fn resume(
        &self,
        id: &SessionId,
        last_event_id: String,
    ) -> Result<impl Stream<Item = ServerSseMessage> + Send + Sync + 'static, Self::Error> {
        let receiver = match self.find_ready(id).await {
            Some(session) => {
                let event = last_event_id.parse().map_err(SessionError::from)?;
                session.handle.resume(event).await?
            }
            // Only the replica that has the request can resume its answer. The standalone stream
            // can continue here.
            None if last_event_id.contains('/') => return Err(SessionError::InvalidEventId.into()),
            None => self.open_standalone_stream(id).await?,
        };
        Ok(ReceiverStream::new(receiver.inner))
    }
}

/// Receives deletions from rmcp. rmcp loads a session only if [`Sessions::has_session`] has
/// returned `false`, and then there is none.
#[async_trait::async_trait]
impl SessionStore for Sessions {
    async fn load(&self, _id: &str) -> Result<Option<SessionState>, SessionStoreError> {
        Ok(None)
    }

    async fn store(&self, _id: &str, _state: &SessionState) -> Result<(), SessionStoreError> {
        Ok(())
    }

    async fn delete(&self, id: &str) -> Result<(), SessionStoreError> {
        if id::is_ours(id, &current_scope()) {
            let id: SessionId = id.into();
            self.inner.deleted.insert(id.clone());
            let session = self.inner.known().remove(&id);
            close_evicted(session).await;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;

//! Sessions of clients of the older protocol, bounded in number, which any replica can serve.
//!
//! A session is a task and a few queues for messages that belong to no single request. Everything
//! else is in the requests. So if this process doesn't have the session of a request (because
//! another replica created it, it was evicted, or the process was restarted), the request restores
//! it, as the client's `initialize` would have created it. A client gets 'session not found' only
//! for a session that it has deleted and for an id that is not one of ours.
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

/// The most sessions in this process. Each has a task and a few queues; a client needs one.
pub(super) const MAX_SESSIONS: usize = 1000;
/// The most deleted sessions that are remembered.
const MAX_DELETED: usize = 10_000;
/// How much longer than the longest call a session may be idle. rmcp doesn't count a running call
/// as activity.
const IDLE: Duration = Duration::from_secs(300);

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
                let handshake =
                    Arc::clone(self).restore(id.clone(), origin, handle.clone(), worker, version());
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
        id: SessionId,
        origin: SessionOrigin,
        handle: LocalSessionHandle,
        worker: LocalSessionWorker,
        version: ProtocolVersion,
    ) -> Result<(), SessionError> {
        let (gateway, stop) = (self.gateway.for_session(), self.stop.child_token());
        tokio::spawn(async move {
            match serve_server_with_ct(gateway, WorkerTransport::spawn(worker), stop).await {
                Ok(service) => drop(service.waiting().await),
                Err(error) => tracing::debug!(%error, "could not restore a session"),
            }
            self.forget(&id, origin);
        });

        // The client's capabilities are unknown here, so declare none, and ask nothing of it.
        let client = InitializeRequestParams::new(
            ClientCapabilities::default(),
            Implementation::new("session", "0"),
        )
        .with_protocol_version(version);
        let initialize = ClientRequest::InitializeRequest(InitializeRequest::new(client));
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
        let id = id::new_id();
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

    /// Whether this server serves the session, which is restored when it is used.
    async fn has_session(&self, id: &SessionId) -> Result<bool, Self::Error> {
        Ok(id::is_ours(id) && !self.inner.deleted.contains(id))
    }

    // rmcp calls this at the end of every session that it has created, and at a deletion, for which
    // it also calls the store.
    async fn close_session(&self, id: &SessionId) -> Result<(), Self::Error> {
        close_evicted(self.inner.forget(id, SessionOrigin::Initialized)).await;
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
        if id::is_ours(id) {
            let id: SessionId = id.into();
            self.inner.deleted.insert(id.clone());
            let session = self.inner.known().remove(&id);
            close_evicted(session).await;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use fleet_hosting::Fleet;
    use fleet_policy::{Policy, current::CurrentPolicy};
    use futures::future::join_all;

    use super::*;

    fn sessions(limit: usize) -> Sessions {
        let fleet = Fleet::new(CurrentPolicy::new(Policy::default()));
        let gateway = Gateway::new(Vec::new(), fleet, Duration::ZERO, 0, None);
        Sessions::new(gateway, limit, Duration::from_secs(3600), CancellationToken::new())
    }

    fn open_for(sessions: &Sessions, id: &SessionId) -> Result<OpenRequest, SessionsError> {
        let found = sessions.inner.find_or_make(id, || ProtocolVersion::LATEST_WITH_INITIALIZE);
        found.map(|found| found.open)
    }

    /// The answer to a `ping` through a session.
    async fn ping(sessions: &Sessions, id: &SessionId, request: u32) -> ServerJsonRpcMessage {
        let ping = serde_json::json!({"jsonrpc": "2.0", "id": request, "method": "ping"});
        let stream =
            sessions.create_stream(id, serde_json::from_value(ping).unwrap()).await.unwrap();
        let answers = stream.filter_map(async |event| event.message).collect::<Vec<_>>();
        let answers = tokio::time::timeout(Duration::from_secs(30), answers).await.unwrap();
        (*answers[0]).clone()
    }

    #[tokio::test]
    async fn the_session_that_has_been_idle_longest_makes_room() {
        let sessions = sessions(2);
        assert_eq!(sessions.inner.config.keep_alive, Some(Duration::from_secs(3900)));
        let is_here = |id: &SessionId| sessions.inner.touch(id).is_some();
        // The sessions would end if their transports were dropped.
        let (first, _first) = sessions.create_session().await.unwrap();
        let (second, _second) = sessions.create_session().await.unwrap();
        assert!(is_here(&second) && is_here(&first), "the first is used last");
        let (third, _third) = sessions.create_session().await.unwrap();
        assert!(is_here(&first) && !is_here(&second) && is_here(&third));

        let busy = open_for(&sessions, &first).unwrap();
        assert!(is_here(&third));
        let (fourth, _fourth) = sessions.create_session().await.unwrap();
        assert!(is_here(&first) && !is_here(&third), "an open request keeps a session");
        let also_busy = open_for(&sessions, &fourth).unwrap();
        let refused = sessions.create_session().await.err().unwrap();
        assert!(matches!(refused, SessionsError::TooMany(2)), "{refused}");
        assert!(matches!(open_for(&sessions, &third), Err(SessionsError::TooMany(2))));
        assert_eq!(sessions.inner.known().len(), 2, "a refused session leaves nothing behind");
        drop((busy, also_busy));
        sessions.close_session(&fourth).await.unwrap();
        sessions.create_session().await.unwrap();
        assert!(is_here(&first), "there was room without an eviction");
    }

    #[tokio::test]
    async fn a_session_of_another_replica_is_served() {
        let (one, other) = (sessions(10), sessions(10));
        let (id, _transport) = one.create_session().await.unwrap();
        assert!(other.has_session(&id).await.unwrap());
        // Concurrent requests restore one session.
        let answers = join_all((0..20).map(|n| ping(&other, &id, n))).await;
        assert!(answers.iter().all(|answer| matches!(answer, ServerJsonRpcMessage::Response(_))));
        assert_eq!(other.inner.known().len(), 1);
        // Any replica accepts a notification.
        let third = sessions(10);
        let initialized =
            serde_json::json!({"jsonrpc": "2.0", "method": "notifications/initialized"});
        third.accept_message(&id, serde_json::from_value(initialized).unwrap()).await.unwrap();
        assert!(third.inner.known().is_empty(), "a notification restores no session");
        drop(third.create_standalone_stream(&id).await.unwrap());
        drop(sessions(10).resume(&id, "0".to_owned()).await.unwrap());
        assert!(sessions(10).resume(&id, "0/1".to_owned()).await.is_err());
    }

    #[tokio::test]
    async fn a_session_is_restored_after_its_end_but_not_after_its_deletion() {
        let sessions = sessions(1);
        let (id, _transport) = sessions.create_session().await.unwrap();
        let (_other, _transport) = sessions.create_session().await.unwrap();
        assert!(sessions.inner.touch(&id).is_none(), "the second session evicted the first");
        ping(&sessions, &id, 7).await;
        // The late report that rmcp's session has ended must not end the restored one.
        sessions.close_session(&id).await.unwrap();
        assert!(sessions.inner.touch(&id).is_some());

        SessionStore::delete(&sessions, &id).await.unwrap();
        assert!(!sessions.has_session(&id).await.unwrap());
        assert!(sessions.inner.touch(&id).is_none());
        for foreign in ["", "5f0f4d5c-9c6e-4c7f-8a43-0a0a8d5f6a11"] {
            assert!(!sessions.has_session(&foreign.into()).await.unwrap());
        }
    }

    #[tokio::test]
    async fn a_notification_does_not_disturb_a_session_that_is_being_restored() {
        let sessions = sessions(100);
        let initialized =
            serde_json::json!({"jsonrpc": "2.0", "method": "notifications/initialized"});
        let initialized: ClientJsonRpcMessage = serde_json::from_value(initialized).unwrap();
        for _ in 0..50 {
            let id = id::new_id();
            let (stream, accepted) = futures::join!(
                sessions.create_standalone_stream(&id),
                sessions.accept_message(&id, initialized.clone())
            );
            accepted.unwrap();
            drop(stream.unwrap_or_else(|error| panic!("{error}")));
        }
    }

    #[tokio::test]
    async fn a_deletion_during_a_restoration_is_not_an_error() {
        let sessions = sessions(10);
        for _ in 0..20 {
            let id = id::new_id();
            let (stream, deleted) = futures::join!(
                sessions.create_standalone_stream(&id),
                SessionStore::delete(&sessions, &id)
            );
            deleted.unwrap();
            let stream = stream.unwrap_or_else(|error| panic!("{error}"));
            let events =
                tokio::time::timeout(Duration::from_secs(30), stream.collect::<Vec<_>>()).await;
            assert_eq!(events.expect("the end of the stream").len(), 0);
        }

        assert!(sessions.inner.known().is_empty());
    }

    #[tokio::test]
    async fn a_session_that_has_ended_unnoticed_is_restored() {
        let sessions = sessions(10);
        let id = id::new_id();
        ping(&sessions, &id, 7).await;
        let handle = sessions.inner.touch(&id).unwrap().handle.clone();
        handle.close().await.unwrap();
        ping(&sessions, &id, 7).await;
    }
}

//! Sessions of clients of the older protocol, bounded in number.
//!
//! rmcp keeps any number of them for as long as they are not idle for long. Here the one that has been idle longest is
//! ended when there are too many, and its client is told that its session is gone, at which it makes a new one.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use futures::{Stream, StreamExt};
use rmcp::{
    model::{ClientJsonRpcMessage, ServerJsonRpcMessage},
    transport::{
        common::server_side_http::{ServerSseMessage, SessionId},
        streamable_http_server::session::{
            SessionManager,
            local::{LocalSessionManager, LocalSessionManagerError},
        },
    },
};

/// How many sessions there may be. Each has a task and a few queues; a client needs one.
pub(super) const MAX_SESSIONS: usize = 1000;
/// How much longer than the longest call a session lives without a sign of life. rmcp counts a call that runs as none.
const IDLE: Duration = Duration::from_secs(300);

/// Sessions in this process, of which there are only so many.
pub(super) struct Sessions {
    local: LocalSessionManager,
    limit: usize,
    clock: AtomicU64,
    known: Mutex<HashMap<SessionId, Arc<Use>>>,
}

/// How a session is used.
#[derive(Default)]
struct Use {
    /// When it was used last, counted in uses of all sessions.
    last: AtomicU64,
    /// How many requests are open.
    open: AtomicUsize,
}

/// An open request of a session.
struct Open(Arc<Use>);

impl Drop for Open {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Why a session can't do what was asked.
#[derive(Debug, thiserror::Error)]
pub(super) enum SessionsError {
    /// There are too many sessions, and all of them have open requests.
    #[error("{0} sessions are in use, which is as many as there may be")]
    TooMany(usize),
    /// The session can't.
    #[error(transparent)]
    Local(#[from] LocalSessionManagerError),
}

impl Sessions {
    /// `limit` sessions at most, which outlive calls of `longest_call`.
    pub(super) fn new(limit: usize, longest_call: Duration) -> Self {
        let mut local = LocalSessionManager::default();
        local.session_config.keep_alive = Some(longest_call.saturating_add(IDLE));
        Self { local, limit, clock: AtomicU64::new(0), known: Mutex::default() }
    }

    fn known(&self) -> MutexGuard<'_, HashMap<SessionId, Arc<Use>>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn touch(&self, session: &Use) {
        session.last.store(self.clock.fetch_add(1, Ordering::Relaxed) + 1, Ordering::Relaxed);
    }

    /// Notes a use of a session, if it is known.
    fn used(&self, id: &SessionId) -> Option<Arc<Use>> {
        let session = self.known().get(id).cloned()?;
        self.touch(&session);
        Some(session)
    }

    /// Notes an open request of a session, which ends with what is given back.
    fn opened(&self, id: &SessionId) -> Option<Open> {
        // Under the lock, so that a session is not taken for idle between being found and being counted.
        let known = self.known();
        let session = known.get(id)?;
        self.touch(session);
        session.open.fetch_add(1, Ordering::Relaxed);
        Some(Open(session.clone()))
    }

    /// Takes a place for a session, and gives back those that must end for it.
    fn admit(&self, id: &SessionId) -> Result<Option<SessionId>, SessionsError> {
        let mut known = self.known();
        let evicted = if known.len() < self.limit {
            None
        } else {
            let idle = known.iter().filter(|(_, session)| session.open.load(Ordering::Relaxed) == 0);
            let oldest = idle.min_by_key(|(_, session)| session.last.load(Ordering::Relaxed));
            let oldest = oldest.map(|(id, _)| id.clone()).ok_or(SessionsError::TooMany(self.limit))?;
            known.remove(&oldest);
            Some(oldest)
        };
        let session = Arc::new(Use::default());
        self.touch(&session);
        known.insert(id.clone(), session);
        Ok(evicted)
    }
}

impl SessionManager for Sessions {
    type Error = SessionsError;
    type Transport = <LocalSessionManager as SessionManager>::Transport;

    async fn create_session(&self) -> Result<(SessionId, Self::Transport), Self::Error> {
        let (id, transport) = self.local.create_session().await?;
        match self.admit(&id) {
            Ok(None) => {}
            Ok(Some(evicted)) => {
                tracing::debug!("the session that was idle longest is ended to make room");
                if let Err(error) = self.local.close_session(&evicted).await {
                    tracing::debug!(%error, "it has ended by itself");
                }
            }
            Err(error) => {
                self.local.close_session(&id).await?;
                return Err(error);
            }
        }
        Ok((id, transport))
    }

    async fn initialize_session(
        &self,
        id: &SessionId,
        message: ClientJsonRpcMessage,
    ) -> Result<ServerJsonRpcMessage, Self::Error> {
        let _open = self.opened(id);
        Ok(self.local.initialize_session(id, message).await?)
    }

    async fn has_session(&self, id: &SessionId) -> Result<bool, Self::Error> {
        Ok(self.used(id).is_some() && self.local.has_session(id).await?)
    }

    async fn close_session(&self, id: &SessionId) -> Result<(), Self::Error> {
        // rmcp calls this for every session that ends, however it does.
        self.known().remove(id);
        Ok(self.local.close_session(id).await?)
    }

    async fn create_stream(
        &self,
        id: &SessionId,
        message: ClientJsonRpcMessage,
    ) -> Result<impl Stream<Item = ServerSseMessage> + Send + Sync + 'static, Self::Error> {
        let open = self.opened(id);
        let stream = self.local.create_stream(id, message).await?;
        // The request is open until its stream is gone.
        Ok(stream.map(move |message| {
            _ = &open;
            message
        }))
    }

    async fn accept_message(&self, id: &SessionId, message: ClientJsonRpcMessage) -> Result<(), Self::Error> {
        self.used(id);
        Ok(self.local.accept_message(id, message).await?)
    }

    // A stream for what the server might say by itself is open for as long as its client is there, used or not. It
    // does not make a session busy.
    async fn create_standalone_stream(
        &self,
        id: &SessionId,
    ) -> Result<impl Stream<Item = ServerSseMessage> + Send + Sync + 'static, Self::Error> {
        self.used(id);
        Ok(self.local.create_standalone_stream(id).await?)
    }

    async fn resume(
        &self,
        id: &SessionId,
        last_event_id: String,
    ) -> Result<impl Stream<Item = ServerSseMessage> + Send + Sync + 'static, Self::Error> {
        self.used(id);
        Ok(self.local.resume(id, last_event_id).await?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_session_that_was_idle_longest_makes_room() {
        let sessions = Sessions::new(2, Duration::from_secs(3600));
        assert_eq!(sessions.local.session_config.keep_alive, Some(Duration::from_secs(3900)));
        let there = async |id: &SessionId| sessions.has_session(id).await.unwrap();
        // The transports would end with their handlers.
        let (first, _first) = sessions.create_session().await.unwrap();
        let (second, _second) = sessions.create_session().await.unwrap();
        assert!(there(&second).await && there(&first).await, "the first is used last");
        let (third, _third) = sessions.create_session().await.unwrap();
        assert!(there(&first).await && !there(&second).await && there(&third).await);

        let busy = sessions.opened(&first);
        assert!(there(&third).await);
        let (fourth, _fourth) = sessions.create_session().await.unwrap();
        assert!(there(&first).await && !there(&third).await, "an open request keeps a session");
        let also_busy = sessions.opened(&fourth);
        let refused = sessions.create_session().await.err().unwrap();
        assert!(matches!(refused, SessionsError::TooMany(2)), "{refused}");
        assert_eq!(sessions.local.sessions.read().await.len(), 2, "nothing is left of what was refused");
        drop((busy, also_busy));
        sessions.close_session(&fourth).await.unwrap();
        sessions.create_session().await.unwrap();
        assert!(there(&first).await, "there was room");
    }
}

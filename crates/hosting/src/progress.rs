//! Delivers the progress of hosted tools to the calls that wait for it.
//!
//! rmcp handles each notification in a task of its own, so notifications could arrive after the
//! result. This module takes them off the transport in their order, before rmcp sees them, so that
//! every notification before the result is delivered before it.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
};

use parking_lot::{Mutex, MutexGuard};
use rmcp::{
    RoleClient,
    model::{JsonRpcMessage, ProgressNotificationParam, ProgressToken, ServerNotification},
    service::{RxJsonRpcMessage, TxJsonRpcMessage},
    transport::Transport,
};
use tokio::sync::broadcast::{
    self,
    error::{RecvError, TryRecvError},
};

use super::{changes::News, notices::Notice};

/// The most notifications of one call that wait to be forwarded. The oldest are dropped first,
/// since the newest tells how far the call has come.
const WAITING: usize = 64;
/// The most notifications that are kept for calls that are not registered yet.
const ORPHANS: usize = 64;

/// Routes progress notifications to the calls that wait for them. Clones share the state.
#[derive(Debug, Clone, Default)]
pub struct ProgressRoutes {
    state: Arc<Mutex<State>>,
}

#[derive(Debug, Default)]
struct State {
    waiting: HashMap<ProgressToken, broadcast::Sender<ProgressNotificationParam>>,
    /// rmcp makes a call's token while it sends the call, so the first notifications can come
    /// before the call is registered here.
    orphans: VecDeque<ProgressNotificationParam>,
}

/// The progress of one call; unregistered when dropped.
pub struct ProgressStream {
    routes: ProgressRoutes,
    token: ProgressToken,
    receiver: broadcast::Receiver<ProgressNotificationParam>,
}

impl ProgressRoutes {
    /// Registers the call with this token. The stream includes notifications that came before.
    pub fn register(&self, token: ProgressToken) -> ProgressStream {
        let (sender, receiver) = broadcast::channel(WAITING);
        let mut state = self.lock();
        let orphans = std::mem::take(&mut state.orphans);
        let (own, others): (VecDeque<_>, _) =
            orphans.into_iter().partition(|orphan| orphan.progress_token == token);

        state.orphans = others;
        for notification in own {
            // The channel has room for all orphans.
            _ = sender.send(notification);
        }
        state.waiting.insert(token.clone(), sender);
        drop(state);
        ProgressStream { routes: self.clone(), token, receiver }
    }

    fn deliver_progress(&self, notification: ProgressNotificationParam) {
        let mut state = self.lock();
        if let Some(sender) = state.waiting.get(&notification.progress_token) {
            _ = sender.send(notification);
            return;
        }

        state.orphans.push_back(notification);
        if state.orphans.len() > ORPHANS {
            state.orphans.pop_front();
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }
}

impl ProgressStream {
    /// Waits for the next notification.
    pub async fn next(&mut self) -> Option<ProgressNotificationParam> {
        loop {
            match self.receiver.recv().await {
                Ok(notification) => return Some(notification),
                Err(RecvError::Lagged(_)) => {}
                Err(RecvError::Closed) => return None,
            }
        }
    }

    /// Returns the next notification if there is one.
    pub fn try_next(&mut self) -> Option<ProgressNotificationParam> {
        loop {
            match self.receiver.try_recv() {
                Ok(notification) => return Some(notification),
                Err(TryRecvError::Lagged(_)) => {}
                Err(TryRecvError::Empty | TryRecvError::Closed) => return None,
            }
        }
    }
}

impl Drop for ProgressStream {
    fn drop(&mut self) {
        self.routes.lock().waiting.remove(&self.token);
    }
}

/// A transport from which notifications of progress and extensions are taken.
pub(crate) struct ProgressTap<T> {
    inner: T,
    server: String,
    routes: ProgressRoutes,
    news: News,
}

impl<T> ProgressTap<T> {
    /// Taps the transport to a server.
    pub(crate) fn new(inner: T, server: &str, routes: ProgressRoutes, news: News) -> Self {
        Self { inner, server: server.to_owned(), routes, news }
    }
}

impl<T: Transport<RoleClient>> Transport<RoleClient> for ProgressTap<T> {
    type Error = T::Error;

    fn send(
        &mut self,
        item: TxJsonRpcMessage<RoleClient>,
    ) -> impl Future<Output = Result<(), Self::Error>> + Send + 'static {
        self.inner.send(item)
    }

    async fn receive(&mut self) -> Option<RxJsonRpcMessage<RoleClient>> {
        loop {
            match self.inner.receive().await? {
                JsonRpcMessage::Notification(message) => match message.notification {
                    ServerNotification::ProgressNotification(progress) => {
                        self.routes.deliver_progress(progress.params)
                    }
                    // In a stream of changes, rmcp would end the stream because of it.
                    ServerNotification::CustomNotification(custom) => {
                        let notice = Notice { method: custom.method, params: custom.params };
                        self.news.note_notice(&self.server, notice);
                    }
                    notification => {
                        return Some(JsonRpcMessage::notification(notification));
                    }
                },
                message => return Some(message),
            }
        }
    }

    fn close(&mut self) -> impl Future<Output = Result<(), Self::Error>> + Send {
        self.inner.close()
    }
}

#[cfg(test)]
mod tests {
    use rmcp::model::NumberOrString;

    use super::*;

    fn progress(token: i64, progress: f64) -> ProgressNotificationParam {
        ProgressNotificationParam::new(ProgressToken(NumberOrString::Number(token)), progress)
    }

    #[tokio::test]
    async fn progress_that_comes_before_registration_is_delivered() {
        let routes = ProgressRoutes::default();
        routes.deliver_progress(progress(1, 0.1));
        routes.deliver_progress(progress(2, 9.0));
        let mut stream = routes.register(ProgressToken(NumberOrString::Number(1)));
        routes.deliver_progress(progress(1, 0.2));
        assert_eq!(stream.next().await.map(|p| p.progress), Some(0.1));
        assert_eq!(stream.try_next().map(|p| p.progress), Some(0.2));
        assert!(stream.try_next().is_none());
        drop(stream);
        assert!(routes.lock().waiting.is_empty());
        for _ in 0..10 * ORPHANS {
            routes.deliver_progress(progress(3, 0.0));
        }
        assert_eq!(routes.lock().orphans.len(), ORPHANS);
    }

    #[tokio::test]
    async fn the_newest_notifications_are_kept() {
        let routes = ProgressRoutes::default();
        let mut stream = routes.register(ProgressToken(NumberOrString::Number(1)));
        for step in 0..10 * WAITING {
            routes.deliver_progress(progress(1, step as f64));
        }
        let mut last = None;
        while let Some(notification) = stream.try_next() {
            last = Some(notification.progress);
        }
        assert_eq!(last, Some((10 * WAITING - 1) as f64));
    }
}

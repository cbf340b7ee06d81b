//! Progress of hosted tools on its way to whoever called them.
//!
//! rmcp hands notifications to tasks of their own, so they could arrive after the result. Here they
//! are taken off the transport in the order in which they came, before rmcp sees them: every
//! notification that stood before the result is delivered before it.

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

/// How many notifications of one call wait to be sent on. Beyond, the oldest are dropped: what
/// counts is how far it has come.
const WAITING: usize = 64;
/// How many notifications are kept for calls that are not known yet.
const ORPHANS: usize = 64;

/// Who waits for which progress. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct ProgressRoutes {
    state: Arc<Mutex<State>>,
}

#[derive(Debug, Default)]
struct State {
    waiting: HashMap<ProgressToken, broadcast::Sender<ProgressNotificationParam>>,
    /// rmcp makes a call's token while it sends, so the first notifications can come before the
    /// token is known here.
    orphans: VecDeque<ProgressNotificationParam>,
}

/// The progress of one call; unregistered when dropped.
pub struct ProgressStream {
    routes: ProgressRoutes,
    token: ProgressToken,
    receiver: broadcast::Receiver<ProgressNotificationParam>,
}

impl ProgressRoutes {
    /// The progress of the call with this token, with what has come already.
    pub fn register(&self, token: ProgressToken) -> ProgressStream {
        let (sender, receiver) = broadcast::channel(WAITING);
        let mut state = self.lock();
        let orphans = std::mem::take(&mut state.orphans);
        let (own, others): (VecDeque<_>, _) =
            orphans.into_iter().partition(|orphan| orphan.progress_token == token);
        state.orphans = others;
        for notification in own {
            // The channel has room for as many as orphans are kept.
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
    /// The next notification, once there is one.
    pub async fn next(&mut self) -> Option<ProgressNotificationParam> {
        loop {
            match self.receiver.recv().await {
                Ok(notification) => return Some(notification),
                Err(RecvError::Lagged(_)) => {}
                Err(RecvError::Closed) => return None,
            }
        }
    }

    /// The next notification, where there is one already.
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

/// A transport from which notifications of progress and of extensions are taken off.
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
                    // In a stream of changes, rmcp would end the stream for it.
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
    async fn progress_finds_its_call_even_when_it_comes_first() {
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
    async fn of_too_much_progress_the_newest_is_kept() {
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

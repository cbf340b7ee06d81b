//! Changes: what a hosted server reports as changed, until it is read, and what clients are
//! notified of.

use std::{collections::BTreeSet, sync::Arc, time::Instant};

use parking_lot::{Mutex, MutexGuard};
use tokio::sync::{Notify, watch};

use super::notices::{DropReason, Intake, Notice};

/// The most changed resources of one server that are kept until they are read. Further changes are
/// dropped; a subscriber that misses one is notified of the next.
const MAX_UPDATED: usize = 1000;

/// A set of the lists of a server.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Lists {
    /// `tools/list`.
    pub tools: bool,
    /// `prompts/list`.
    pub prompts: bool,
    /// `resources/list` and `resources/templates/list`.
    pub resources: bool,
}

impl Lists {
    /// All lists.
    pub const ALL: Self = Self { tools: true, prompts: true, resources: true };

    /// Returns whether the set contains any list.
    pub fn any(self) -> bool {
        self.tools || self.prompts || self.resources
    }
}

/// A change that clients are notified of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// These lists have changed.
    Lists(Lists),
    /// The resource with this offered URI has changed.
    Resource(Arc<str>),
    /// A hosted server has sent a notification of an extension that it declares.
    Notice {
        /// The server's name.
        server: Arc<str>,
        /// The extension's name.
        extension: Arc<str>,
        /// The notification, with offered URIs.
        notice: Arc<Notice>,
    },
}

/// The changes that one server has reported and nobody has read yet. Repeated reports count once.
/// Clones share the state.
#[derive(Debug, Clone, Default)]
pub struct News {
    shared: Arc<NewsInner>,
}

#[derive(Debug, Default)]
struct NewsInner {
    state: Mutex<Unseen>,
    notices: Mutex<Intake>,
    changed: Notify,
    /// The number of sessions after the first one.
    renewals: watch::Sender<u64>,
}

/// The changes since they were last read.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Unseen {
    /// The changed lists.
    pub lists: Lists,
    /// The changed resources, by their server's own URIs.
    pub resources: BTreeSet<String>,
    /// Notifications of extensions.
    pub notices: Vec<Notice>,
}

impl News {
    pub(super) fn note_lists(&self, set: impl FnOnce(&mut Lists)) {
        set(&mut self.lock().lists);
        self.shared.changed.notify_one();
    }

    pub(super) fn note_resource(&self, uri: String) {
        let mut state = self.lock();
        if state.resources.len() < MAX_UPDATED {
            state.resources.insert(uri);
        }
        drop(state);
        self.shared.changed.notify_one();
    }

    /// Notes a notification of an extension, unless it exceeds the bounds.
    pub(super) fn note_notice(&self, server: &str, notice: Notice) {
        let added = self.notices().add(notice, Instant::now());
        match added {
            Ok(()) => self.shared.changed.notify_one(),
            Err(dropped) => self.log_dropped_notice(server, &dropped),
        }
    }

    /// Logs that a notification was dropped, once for each reason.
    pub(super) fn log_dropped_notice(&self, server: &str, dropped: &DropReason) {
        if self.notices().should_log(dropped) {
            tracing::warn!(server, reason = %dropped, "dropped a notification of a hosted server");
        }
    }

    /// Notes that the server has lost our session and there is a new one. The server may offer
    /// something else now, and has no subscriptions.
    pub(super) fn note_new_session(&self) {
        self.shared.renewals.send_modify(|renewals| *renewals += 1);
        self.note_lists(|lists| *lists = Lists::ALL);
    }

    /// Returns a counter that changes with every new session.
    pub(super) fn renewals(&self) -> watch::Receiver<u64> {
        self.shared.renewals.subscribe()
    }

    /// Waits until something has changed, and takes all changes. Cancel safe.
    pub(super) async fn next(&self) -> Unseen {
        loop {
            let mut unseen = std::mem::take(&mut *self.lock());
            unseen.notices = self.notices().take();
            if unseen != Unseen::default() {
                return unseen;
            }
            self.shared.changed.notified().await;
        }
    }

    fn notices(&self) -> MutexGuard<'_, Intake> {
        self.shared.notices.lock()
    }

    fn lock(&self) -> MutexGuard<'_, Unseen> {
        self.shared.state.lock()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn every_change_is_read_once() {
        let news = News::default();
        for _ in 0..3 {
            news.note_lists(|lists| lists.tools = true);
        }
        for n in 0..2 * MAX_UPDATED {
            news.note_resource(format!("test://{n}"));
        }
        let unseen = news.next().await;
        assert_eq!(unseen.lists, Lists { tools: true, ..Lists::default() });
        assert_eq!(unseen.resources.len(), MAX_UPDATED);
        let waiting = tokio::time::timeout(std::time::Duration::from_millis(20), news.next()).await;
        assert!(waiting.is_err(), "there is nothing new: {waiting:?}");
    }
}

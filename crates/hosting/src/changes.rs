//! News of changes: what a hosted server says has changed, until somebody looks, and what clients
//! are told.

use std::{collections::BTreeSet, sync::Arc, time::Instant};

use parking_lot::{Mutex, MutexGuard};
use tokio::sync::{Notify, watch};

use super::notices::{DropReason, Intake, Notice};

/// How many changed resources of one server are kept until somebody looks. Whoever changes more of
/// them meanwhile has some of the news dropped; a subscriber that missed one hears of the next.
const MAX_UPDATED: usize = 1000;

/// Which lists of a server are meant.
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
    /// All of them.
    pub const ALL: Self = Self { tools: true, prompts: true, resources: true };

    /// Whether any is meant.
    pub fn any(self) -> bool {
        self.tools || self.prompts || self.resources
    }
}

/// Something that clients are told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// These lists are others than before.
    Lists(Lists),
    /// The resource of this URI, as it is offered here, is another than before.
    Resource(Arc<str>),
    /// A hosted server has sent a notification of an extension that it declares.
    Notice {
        /// The extension's name.
        extension: Arc<str>,
        /// The notification, with URIs as they are offered here.
        notice: Arc<Notice>,
    },
}

/// What one server has said has changed. Clones share it. However often a server repeats itself, it
/// is one piece of news.
#[derive(Debug, Clone, Default)]
pub struct News {
    shared: Arc<NewsInner>,
}

#[derive(Debug, Default)]
struct NewsInner {
    state: Mutex<Unseen>,
    notices: Mutex<Intake>,
    changed: Notify,
    /// How many sessions there have been after the first one.
    renewals: watch::Sender<u64>,
}

/// What has changed since somebody looked.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Unseen {
    /// Lists.
    pub lists: Lists,
    /// Resources, by their server's own URIs.
    pub resources: BTreeSet<String>,
    /// Notifications of methods that are not known here.
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

    /// Takes in a notification of a method that is not known here.
    pub(super) fn note_notice(&self, server: &str, notice: Notice) {
        let added = self.notices().add(notice, Instant::now());
        match added {
            Ok(()) => self.shared.changed.notify_one(),
            Err(dropped) => self.log_dropped_notice(server, &dropped),
        }
    }

    /// Notes that a notification is not passed on. The log is told once of each reason.
    pub(super) fn log_dropped_notice(&self, server: &str, dropped: &DropReason) {
        if self.notices().should_log(dropped) {
            tracing::warn!(server, reason = %dropped, "a notification of a hosted server is not passed on");
        }
    }

    /// The server has forgotten our session, and there is a new one. It may offer something else by
    /// now, and knows of no subscription.
    pub(super) fn note_new_session(&self) {
        self.shared.renewals.send_modify(|renewals| *renewals += 1);
        self.note_lists(|lists| *lists = Lists::ALL);
    }

    /// Changes with every new session.
    pub(super) fn renewals(&self) -> watch::Receiver<u64> {
        self.shared.renewals.subscribe()
    }

    /// Waits until something has changed, and takes it. Nothing is lost where the wait is given up.
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
    async fn news_is_told_once() {
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

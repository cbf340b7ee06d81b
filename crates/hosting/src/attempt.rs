//! How far an attempt to start a server has come, for whoever waits for it.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use parking_lot::{Mutex, MutexGuard};

use super::stderr::StderrTail;

/// How much of a line of standard error is shown.
const SHOWN_LINE: usize = 200;
/// How much of standard error is looked at for its last line.
const LOOKED_AT: usize = 2 * 1024;

/// An attempt to start a server. Clones share it.
#[derive(Debug, Clone)]
pub struct Attempt {
    /// When it began.
    pub since: Instant,
    /// How long it may take.
    pub limit: Duration,
    state: Arc<Mutex<State>>,
}

#[derive(Debug, Default)]
struct State {
    waits_for: Option<&'static str>,
    /// The child's standard error, once there is a child.
    stderr: Option<StderrTail>,
}

impl Attempt {
    /// An attempt that begins now and may take as long as `limit`.
    pub fn new(limit: Duration) -> Self {
        Self { since: Instant::now(), limit, state: Arc::default() }
    }

    /// Notes what is waited for.
    pub(super) fn set_awaited(&self, what: &'static str) {
        self.lock().waits_for = Some(what);
    }

    /// How long a list may take that the server can do without: a small part of the limit, and
    /// never all that is left.
    pub(super) fn patience_with_options(&self) -> Duration {
        let left = self.limit.saturating_sub(self.since.elapsed());
        (self.limit / 6).min(left / 2)
    }

    /// Notes that there is a child, which writes here.
    pub(super) fn set_child(&self, stderr: StderrTail) {
        self.lock().stderr = Some(stderr);
    }

    /// What is waited for, in words for people.
    pub(super) fn awaited(&self) -> Option<&'static str> {
        self.lock().waits_for
    }

    /// The end of the child's standard error.
    pub(super) fn stderr(&self, max: usize) -> Option<String> {
        self.lock().stderr.as_ref().map(|stderr| stderr.text(max))
    }

    /// How far it has come: what is waited for, and the last line that the child wrote on its
    /// standard error.
    pub fn describe(&self) -> String {
        let awaited = self.awaited().unwrap_or("its start");
        let tail = self.stderr(LOOKED_AT).unwrap_or_default();
        match tail.lines().rev().map(str::trim).find(|line| !line.is_empty()) {
            Some(line) => {
                let shown = &line[..line.floor_char_boundary(SHOWN_LINE)];
                format!("waiting for {awaited}; standard error: {shown}")
            }
            None => format!("waiting for {awaited}"),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_says_what_is_waited_for_and_what_the_child_wrote_last() {
        let attempt = Attempt::new(Duration::from_secs(30));
        assert_eq!(attempt.describe(), "waiting for its start");
        let stderr = StderrTail::default();
        attempt.set_child(stderr.clone());
        attempt.set_awaited("an answer to `initialize`");
        assert_eq!(attempt.describe(), "waiting for an answer to `initialize`");
        stderr.push(format!("Downloading\nInstalled {}\n \n", "ä".repeat(300)).as_bytes());
        let described = attempt.describe();
        assert!(described.contains("; standard error: Installed ää"), "{described}");
        assert!(described.len() < 300, "{}", described.len());
    }
}

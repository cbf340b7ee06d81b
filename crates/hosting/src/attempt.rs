//! The progress of an attempt to start a server, for those who wait for it.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use parking_lot::{Mutex, MutexGuard};

use super::stderr::StderrTail;

/// The longest part of a line of standard error that is shown, in bytes.
const SHOWN_LINE: usize = 200;
/// The part of standard error that is searched for its last line, in bytes.
const SEARCHED_TAIL: usize = 2 * 1024;

/// An attempt to start a server. Clones share it.
#[derive(Debug, Clone)]
pub struct Attempt {
    /// When the attempt began.
    pub since: Instant,
    /// How long the attempt may take.
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
    /// Begins an attempt that may take as long as `limit`.
    pub fn new(limit: Duration) -> Self {
        Self { since: Instant::now(), limit, state: Arc::default() }
    }

    /// Sets what is waited for.
    pub(super) fn set_awaited(&self, what: &'static str) {
        self.lock().waits_for = Some(what);
    }

    /// Returns how long an optional list may take: a small part of the limit, and never all of the
    /// remaining time.
    pub(super) fn patience_with_options(&self) -> Duration {
        let left = self.limit.saturating_sub(self.since.elapsed());
        (self.limit / 6).min(left / 2)
    }

    /// Sets the standard error of the child.
    pub(super) fn set_child(&self, stderr: StderrTail) {
        self.lock().stderr = Some(stderr);
    }

    /// Returns what is waited for, in words for people.
    pub(super) fn awaited(&self) -> Option<&'static str> {
        self.lock().waits_for
    }

    /// Returns the end of the child's standard error.
    pub(super) fn stderr(&self, max: usize) -> Option<String> {
        self.lock().stderr.as_ref().map(|stderr| stderr.text(max))
    }

    /// Describes the progress: what is waited for, and the last line of the child's standard error.
    pub fn describe(&self) -> String {
        let awaited = self.awaited().unwrap_or("the server to start");
        let tail = self.stderr(SEARCHED_TAIL).unwrap_or_default();
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
    fn the_description_has_what_is_waited_for_and_the_last_line_of_stderr() {
        let attempt = Attempt::new(Duration::from_secs(30));
        assert_eq!(attempt.describe(), "waiting for the server to start");
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

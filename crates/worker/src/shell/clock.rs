//! The clock of the worker's loop.

use std::time::Instant;

use fleet_job::time::Timestamp;

/// A monotonic wall clock: it starts at the system's time and then follows the steady clock.
pub(super) struct Clock {
    base: Timestamp,
    start: Instant,
}

impl Clock {
    pub(super) fn new() -> Self {
        Self { base: fleet_ops::clock::now(), start: Instant::now() }
    }

    pub(super) fn now(&self) -> Timestamp {
        self.base.plus(self.start.elapsed())
    }

    /// The instant of `at`, but not before this clock was started. Always the same for the same
    /// `at`.
    pub(super) fn instant_of(&self, at: Timestamp) -> Instant {
        self.start + at.since(self.base)
    }
}

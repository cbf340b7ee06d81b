//! The clock of the loop.

use std::time::Instant;

use fleet_job::time::Timestamp;

/// The wall clock, made monotonic: it starts at the system's time and then follows the steady
/// clock.
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

    /// When `at` will be, or when this clock was started. The same for the same `at`, whenever it
    /// is asked.
    pub(super) fn instant_of(&self, at: Timestamp) -> Instant {
        self.start + at.since(self.base)
    }
}

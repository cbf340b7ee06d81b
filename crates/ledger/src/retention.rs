//! What a store may forget.

use std::time::Duration;

/// How much is kept. What has ended goes first, the oldest end before others; a job that has not
/// ended goes only where there is no other way to keep within the bounds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Retention {
    /// A job that ended longer ago is forgotten.
    pub max_age: Duration,
    /// The most jobs.
    pub max_jobs: usize,
    /// The most bytes of their newest events, with what the store needs beside them.
    pub max_bytes: u64,
}

impl Default for Retention {
    fn default() -> Self {
        Self { max_age: Duration::from_secs(7 * 86_400), max_jobs: 1_000_000, max_bytes: 1 << 30 }
    }
}

/// What was forgotten, and how much of it had not ended.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Forgotten {
    /// Jobs that had ended.
    pub ended: u64,
    /// Jobs that had not.
    pub open: u64,
}

impl std::ops::AddAssign for Forgotten {
    fn add_assign(&mut self, other: Self) {
        self.ended += other.ended;
        self.open += other.open;
    }
}

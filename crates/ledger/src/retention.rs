//! How much a store keeps.

use std::time::Duration;

/// How much a store keeps. Ended jobs are forgotten first, in the order in which they ended. A job
/// that has not ended is forgotten only if the store cannot stay within its bounds otherwise.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Retention {
    /// The age beyond which an ended job is forgotten.
    pub max_age: Duration,
    /// The maximum number of jobs.
    pub max_jobs: usize,
    /// The maximum size in bytes of all newest events, including the store's overhead for each job.
    pub max_bytes: u64,
}

impl Default for Retention {
    fn default() -> Self {
        Self { max_age: Duration::from_secs(7 * 86_400), max_jobs: 1_000_000, max_bytes: 1 << 30 }
    }
}

/// How many jobs were forgotten.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Forgotten {
    /// Jobs that had ended.
    pub ended: u64,
    /// Jobs that had not ended.
    pub open: u64,
}

impl std::ops::AddAssign for Forgotten {
    fn add_assign(&mut self, other: Self) {
        self.ended += other.ended;
        self.open += other.open;
    }
}

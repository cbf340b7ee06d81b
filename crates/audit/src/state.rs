//! Counts records and gaps, and says in the process's log when gaps begin and end.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::metrics::{AUDIT_GAPS, AUDIT_RECORDS};

/// What becomes of the records of one destination.
#[derive(Debug)]
pub(crate) struct SinkState {
    /// `file` or `topic`.
    name: &'static str,
    /// Gaps since the last record that was kept.
    gaps: AtomicU64,
}

impl SinkState {
    pub(crate) fn new(name: &'static str) -> Self {
        // Visible before the first one, so that alerts see the first one rise.
        ::metrics::counter!(AUDIT_GAPS.name, "sink" => name).increment(0);
        Self { name, gaps: AtomicU64::new(0) }
    }

    /// Counts records that were kept.
    pub(crate) fn note_kept(&self, records: u64) {
        ::metrics::counter!(AUDIT_RECORDS.name, "sink" => self.name).increment(records);
        let gaps = self.gaps.swap(0, Ordering::Relaxed);
        if gaps > 0 {
            tracing::warn!(sink = self.name, gaps, "audit records are kept again");
        }
    }

    /// Counts records that could not be kept.
    pub(crate) fn note_gaps(&self, records: u64, reason: &str) {
        ::metrics::counter!(AUDIT_GAPS.name, "sink" => self.name).increment(records);
        if self.gaps.fetch_add(records, Ordering::Relaxed) == 0 {
            tracing::error!(
                sink = self.name,
                reason,
                "could not keep an audit record; further gaps are only counted"
            );
        }
    }
}

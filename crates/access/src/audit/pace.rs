//! Limits how many refusals are recorded, so that callers without rights cannot fill the log.

use std::{
    collections::HashMap,
    hash::{DefaultHasher, Hash as _, Hasher as _},
};

use super::AuditRecord;

/// The most records of one caller and one reason within a window.
const PER_CALLER: u64 = 60;
/// The most records of all refusals within a window.
const PER_WINDOW: u64 = 6_000;
/// The length of a window, in milliseconds.
const WINDOW_MS: i64 = 60_000;
/// The most callers and reasons that are told apart within a window. Others are counted together.
const MAX_KEYS: usize = 10_000;

/// Counts refusals in windows of a minute.
#[derive(Debug, Default)]
pub(super) struct RefusalPace {
    window: i64,
    total: u64,
    counts: HashMap<u64, u64>,
    /// Those that were left out since the last record.
    left_out: u64,
}

impl RefusalPace {
    /// Returns how many records were left out since the last one; `None` if this one is left out,
    /// too.
    pub(super) fn admit(&mut self, record: &AuditRecord) -> Option<u64> {
        let window = record.time.as_millis().div_euclid(WINDOW_MS);
        if window != self.window {
            (self.window, self.total) = (window, 0);
            self.counts.clear();
        }

        let mut key = key_of(record);
        if self.counts.len() >= MAX_KEYS && !self.counts.contains_key(&key) {
            key = 0;
        }
        let count = self.counts.entry(key).or_default();
        *count += 1;
        if *count > PER_CALLER || self.total >= PER_WINDOW {
            self.left_out += 1;
            return None;
        }
        self.total += 1;
        Some(std::mem::take(&mut self.left_out))
    }
}

/// Whoever was refused, and why.
fn key_of(record: &AuditRecord) -> u64 {
    let mut hasher = DefaultHasher::new();
    match &record.principal {
        Some(principal) => principal.id.hash(&mut hasher),
        None => record.peer.hash(&mut hasher),
    }
    (&record.rule, &record.fault).hash(&mut hasher);
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use fleet_job::time::Timestamp;

    use super::*;
    use crate::AuthRefusal;

    fn refusal(peer: u64, ms: i64) -> AuditRecord {
        let time = Timestamp::from_millis_clamped(ms);
        AuditRecord {
            peer: Some(format!("peer-{peer}")),
            ..AuditRecord::of_refusal(time, &AuthRefusal::in_query())
        }
    }

    #[test]
    fn one_caller_does_not_fill_the_log() {
        let mut pace = RefusalPace::default();
        let kept = (0..1000).filter(|_| pace.admit(&refusal(1, 5)).is_some()).count();
        assert_eq!(kept as u64, PER_CALLER);
        assert_eq!(pace.admit(&refusal(2, 6)), Some(1000 - PER_CALLER), "others are recorded");
        assert_eq!(pace.admit(&refusal(2, 7)), Some(0));
        assert!(pace.admit(&refusal(1, WINDOW_MS)).is_some(), "a minute later");
    }

    #[test]
    fn many_callers_do_not_fill_the_log_or_the_memory() {
        let mut pace = RefusalPace::default();
        let kept = (0..50_000).filter(|peer| pace.admit(&refusal(*peer, 5)).is_some()).count();
        assert_eq!(kept as u64, PER_WINDOW);
        assert!(pace.counts.len() <= MAX_KEYS + 1);
    }
}

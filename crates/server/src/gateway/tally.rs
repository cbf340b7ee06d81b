//! How often each tool was called here, how often that failed, and how long it took.

use std::{collections::HashMap, sync::Arc, time::Duration};

use fleet_job::time::Timestamp;
use parking_lot::Mutex;
use schemars::JsonSchema;
use serde::Serialize;

/// The number of classes of durations: below 1 ms, 2 ms, 4 ms and so on; the last one has no end.
const CLASSES: usize = 28;

/// The calls of each tool since this process started. The names are those of metric labels, which
/// are bounded.
#[derive(Debug)]
pub(super) struct Tallies {
    since: Timestamp,
    by_tool: Mutex<HashMap<Arc<str>, Tally>>,
}

/// The calls of one tool.
#[derive(Debug, Clone, Default)]
struct Tally {
    calls: u64,
    failed: u64,
    total: Duration,
    /// The number of calls by class of duration.
    classes: [u64; CLASSES],
}

/// The calls of a tool at this replica since it started.
#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct CallStatistics {
    /// When the replica began to count.
    since: Timestamp,
    /// The number of calls that were answered.
    calls: u64,
    /// The share of them that failed, from 0 to 1; absent without calls.
    #[serde(skip_serializing_if = "Option::is_none")]
    error_share: Option<f64>,
    /// The mean time to an answer, in milliseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    mean_ms: Option<f64>,
    /// Half of the calls were answered within this time, in milliseconds: the next power of two.
    #[serde(skip_serializing_if = "Option::is_none")]
    p50_ms: Option<u64>,
    /// 95 % of the calls were answered within this time, in milliseconds: the next power of two.
    #[serde(skip_serializing_if = "Option::is_none")]
    p95_ms: Option<u64>,
}

impl Tallies {
    /// Begins to count.
    pub(super) fn new(since: Timestamp) -> Self {
        Self { since, by_tool: Mutex::default() }
    }

    /// Counts a call.
    pub(super) fn add(&self, tool: &Arc<str>, failed: bool, took: Duration) {
        let mut by_tool = self.by_tool.lock();
        let tally = by_tool.entry(Arc::clone(tool)).or_default();
        tally.calls += 1;
        tally.failed += u64::from(failed);
        tally.total += took;
        if let Some(class) = tally.classes.get_mut(class_of(took)) {
            *class += 1;
        }
    }

    /// Returns how a tool was called.
    pub(super) fn of(&self, tool: &str) -> CallStatistics {
        let tally = self.by_tool.lock().get(tool).cloned().unwrap_or_default();
        let calls = tally.calls as f64;
        let any = tally.calls > 0;
        CallStatistics {
            since: self.since,
            calls: tally.calls,
            error_share: any.then(|| tally.failed as f64 / calls),
            mean_ms: any.then(|| tally.total.as_secs_f64() * 1000.0 / calls),
            p50_ms: tally.quantile(50),
            p95_ms: tally.quantile(95),
        }
    }
}

impl Tally {
    /// Returns the end of the class that has the call at this percentage, in milliseconds; `None`
    /// without calls.
    fn quantile(&self, percent: u64) -> Option<u64> {
        let wanted = (self.calls * percent).div_ceil(100).max(1);
        let mut seen = 0;
        let class = self.classes.iter().position(|calls| {
            seen += calls;
            seen >= wanted
        });
        class.map(|class| 1 << class)
    }
}

fn class_of(took: Duration) -> usize {
    let ms = u64::try_from(took.as_millis()).unwrap_or(u64::MAX);
    // The number of binary digits: 0 for 0 ms, 1 for 1 ms, 2 for 2 and 3 ms.
    let digits = u64::BITS - ms.leading_zeros();
    usize::try_from(digits).unwrap_or(CLASSES).min(CLASSES - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_are_counted_by_tool() {
        let tallies = Tallies::new(Timestamp::default());
        let tool: Arc<str> = "t".into();
        assert_eq!(tallies.of("t").calls, 0);
        assert_eq!((tallies.of("t").error_share, tallies.of("t").p50_ms), (None, None));

        for ms in [0, 3, 3, 3, 100] {
            tallies.add(&tool, ms == 100, Duration::from_millis(ms));
        }
        let found = tallies.of("t");
        assert_eq!((found.calls, found.error_share), (5, Some(0.2)));
        assert_eq!((found.p50_ms, found.p95_ms), (Some(4), Some(128)));
        assert!(found.mean_ms.is_some_and(|mean| (mean - 21.8).abs() < 1e-6), "{found:?}");
        assert_eq!(tallies.of("another").calls, 0);
    }

    #[test]
    fn every_duration_has_a_class() {
        for (ms, class) in [(0, 0), (1, 1), (2, 2), (3, 2), (1024, 11), (u64::MAX, CLASSES - 1)] {
            assert_eq!(class_of(Duration::from_millis(ms)), class, "{ms}");
        }
    }
}

//! Computes figures from a log of calls. Pure, so that it can be tested.

use std::collections::{HashMap, HashSet};

use crate::calls::Call;

/// The value that this share of `sorted` doesn't exceed (nearest rank); 0 if `sorted` is empty.
pub(crate) fn quantile(sorted: &[f64], share: f64) -> f64 {
    let rank = (sorted.len() as f64 * share).ceil() as usize;
    sorted.get(rank.clamp(1, sorted.len().max(1)) - 1).copied().unwrap_or_default()
}

/// The median of some figures.
pub(crate) fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    match (sorted.get(middle), sorted.len() % 2) {
        (Some(upper), 0) => f64::midpoint(sorted[middle - 1], *upper),
        (Some(value), _) => *value,
        (None, _) => 0.0,
    }
}

/// The number of calls that were answered in `from..to`.
pub(crate) fn answered(calls: &[Call], from: u64, to: u64) -> usize {
    calls.iter().filter(|call| (from..to).contains(&call.end)).count()
}

/// Calls beyond the first of each job.
pub(crate) fn repeats(calls: &[Call]) -> usize {
    let jobs: HashSet<u32> = calls.iter().map(|call| call.job).collect();
    calls.len() - jobs.len()
}

/// The number of jobs that were committed without a call. `placed` has the jobs of each partition
/// in order, without gaps in the offsets.
pub(crate) fn lost(calls: &[Call], placed: &[Vec<u32>], committed: &[Option<i64>]) -> usize {
    let called: HashSet<u32> = calls.iter().map(|call| call.job).collect();
    let of_partition = |(jobs, committed): (&Vec<u32>, &Option<i64>)| {
        let settled =
            usize::try_from(committed.unwrap_or_default()).unwrap_or_default().min(jobs.len());
        jobs[..settled].iter().filter(|job| !called.contains(job)).count()
    };
    placed.iter().zip(committed).map(of_partition).sum()
}

/// The number of pairs of calls of one key that overlapped, or began in another order than their
/// records were written. Only first calls count, because repeats are counted separately.
pub(crate) fn out_of_order(calls: &[Call], key: impl Fn(u32) -> u32) -> usize {
    let mut first: HashMap<u32, Call> = HashMap::new();
    for call in calls {
        let known = first.entry(call.job).or_insert(*call);
        if call.begin < known.begin {
            *known = *call;
        }
    }

    let mut by_begin: Vec<Call> = first.into_values().collect();
    by_begin.sort_unstable_by_key(|call| (call.begin, call.job));
    let mut last: HashMap<u32, Call> = HashMap::new();
    let mut wrong = 0;
    for call in by_begin {
        let key = key(call.job);
        if let Some(before) = last.get(&key) {
            wrong += usize::from(call.job < before.job || call.begin < before.end);
        }
        last.insert(key, call);
    }

    wrong
}

/// The effect of a rebalance on the partitions that stayed with their worker.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Stop {
    /// The longest time between two calls of one worker for partitions that it kept, in ms.
    pub(crate) worker_ms: f64,
    /// The same in an equally long time before.
    pub(crate) before_ms: f64,
    /// The number of partitions that stayed with their worker.
    pub(crate) kept: usize,
    /// The number of partitions that moved.
    pub(crate) moved: usize,
}

/// Compares the time from `at` to `to` with an equally long time before. `partition` returns the
/// partition of a job.
pub(crate) fn stop(calls: &[Call], at: u64, to: u64, partition: impl Fn(u32) -> i32) -> Stop {
    let before = at - (to - at);
    let owner = |from: u64, to: u64| -> HashMap<i32, u32> {
        let within = calls.iter().filter(|call| (from..to).contains(&call.begin));
        within.map(|call| (partition(call.job), call.worker)).collect()
    };

    // The owner of a partition is the worker that made its last call.
    let (old, new) = (owner(before, at), owner(at, to));
    let kept: HashSet<i32> = old
        .iter()
        .filter(|(partition, worker)| new.get(partition) == Some(worker))
        .map(|(p, _)| *p)
        .collect();
    let longest = |from: u64, to: u64| {
        let mut begins: HashMap<u32, Vec<u64>> = HashMap::new();
        for call in calls.iter().filter(|call| (from..to).contains(&call.begin)) {
            if kept.contains(&partition(call.job)) {
                begins.entry(call.worker).or_default().push(call.begin);
            }
        }
        let gaps = begins.into_values().flat_map(|mut begins| {
            begins.sort_unstable();
            begins.windows(2).map(|pair| pair[1] - pair[0]).collect::<Vec<_>>()
        });
        gaps.max().unwrap_or_default() as f64 / 1000.0
    };

    Stop {
        worker_ms: longest(at, to),
        before_ms: longest(before, at),
        kept: kept.len(),
        moved: old.len() - kept.len(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn call(job: u32, begin: u64, end: u64) -> Call {
        Call { job, worker: 1, begin, end }
    }

    #[test]
    fn quantiles_are_measured_values() {
        let values: Vec<f64> = (1..=100).map(f64::from).collect();
        assert_eq!(quantile(&values, 0.5), 50.0);
        assert_eq!(quantile(&values, 0.99), 99.0);
        assert_eq!(quantile(&values, 0.999), 100.0);
        assert_eq!(quantile(&[], 0.5), 0.0);
        assert_eq!(median(&[3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), 2.5);
        assert_eq!(median(&[]), 0.0);
    }

    #[test]
    fn repeats_and_losses_are_found() {
        let calls = [call(0, 1, 2), call(1, 1, 2), call(1, 3, 4), call(5, 3, 4)];
        assert_eq!(repeats(&calls), 1);
        assert_eq!(answered(&calls, 2, 4), 2);
        let placed = [vec![0, 2, 4], vec![1, 3, 5]];
        assert_eq!(lost(&calls, &placed, &[Some(1), Some(1)]), 0);
        assert_eq!(lost(&calls, &placed, &[Some(2), None]), 1, "2 was committed and not called");
        assert_eq!(lost(&calls, &placed, &[Some(3), Some(99)]), 3);
    }

    #[test]
    fn order_within_a_key_is_checked() {
        let same = |_| 0;
        assert_eq!(out_of_order(&[call(0, 1, 2), call(1, 2, 3), call(0, 5, 6)], same), 0);
        assert_eq!(out_of_order(&[call(0, 1, 3), call(1, 2, 3)], same), 1, "at once");
        assert_eq!(out_of_order(&[call(1, 1, 2), call(0, 3, 4)], same), 1, "in another order");
        assert_eq!(out_of_order(&[call(0, 1, 3), call(1, 2, 3)], |job| job), 0);
    }

    #[test]
    fn a_stop_is_the_longest_silence_of_a_worker_that_keeps_a_partition() {
        let by = |worker, job, begin| Call { job, worker, begin, end: begin + 1 };
        // Partition 0 stays with worker 1; partition 1 goes from 1 to 2.
        let calls = [
            by(1, 0, 10_000),
            by(1, 1, 11_000),
            by(1, 0, 12_000),
            by(1, 0, 21_000),
            by(2, 1, 22_000),
            by(1, 0, 28_000),
        ];
        let stop = stop(&calls, 20_000, 30_000, |job| i32::try_from(job).unwrap());
        assert_eq!(stop, Stop { worker_ms: 7.0, before_ms: 2.0, kept: 1, moved: 1 });
    }
}

//! How far a consumer group has come on each partition of the jobs topic.
//!
//! A committed offset alone says little, because jobs settle out of order: the commit's metadata
//! holds what is settled beyond it.

use std::{collections::HashMap, time::Duration};

use fleet_group::Progress;
use fleet_job::{record::RawRecord, time::Timestamp};
use fleet_kafka::{
    KafkaError,
    admin::{self, GroupPosition},
    reader,
    settings::Settings,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// How far a consumer group has come on a topic.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Lag {
    /// The jobs topic.
    pub topic: String,
    /// The consumer group of the workers.
    pub group: String,
    /// The partitions, in order.
    pub partitions: Vec<PartitionLag>,
    /// The sums over all partitions.
    #[serde(flatten)]
    pub totals: LagTotals,
}

/// The progress of one partition.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PartitionLag {
    /// The number of the partition.
    pub partition: i32,
    /// The offset after the last record.
    pub end: i64,
    /// The committed offset; null if nothing has been committed.
    pub committed: Option<i64>,
    /// Records from the committed offset to the end.
    pub lag: i64,
    /// Jobs settled beyond the committed offset.
    pub done: i64,
    /// `lag` minus `done`: jobs that are not settled.
    pub remaining: i64,
    /// Jobs that are not settled, before the last settled one.
    pub open: i64,
    /// Jobs that have spent attempts.
    pub retried: usize,
    /// Whether the partition is paused because jobs that wait for something unavailable fill its
    /// window.
    pub stalled: bool,
    /// The timestamp of the oldest record that is not settled.
    pub oldest: Option<Timestamp>,
    /// The age of that record in milliseconds.
    pub oldest_age_ms: Option<u64>,
    /// Why the commit's metadata could not be read; `done` and `open` are then unknown.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
}

/// Sums over all partitions.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct LagTotals {
    /// Records from the committed offsets to the ends.
    pub lag: i64,
    /// Jobs settled beyond the committed offsets.
    pub done: i64,
    /// Jobs that are not settled.
    pub remaining: i64,
    /// Jobs that are not settled, before a settled one of their partition.
    pub open: i64,
    /// Jobs that have spent attempts.
    pub retried: usize,
    /// The number of stalled partitions.
    pub stalled: usize,
    /// The age of the oldest record that is not settled, in milliseconds.
    pub oldest_age_ms: Option<u64>,
}

/// Fetches how far `group` has come on each partition of `topic`. Blocks the thread for at most
/// `timeout` per request.
///
/// # Errors
///
/// Returns [`KafkaError::Unreachable`], [`KafkaError::NoTopic`] or [`KafkaError::Request`].
pub fn fetch_lag(
    settings: &Settings,
    group: &str,
    topic: &str,
    timeout: Duration,
    now: Timestamp,
) -> Result<Lag, KafkaError> {
    let positions = admin::group_positions(settings, group, topic, timeout)?;
    let from: Vec<_> = positions.iter().filter_map(first_open).collect();
    let oldest = reader::first_records(settings, topic, &from, timeout)?;
    let partitions = partition_rows(&positions, &oldest, now);
    let totals = sum_rows(&partitions);
    Ok(Lag { topic: topic.to_owned(), group: group.to_owned(), partitions, totals })
}

/// Returns where to look for a partition's first unsettled record.
fn first_open(position: &GroupPosition) -> Option<(i32, i64)> {
    let frontier = frontier(position);
    (frontier < position.end).then_some((position.partition, frontier))
}

/// Returns the committed offset, or the start of the partition if there is none. Records deleted by
/// retention do not count as remaining.
fn frontier(position: &GroupPosition) -> i64 {
    position.committed.unwrap_or(position.start).max(position.start)
}

fn partition_rows(
    positions: &[GroupPosition],
    oldest: &HashMap<i32, RawRecord>,
    now: Timestamp,
) -> Vec<PartitionLag> {
    positions
        .iter()
        .map(|position| {
            let oldest = oldest.get(&position.partition).and_then(|record| record.timestamp);
            partition_row(position, oldest, now)
        })
        .collect()
}

fn partition_row(
    position: &GroupPosition,
    oldest: Option<Timestamp>,
    now: Timestamp,
) -> PartitionLag {
    let frontier = frontier(position);
    let lag = (position.end - frontier).max(0);

    let read = position.committed.map(|committed| Progress::decode(committed, &position.metadata));

    let (progress, problem) = match read {
        Some(Ok(progress)) => (progress, None),
        Some(Err(error)) => (Progress::none(frontier), Some(error.to_string())),
        None => (Progress::none(frontier), None),
    };

    let open: i64 =
        progress.open.iter().map(|(first, end)| (end - (*first).max(frontier)).max(0)).sum();
    let done = (progress.end.min(position.end) - frontier - open).max(0);

    PartitionLag {
        partition: position.partition,
        end: position.end,
        committed: position.committed,
        lag,
        done,
        remaining: lag - done,
        open,
        retried: progress.attempts.len(),
        stalled: progress.is_stalled,
        oldest,
        oldest_age_ms: oldest
            .map(|oldest| u64::try_from(now.since(oldest).as_millis()).unwrap_or(u64::MAX)),
        problem,
    }
}

fn sum_rows(rows: &[PartitionLag]) -> LagTotals {
    rows.iter().fold(LagTotals::default(), |sum, row| LagTotals {
        lag: sum.lag + row.lag,
        done: sum.done + row.done,
        remaining: sum.remaining + row.remaining,
        open: sum.open + row.open,
        retried: sum.retried + row.retried,
        stalled: sum.stalled + usize::from(row.stalled),
        oldest_age_ms: sum.oldest_age_ms.max(row.oldest_age_ms),
    })
}

#[cfg(test)]
mod tests {
    use fleet_group::log::LogName;

    use super::*;

    fn position(committed: Option<i64>, metadata: String) -> GroupPosition {
        GroupPosition { partition: 1, start: 5, end: 30, committed, metadata }
    }

    #[test]
    fn jobs_settled_beyond_the_frontier_do_not_remain() {
        let progress = Progress {
            end: 20,
            open: vec![(10, 12), (15, 16)],
            attempts: vec![(15, 2)],
            ..Progress::none(10)
        };
        let row = partition_row(
            &position(Some(10), progress.encode(LogName::UNKNOWN).unwrap()),
            Timestamp::from_millis(1000),
            Timestamp::from_millis(3500).unwrap(),
        );
        assert_eq!((row.lag, row.done, row.remaining, row.open, row.retried), (20, 7, 13, 3, 1));
        assert_eq!(row.oldest_age_ms, Some(2500));

        let totals = sum_rows(&[row.clone(), row.clone()]);
        assert_eq!((totals.lag, totals.remaining, totals.oldest_age_ms), (40, 26, Some(2500)));
    }

    #[test]
    fn stalled_partitions_are_counted() {
        let metadata = |is_stalled| {
            let progress = Progress { is_stalled, ..Progress::none(10) };
            progress.encode(LogName::UNKNOWN).unwrap()
        };
        let rows = [true, false].map(|is_stalled| {
            partition_row(&position(Some(10), metadata(is_stalled)), None, Timestamp::default())
        });
        assert_eq!((sum_rows(&rows).stalled, rows[0].remaining), (1, 20));
        assert!(rows[0].stalled && !rows[1].stalled);
    }

    #[test]
    fn without_a_commit_all_records_remain() {
        let row = partition_row(&position(None, String::new()), None, Timestamp::default());
        assert_eq!((row.committed, row.lag, row.remaining, row.done), (None, 25, 25, 0));
        assert_eq!(first_open(&position(None, String::new())), Some((1, 5)));
    }

    #[test]
    fn deleted_records_do_not_remain() {
        let position = position(Some(2), String::new());
        assert_eq!(partition_row(&position, None, Timestamp::default()).remaining, 25);
        assert_eq!(first_open(&position), Some((1, 5)));
    }

    #[test]
    fn a_finished_partition_has_no_open_record() {
        assert_eq!(first_open(&position(Some(30), String::new())), None);
        assert_eq!(
            partition_row(&position(Some(30), String::new()), None, Timestamp::default()).lag,
            0
        );
    }

    #[test]
    fn foreign_metadata_is_reported_without_failing() {
        let row =
            partition_row(&position(Some(10), "not ours!".into()), None, Timestamp::default());
        assert_eq!((row.remaining, row.done), (20, 0));
        assert!(row.problem.unwrap().contains("base64"));
    }
}

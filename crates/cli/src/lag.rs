//! `mcp-fleet lag`: how far the workers have come on each partition.
//!
//! A committed offset alone says little, because jobs settle out of order: the commit's metadata
//! holds what is settled beyond it. This command does not join the group, so it can run while
//! workers work.

use std::{collections::HashMap, process::ExitCode, time::Duration};

use fleet_group::Progress;
use fleet_job::{record::RawRecord, time::Timestamp};
use fleet_kafka::{
    KafkaError,
    admin::{self, GroupPosition},
    reader,
    settings::Settings,
};
use fleet_ops::{blocking::run_blocking, clock};
use serde::Serialize;
use serde_json::json;

use crate::{
    connection::Connection,
    dlq::text::{format_age, new_table},
    error::CliError,
    output,
    wait_notice::WaitNotice,
};

const TIMEOUT: Duration = Duration::from_secs(20);

const EXAMPLES: &str = "Columns:
  LAG        records from the committed offset to the end
  DONE       those of LAG that are already settled, out of order
  REMAINING  LAG minus DONE: jobs that are not settled
  OPEN       jobs before a settled one that are not settled themselves: running, or waiting for a
             retry, a start time, or their key's turn
  RETRIED    jobs that have spent attempts
  OLDEST     age of the record at the committed offset, the oldest that is not settled

DONE, OPEN and RETRIED are as of the group's last commit (MCP_COMMIT_INTERVAL). A partition that is
paused because its jobs wait for something unavailable is named below the table.

Examples:
  mcp-fleet lag
  mcp-fleet lag --group mcp-workers --json | jq .remaining";

#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    #[command(flatten)]
    connection: Connection,

    /// The consumer group of the workers.
    #[arg(
        help_heading = "Kafka",
        long,
        env = "MCP_CONSUMER_GROUP",
        default_value = "mcp-workers",
        value_name = "NAME"
    )]
    group: String,

    /// Print one JSON object instead of a table.
    #[arg(help_heading = "Output", long)]
    json: bool,
}

/// The progress of one partition.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct PartitionRow {
    partition: i32,
    /// The offset after the last record.
    end: i64,
    /// The committed offset; null if nothing has been committed.
    committed: Option<i64>,
    lag: i64,
    /// Jobs settled beyond the committed offset.
    done: i64,
    remaining: i64,
    /// Jobs that are not settled, before the last settled one.
    open: i64,
    retried: usize,
    /// Whether the partition is paused because jobs that wait for something unavailable fill its
    /// window.
    stalled: bool,
    /// The timestamp of the oldest record that is not settled.
    oldest: Option<Timestamp>,
    oldest_age_ms: Option<u64>,
    /// Why the commit's metadata could not be read.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) problem: Option<String>,
}

/// Sums over all partitions.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct LagTotals {
    lag: i64,
    done: i64,
    pub(crate) remaining: i64,
    open: i64,
    retried: usize,
    /// The number of stalled partitions.
    pub(crate) stalled: usize,
    pub(crate) oldest_age_ms: Option<u64>,
}

pub(crate) async fn run(args: Args) -> Result<ExitCode, CliError> {
    let (settings, topic, group) = (args.connection.settings()?, args.connection.topic, args.group);

    let (asked_topic, asked_group) = (topic.clone(), group.clone());
    let read = move || -> Result<_, CliError> {
        let _notice = WaitNotice::for_kafka(&settings);
        Ok(fetch(&settings, &asked_group, &asked_topic, TIMEOUT)?)
    };

    let (rows, totals) = run_blocking(read).await?;
    let has_no_commit = rows.iter().all(|row| row.committed.is_none());

    if args.json {
        let mut report = json!({ "topic": topic, "group": group, "partitions": rows });
        if let (Some(report), serde_json::Value::Object(totals)) =
            (report.as_object_mut(), json!(totals))
        {
            report.extend(totals);
        }
        output::json(&report);
        return Ok(ExitCode::SUCCESS);
    }

    output::line(&render_table(&rows, &totals));
    if has_no_commit {
        output::problem(&format!(
            "group {group} has no committed offset on {topic}; it will start with the oldest record"
        ));
    }

    describe_stalled(&rows).iter().for_each(|text| output::problem(text));

    for row in &rows {
        if let Some(problem) = &row.problem {
            output::problem(&format!(
                "partition {}: cannot read the commit metadata, so DONE and OPEN are unknown: {problem}",
                row.partition
            ));
        }
    }

    Ok(ExitCode::SUCCESS)
}

/// Fetches how far `group` has come on each partition of `topic`. Blocks the thread for at most
/// `timeout` per request.
pub(crate) fn fetch(
    settings: &Settings,
    group: &str,
    topic: &str,
    timeout: Duration,
) -> Result<(Vec<PartitionRow>, LagTotals), KafkaError> {
    let positions = admin::group_positions(settings, group, topic, timeout)?;
    let from: Vec<_> = positions.iter().filter_map(first_open).collect();
    let oldest = reader::first_records(settings, topic, &from, timeout)?;
    let rows = partition_rows(&positions, &oldest, clock::now());
    let totals = sum_rows(&rows);
    Ok((rows, totals))
}

/// Describes the stalled partitions; `None` if there are none.
fn describe_stalled(rows: &[PartitionRow]) -> Option<String> {
    let numbers: Vec<_> =
        rows.iter().filter(|row| row.stalled).map(|row| row.partition.to_string()).collect();

    (!numbers.is_empty()).then(|| {
        format!(
            "paused partitions: {}. Jobs that wait for something unavailable, and jobs of the same keys behind them, \
             fill the window; run `mcp-fleet jobs list` to see what they wait for",
            numbers.join(", ")
        )
    })
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
) -> Vec<PartitionRow> {
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
) -> PartitionRow {
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

    PartitionRow {
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

fn sum_rows(rows: &[PartitionRow]) -> LagTotals {
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

fn render_table(rows: &[PartitionRow], totals: &LagTotals) -> String {
    let header =
        ["PARTITION", "END", "COMMITTED", "LAG", "DONE", "REMAINING", "OPEN", "RETRIED", "OLDEST"];
    let mut table = new_table(header);
    let old = |ms: Option<u64>| {
        ms.map_or_else(|| "-".to_owned(), |ms| format_age(Duration::from_millis(ms)))
    };

    for row in rows {
        table.add_row([
            row.partition.to_string(),
            row.end.to_string(),
            row.committed.map_or_else(|| "-".to_owned(), |committed| committed.to_string()),
            row.lag.to_string(),
            row.done.to_string(),
            row.remaining.to_string(),
            row.open.to_string(),
            row.retried.to_string(),
            old(row.oldest_age_ms),
        ]);
    }

    table.add_row([
        "total".to_owned(),
        String::new(),
        String::new(),
        totals.lag.to_string(),
        totals.done.to_string(),
        totals.remaining.to_string(),
        totals.open.to_string(),
        totals.retried.to_string(),
        old(totals.oldest_age_ms),
    ]);
    table.to_string()
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

        let text = render_table(&[row], &totals);
        assert!(text.contains("total") && text.contains("2s"), "{text}");
    }

    #[test]
    fn a_stalled_partition_is_named() {
        let metadata = |is_stalled| {
            let progress = Progress { is_stalled, ..Progress::none(10) };
            progress.encode(LogName::UNKNOWN).unwrap()
        };
        let rows = [true, false].map(|is_stalled| {
            partition_row(&position(Some(10), metadata(is_stalled)), None, Timestamp::default())
        });
        assert_eq!((sum_rows(&rows).stalled, rows[0].remaining), (1, 20));
        assert!(describe_stalled(&rows).unwrap().starts_with("paused partitions: 1. "));
        assert_eq!(describe_stalled(&rows[1..]), None);
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

//! `mcp-fleet lag`: how far the workers have come on each partition.
//!
//! A committed offset alone says little, because jobs settle out of order: the commit's metadata
//! holds what is settled beyond it. This command does not join the group, so it can run while
//! workers work.

use std::{process::ExitCode, time::Duration};

use fleet_lag::{Lag, LagTotals, PartitionLag, fetch_lag};
use fleet_ops::{blocking::run_blocking, clock};
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

pub(crate) async fn run(args: Args) -> Result<ExitCode, CliError> {
    let (settings, topic, group) = (args.connection.settings()?, args.connection.topic, args.group);

    let (asked_topic, asked_group) = (topic.clone(), group.clone());
    let read = move || -> Result<_, CliError> {
        let _notice = WaitNotice::for_kafka(&settings);
        Ok(fetch_lag(&settings, &asked_group, &asked_topic, TIMEOUT, clock::now())?)
    };

    let lag = run_blocking(read).await?;
    if args.json {
        output::json(&json!(lag));
        return Ok(ExitCode::SUCCESS);
    }

    let Lag { partitions: rows, totals, .. } = lag;
    output::line(&render_table(&rows, &totals));
    if rows.iter().all(|row| row.committed.is_none()) {
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

/// Describes the stalled partitions; `None` if there are none.
fn describe_stalled(rows: &[PartitionLag]) -> Option<String> {
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

fn render_table(rows: &[PartitionLag], totals: &LagTotals) -> String {
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
    use super::*;

    fn row(partition: i32, stalled: bool) -> PartitionLag {
        PartitionLag {
            partition,
            end: 30,
            committed: Some(10),
            lag: 20,
            done: 7,
            remaining: 13,
            open: 3,
            retried: 1,
            stalled,
            oldest: None,
            oldest_age_ms: Some(2500),
            problem: None,
        }
    }

    #[test]
    fn the_table_ends_with_the_totals() {
        let totals = LagTotals { lag: 40, oldest_age_ms: Some(2500), ..LagTotals::default() };
        let text = render_table(&[row(1, false)], &totals);
        assert!(text.contains("total") && text.contains("40") && text.contains("2s"), "{text}");
    }

    #[test]
    fn a_stalled_partition_is_named() {
        let rows = [row(1, true), row(2, false)];
        assert!(describe_stalled(&rows).unwrap().starts_with("paused partitions: 1. "));
        assert_eq!(describe_stalled(&rows[1..]), None);
    }
}

//! `mcp-fleet workers`: the workers of the fleet.

use std::{fmt::Write as _, process::ExitCode};

use fleet_lag::WorkerList;
use serde_json::json;

use crate::{
    dlq::text::new_table, error::CliError, output, result_view::for_terminal,
    server_args::ServerArgs,
};

const EXAMPLES: &str = "Columns:
  PARTITIONS  the worker's partitions of the jobs topic
  DELAYED     its partitions of the delayed topic
  IN FLIGHT   jobs that it has reported as running

A worker that has died is listed until the session timeout of its group has passed.

Examples:
  mcp-fleet workers
  mcp-fleet workers --json | jq '.workers[] | select(.inFlight == 0) | .name'";

#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    #[command(flatten)]
    server: ServerArgs,

    /// Print one JSON object
    #[arg(help_heading = "Output", long)]
    json: bool,
}

pub(crate) async fn run(args: Args) -> Result<ExitCode, CliError> {
    let list = args.server.api()?.workers().await?;
    if args.json {
        output::json(&json!(list));
        return Ok(ExitCode::SUCCESS);
    }

    if list.workers.is_empty() {
        output::problem(&format!(
            "group {} has no members; start kafka-worker with MCP_CONSUMER_GROUP={0}",
            for_terminal(&list.group)
        ));
        return Ok(ExitCode::SUCCESS);
    }

    output::line(&render_table(&list));
    if !list.counted_all {
        output::problem("more jobs are running than were counted; IN FLIGHT is too small");
    }
    if list.state != "Stable" {
        output::problem("the workers are dividing the partitions; some may be missing above");
    }
    Ok(ExitCode::SUCCESS)
}

fn render_table(list: &WorkerList) -> String {
    let mut table = new_table(["WORKER", "VERSION", "HOST", "PARTITIONS", "DELAYED", "IN FLIGHT"]);
    for view in &list.workers {
        let worker = &view.worker;
        table.add_row([
            for_terminal(&worker.name),
            worker.version.as_deref().map_or_else(|| "-".to_owned(), for_terminal),
            for_terminal(&worker.host),
            format_ranges(&worker.partitions),
            format_ranges(&worker.delayed_partitions),
            view.in_flight.to_string(),
        ]);
    }
    table.to_string()
}

/// Writes ascending numbers as ranges: `0-3,7`.
fn format_ranges(numbers: &[i32]) -> String {
    if numbers.is_empty() {
        return "-".to_owned();
    }

    let mut text = String::new();
    for run in numbers.chunk_by(|left, right| left + 1 == *right) {
        let comma = if text.is_empty() { "" } else { "," };
        // Writing to a string can't fail.
        _ = match run {
            [first, .., last] => write!(text, "{comma}{first}-{last}"),
            run => run.iter().try_for_each(|one| write!(text, "{comma}{one}")),
        };
    }
    text
}

#[cfg(test)]
mod tests {
    use fleet_lag::{Worker, WorkerView};

    use super::*;

    #[test]
    fn partitions_are_ranges() {
        for (numbers, expected) in
            [(&[][..], "-"), (&[4], "4"), (&[0, 1], "0-1"), (&[0, 1, 2, 5, 7, 8], "0-2,5,7-8")]
        {
            assert_eq!(format_ranges(numbers), expected);
        }
    }

    #[test]
    fn names_can_not_write_to_the_terminal() {
        let worker = Worker { name: "w\u{1b}[2J".to_owned(), ..Worker::default() };
        let list = WorkerList {
            group: "g".to_owned(),
            state: "Stable".to_owned(),
            workers: vec![WorkerView { worker, in_flight: 3 }],
            counted_all: true,
        };
        let text = render_table(&list);
        assert!(!text.contains('\u{1b}') && text.contains('3'), "{text}");
    }
}

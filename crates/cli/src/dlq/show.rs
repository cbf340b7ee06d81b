//! `mcp-fleet dlq show`: shows everything about a job's dead letters.

use std::{ops::ControlFlow, process::ExitCode};

use fleet_dead_letters::{Details, Letter, bytes, shown};
use fleet_job::record::RawRecord;
use fleet_ops::blocking::run_blocking;
use serde_json::json;

use super::{scan, text};
use crate::{connection::Connection, error::CliError, output};

const EXAMPLES: &str = "\
A job that was replayed and died again has several letters; all are shown, oldest first. If it
hosts servers, the values of their environment variables and headers are shown as ***.

Examples:
  mcp-fleet dlq show job-123
  mcp-fleet dlq show mcp-jobs.dlq/0/17
  mcp-fleet dlq show job-123 --json | jq -r .value.text

The exit code is 1 if there is no such letter.";

#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    #[command(flatten)]
    connection: Connection,

    /// A job id, or `topic/partition/offset` of the letter or of the job's record
    #[arg(value_name = "JOB_ID|POSITION")]
    which: String,

    /// Print one JSON object per letter
    #[arg(help_heading = "Output", long)]
    json: bool,
}

pub(super) async fn run(args: Args) -> Result<ExitCode, CliError> {
    let (settings, topics) = (args.connection.settings()?, args.connection.topics());
    let (which, dlq) = (args.which.clone(), topics.dlq.clone());
    let found = run_blocking(move || {
        let replayed = scan::read_replayed(&settings, &topics)?;
        let mut found = Vec::new();
        scan::for_each_record(&settings, &topics.dlq, |record| {
            let letter = Letter::read(&record);
            if letter.is_named(&which) {
                let before = replayed.contains(&letter);
                found.push((letter, record, before));
            }
            Ok(ControlFlow::Continue(()))
        })?;
        found.sort_by_key(|(letter, ..)| (letter.time, letter.partition_offset()));
        Ok::<_, CliError>(found)
    })
    .await?;

    if found.is_empty() {
        output::problem(&format!("{dlq} has no dead letter of `{}`", args.which));
        return Ok(ExitCode::FAILURE);
    }

    for (letter, record, replayed) in &found {
        if args.json {
            output::json(&json!(Details::new(letter, record, *replayed)));
        } else {
            output::line(&to_text(letter, record, *replayed));
        }
    }

    Ok(ExitCode::SUCCESS)
}

fn to_text(letter: &Letter, record: &RawRecord, replayed: bool) -> String {
    let mut table = text::new_table(["LETTER", &text::format_position(&letter.place)]);
    let origin = letter.origin.as_ref().map_or_else(|| "-".to_owned(), text::format_position);
    let state = if replayed { "replayed" } else { "open" };

    let rows = [
        ("job", letter.job_id.clone()),
        ("what", letter.what.clone().unwrap_or_else(|| "-".to_owned())),
        ("record", origin),
        ("died", text::format_time(letter.time)),
        ("kind", letter.kind.clone()),
        ("message", letter.message.clone()),
        ("attempts", letter.attempts.to_string()),
        ("state", format!("{state}, {} replays before this death", letter.replays)),
    ];

    for (name, value) in rows {
        table.add_row([name, &text::shorten(&value, 2048)]);
    }

    for header in &record.headers {
        table.add_row([
            &text::shorten(&header.0, 60),
            &text::shorten(&bytes::header_to_line(header), 2048),
        ]);
    }

    table.add_row(["key", &bytes::to_line(record.key.as_deref())]);
    let value = match letter.value_omitted {
        Some(size) => format!("({size} bytes, omitted: too large for this topic)"),
        None => bytes::to_line(shown::value(record).as_deref()),
    };

    format!("{table}\n{value}\n")
}

#[cfg(test)]
mod tests {
    use fleet_dead_letters::testing::record;
    use fleet_job::outcome::ErrorKind;

    use super::*;

    #[test]
    fn everything_is_shown() {
        let record = record(258, "job-4", ErrorKind::Tool, 1);
        let text = to_text(&Letter::read(&record), &record, false);
        assert!(text.contains("open, 1 replays") && text.contains("it broke: badly"), "{text}");
    }
}

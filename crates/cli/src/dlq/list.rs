//! `mcp-fleet dlq list`: counts and lists dead letters.

use std::{ops::ControlFlow, process::ExitCode};

use fleet_dead_letters::{Bucket, Histogram, Letter};
use fleet_ops::{blocking::run_blocking, clock};
use serde_json::json;

use super::{filter::FilterArgs, scan, text};
use crate::{connection::Connection, error::CliError, output};

const EXAMPLES: &str = "Examples:
  mcp-fleet dlq list
  mcp-fleet dlq list --since 2h --reason tool --max 100
  mcp-fleet dlq list --json | jq '.reasons[] | [.count, .kind, .about]'";

#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    #[command(flatten)]
    connection: Connection,

    #[command(flatten)]
    filter: FilterArgs,

    /// How many of the newest letters to list
    #[arg(help_heading = "Output", long, default_value_t = 20, value_name = "N")]
    max: usize,

    /// Print one JSON object instead of tables
    #[arg(help_heading = "Output", long)]
    json: bool,
}

pub(super) async fn run(args: Args) -> Result<ExitCode, CliError> {
    let (settings, topics) = (args.connection.settings()?, args.connection.topics());
    let (filter, max, dlq) = (args.filter.at(clock::now(), None), args.max, topics.dlq.clone());
    let (buckets, newest) = run_blocking(move || {
        let replayed = scan::read_replayed(&settings, &topics)?;
        let mut histogram = Histogram::new(max);
        scan::for_each_record(&settings, &topics.dlq, |record| {
            let letter = Letter::read(&record);
            if filter.matches(&letter) {
                let before = replayed.contains(&letter);
                histogram.add(letter, before);
            }
            Ok(ControlFlow::Continue(()))
        })?;
        Ok::<_, CliError>(histogram.finish())
    })
    .await?;

    let letters: usize = buckets.iter().map(|bucket| bucket.count).sum();
    let replayed: usize = buckets.iter().map(|bucket| bucket.replayed).sum();
    let oldest = buckets.iter().filter_map(|bucket| bucket.oldest).min();
    let latest = buckets.iter().filter_map(|bucket| bucket.newest).max();

    if args.json {
        let listed: Vec<_> =
            newest.iter().map(|(letter, replayed)| letter.summary(*replayed)).collect();
        output::json(&json!({
            "topic": dlq, "letters": letters, "replayed": replayed, "oldest": oldest, "newest": latest,
            "reasons": buckets, "newestLetters": listed,
        }));
        return Ok(ExitCode::SUCCESS);
    }

    if letters == 0 {
        output::line(&format!("{dlq}: no matching dead letters"));
        return Ok(ExitCode::SUCCESS);
    }

    let (oldest, latest) = (text::format_time(oldest), text::format_time(latest));
    output::line(&format!(
        "{dlq}: {letters} letters, {replayed} of them replayed; {oldest} to {latest}\n"
    ));
    output::line(&reasons(&buckets));
    if !newest.is_empty() {
        output::line(&format!("\nThe newest {}:\n{}", newest.len(), table(&newest)));
    }
    Ok(ExitCode::SUCCESS)
}

fn reasons(buckets: &[Bucket]) -> String {
    let mut table = text::new_table(["LETTERS", "REPLAYED", "KIND", "ABOUT", "OLDEST", "NEWEST"]);
    for bucket in buckets {
        table.add_row([
            bucket.count.to_string(),
            bucket.replayed.to_string(),
            text::shorten(&bucket.kind, 40),
            bucket.about.clone(),
            text::format_time(bucket.oldest),
            text::format_time(bucket.newest),
        ]);
    }
    table.to_string()
}

fn table(letters: &[(Letter, bool)]) -> String {
    let mut table = text::new_table([
        "LETTER", "JOB", "KIND", "ATTEMPTS", "REPLAYS", "STATE", "TIME", "MESSAGE",
    ]);
    for (letter, replayed) in letters {
        table.add_row([
            format!("{}/{}", letter.place.partition, letter.place.offset),
            text::shorten(&letter.job_id, 40),
            text::shorten(&letter.kind, 20),
            letter.attempts.to_string(),
            letter.replays.to_string(),
            (if *replayed { "replayed" } else { "open" }).to_owned(),
            text::format_time(letter.time),
            text::shorten(&letter.message, 70),
        ]);
    }
    table.to_string()
}

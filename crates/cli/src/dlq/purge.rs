//! `mcp-fleet dlq purge`.

use std::{io, process::ExitCode};

use fleet_kafka::admin;
use fleet_ops::clock;
use serde_json::json;

use super::scan;
use crate::{connection::Connection, error::CliError, moment::Moment, output, patience::Patience};

/// The id of an embedded broker's cluster. It has no way to delete records, so it is not asked, and
/// people are told what to do instead.
const EMBEDDED: &str = "mcp-fleet";

const EXAMPLES: &str =
    "Deletes from the oldest letter on; Kafka can't delete from the middle, so there is no filter by reason.
Asks for the topic's name first, unless --yes says that this is meant.

Examples:
  mcp-fleet dlq purge --before 30d
  mcp-fleet dlq purge --before 2026-11-01T00:00:00Z --yes
  mcp-fleet dlq purge --all";

#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    #[command(flatten)]
    connection: Connection,

    /// Letters that were written before then: RFC 3339, or how long ago (30m, 2h, 7d).
    #[arg(long, value_name = "TIME|DURATION", value_parser = Moment::parse, required_unless_present = "all")]
    before: Option<Moment>,

    /// All letters.
    #[arg(long, conflicts_with = "before")]
    all: bool,

    /// Don't ask.
    #[arg(long)]
    yes: bool,

    /// Print one JSON object.
    #[arg(long)]
    json: bool,
}

pub(super) async fn run(args: Args) -> Result<ExitCode, CliError> {
    let (settings, topic) = (args.connection.settings()?, args.connection.topics().dlq);
    let before = args.before.map(|before| before.resolve(clock::now()));
    let asked = (settings.clone(), topic.clone());
    let (spans, cluster) = scan::blocking(move || {
        let _patience = Patience::for_kafka(&asked.0);
        let spans = admin::spans(&asked.0, &asked.1, before, scan::TIMEOUT)?;
        Ok((spans, admin::cluster_id(&asked.0, scan::TIMEOUT)?))
    })
    .await?;
    if cluster.as_deref() == Some(EMBEDDED) {
        let message =
            "the embedded broker deletes nothing: remove its --data-dir, or use Apache Kafka";
        return Err(CliError::Usage(message.to_owned()));
    }
    let letters: i64 = spans.iter().map(|span| span.end - span.start).sum();
    if letters > 0 && !args.yes && !confirmed(&topic, letters).await? {
        output::problem("nothing was deleted");
        return Ok(ExitCode::FAILURE);
    }
    admin::delete_records(&settings, &topic, &spans).await?;
    if args.json {
        output::json(&json!({ "topic": topic, "deleted": letters }));
    } else {
        output::line(&format!("{topic}: {letters} letters deleted"));
    }
    Ok(ExitCode::SUCCESS)
}

/// Whether somebody types the topic's name.
async fn confirmed(topic: &str, letters: i64) -> Result<bool, CliError> {
    output::problem(&format!(
        "this deletes {letters} letters of {topic} for good. Type the topic's name to go on:"
    ));
    let line = scan::blocking(|| {
        let mut line = String::new();
        io::stdin().read_line(&mut line).map_err(|error| CliError::Io("standard input", error))?;
        Ok(line)
    })
    .await?;
    Ok(line.trim() == topic)
}

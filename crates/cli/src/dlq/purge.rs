//! `mcp-fleet dlq purge`: deletes dead letters permanently.

use std::{io, process::ExitCode};

use fleet_kafka::admin;
use fleet_ops::{blocking::run_blocking, clock};
use serde_json::json;

use super::scan;
use crate::{
    connection::Connection, error::CliError, moment::Moment, output, wait_notice::WaitNotice,
};

/// The cluster id of the embedded broker, which cannot delete records. The command then fails with
/// advice instead of trying.
const EMBEDDED: &str = "mcp-fleet";

const EXAMPLES: &str = "\
Deletes from the oldest letter on. Kafka cannot delete records from the middle of a partition, so
there is no filter by reason. Asks you to type the topic's name first, unless --yes is given.

Examples:
  mcp-fleet dlq purge --before 30d
  mcp-fleet dlq purge --before 2026-11-01T00:00:00Z --yes
  mcp-fleet dlq purge --all";

#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    #[command(flatten)]
    connection: Connection,

    /// Delete letters written before this time: RFC 3339, or an age (30m, 2h, 7d)
    #[arg(
        help_heading = "Letters to delete",
        long,
        value_name = "TIME|DURATION",
        value_parser = Moment::parse,
        required_unless_present = "all",
    )]
    before: Option<Moment>,

    /// Delete all letters
    #[arg(help_heading = "Letters to delete", long, conflicts_with = "before")]
    all: bool,

    /// Do not ask for confirmation
    #[arg(long)]
    yes: bool,

    /// Print one JSON object
    #[arg(help_heading = "Output", long)]
    json: bool,
}

pub(super) async fn run(args: Args) -> Result<ExitCode, CliError> {
    let (settings, topic) = (args.connection.settings()?, args.connection.topics().dlq);
    let before = args.before.map(|before| before.resolve(clock::now()));

    let asked = (settings.clone(), topic.clone());
    let (spans, cluster) = run_blocking(move || {
        let _notice = WaitNotice::for_kafka(&asked.0);
        let spans = admin::spans(&asked.0, &asked.1, before, scan::TIMEOUT)?;
        Ok::<_, CliError>((spans, admin::cluster_id(&asked.0, scan::TIMEOUT)?))
    })
    .await?;

    if cluster.as_deref() == Some(EMBEDDED) {
        let message =
            "the embedded broker cannot delete records; delete its --data-dir, or use Apache Kafka";
        return Err(CliError::Usage(message.to_owned()));
    }

    let letters: i64 = spans.iter().map(|span| span.end - span.start).sum();
    if letters > 0 && !args.yes && !confirm_deletion(&topic, letters).await? {
        output::problem("nothing was deleted");
        return Ok(ExitCode::FAILURE);
    }

    admin::delete_records(&settings, &topic, &spans).await?;

    if args.json {
        output::json(&json!({ "topic": topic, "deleted": letters }));
    } else {
        output::line(&format!("{topic}: deleted {letters} letters"));
    }
    Ok(ExitCode::SUCCESS)
}

/// Returns whether the user confirms by typing the topic's name.
async fn confirm_deletion(topic: &str, letters: i64) -> Result<bool, CliError> {
    output::problem(&format!(
        "this permanently deletes {letters} letters of {topic}. Type the topic's name to continue:"
    ));

    let line = run_blocking(|| {
        let mut line = String::new();
        io::stdin()
            .read_line(&mut line)
            .map_err(|error| CliError::Io("could not read standard input", error))?;
        Ok::<_, CliError>(line)
    })
    .await?;

    Ok(line.trim() == topic)
}

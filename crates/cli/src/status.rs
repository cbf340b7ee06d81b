//! `mcp-fleet status`: the whole fleet on one screen, what is wrong with it, and what to do.
//!
//! `facts` are gathered from Kafka and the server, each within a limit; `findings` decides purely
//! what they mean, and `screen` shows both.

mod facts;
mod findings;
mod gather;
mod screen;

use std::process::ExitCode;

use serde_json::json;

use crate::{connection::Connection, error::CliError, output, server_args::ServerArgs};
use findings::{Finding, Level};

const EXAMPLES: &str = "Examples:
  mcp-fleet status
  mcp-fleet status --server https://mcp.example.com --brokers kafka:9092
  mcp-fleet status --json | jq -r '.findings[].problem'

Exit codes:
  0  nothing is wrong; there may be notes
  1  something is wrong";

#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    #[command(flatten)]
    server: ServerArgs,

    #[command(flatten)]
    connection: Connection,

    /// The consumer group of the workers
    #[arg(
        help_heading = "Kafka",
        long,
        env = "MCP_CONSUMER_GROUP",
        default_value = "mcp-workers",
        value_name = "NAME"
    )]
    group: String,

    /// Print one JSON object
    #[arg(help_heading = "Output", long)]
    json: bool,
}

pub(crate) async fn run(args: Args) -> Result<ExitCode, CliError> {
    let facts = gather::gather(&args.server, &args.connection, &args.group).await?;
    let findings = findings::examine(&facts);
    let is_wrong = findings.iter().any(|finding| finding.level == Level::Wrong);

    if args.json {
        output::json(&json!({"ok": !is_wrong, "facts": facts, "findings": findings}));
    } else {
        output::line(&screen::render_facts(&facts));
        output::line("");
        match findings.as_slice() {
            [] => output::line("All is well."),
            findings => findings.iter().for_each(print_finding),
        }
    }
    Ok(if is_wrong { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn print_finding(finding: &Finding) {
    // Colours appear on terminals only.
    let level = match finding.level {
        Level::Wrong => console::style("wrong").red().bold(),
        Level::Note => console::style("note ").yellow(),
    };
    output::line(&format!("{level}  {}", finding.problem));
    output::line(&format!("       {}", finding.remedy));
}

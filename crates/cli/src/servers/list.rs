//! `mcp-fleet servers list`: lists the hosted servers.

use std::process::ExitCode;

use super::report::servers_table;
use crate::{error::CliError, output, server_args::ServerArgs};

const EXAMPLES: &str = "Columns:
  STATE  running; idle: the next call starts it; starting; failed; refused: policy does not allow it
  CALLS  calls that run now

Examples:
  mcp-fleet servers list
  mcp-fleet servers list --json | jq -r 'select(.state != \"running\") | .name'";

#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    #[command(flatten)]
    server: ServerArgs,

    /// Print one JSON object per line
    #[arg(help_heading = "Output", long)]
    json: bool,
}

pub(crate) async fn run(args: Args) -> Result<ExitCode, CliError> {
    let server = args.server.mcp()?;
    let reported = super::fetch_servers(&server).await?;
    server.close().await;

    if args.json {
        reported.iter().for_each(output::json);
    } else if reported.is_empty() {
        output::line(&format!(
            "{} hosts no servers that you may see; `mcp-fleet servers add` adds one",
            server.name()
        ));
    } else {
        output::line(&servers_table(&super::read_servers(&reported)));
    }
    Ok(ExitCode::SUCCESS)
}

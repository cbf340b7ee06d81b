//! `mcp-fleet servers restart`: starts hosted servers again.

use std::process::ExitCode;

use clap_complete::engine::ArgValueCompleter;

use crate::{error::CliError, output, server_args::ServerArgs, suggestions};

const EXAMPLES: &str = "Examples:
  mcp-fleet servers restart db
  mcp-fleet servers restart db weather

The server is started again from its configuration, at the replica that answers. What ran before is
stopped once the new one has completed its handshake. The exit code is 1 if one of them could not be
restarted; it then runs on as before.";

#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    #[command(flatten)]
    server: ServerArgs,

    /// The servers to restart
    #[arg(value_name = "NAME", required = true, add = ArgValueCompleter::new(suggestions::hosted_servers))]
    names: Vec<String>,

    /// Print one JSON object per line: the state of each server
    #[arg(help_heading = "Output", long)]
    json: bool,
}

pub(crate) async fn run(args: Args) -> Result<ExitCode, CliError> {
    let api = args.server.api()?;
    let mut all_restarted = true;
    for name in &args.names {
        let notice = api.wait_notice();
        let restarted = api.restart_server(name).await;
        drop(notice);

        match restarted {
            Ok(status) if args.json => output::json(&status),
            Ok(_) => output::line(&format!("restarted {name}")),
            Err(error) => {
                all_restarted = false;
                output::problem(&format!("{name}: {error}"));
            }
        }
    }
    Ok(if all_restarted { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

//! `mcp-fleet servers remove`: stops hosting servers.

use std::{process::ExitCode, time::Duration};

use clap_complete::engine::ArgValueCompleter;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::{error::CliError, output, server_args::ServerArgs, suggestions};

/// How long a server may take to end.
const REMOVED: Duration = Duration::from_secs(60);

const EXAMPLES: &str = "Examples:
  mcp-fleet servers remove db
  mcp-fleet servers remove db weather

The exit code is 1 if one of them was not hosted.";

#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    #[command(flatten)]
    server: ServerArgs,

    /// The servers to remove
    #[arg(value_name = "NAME", required = true, add = ArgValueCompleter::new(suggestions::hosted_servers))]
    names: Vec<String>,

    /// Print one JSON object per line
    #[arg(help_heading = "Output", long)]
    json: bool,
}

/// The answer of `server_remove`.
#[derive(Debug, Serialize, Deserialize)]
struct Removed {
    name: String,
    removed: bool,
}

pub(crate) async fn run(args: Args) -> Result<ExitCode, CliError> {
    let server = args.server.mcp()?;
    let mut all_removed = true;
    for name in &args.names {
        let arguments = Map::from_iter([("name".to_owned(), Value::from(name.as_str()))]);
        let _notice = server.wait_notice();
        let answer: Removed = server.call_own("server_remove", arguments, REMOVED).await?;
        all_removed &= answer.removed;
        match (args.json, answer.removed) {
            (true, _) => output::json(&answer),
            (false, true) => output::line(&format!("removed {name}")),
            (false, false) => output::problem(&format!(
                "no server `{name}` is hosted [{}]",
                fleet_codes::UNKNOWN_SERVER
            )),
        }
    }
    server.close().await;
    Ok(if all_removed { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

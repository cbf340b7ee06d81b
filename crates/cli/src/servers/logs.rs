//! `mcp-fleet servers logs`: prints the end of a hosted server's standard error.

use std::{io::IsTerminal as _, process::ExitCode};

use crate::{
    error::CliError,
    near_names::{did_you_mean, near_names},
    output,
    result_view::for_terminal,
    server_args::ServerArgs,
    suggestions,
};
use clap_complete::engine::ArgValueCompleter;

const EXAMPLES: &str = "Examples:
  mcp-fleet servers logs db

Only child processes have a log, of which the mcp-server keeps the end. What all of them write is in
the log of the mcp-server. Reading it takes the right to administer the server.";

#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    #[command(flatten)]
    server: ServerArgs,

    /// The name of the hosted server
    #[arg(value_name = "NAME", add = ArgValueCompleter::new(suggestions::hosted_servers))]
    name: String,
}

pub(crate) async fn run(args: Args) -> Result<ExitCode, CliError> {
    let server = args.server.mcp()?;
    let servers = super::read_servers(&super::fetch_servers(&server).await?);
    server.close().await;

    let Some(hosted) = servers.iter().find(|hosted| hosted.name == args.name) else {
        let near = near_names(&args.name, servers.iter().map(|hosted| hosted.name.as_str()));
        return Err(CliError::Usage(format!(
            "no server `{}` is hosted{} [{}]",
            args.name,
            did_you_mean(&near),
            fleet_codes::UNKNOWN_SERVER
        )));
    };

    match &hosted.stderr_tail {
        Some(tail) if std::io::stdout().is_terminal() => output::line(&for_terminal(tail)),
        Some(tail) => output::line(tail),
        None => output::note(&format!("{} has written nothing that you may read", args.name)),
    }
    Ok(ExitCode::SUCCESS)
}

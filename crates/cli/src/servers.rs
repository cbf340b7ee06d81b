//! `mcp-fleet servers`: the MCP servers that an mcp-server hosts.
//!
//! Everything but a restart and the pins, which have no tools, goes through the tools
//! `server_initialize`, `server_status` and `server_remove` of the mcp-server, with the rights of the
//! caller. What to add, and what is wrong with a server, is decided in pure modules.

mod add;
mod check;
mod list;
mod logs;
mod pins;
mod remove;
mod report;
mod restart;
mod source;

use std::process::ExitCode;

use serde::Deserialize;
use serde_json::{Map, Value};

pub(crate) use report::{Condition, HostedServer};
pub(crate) use source::SourceError;
#[cfg(feature = "fleet")]
pub(crate) use source::{Extras, WantedServer, from_command, from_file};

use crate::{
    error::CliError,
    mcp::{CallError, McpServer},
};

#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// List the hosted servers
    List(list::Args),
    /// Host servers: those of a file, one at a URL, or one that a command starts
    Add(Box<add::Args>),
    /// Check that the hosted servers work, and say what to do about those that do not
    Check(check::Args),
    /// Start hosted servers again
    Restart(restart::Args),
    /// Stop hosting servers
    Remove(remove::Args),
    /// Print the end of what a hosted server writes to its standard error
    Logs(logs::Args),
    /// Look at tools that have changed since they were pinned, and decide about them
    #[command(subcommand)]
    Pins(pins::Command),
}

pub(crate) async fn run(command: Command) -> Result<ExitCode, CliError> {
    match command {
        Command::List(args) => list::run(args).await,
        Command::Add(args) => add::run(*args).await,
        Command::Check(args) => check::run(args).await,
        Command::Restart(args) => restart::run(args).await,
        Command::Remove(args) => remove::run(args).await,
        Command::Logs(args) => logs::run(args).await,
        Command::Pins(command) => pins::run(command).await,
    }
}

/// The answer of `server_status`.
#[derive(Debug, Deserialize)]
struct Statuses {
    servers: Vec<Value>,
}

/// The tool that reports on hosted servers.
pub(crate) const STATUS_TOOL: &str = "server_status";

/// Asks for the hosted servers that the caller may know of, as the server reports them.
pub(crate) async fn fetch_servers(server: &McpServer) -> Result<Vec<Value>, CallError> {
    let statuses: Statuses = server.ask(STATUS_TOOL, Map::new()).await?;
    Ok(statuses.servers)
}

/// Reads what the server reports about its hosted servers.
pub(crate) fn read_servers(reported: &[Value]) -> Vec<HostedServer> {
    reported.iter().filter_map(|server| serde_json::from_value(server.clone()).ok()).collect()
}

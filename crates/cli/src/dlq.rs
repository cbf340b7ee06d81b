//! `mcp-fleet dlq`: looking at dead letters, putting them back to work, deleting them.
//!
//! What is decided (filters, histogram, plan, what was replayed before) is in pure modules;
//! [`scan`] and the commands themselves are the thin rest. docs/dead-letters.md is the page for
//! users.

mod bytes;
mod filter;
mod histogram;
mod letter;
mod list;
mod marker;
mod plan;
mod purge;
mod replay;
mod scan;
mod show;
pub(crate) mod text;

use std::process::ExitCode;

use crate::error::CliError;

#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// Count the dead letters by reason, and list the newest.
    List(list::Args),
    /// Show everything about a job's dead letters.
    Show(show::Args),
    /// Put the original records back on the jobs topic.
    Replay(replay::Args),
    /// Delete dead letters for good.
    Purge(purge::Args),
}

pub(crate) async fn run(command: Command) -> Result<ExitCode, CliError> {
    match command {
        Command::List(args) => list::run(args).await,
        Command::Show(args) => show::run(args).await,
        Command::Replay(args) => replay::run(args).await,
        Command::Purge(args) => purge::run(args).await,
    }
}

//! `mcp-fleet dlq`: lists, shows, replays and purges dead letters.
//!
//! Decisions (filters, histogram, plan, replay history) are in `fleet-dead-letters`; [`scan`] and
//! the commands themselves are a thin layer around them. docs/dead-letters.md documents this for users.

mod filter;
mod list;
mod purge;
mod replay;
mod scan;
mod show;
pub(crate) mod text;

use std::process::ExitCode;

use crate::error::CliError;

#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// Count dead letters by reason and list the newest
    List(list::Args),
    /// Show everything about a job's dead letters
    Show(show::Args),
    /// Write the original records back to the jobs topic
    Replay(replay::Args),
    /// Delete dead letters permanently
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

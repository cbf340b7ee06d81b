//! `mcp-fleet jobs`: looking at jobs, waiting for them, cancelling them.
//!
//! All of it goes through the REST interface of a server, so that neither Kafka nor its credentials
//! are needed. What is decided (filters, rows, exit codes, what is on the board) is in pure
//! modules; [`api`], [`follow`] and the commands themselves are the thin rest.

mod api;
mod bars;
mod board;
mod cancel;
mod error;
mod filter;
mod follow;
mod list;
pub(crate) mod render;
mod show;
mod sse;
#[cfg(test)]
mod stub;
mod wait;
mod watch;

pub(crate) use error::ApiError;

use std::process::ExitCode;

use crate::error::CliError;

#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// List jobs, those that were submitted last first.
    List(list::Args),
    /// Show everything about a job, its result included.
    Show(show::Args),
    /// Wait until jobs have come to their end.
    Wait(wait::Args),
    /// Cancel jobs.
    Cancel(cancel::Args),
    /// Follow what happens to jobs: a live table, or lines where the output is no terminal.
    Watch(watch::Args),
}

pub(crate) async fn run(command: Command) -> Result<ExitCode, CliError> {
    match command {
        Command::List(args) => list::run(args).await,
        Command::Show(args) => show::run(args).await,
        Command::Wait(args) => wait::run(args).await,
        Command::Cancel(args) => cancel::run(args).await,
        Command::Watch(args) => watch::run(args).await,
    }
}

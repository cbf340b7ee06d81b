//! `mcp-fleet jobs`: lists, shows, watches, waits for and cancels jobs.
//!
//! Everything goes through a server's REST interface, so neither Kafka nor its credentials are
//! needed. Decisions (filters, rows, exit codes, the contents of the board) are in pure modules;
//! [`api`], [`follow`] and the commands themselves are a thin layer around them.

pub(crate) mod api;
mod bars;
mod board;
mod cancel;
mod export;
mod filter;
mod follow;
pub(crate) mod list;
pub(crate) mod render;
mod run_again;
mod show;
#[cfg(test)]
mod stub;
pub(crate) mod wait;
mod watch;

use std::process::ExitCode;

use crate::error::CliError;

#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// List jobs, newest first
    List(list::Args),
    /// Show everything about a job, including its result
    Show(show::Args),
    /// Wait until jobs have ended
    Wait(wait::Args),
    /// Write jobs with their results to files, as JSON Lines or CSV
    Export(export::Args),
    /// Submit jobs once more, as they were or with other arguments
    RunAgain(run_again::Args),
    /// Cancel jobs
    Cancel(cancel::Args),
    /// Follow jobs: a live table on a terminal, otherwise one line per event
    Watch(watch::Args),
}

pub(crate) async fn run(command: Command) -> Result<ExitCode, CliError> {
    match command {
        Command::List(args) => list::run(args).await,
        Command::Show(args) => show::run(args).await,
        Command::Wait(args) => wait::run(args).await,
        Command::Export(args) => export::run(args).await,
        Command::RunAgain(args) => run_again::run(args).await,
        Command::Cancel(args) => cancel::run(args).await,
        Command::Watch(args) => watch::run(args).await,
    }
}

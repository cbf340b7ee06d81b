//! The parts of a fleet that this binary contains, each run on its own: `mcp-fleet server` and
//! `worker`.

use std::process::ExitCode;

use fleet_ops::{parent, telemetry, trace};

use crate::error::CliError;

#[derive(Debug, clap::Args)]
pub(crate) struct ServerArgs {
    #[command(flatten)]
    server: mcp_server::Args,
    #[command(flatten)]
    child: ChildArgs,
}

#[derive(Debug, clap::Args)]
#[command(after_help = kafka_worker::config::EXAMPLES)]
pub(crate) struct WorkerArgs {
    #[command(flatten)]
    worker: kafka_worker::Args,
    #[command(flatten)]
    child: ChildArgs,
}

impl WorkerArgs {
    /// Returns the number of threads that the arguments ask for.
    pub(crate) fn threads(&self) -> u32 {
        self.worker.threads
    }
}

/// How a part behaves as a child process of `demo` or `dev`.
#[derive(Debug, clap::Args)]
pub(crate) struct ChildArgs {
    /// End when the parent process, which has this id, ends for whatever reason.
    #[arg(long, value_name = "PID", hide = true)]
    exit_with_parent: Option<u32>,
}

impl ChildArgs {
    /// Does what the flags ask for.
    fn apply(&self) {
        if let Some(parent) = self.exit_with_parent {
            parent::shut_down_with_parent(parent);
        }
    }
}

pub(crate) async fn server(args: ServerArgs) -> Result<ExitCode, CliError> {
    telemetry::init("mcp-server");
    let _exporting = trace::init("mcp-server", env!("CARGO_PKG_VERSION"));
    args.child.apply();
    mcp_server::run(args.server).await?;
    Ok(ExitCode::SUCCESS)
}

pub(crate) async fn worker(args: WorkerArgs) -> Result<ExitCode, CliError> {
    telemetry::init("kafka-worker");
    let _exporting = trace::init("kafka-worker", env!("CARGO_PKG_VERSION"));
    args.child.apply();
    kafka_worker::run(args.worker).await?;
    Ok(ExitCode::SUCCESS)
}

//! The parts of a fleet, each run on its own: `mcp-fleet broker`, `server` and `worker`.

use std::{os::unix::process::parent_id, process::ExitCode, time::Duration};

use fleet_ops::{telemetry, trace};

use crate::error::CliError;

#[cfg(feature = "embedded-broker")]
mod broker;

#[cfg(feature = "embedded-broker")]
pub(crate) use broker::{BrokerArgs, broker};

/// How often a child checks that its parent still exists.
const WATCH: Duration = Duration::from_millis(500);

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
    /// End when the parent process ends, for whatever reason.
    #[arg(long, hide = true)]
    exit_with_parent: bool,
}

impl ChildArgs {
    /// Shuts this process down when its parent ends. Otherwise a killed `dev` would leave its
    /// workers running.
    fn watch(&self) {
        if !self.exit_with_parent {
            return;
        }

        let parent = parent_id();
        tokio::spawn(async move {
            while parent_id() == parent {
                tokio::time::sleep(WATCH).await;
            }
            tracing::warn!("the parent process has ended; shutting down");
            // The signal handlers are in place, so this starts the usual drain.
            if nix::sys::signal::raise(nix::sys::signal::Signal::SIGTERM).is_err() {
                std::process::exit(1);
            }
        });
    }
}

pub(crate) async fn server(args: ServerArgs) -> Result<ExitCode, CliError> {
    telemetry::init("mcp-server");
    let _exporting = trace::init("mcp-server", env!("CARGO_PKG_VERSION"));
    args.child.watch();
    mcp_server::run(args.server).await?;
    Ok(ExitCode::SUCCESS)
}

pub(crate) async fn worker(args: WorkerArgs) -> Result<ExitCode, CliError> {
    telemetry::init("kafka-worker");
    let _exporting = trace::init("kafka-worker", env!("CARGO_PKG_VERSION"));
    args.child.watch();
    kafka_worker::run(args.worker).await?;
    Ok(ExitCode::SUCCESS)
}

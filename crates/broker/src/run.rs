//! The process around the broker: its arguments, how it starts, and how it stops.

use std::{
    io::{self, Write as _},
    net::SocketAddr,
    path::PathBuf,
};

use fleet_ops::{http, parent, shutdown};

use crate::{Broker, BrokerConfig, BrokerError};

/// Examples for the help text.
pub const EXAMPLES: &str = "Examples:
  mcp-fleet-broker
  mcp-fleet-broker --listen 127.0.0.1:19092 --data-dir .fleet/broker";

/// The arguments of `mcp-fleet-broker`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The address to listen on; port 0 picks a free port
    #[arg(long, default_value = "127.0.0.1:9092", value_name = "ADDRESS")]
    listen: SocketAddr,

    /// Keep topics and offsets in this directory; by default, they are deleted at exit
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,

    /// Write `host:port` to this file once the broker is ready
    #[arg(long, value_name = "FILE")]
    ready_file: Option<PathBuf>,

    /// End when the parent process, which has this id, ends for whatever reason
    #[arg(long, value_name = "PID", hide = true)]
    exit_with_parent: Option<u32>,
}

/// Why the process ended on its own.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The broker did not start.
    #[error(transparent)]
    Start(#[from] BrokerError),
    /// The broker has failed while it ran.
    #[error(
        "the embedded broker failed ({0}); if it has a --data-dir, everything it acknowledged is there"
    )]
    Failed(String),
    /// The process's threads could not be started.
    #[error("could not start the async runtime")]
    Runtime(#[source] io::Error),
    /// The operating system rejected the signal handlers.
    #[error("could not install signal handlers")]
    Signals(#[source] io::Error),
    /// The ready file could not be written.
    #[error("could not write `{}`", path.display())]
    ReadyFile {
        /// The requested file.
        path: PathBuf,
        /// The error from the operating system.
        #[source]
        source: io::Error,
    },
}

/// Runs a broker until a signal, and waits for pending writes.
///
/// # Errors
///
/// Returns an error if the broker cannot start, or fails while it runs.
pub async fn run(args: Args) -> Result<(), RunError> {
    let stop = shutdown::signal_token().map_err(RunError::Signals)?;
    if let Some(parent) = args.exit_with_parent {
        parent::shut_down_with_parent(parent);
    }

    let broker =
        Broker::start(BrokerConfig { listen: args.listen, data_dir: args.data_dir }).await?;
    let address = broker.address();

    if let Some(path) = args.ready_file {
        http::write_ready_file(&path, address)
            .map_err(|source| RunError::ReadyFile { path, source })?;
    }
    announce(address);

    tokio::select! {
        () = stop.cancelled() => {}
        reason = broker.failed() => return Err(RunError::Failed(reason)),
    }

    broker.stop().await;
    Ok(())
}

/// Tells the user where the broker listens. The broker runs whether or not anybody reads it.
fn announce(address: SocketAddr) {
    _ = writeln!(io::stdout(), "broker listening on {address}");
}

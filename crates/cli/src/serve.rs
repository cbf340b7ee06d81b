//! The parts of a fleet, each run by itself: `mcp-fleet broker`, `server` and `worker`.

use std::{net::SocketAddr, os::unix::process::parent_id, path::PathBuf, process::ExitCode, time::Duration};

use fleet_ops::{http, shutdown, telemetry};

use crate::{
    broker::{Broker, BrokerConfig},
    error::CliError,
    output,
};

/// How often a child looks whether its parent is still there.
const WATCH: Duration = Duration::from_millis(500);

const BROKER_EXAMPLES: &str = "Examples:
  mcp-fleet broker
  mcp-fleet broker --listen 127.0.0.1:19092 --data-dir .fleet/broker";

#[derive(Debug, clap::Args)]
#[command(after_help = BROKER_EXAMPLES)]
pub(crate) struct BrokerArgs {
    /// Where to listen; port 0 takes any free one.
    #[arg(long, default_value = "127.0.0.1:9092", value_name = "ADDRESS")]
    listen: SocketAddr,

    /// Keep topics and offsets in this directory; without it, in a temporary one that is gone at the end.
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,

    /// Write `host:port` to this file once the broker answers.
    #[arg(long, value_name = "FILE")]
    ready_file: Option<PathBuf>,

    #[command(flatten)]
    child: ChildArgs,
}

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

/// How a part behaves as a child of `demo` or `dev`.
#[derive(Debug, clap::Args)]
pub(crate) struct ChildArgs {
    /// End when the process that started this one ends, however it does.
    #[arg(long, hide = true)]
    exit_with_parent: bool,
}

impl ChildArgs {
    /// Without this a killed `dev` would leave its workers behind.
    fn watch(&self) {
        if !self.exit_with_parent {
            return;
        }
        let parent = parent_id();
        tokio::spawn(async move {
            while parent_id() == parent {
                tokio::time::sleep(WATCH).await;
            }
            tracing::warn!("the parent process is gone");
            // The handlers of a shutdown signal are in place; a drain is what it would have asked for.
            if nix::sys::signal::raise(nix::sys::signal::Signal::SIGTERM).is_err() {
                std::process::exit(1);
            }
        });
    }
}

pub(crate) async fn broker(args: BrokerArgs) -> Result<ExitCode, CliError> {
    telemetry::init("mcp-fleet-broker");
    args.child.watch();
    let stop = shutdown::signal_token().map_err(|error| CliError::Io("signals can't be handled", error))?;
    let broker = Broker::start(BrokerConfig { listen: args.listen, data_dir: args.data_dir }).await?;
    let bootstrap = broker.bootstrap();
    if let Some(path) = args.ready_file {
        let address = bootstrap.parse().map_err(|_| CliError::Usage(format!("{bootstrap} is no address")))?;
        http::write_ready_file(&path, address).map_err(|source| CliError::File {
            what: "can't write",
            path,
            source,
        })?;
    }
    output::line(&format!("broker at {bootstrap}"));
    tokio::select! {
        () = stop.cancelled() => {}
        reason = broker.failed() => return Err(CliError::BrokerDied(reason)),
    }
    broker.stop().await;
    Ok(ExitCode::SUCCESS)
}

pub(crate) async fn server(args: ServerArgs) -> Result<ExitCode, CliError> {
    telemetry::init("mcp-server");
    args.child.watch();
    mcp_server::run(args.server).await?;
    Ok(ExitCode::SUCCESS)
}

pub(crate) async fn worker(args: WorkerArgs) -> Result<ExitCode, CliError> {
    telemetry::init("kafka-worker");
    args.child.watch();
    kafka_worker::run(args.worker).await?;
    Ok(ExitCode::SUCCESS)
}

//! `mcp-fleet broker`: only the embedded broker.

use std::{net::SocketAddr, path::PathBuf, process::ExitCode};

use fleet_ops::{http, shutdown, telemetry};

use super::ChildArgs;
use mcp_fleet_broker::{Broker, BrokerConfig};

use crate::{error::CliError, output};

const EXAMPLES: &str = "Examples:
  mcp-fleet broker
  mcp-fleet broker --listen 127.0.0.1:19092 --data-dir .fleet/broker";

#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct BrokerArgs {
    /// The address to listen on; port 0 picks a free port
    #[arg(long, default_value = "127.0.0.1:9092", value_name = "ADDRESS")]
    listen: SocketAddr,

    /// Keep topics and offsets in this directory; by default, they are deleted at exit
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,

    /// Write `host:port` to this file once the broker is ready
    #[arg(long, value_name = "FILE")]
    ready_file: Option<PathBuf>,

    #[command(flatten)]
    child: ChildArgs,
}

pub(crate) async fn broker(args: BrokerArgs) -> Result<ExitCode, CliError> {
    telemetry::init("mcp-fleet-broker");
    args.child.watch();

    let stop = shutdown::signal_token()
        .map_err(|error| CliError::Io("could not install signal handlers", error))?;
    let broker =
        Broker::start(BrokerConfig { listen: args.listen, data_dir: args.data_dir }).await?;
    let bootstrap = broker.bootstrap();

    if let Some(path) = args.ready_file {
        let address = bootstrap
            .parse()
            .map_err(|_| CliError::Usage(format!("`{bootstrap}` is not an address")))?;
        http::write_ready_file(&path, address).map_err(|source| CliError::File {
            what: "could not write",
            path,
            source,
        })?;
    }

    output::line(&format!("broker listening on {bootstrap}"));
    tokio::select! {
        () = stop.cancelled() => {}
        reason = broker.failed() => return Err(CliError::BrokerDied(reason)),
    }

    broker.stop().await;
    Ok(ExitCode::SUCCESS)
}

//! `mcp-fleet broker`: the embedded broker by itself.

use std::{net::SocketAddr, path::PathBuf, process::ExitCode};

use fleet_ops::{http, shutdown, telemetry};

use super::ChildArgs;
use crate::{
    broker::{Broker, BrokerConfig},
    error::CliError,
    output,
};

const EXAMPLES: &str = "Examples:
  mcp-fleet broker
  mcp-fleet broker --listen 127.0.0.1:19092 --data-dir .fleet/broker";

#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct BrokerArgs {
    /// Where to listen; port 0 takes any free one.
    #[arg(long, default_value = "127.0.0.1:9092", value_name = "ADDRESS")]
    listen: SocketAddr,

    /// Keep topics and offsets in this directory; without it, in a temporary one that is gone at
    /// the end.
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,

    /// Write `host:port` to this file once the broker answers.
    #[arg(long, value_name = "FILE")]
    ready_file: Option<PathBuf>,

    #[command(flatten)]
    child: ChildArgs,
}

pub(crate) async fn broker(args: BrokerArgs) -> Result<ExitCode, CliError> {
    telemetry::init("mcp-fleet-broker");
    args.child.watch();
    let stop = shutdown::signal_token()
        .map_err(|error| CliError::Io("signals can't be handled", error))?;
    let broker =
        Broker::start(BrokerConfig { listen: args.listen, data_dir: args.data_dir }).await?;
    let bootstrap = broker.bootstrap();
    if let Some(path) = args.ready_file {
        let address =
            bootstrap.parse().map_err(|_| CliError::Usage(format!("{bootstrap} is no address")))?;
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

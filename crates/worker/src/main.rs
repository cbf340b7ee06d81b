//! The binary `kafka-worker`: reads its configuration, runs until a signal, drains.

use std::{net::SocketAddr, process::ExitCode};

use clap::Parser as _;
use fleet_ops::http::health_exit_code;

/// Takes MCP jobs from Kafka, calls the tools, and commits only what is settled.
#[derive(Debug, clap::Parser)]
#[command(name = "kafka-worker", version, after_help = kafka_worker::config::EXAMPLES)]
struct Cli {
    #[command(flatten)]
    args: kafka_worker::Args,

    /// Ask the worker that listens at this host and port whether it is alive, and exit with 0 or 1: for health checks.
    #[arg(long)]
    healthcheck: bool,
}

#[tokio::main]
async fn main() -> ExitCode {
    let cli = Cli::parse();
    if cli.healthcheck {
        return health_exit_code(SocketAddr::new(cli.args.host, cli.args.port));
    }
    fleet_ops::telemetry::init("kafka-worker");
    match kafka_worker::run(cli.args).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{}", fleet_ops::errors::chain(&error));
            ExitCode::FAILURE
        }
    }
}

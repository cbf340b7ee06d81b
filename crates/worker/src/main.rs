//! The binary `kafka-worker`: reads its configuration, runs until a signal, and drains.

use std::{net::SocketAddr, process::ExitCode};

use clap::Parser as _;
use fleet_ops::http::health_exit_code;
use kafka_worker::WorkerError;

/// Runs MCP jobs from Kafka: calls their tools, and commits an offset only after its job is
/// settled.
#[derive(Debug, clap::Parser)]
#[command(name = "kafka-worker", version, max_term_width = 100)]
#[command(after_help = kafka_worker::config::EXAMPLES)]
struct Cli {
    #[command(flatten)]
    args: kafka_worker::Args,

    /// Ask the worker at this host and port whether it is alive, and exit with 0 or 1: for health
    /// checks. Prints the answer of /ready.
    #[arg(long)]
    healthcheck: bool,
}

/// A job makes many small allocations on one thread that are freed on another. `mcp-fleet worker`
/// has the same allocator.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    fleet_ops::inspection::forbid();
    let cli = Cli::parse();
    if cli.healthcheck {
        let address = SocketAddr::new(cli.args.host, cli.args.port);
        return health_exit_code(address, cli.args.tls.is_on());
    }

    fleet_ops::telemetry::init("kafka-worker");
    let result =
        kafka_worker::runtime(cli.args.threads).map_err(WorkerError::from).and_then(|runtime| {
            runtime.block_on(async {
                let _exporting = fleet_ops::trace::init("kafka-worker", env!("CARGO_PKG_VERSION"));
                kafka_worker::run(cli.args).await
            })
        });

    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{}", fleet_ops::errors::chain(&error));
            ExitCode::FAILURE
        }
    }
}

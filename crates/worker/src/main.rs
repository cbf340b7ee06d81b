//! The binary `kafka-worker`: reads its configuration, runs until a signal, drains.

use clap::Parser as _;

/// Takes MCP jobs from Kafka, calls the tools, and commits only what is settled.
#[derive(Debug, clap::Parser)]
#[command(name = "kafka-worker", version, after_help = kafka_worker::config::EXAMPLES)]
struct Cli {
    #[command(flatten)]
    args: kafka_worker::Args,
}

#[tokio::main]
async fn main() -> std::process::ExitCode {
    let cli = Cli::parse();
    fleet_ops::telemetry::init("kafka-worker");
    match kafka_worker::run(cli.args).await {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{}", fleet_ops::errors::chain(&error));
            std::process::ExitCode::FAILURE
        }
    }
}

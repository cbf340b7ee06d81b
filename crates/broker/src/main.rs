//! The binary `mcp-fleet-broker`: the embedded broker as a process of its own.

use std::{
    io::{self, Write as _},
    process::ExitCode,
};

use clap::Parser as _;
use fleet_ops::errors::chain;
use mcp_fleet_broker::RunError;

/// Run a Kafka-compatible broker on this machine, for people and tests without a Kafka
///
/// `mcp-fleet demo` and `mcp-fleet dev` start it themselves.
#[derive(Debug, clap::Parser)]
#[command(name = "mcp-fleet-broker", version, max_term_width = 100)]
#[command(after_help = mcp_fleet_broker::EXAMPLES)]
struct Cli {
    #[command(flatten)]
    args: mcp_fleet_broker::Args,
}

/// The same allocator as in the other programs of `mcp-fleet dev`.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    fleet_ops::inspection::forbid();
    let cli = Cli::parse();
    fleet_ops::telemetry::init("mcp-fleet-broker");

    let result = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(RunError::Runtime)
        .and_then(|runtime| runtime.block_on(mcp_fleet_broker::run(cli.args)));

    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // If writing fails, there is nowhere to report it.
            _ = writeln!(io::stderr(), "mcp-fleet-broker: {}", chain(&error));
            ExitCode::FAILURE
        }
    }
}

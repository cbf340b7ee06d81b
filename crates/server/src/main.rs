//! The binary `mcp-server`: reads its settings, runs until a signal, drains.

use std::{process::ExitCode, time::Duration};

use clap::Parser;
use mcp_server::{Args, error::chain};

/// An MCP server that hosts other MCP servers.
#[derive(Parser)]
#[command(name = "mcp-server", version)]
struct Cli {
    #[command(flatten)]
    args: Args,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    fleet_ops::telemetry::init("mcp-server");
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            tracing::error!(%error, "no runtime");
            return ExitCode::FAILURE;
        }
    };
    let result = runtime.block_on(mcp_server::run(cli.args));
    // A read of standard input can't be interrupted, so the runtime is not waited for.
    runtime.shutdown_timeout(Duration::from_millis(100));
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!(error = chain(&error), "mcp-server failed");
            ExitCode::FAILURE
        }
    }
}

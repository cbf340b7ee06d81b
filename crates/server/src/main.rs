//! The binary `mcp-server`: reads its settings, runs until a signal, drains.

use std::{net::SocketAddr, process::ExitCode, time::Duration};

use clap::{Parser, Subcommand};
use fleet_ops::errors::chain;
use mcp_server::{
    Args,
    check::{self, PolicyCommand},
};

const EXAMPLES: &str = "Examples:
  Offer the files of a directory, and list them:
    mcp-server --root .
    curl -s localhost:8080/message -H 'content-type: application/json' -d \\
      '{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"tools/call\",\"params\":{\"name\":\"file_list\"}}'

  Let jobs host one program, exactly as it is written (`server_initialize` starts it):
    mcp-server --allow-command 'mcp-server --stdio --root /tmp'

  Be the server of a desktop client, which starts this by itself:
    mcp-server --stdio --root .

  Listen for other machines, by one name:
    mcp-server --host 0.0.0.0 --allowed-hosts mcp.internal --repeat-window 1h

  Ask what a policy file would make of a configuration (see `mcp-server policy check --help`):
    mcp-server policy check policy.toml mcp.json";

/// An MCP server that hosts other MCP servers.
#[derive(Parser)]
#[command(name = "mcp-server", version, after_help = EXAMPLES)]
#[command(args_conflicts_with_subcommands = true)]
struct Cli {
    #[command(flatten)]
    args: Args,
    /// Ask the server that listens at this host and port whether it is alive, and exit with 0 or 1:
    /// for health checks. Prints what /ready says.
    #[arg(long)]
    healthcheck: bool,
    #[command(subcommand)]
    command: Option<Command>,
}

/// What to do instead of serving.
#[derive(Subcommand)]
enum Command {
    /// Look at policies.
    Policy {
        #[command(subcommand)]
        command: PolicyCommand,
    },
}

fn main() -> ExitCode {
    fleet_ops::inspection::forbid();
    if let Some(code) = fleet_launcher::run_if_asked() {
        return code;
    }
    let cli = Cli::parse();
    if cli.healthcheck {
        return fleet_ops::http::health_exit_code(SocketAddr::new(cli.args.host, cli.args.port));
    }
    fleet_ops::telemetry::init("mcp-server");
    let exporting = fleet_ops::trace::init("mcp-server", env!("CARGO_PKG_VERSION"));
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            tracing::error!(%error, "no runtime");
            return ExitCode::FAILURE;
        }
    };
    if let Some(Command::Policy { command }) = cli.command {
        return runtime.block_on(check::run(command));
    }
    let result = runtime.block_on(mcp_server::run(cli.args));
    // A read of standard input can't be interrupted, so the runtime is not waited for.
    runtime.shutdown_timeout(Duration::from_millis(100));
    drop(exporting);
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!(error = chain(&error), "mcp-server failed");
            ExitCode::FAILURE
        }
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn the_examples_are_understood() {
        let mut checked = 0;
        for example in EXAMPLES.lines().filter_map(|line| line.strip_prefix("    mcp-server ")) {
            let shell = Command::new("sh")
                .arg("-c")
                .arg(format!("printf '%s\\n' mcp-server {example}"))
                .output();
            let words = String::from_utf8(shell.unwrap().stdout).unwrap();
            let cli = Cli::try_parse_from(words.lines())
                .unwrap_or_else(|error| panic!("{example}: {error}"));
            mcp_server::ServerConfig::from_args(&cli.args)
                .unwrap_or_else(|error| panic!("{example}: {error}"));
            checked += 1;
        }
        assert_eq!(checked, 5);
    }
}

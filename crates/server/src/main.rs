//! The binary `mcp-server`: reads its settings, runs until a signal, and drains.

use std::{net::SocketAddr, process::ExitCode, time::Duration};

use clap::{Parser, Subcommand};
use fleet_ops::errors::chain;
use mcp_server::{
    Args,
    check::{self, PolicyCommand},
};

const EXAMPLES: &str = "Examples:
  Offer the files of the current directory, and list them:
    mcp-server --root .
    curl -s localhost:8080/message -H 'content-type: application/json' -d \\
      '{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"tools/call\",\"params\":{\"name\":\"file_list\"}}'

  Let jobs host exactly this command line (`server_initialize` starts it):
    mcp-server --allow-command 'mcp-server --stdio --root /tmp'

  Serve a desktop client that starts the server itself:
    mcp-server --stdio --root .

  Accept requests from other machines that have a key (see `mcp-fleet keys create --help`):
    mcp-server --host 0.0.0.0 --allowed-hosts mcp.internal --access-keys keys.toml

  Show what a policy file allows of a configuration (see `mcp-server policy check --help`):
    mcp-server policy check policy.toml mcp.json";

/// An MCP server that hosts other MCP servers.
#[derive(Parser)]
#[command(name = "mcp-server", version, after_help = EXAMPLES, max_term_width = 100)]
#[command(args_conflicts_with_subcommands = true)]
struct Cli {
    #[command(flatten)]
    args: Args,
    /// Check whether the server at this host and port is alive, and exit with 0 or 1
    ///
    /// For health checks of containers. Prints the response of /ready.
    #[arg(long)]
    healthcheck: bool,

    #[command(subcommand)]
    command: Option<Command>,
}

/// Commands other than serving.
#[derive(Subcommand)]
enum Command {
    /// Inspect policies
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
        let address = SocketAddr::new(cli.args.host, cli.args.port);
        return fleet_ops::http::health_exit_code(address, cli.args.tls.is_on());
    }

    fleet_ops::telemetry::init("mcp-server");
    let exporting = fleet_ops::trace::init("mcp-server", env!("CARGO_PKG_VERSION"));
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            tracing::error!(%error, "could not start the async runtime");
            return ExitCode::FAILURE;
        }
    };

    if let Some(Command::Policy { command }) = cli.command {
        return runtime.block_on(check::run(command));
    }

    let result = runtime.block_on(mcp_server::run(cli.args));
    // A read of standard input cannot be interrupted, so do not wait for the runtime.
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
    fn the_examples_are_valid_command_lines() {
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

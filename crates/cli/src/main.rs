//! The binary `mcp-fleet`: a whole fleet on one laptop, and the operator's tool for any Kafka.
//!
//! Each command is one module. `server` and `worker` are the production binaries, included so that
//! `demo` and `dev` need only one program beside this one, the embedded broker. Without the feature
//! `fleet`, the commands `demo`, `dev`, `broker`, `server` and `worker` are absent. What remains is
//! the operator's tool that container images contain.

mod api_error;
mod approvals;
mod audit;
mod bad_lines;
#[cfg(feature = "fleet")]
mod broker;
mod call_progress;
mod completions;
mod connection;
#[cfg(feature = "fleet")]
mod demo;
#[cfg(feature = "fleet")]
mod dev;
mod dlq;
#[cfg(test)]
#[cfg(feature = "fleet")]
mod docs;
mod error;
mod events;
mod input;
mod job_end;
mod jobs;
mod keys;
mod lag;
mod mcp;
mod moment;
mod near_names;
mod offered_tool;
mod output;
mod pauses;
mod pending;
mod result_output;
mod result_view;
#[cfg(feature = "fleet")]
mod serve;
mod server_args;
mod servers;
#[cfg(feature = "fleet")]
mod stack;
#[cfg(feature = "fleet")]
mod stack_policy;
mod status;
mod submit;
mod suggestions;
#[cfg(feature = "fleet")]
mod supervise;
#[cfg(feature = "fleet")]
mod tally;
mod tool_schema;
mod tools;
mod topics;
mod wait_notice;
mod workers;

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use error::CliError;

/// The same allocator as in `kafka-worker`, so that `mcp-fleet worker` behaves like it.
#[cfg(feature = "fleet")]
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Examples for commands that only some builds have.
#[cfg(feature = "fleet")]
const LAPTOP_EXAMPLES: &str = "
  mcp-fleet demo --jobs 200 --workers 3
  mcp-fleet dev --data-dir .fleet";
#[cfg(not(feature = "fleet"))]
const LAPTOP_EXAMPLES: &str = "";

const EXAMPLES: &str = "
  mcp-fleet tools call files__file_read path=README.md
  mcp-fleet servers add mcp.json
  mcp-fleet submit --tool files__file_read --arguments '{\"path\":\"README.md\"}' --wait
  mcp-fleet submit jobs.jsonl --brokers kafka:9092
  mcp-fleet status
  mcp-fleet jobs watch
  mcp-fleet jobs list --state failed --since 24h
  mcp-fleet approvals list
  mcp-fleet pause --hosted db --reason migration --for 1h
  mcp-fleet events --from-start --json
  mcp-fleet topics create --brokers kafka:9092 --partitions 12
  mcp-fleet audit --since 24h --outcome refused
  mcp-fleet keys create ci --keys keys.toml";

/// Runs MCP tool calls as durable jobs on Kafka.
///
/// A whole fleet on one laptop, and the operator's tool for any Kafka.
#[derive(Debug, Parser)]
#[command(name = "mcp-fleet", version, max_term_width = 100)]
#[command(after_help = format!("Examples:{LAPTOP_EXAMPLES}{EXAMPLES}"))]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    #[cfg(feature = "fleet")]
    /// Run a whole fleet and some jobs over the files of this directory, and report on each job
    Demo(demo::Args),
    #[cfg(feature = "fleet")]
    /// Run a whole fleet (broker, server and workers) until Ctrl-C
    Dev(dev::Args),
    /// Submit jobs through a server, or straight to Kafka
    Submit(submit::Args),
    /// Print job events as they happen
    Events(events::Args),
    /// List, show, watch, wait for, run again and cancel jobs through a server
    Jobs {
        #[command(subcommand)]
        command: jobs::Command,
    },
    /// List, show and decide on jobs that await approval, through a server
    Approvals {
        #[command(subcommand)]
        command: approvals::Command,
    },
    /// List, describe and call the tools that a server offers
    Tools {
        #[command(subcommand)]
        command: tools::Command,
    },
    /// List, add, check and remove the MCP servers that a server hosts
    Servers {
        #[command(subcommand)]
        command: servers::Command,
    },
    /// List, show, replay and purge dead letters
    Dlq {
        #[command(subcommand)]
        command: dlq::Command,
    },
    /// Show the whole fleet on one screen: what is wrong, and what to do
    Status(status::Args),
    /// Show how far the workers have come on each partition
    Lag(lag::Args),
    /// Keep jobs from starting: all, or those of a server, a tool, a tenant or a filter
    Pause(pauses::PauseArgs),
    /// List the pauses in force: which jobs don't start, why and until when
    Pauses(pauses::ListArgs),
    /// End pauses, so that their jobs start
    Resume(pauses::ResumeArgs),
    /// List the workers: their partitions, and how many jobs each is running, through a server
    Workers(workers::Args),
    /// Create the topics that a fleet needs
    Topics {
        #[command(subcommand)]
        command: topics::Command,
    },
    /// Print who did what, and what was refused, from the audit log of servers
    Audit(audit::Args),
    /// Make, list and revoke API keys of a server
    Keys {
        #[command(subcommand)]
        command: keys::Command,
    },
    #[cfg(feature = "fleet")]
    /// Run only the embedded broker, the program mcp-fleet-broker
    Broker(broker::Args),
    #[cfg(feature = "fleet")]
    /// Run the MCP server (the same as the binary mcp-server)
    Server(serve::ServerArgs),
    #[cfg(feature = "fleet")]
    /// Run a worker (the same as the binary kafka-worker)
    Worker(serve::WorkerArgs),
    /// Print a shell completion script
    Completions(completions::Args),
}

fn main() -> ExitCode {
    fleet_ops::inspection::forbid();
    // The server in this binary starts its children through the binary itself.
    #[cfg(feature = "fleet")]
    if let Some(code) = fleet_launcher::run_if_asked() {
        return code;
    }

    completions::answer_shell::<Cli>();
    let cli = Cli::parse();

    let runtime = match &cli.command {
        #[cfg(feature = "fleet")]
        Command::Worker(args) => kafka_worker::runtime(args.threads()),
        _ => tokio::runtime::Builder::new_multi_thread().enable_all().build(),
    };

    let result = runtime
        .map_err(|error| CliError::Io("could not start the async runtime", error))
        .and_then(|runtime| runtime.block_on(run(cli.command)));

    match result {
        Ok(code) => code,
        Err(error) => {
            output::problem(&fleet_ops::errors::chain(&error));
            ExitCode::FAILURE
        }
    }
}

async fn run(command: Command) -> Result<ExitCode, CliError> {
    match command {
        #[cfg(feature = "fleet")]
        Command::Demo(args) => demo::run(args).await,
        #[cfg(feature = "fleet")]
        Command::Dev(args) => dev::run(args).await,
        Command::Submit(args) => submit::run(args).await,
        Command::Events(args) => events::run(args).await,
        Command::Jobs { command } => jobs::run(command).await,
        Command::Approvals { command } => approvals::run(command).await,
        Command::Tools { command } => tools::run(command).await,
        Command::Servers { command } => servers::run(command).await,
        Command::Dlq { command } => dlq::run(command).await,
        Command::Status(args) => status::run(args).await,
        Command::Lag(args) => lag::run(args).await,
        Command::Pause(args) => pauses::pause(args).await,
        Command::Pauses(args) => pauses::list(args).await,
        Command::Resume(args) => pauses::resume(args).await,
        Command::Workers(args) => workers::run(args).await,
        Command::Topics { command } => topics::run(command).await,
        Command::Audit(args) => audit::run(args).await,
        Command::Keys { command } => keys::run(command).await,
        #[cfg(feature = "fleet")]
        Command::Broker(args) => broker::exec(args),
        #[cfg(feature = "fleet")]
        Command::Server(args) => serve::server(args).await,
        #[cfg(feature = "fleet")]
        Command::Worker(args) => serve::worker(args).await,
        Command::Completions(args) => completions::run(&args),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    /// Returns the help texts of a command and of its subcommands.
    fn help_texts(command: &mut clap::Command) -> Vec<String> {
        let own = [command.render_help(), command.render_long_help()].map(|text| text.to_string());
        let below = command.get_subcommands_mut().flat_map(help_texts);
        own.into_iter().chain(below).collect()
    }

    #[test]
    fn every_help_text_fits_into_a_hundred_columns() {
        let mut command = Cli::command();
        command.build();

        for text in help_texts(&mut command) {
            for line in text.lines() {
                assert!(console::measure_text_width(line) <= 100, "{line}");
            }
        }
    }
}

//! The cost of a job, compared with the ceiling, the floor, and alternatives.
//!
//! `scripts/bench` sets up what is needed and calls `fleet-bench run`. The driver starts a broker,
//! a stub of an MCP server and one contestant after the other, and computes every figure from the
//! stub's log of calls, so that all are measured by the same clock and in the same way. See
//! bench/README.md.

#![expect(clippy::expect_used, reason = "a panic is the report of a benchmark that can't go on")]
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "the report of a benchmark")]

mod bare;
mod calls;
mod contestants;
mod figures;
mod goals;
mod live;
mod machine;
mod measure;
mod micro;
mod plan;
mod plots;
mod report;
mod runs;
mod scenarios;
mod stub;
mod summary;
mod workload;

use std::path::PathBuf;

use clap::Parser as _;

/// Measures the fleet, compared with its ceiling, its floor and its peers.
#[derive(Debug, clap::Parser)]
#[command(version, after_help = EXAMPLES)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

const EXAMPLES: &str = "Examples:
  scripts/bench                                     # everything, five runs each, and the report
  scripts/bench --runs 1 --only throughput          # one run of one scenario
  target/dist/fleet-bench run --only fleet-key   # only what has this in its name
  target/dist/fleet-bench report                 # writes the report from the runs that there are";

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Measure, and write the report.
    Run(plan::Args),
    /// Write the report from earlier measurements.
    Report(Directories),
    /// The handler that all contestants call.
    #[command(hide = true)]
    Stub(stub::Args),
    /// The bare client: calls without Kafka.
    #[command(hide = true)]
    Ceiling(bare::Args),
    /// The plain consumer: one call at a time per partition.
    #[command(hide = true)]
    Floor(bare::Args),
}

/// The directories of runs and report.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Directories {
    /// The file with one line per run. Runs that it already has are not measured again.
    #[arg(long, default_value = "target/bench/runs.jsonl", value_name = "FILE")]
    pub(crate) runs_file: PathBuf,

    /// The directory of the report: README.md, report.json and plots.
    #[arg(long, default_value = "bench/report", value_name = "DIRECTORY")]
    pub(crate) report: PathBuf,
}

fn main() {
    match Cli::parse().command {
        Command::Run(args) => plan::run(&args),
        Command::Report(directories) => report::write(&directories),
        Command::Stub(args) => stub::run(&args),
        Command::Ceiling(args) => bare::ceiling(&args),
        Command::Floor(args) => bare::floor(&args),
    }
}

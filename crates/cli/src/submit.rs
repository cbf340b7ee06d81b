//! `mcp-fleet submit`: submits jobs and optionally waits for them.
//!
//! Jobs go through the server if one is given, and straight to Kafka otherwise ([`destination`]).
//! Only a server can say whether a tool exists, and whether a job was submitted before.

mod check;
mod destination;
mod kafka;
mod lines;
mod requested;
mod through_server;

use std::{path::PathBuf, process::ExitCode, time::Duration};

use clap_complete::engine::ArgValueCompleter;
use fleet_job::view::Submitted;
use fleet_ops::shutdown;
use serde_json::json;

pub(crate) use check::UnknownTools;
use destination::Destination;
#[cfg(feature = "fleet")]
pub(crate) use kafka::{progress_bar, write_all};
use requested::Job;

use crate::{
    error::CliError,
    job_end::{EndPrinter, WaitResult},
    output,
    result_output::ResultArgs,
    suggestions,
};

/// The exit code of `submit --wait` and `jobs wait` if a job has not succeeded.
pub(crate) const FAILED: u8 = 1;
/// The exit code on a timeout.
pub(crate) const TIMED_OUT: u8 = 3;
/// The exit code if all jobs have succeeded but a result was too large to keep.
pub(crate) const NO_RESULT: u8 = 4;
/// The exit code that shells report for an interrupted process.
pub(crate) const INTERRUPTED: u8 = 130;
/// The most job ids to print.
const SHOWN_IDS: usize = 10;

const EXAMPLES: &str = "Examples:
  mcp-fleet submit --tool files__file_list --arguments '{\"path\":\".\"}' --wait
  mcp-fleet submit --tool db__query --arguments '{\"sql\":\"select 1\"}' --wait -o structured
  mcp-fleet submit --server-init .mcp.json --wait
  mcp-fleet submit jobs.jsonl --server localhost:8080 --wait
  mcp-fleet submit jobs.jsonl --brokers kafka:9092 --wait --json

With --server or MCP_SERVER_URL, jobs go through that mcp-server: tools that it does not know are an
error before anything is submitted, and a job whose id was submitted before is not submitted again.
Otherwise, or if --brokers is on the command line and --server is not, they go straight to Kafka,
where nobody checks either.

Exit codes with --wait:
  0    all jobs succeeded
  1    a job did not succeed
  3    the timeout expired before all jobs had ended
  4    all jobs succeeded, but a result was too large to keep (result-omitted)
  130  interrupted";

#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    #[command(flatten)]
    destination: Destination,

    /// Submit the jobs in this file, one JSON object per line; `-` for standard input
    #[arg(
        help_heading = "Jobs",
        value_name = "FILE",
        conflicts_with_all = ["tool", "server_init"],
        required_unless_present_any = ["tool", "server_init"],
    )]
    file: Option<PathBuf>,

    /// Submit one call of this tool; that of a hosted server is named SERVER__TOOL
    #[arg(help_heading = "Jobs", long, value_name = "NAME", add = ArgValueCompleter::new(suggestions::tools))]
    tool: Option<String>,

    /// The tool's arguments as a JSON object
    #[arg(
        help_heading = "Jobs",
        long,
        requires = "tool",
        default_value = "{}",
        value_name = "JSON"
    )]
    arguments: String,

    /// Submit one job that hosts the servers in this mcpServers file
    #[arg(help_heading = "Jobs", long, conflicts_with = "tool", value_name = "FILE")]
    server_init: Option<PathBuf>,

    /// The job's id; by default a new UUID
    #[arg(help_heading = "Jobs", long, conflicts_with = "file", value_name = "ID")]
    job_id: Option<String>,

    /// The ordering key of all jobs; by default, each job's own `key` field, if it has one
    #[arg(help_heading = "Jobs", long, value_name = "KEY")]
    key: Option<String>,

    /// Submit jobs although the server does not offer their tools
    #[arg(help_heading = "Jobs", long)]
    no_check: bool,

    /// Wait until every job has ended; see the exit codes below
    #[arg(help_heading = "Waiting", long)]
    wait: bool,

    /// How long to wait, in seconds
    #[arg(
        help_heading = "Waiting",
        long,
        requires = "wait",
        default_value_t = 600,
        value_name = "SECONDS"
    )]
    timeout: u64,

    /// With --wait: the result of one job is printed as text, those of several are not
    #[command(flatten)]
    result: ResultArgs,

    /// Print JSON: with --wait each terminal event on one line, then a summary
    #[arg(help_heading = "Output", long, conflicts_with = "format")]
    json: bool,
}

/// What has become of a submission.
#[derive(Debug)]
enum Submission {
    /// The jobs were submitted, and nobody waits for them. `existing` has the jobs in order if
    /// somebody knows which of them were submitted before.
    Written { to: String, existing: Option<Vec<Submitted>> },
    /// The wait is over.
    Waited(WaitResult),
    /// The user stopped the wait for `open` jobs, if their number is known.
    Interrupted { open: Option<usize> },
}

pub(crate) async fn run(args: Args) -> Result<ExitCode, CliError> {
    if args.result.is_given() && !args.wait {
        return Err(CliError::Usage(
            "results are known only after --wait, which -o and --save need".to_owned(),
        ));
    }

    let jobs = requested::read_jobs(&args)?;
    let stop = shutdown::signal_token()
        .map_err(|error| CliError::Io("could not install signal handlers", error))?;

    let timeout = Duration::from_secs(args.timeout.min(u64::from(u32::MAX)));
    let printer = EndPrinter::new(args.json, &args.result, jobs.len());
    let wait = args.wait.then(|| (printer.clone(), timeout));

    let submission = match args.destination {
        Destination::Server(server) => {
            through_server::submit(&server, &jobs, !args.no_check, wait, stop).await?
        }
        Destination::Kafka(connection) => kafka::submit(connection, &jobs, wait, stop).await?,
    };

    Ok(match submission {
        Submission::Written { to, existing } => {
            print_written(&jobs, &to, existing.as_deref(), args.json);
            ExitCode::SUCCESS
        }
        Submission::Waited(waited) => {
            waited.print(timeout, &printer);
            ExitCode::from(waited.exit_code())
        }
        Submission::Interrupted { open } => {
            output::problem(&match open {
                Some(open) => format!(
                    "interrupted; {open} jobs have not ended and continue without this command"
                ),
                None => "interrupted; the jobs continue without this command".to_owned(),
            });
            ExitCode::from(INTERRUPTED)
        }
    })
}

/// Prints what was submitted.
fn print_written(jobs: &[Job], to: &str, submitted: Option<&[Submitted]>, as_json: bool) {
    let ids: Vec<_> = jobs.iter().map(|job| &job.envelope.job_id).collect();
    let existing: Vec<_> =
        submitted.unwrap_or_default().iter().filter(|job| job.existing).collect();
    let new = ids.len() - existing.len().min(ids.len());

    if as_json {
        let mut report = json!({"submitted": new, "jobs": ids});
        if submitted.is_some() {
            report["existing"] = existing.iter().map(|job| job.job_id.as_str()).collect();
        }
        return output::json(&report);
    }

    output::line(&format!("submitted {new} jobs to {to}"));
    if !existing.is_empty() {
        output::line(&format!(
            "{} jobs were submitted before and are left as they are (existing)",
            existing.len()
        ));
    }
    let state = |id: &str| existing.iter().find(|job| job.job_id == id).map(|job| &job.state);
    for id in ids.iter().take(SHOWN_IDS) {
        output::line(&match state(id) {
            Some(state) => format!("  {id}  existing, {state}"),
            None => format!("  {id}"),
        });
    }
    if ids.len() > SHOWN_IDS {
        output::line(&format!("  … and {} more", ids.len() - SHOWN_IDS));
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;

    #[derive(Debug, clap::Parser)]
    struct Command {
        #[command(flatten)]
        args: Args,
    }

    fn parse(words: &[&str]) -> Result<Args, String> {
        let words = ["submit"].iter().chain(words);
        Command::try_parse_from(words).map(|call| call.args).map_err(|error| error.to_string())
    }

    #[tokio::test]
    async fn results_need_a_wait() {
        let args = parse(&["--tool", "t", "-o", "text"]).unwrap();
        let error = run(args).await.unwrap_err().to_string();
        assert!(error.contains("--wait"), "{error}");
        assert!(parse(&["--tool", "t", "--wait", "-o", "text", "--json"]).is_err());
    }

    #[tokio::test]
    async fn the_name_of_a_hosted_server_is_refused_with_a_hint() {
        let args = parse(&["--server", "files", "--tool", "file_list"]).unwrap();
        let error = fleet_ops::errors::chain(&run(args).await.unwrap_err());
        assert!(error.contains("SERVER__TOOL"), "{error}");
    }
}

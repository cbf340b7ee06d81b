//! `mcp-fleet jobs run-again`: submits jobs once more, as they were or with other arguments.

use std::{process::ExitCode, time::Duration};

use clap_complete::engine::ArgValueCompleter;
use fleet_ops::shutdown;
use serde_json::{Map, Value, json};
use tokio::time::Instant;

use super::{
    api::Api,
    wait::{JobWaits, WaitEnd},
};
use crate::{
    error::CliError,
    job_end::{EndPrinter, WaitResult},
    output,
    result_output::ResultArgs,
    server_args::ServerArgs,
    submit::INTERRUPTED,
    suggestions,
};

const EXAMPLES: &str = "Examples:
  mcp-fleet jobs run-again job-123 --wait
  mcp-fleet jobs run-again job-123 --arguments '{\"path\":\"README.md\"}' --wait
  mcp-fleet jobs list --state failed --all --json | jq -r .jobID | xargs -d '\\n' mcp-fleet jobs run-again --

Each run is a new job, which names the first one in its metadata. The first job stays as it is,
whatever its state. The exit codes with --wait are those of `mcp-fleet submit --wait`.";

#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    #[command(flatten)]
    server: ServerArgs,

    /// The ids of the jobs to run again
    #[arg(
        value_name = "JOB_ID",
        required = true,
        add = ArgValueCompleter::new(suggestions::jobs),
    )]
    job_ids: Vec<String>,

    /// Other arguments for the call, as a JSON object; for one job
    #[arg(help_heading = "Jobs", long, value_name = "JSON")]
    arguments: Option<String>,

    /// The id of the new job; by default a new UUID; for one job
    #[arg(help_heading = "Jobs", long, value_name = "ID")]
    job_id: Option<String>,

    /// Wait until every run has ended
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

    #[command(flatten)]
    result: ResultArgs,

    /// Print JSON: one object per run, or with --wait each job as it ends, then a summary
    #[arg(help_heading = "Output", long, conflicts_with = "format")]
    json: bool,
}

pub(crate) async fn run(args: Args) -> Result<ExitCode, CliError> {
    let changes = read_changes(&args)?;
    if args.result.is_given() && !args.wait {
        return Err(CliError::Usage(
            "results are known only after --wait, which -o and --save need".to_owned(),
        ));
    }
    let stop = shutdown::signal_token()
        .map_err(|error| CliError::Io("could not install signal handlers", error))?;
    let timeout = Duration::from_secs(args.timeout.min(u64::from(u32::MAX)));
    let deadline = Instant::now() + timeout;

    let (api, mut runs) = (args.server.api()?, Vec::new());
    for job_id in &args.job_ids {
        let new = run_again(&api, job_id, changes.clone()).await?;
        let is_data = args.json && !args.wait;
        match is_data {
            true => output::json(&json!({"jobID": new, "runOf": job_id})),
            false if args.wait => output::note(&format!("{job_id} runs again as {new}")),
            false => output::line(&format!("{job_id} runs again as {new}")),
        }
        runs.push(new);
    }
    if !args.wait {
        return Ok(ExitCode::SUCCESS);
    }

    let printer = EndPrinter::new(args.json, &args.result, runs.len());
    let ids: Vec<_> = runs.iter().collect();
    let waiting = JobWaits::new(api, deadline, ids.len());
    let ends = tokio::select! {
        ends = waiting.wait_for_all(&ids, &printer) => ends,
        () = stop.cancelled() => {
            waiting.clear();
            output::problem("interrupted; the jobs continue without this command");
            return Ok(ExitCode::from(INTERRUPTED));
        }
    };
    waiting.clear();

    let mut waited = WaitResult::of(ids.len());
    for end in &ends {
        if let WaitEnd::Ended(job) = end {
            waited.add_end(&job.event);
        }
    }
    waited.print(timeout, &printer);
    Ok(ExitCode::from(waited.exit_code()))
}

/// Returns what the runs do differently.
fn read_changes(args: &Args) -> Result<Map<String, Value>, CliError> {
    let is_for_one = args.arguments.is_some() || args.job_id.is_some();
    if is_for_one && args.job_ids.len() > 1 {
        return Err(CliError::Usage("--arguments and --job-id go with one job".to_owned()));
    }

    let mut changes = Map::new();
    if let Some(arguments) = &args.arguments {
        let arguments: Map<String, Value> = serde_json::from_str(arguments).map_err(|error| {
            CliError::Usage(format!("--arguments is not a JSON object: {error}"))
        })?;
        changes.insert("arguments".to_owned(), arguments.into());
    }
    if let Some(job_id) = &args.job_id {
        changes.insert("jobID".to_owned(), job_id.as_str().into());
    }
    Ok(changes)
}

/// Submits a job again and returns the id of the new one. With an id from the start, a request that
/// is repeated makes one job.
async fn run_again(
    api: &Api,
    job_id: &str,
    mut changes: Map<String, Value>,
) -> Result<String, CliError> {
    changes.entry("jobID").or_insert_with(|| uuid::Uuid::now_v7().to_string().into());
    let submitted = api.run_again(job_id, &Value::from(changes)).await?;
    let new = submitted.jobs.into_iter().next();
    new.map(|job| job.job_id).ok_or_else(|| {
        CliError::Usage(format!("{} did not say which job runs `{job_id}` again", api.name()))
    })
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

    fn changes(words: &[&str]) -> Result<Value, String> {
        let words = ["run-again"].iter().chain(words);
        let command = Command::try_parse_from(words).map_err(|error| error.to_string())?;
        read_changes(&command.args).map(Value::from).map_err(|error| error.to_string())
    }

    #[test]
    fn changes_are_for_one_job() {
        assert_eq!(changes(&["a", "b"]), Ok(json!({})));
        let one = changes(&["a", "--arguments", r#"{"x":1}"#, "--job-id", "n"]);
        assert_eq!(one, Ok(json!({"arguments": {"x": 1}, "jobID": "n"})));
        assert!(changes(&["a", "b", "--arguments", "{}"]).unwrap_err().contains("one job"));
        assert!(changes(&["a", "--arguments", "[]"]).unwrap_err().contains("JSON object"));
        assert!(changes(&[]).is_err());
    }
}

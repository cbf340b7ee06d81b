//! `mcp-fleet jobs run-again`: submits another run of a job.

use std::process::ExitCode;

use serde_json::{Map, Value};

use super::api::Api;
use crate::{error::CliError, output, server_args::ServerArgs};

const EXAMPLES: &str = "Examples:
  mcp-fleet jobs run-again job-123
  mcp-fleet jobs run-again job-123 --arguments '{\"path\":\"LICENSE\"}'
  mcp-fleet jobs run-again job-123 job-124 --json

Each run is a new job of whoever submits it, whatever has become of the first one. The exit code is
1 if one of the jobs could not be submitted.";

#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    #[command(flatten)]
    server: ServerArgs,

    /// The ids of the jobs
    #[arg(value_name = "JOB_ID", required = true)]
    job_ids: Vec<String>,

    /// Other arguments for the call of the job, as a JSON object
    #[arg(long, value_name = "JSON", value_parser = parse_arguments)]
    arguments: Option<Map<String, Value>>,

    /// The id of the new job, in place of a generated one
    #[arg(long, value_name = "ID")]
    job_id: Option<String>,

    /// Print one JSON object per new job
    #[arg(help_heading = "Output", long)]
    json: bool,
}

fn parse_arguments(text: &str) -> Result<Map<String, Value>, String> {
    serde_json::from_str(text).map_err(|error| format!("expected a JSON object: {error}"))
}

pub(crate) async fn run(args: Args) -> Result<ExitCode, CliError> {
    if args.job_id.is_some() && args.job_ids.len() > 1 {
        let problem = "--job-id names one new job; give it with one job to run again";
        return Err(CliError::Usage(problem.to_owned()));
    }
    let api = args.server.api()?;
    let changes = changes(&args);

    let mut code = ExitCode::SUCCESS;
    for job_id in &args.job_ids {
        if let Err(error) = run_one(&api, job_id, &changes, args.json).await {
            output::problem(&format!("{job_id}: {}", fleet_ops::errors::chain(&error)));
            code = ExitCode::FAILURE;
        }
    }
    Ok(code)
}

async fn run_one(api: &Api, job_id: &str, changes: &Value, json: bool) -> Result<(), CliError> {
    for job in api.run_again(job_id, changes).await?.jobs {
        match json {
            true => output::json(&job),
            false => output::line(&format!("{} runs {job_id} again", job.job_id)),
        }
    }
    Ok(())
}

/// What the run does differently.
fn changes(args: &Args) -> Value {
    let mut changes = Map::new();
    if let Some(arguments) = &args.arguments {
        changes.insert("arguments".to_owned(), arguments.clone().into());
    }
    if let Some(job_id) = &args.job_id {
        changes.insert("jobID".to_owned(), job_id.as_str().into());
    }
    changes.into()
}

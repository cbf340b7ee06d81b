//! `mcp-fleet jobs show`: shows everything about a job.

use std::process::ExitCode;

use super::render;
use crate::{error::CliError, output, server_args::ServerArgs};

const EXAMPLES: &str = "Examples:
  mcp-fleet jobs show job-123
  mcp-fleet jobs show job-123 --json | jq .result

The exit code is 1 if there is no such job.";

#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    #[command(flatten)]
    server: ServerArgs,

    /// The id of the job
    #[arg(value_name = "JOB_ID")]
    job_id: String,

    /// Print one JSON object
    #[arg(help_heading = "Output", long)]
    json: bool,
}

pub(crate) async fn run(args: Args) -> Result<ExitCode, CliError> {
    let job = args.server.api()?.get(&args.job_id).await?;
    if args.json {
        output::json(&job);
    } else {
        output::line(&render::job_details(&job));
    }
    Ok(ExitCode::SUCCESS)
}

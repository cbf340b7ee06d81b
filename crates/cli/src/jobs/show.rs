//! `mcp-fleet jobs show`: shows everything about a job.

use std::process::ExitCode;

use super::render;
use crate::{
    error::CliError,
    output,
    result_output::{NotStructured, ResultArgs},
    result_view::ResultFormat,
    server_args::ServerArgs,
    suggestions,
};
use clap_complete::engine::ArgValueCompleter;

const EXAMPLES: &str = "Examples:
  mcp-fleet jobs show job-123
  mcp-fleet jobs show job-123 --save pictures
  mcp-fleet jobs show job-123 --json | jq .result

The exit code is 1 if there is no such job.";

#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    #[command(flatten)]
    server: ServerArgs,

    /// The id of the job
    #[arg(value_name = "JOB_ID", add = ArgValueCompleter::new(suggestions::jobs))]
    job_id: String,

    #[command(flatten)]
    result: ResultArgs,

    /// Print one JSON object
    #[arg(help_heading = "Output", long, conflicts_with = "format")]
    json: bool,
}

pub(crate) async fn run(args: Args) -> Result<ExitCode, CliError> {
    let api = args.server.api()?;
    let job = api.get(&args.job_id).await?;
    if args.json {
        output::json(&job);
        return Ok(ExitCode::SUCCESS);
    }

    output::line(&render::job_details(&job));
    // The record may be gone, and an older server does not look for it.
    if let Ok(record) = api.envelope(&args.job_id).await {
        output::line(&format!("\nArguments:\n{}", render::job_arguments(&record.envelope)));
    }
    if let Some(result) = &job.event.result {
        output::line("\nResult:");
        let printer = args.result.printer(ResultFormat::Text);
        if printer.print(&args.job_id, result) == Err(NotStructured) {
            output::problem("the result has no structured part; use -o text or -o json");
        }
    }
    Ok(ExitCode::SUCCESS)
}

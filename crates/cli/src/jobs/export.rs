//! `mcp-fleet jobs export`: writes jobs with their results to files.
//!
//! The server sends the newest job first. What the files have already tells where to go on: the
//! time of the last job, and the ids of the jobs of that millisecond ([`resume`]).

mod files;
mod resume;

use std::{path::PathBuf, process::ExitCode, time::Duration};

use fleet_job::{
    event::JobState,
    export::{ExportFormat, submitted_at},
    filter::JobFilter,
    view::JobView,
};
use fleet_ops::clock;
use tokio::time::sleep;

use self::{
    files::{Output, Sink},
    resume::Place,
};
use super::{api::Api, filter::FilterArgs};
use crate::{api_error::ApiError, error::CliError, output, server_args::ServerArgs};

/// The most reconnections in a row that bring no further job.
const MAX_BREAKS: u32 = 5;
const PAUSE: Duration = Duration::from_secs(1);

const EXAMPLES: &str = "Examples:
  mcp-fleet jobs export --state succeeded --since 24h > jobs.jsonl
  mcp-fleet jobs export -o csv --output jobs.csv --errors failed.csv
  mcp-fleet jobs export -o csv --output jobs.csv --errors failed.csv --resume

The newest jobs come first. With --errors, jobs that have failed, were cancelled or have expired go
to that file. --resume continues the files of an export that was interrupted, with older jobs.
In CSV, cells that begin like a formula of a spreadsheet have an apostrophe in front.";

#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    #[command(flatten)]
    server: ServerArgs,

    #[command(flatten)]
    filter: FilterArgs,

    /// One JSON object per line (jsonl), or comma-separated values (csv)
    #[arg(
        help_heading = "Output",
        long,
        short = 'o',
        default_value = ExportFormat::Jsonl.as_str(),
        value_name = "FORMAT",
        value_parser = clap::builder::PossibleValuesParser::new(
            ExportFormat::ALL.map(ExportFormat::as_str)
        ),
    )]
    format: String,

    /// Write to this file instead of stdout
    #[arg(help_heading = "Output", long, value_name = "FILE")]
    output: Option<PathBuf>,

    /// Write jobs that ended without success to this file
    #[arg(help_heading = "Output", long, value_name = "FILE")]
    errors: Option<PathBuf>,

    /// Continue the files of an interrupted export
    #[arg(help_heading = "Output", long, requires = "output")]
    resume: bool,
}

pub(crate) async fn run(args: Args) -> Result<ExitCode, CliError> {
    let (api, filter) = (args.server.api()?, args.filter.at(clock::now()));
    let format = args.format.parse().map_err(CliError::Usage)?;
    let paths = (args.output.as_deref(), args.errors.as_deref());
    let mut output = Output::open(format, paths, args.resume)?;

    let counts = export(&api, &filter, &mut output).await?;
    output.flush()?;
    output::problem(&counts.to_string());
    Ok(ExitCode::SUCCESS)
}

/// The numbers of exported jobs.
#[derive(Debug, Default)]
struct Counts {
    jobs: usize,
    errors: usize,
}

impl std::fmt::Display for Counts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match (self.jobs, self.errors) {
            (1, 0) => write!(f, "exported 1 job"),
            (jobs, 0) => write!(f, "exported {jobs} jobs"),
            (jobs, errors) => {
                write!(f, "exported {jobs} jobs; {errors} more are in the file of errors")
            }
        }
    }
}

/// Exports all jobs; after a broken connection, continues with the next job.
async fn export(api: &Api, filter: &JobFilter, output: &mut Output) -> Result<Counts, CliError> {
    let (mut counts, mut breaks) = (Counts::default(), 0);
    loop {
        let Some(error) = export_part(api, filter, output, &mut counts, &mut breaks).await? else {
            return Ok(counts);
        };

        breaks += 1;
        if breaks > MAX_BREAKS {
            output.flush()?;
            return Err(error.into());
        }
        output::problem(&format!("{error}; going on with the next job"));
        sleep(PAUSE).await;
    }
}

/// Exports until the last job, or until the connection breaks: then returns why.
async fn export_part(
    api: &Api,
    filter: &JobFilter,
    output: &mut Output,
    counts: &mut Counts,
    breaks: &mut u32,
) -> Result<Option<ApiError>, CliError> {
    let filter = output.place().narrow(filter);
    let mut lines = match api.export(&filter).await {
        Ok(lines) => lines,
        // Nothing was exported yet, so a wrong address or key is not waited for.
        Err(error) if *breaks == 0 && counts.jobs + counts.errors == 0 => return Err(error.into()),
        Err(error) if !error.is_passing() => return Err(error.into()),
        Err(error) => return Ok(Some(error)),
    };

    loop {
        let job = match lines.next().await {
            Ok(Some(job)) => job,
            Ok(None) => return Ok(None),
            Err(error) => return Ok(Some(error)),
        };
        if !output.place().is_new(&job) {
            continue;
        }

        match output.write(&job)? {
            Some(Sink::Jobs) => counts.jobs += 1,
            Some(Sink::Errors) => counts.errors += 1,
            None => {}
        }
        *breaks = 0;
    }
}

/// Whether a job belongs into the file of errors.
fn has_failed(job: &JobView) -> bool {
    matches!(job.event.state, JobState::Failed | JobState::Cancelled | JobState::Expired)
}

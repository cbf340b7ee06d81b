//! `mcp-fleet jobs list`: lists jobs.

use std::process::ExitCode;

use fleet_job::{filter::JobFilter, view::JobView};
use fleet_ops::clock;

use super::{api::Api, filter::FilterArgs, render};
use crate::{api_error::ApiError, error::CliError, output, server_args::ServerArgs};

/// The maximum number of jobs that the server puts on a page.
const PAGE: usize = 500;

const EXAMPLES: &str = "Columns:
  AGE   time since the job was submitted
  TOOK  duration of the last attempt, if the job has ended

Examples:
  mcp-fleet jobs list
  mcp-fleet jobs list --state failed,expired --since 24h
  mcp-fleet jobs list --tool files__file_read --all --json | jq -r .jobID";

#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    #[command(flatten)]
    server: ServerArgs,

    #[command(flatten)]
    filter: FilterArgs,

    /// The maximum number of jobs to list
    #[arg(help_heading = "Output", long, default_value_t = 50, value_name = "N")]
    limit: usize,

    /// List all matching jobs
    #[arg(help_heading = "Output", long, conflicts_with = "limit")]
    all: bool,

    /// Print one JSON object per line
    #[arg(help_heading = "Output", long)]
    json: bool,
}

pub(crate) async fn run(args: Args) -> Result<ExitCode, CliError> {
    let (api, filter) = (args.server.api()?, args.filter.at(clock::now()));
    let limit = if args.all { usize::MAX } else { args.limit };
    let mut pages = Pages::new(&api, &filter, limit);

    let mut jobs = Vec::new();
    while let Some(page) = pages.next().await? {
        if args.json {
            page.iter().for_each(output::json);
        } else {
            jobs.extend(page);
        }
    }

    if args.json {
        return Ok(ExitCode::SUCCESS);
    }

    if jobs.is_empty() {
        output::line("no matching jobs");
        return Ok(ExitCode::SUCCESS);
    }

    output::line(&render::jobs_table(&jobs, clock::now()));
    if pages.more {
        let count = jobs.len();
        output::problem(&format!(
            "only the newest {count} are listed; use --limit N or --all for more"
        ));
    }
    Ok(ExitCode::SUCCESS)
}

/// Fetches jobs page by page, until there are no more or the limit is reached.
pub(crate) struct Pages<'a> {
    api: &'a Api,
    filter: &'a JobFilter,
    left: usize,
    cursor: Option<String>,
    /// Whether the server has more jobs.
    pub(crate) more: bool,
}

impl<'a> Pages<'a> {
    pub(crate) fn new(api: &'a Api, filter: &'a JobFilter, limit: usize) -> Self {
        Self { api, filter, left: limit, cursor: None, more: true }
    }

    /// Fetches the next page, which can be empty even if more follow.
    pub(crate) async fn next(&mut self) -> Result<Option<Vec<JobView>>, ApiError> {
        if !self.more || self.left == 0 {
            return Ok(None);
        }

        let mut page =
            self.api.list(self.filter, self.left.min(PAGE), self.cursor.as_deref()).await?;

        page.jobs.truncate(self.left);
        self.left -= page.jobs.len();
        // Stop at a cursor that does not move, which would be an endless loop.
        self.more = page.next_cursor.is_some() && page.next_cursor != self.cursor;
        self.cursor = page.next_cursor;
        Ok(Some(page.jobs))
    }
}

//! `mcp-fleet jobs wait`: waits until jobs have ended.

use std::{
    collections::HashSet,
    process::ExitCode,
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use clap_complete::engine::ArgValueCompleter;
use fleet_job::{event::JobState, view::JobView};
use fleet_ops::shutdown;
use futures::{StreamExt as _, stream};
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::time::{Instant, timeout_at};

use super::{
    api::Api,
    bars::Bars,
    follow::{StreamUpdate, follow},
};
use crate::{
    api_error::ApiError,
    error::CliError,
    job_end::EndPrinter,
    output,
    result_output::ResultArgs,
    server_args::ServerArgs,
    submit::{FAILED, INTERRUPTED, NO_RESULT, TIMED_OUT},
    suggestions,
    wait_notice::WaitNotice,
};

/// How many jobs are followed at once, each on its own connection.
const AT_ONCE: usize = 32;
/// The timeout for one last request about a job whose state is unknown when time is up.
const LAST_CHECK: Duration = Duration::from_secs(5);

const EXAMPLES: &str = "Examples:
  mcp-fleet jobs wait job-123
  mcp-fleet jobs wait job-1 job-2 job-3 --timeout 3600 --json
  mcp-fleet jobs wait job-123 --timeout 0 && echo 'it has succeeded'
  mcp-fleet jobs wait job-123 -o structured | jq .sha256

The result of one job is printed as text unless -o says otherwise; those of several are not.

Exit codes:
  0    all jobs succeeded
  1    a job did not succeed or does not exist
  3    the timeout expired before all jobs had ended
  4    all jobs succeeded, but a result was too large to keep (result-omitted)
  130  interrupted

If the server is unreachable or restarting, the command keeps trying until the timeout.";

#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    #[command(flatten)]
    server: ServerArgs,

    /// The ids of the jobs
    #[arg(value_name = "JOB_ID", required = true, add = ArgValueCompleter::new(suggestions::jobs))]
    job_ids: Vec<String>,

    /// How long to wait, in seconds
    #[arg(long, default_value_t = 600, value_name = "SECONDS")]
    timeout: u64,

    #[command(flatten)]
    result: ResultArgs,

    /// Print JSON: each job on one line as it ends, then a summary
    #[arg(help_heading = "Output", long, conflicts_with = "format")]
    json: bool,
}

/// The result of waiting for one job.
#[derive(Debug)]
pub(crate) enum WaitEnd {
    /// The job has ended.
    Ended(Box<JobView>),
    /// The job has not ended in time.
    Open,
    /// The job cannot be waited for.
    Unknown(ApiError),
}

pub(crate) async fn run(args: Args) -> Result<ExitCode, CliError> {
    let api = args.server.api()?;

    let mut seen = HashSet::new();
    let job_ids: Vec<_> = args.job_ids.iter().filter(|job_id| seen.insert(*job_id)).collect();
    let deadline = Instant::now() + Duration::from_secs(args.timeout.min(u64::from(u32::MAX)));

    let stop = shutdown::signal_token()
        .map_err(|error| CliError::Io("could not install signal handlers", error))?;
    let waiting = JobWaits::new(api, deadline, job_ids.len());
    let printer = EndPrinter::new(args.json, &args.result, job_ids.len());

    let all = waiting.wait_for_all(&job_ids, &printer);
    let ends = tokio::select! {
        ends = all => Some(ends),
        () = stop.cancelled() => None,
    };

    waiting.clear();
    let Some(ends) = ends else {
        output::problem("interrupted; the jobs continue without this command");
        return Ok(ExitCode::from(INTERRUPTED));
    };

    if args.json {
        output::json(&summary(&ends));
    } else {
        printer.say(&format!(
            "{} of {} jobs succeeded",
            count(&ends, JobState::Succeeded),
            ends.len()
        ));
    }

    let open = ends.iter().filter(|end| matches!(end, WaitEnd::Open)).count();
    if open > 0 {
        output::problem(&format!(
            "{open} jobs have not ended within {} s; they continue to run",
            args.timeout
        ));
    }

    Ok(ExitCode::from(exit_code(&ends)))
}

/// The state that all waits share.
pub(crate) struct JobWaits {
    pub(super) api: Api,
    pub(super) deadline: Instant,
    pub(super) bars: Bars,
    /// Whether the user has been told that the server is unreachable.
    troubled: AtomicBool,
    /// Tells the user what the command waits for, until the server has responded.
    contact: Mutex<Option<WaitNotice>>,
}

impl JobWaits {
    /// Creates a wait for this number of jobs.
    pub(crate) fn new(api: Api, deadline: Instant, jobs: usize) -> Self {
        let contact = Mutex::new(Some(api.wait_notice()));
        Self { api, deadline, bars: Bars::new(jobs), troubled: AtomicBool::new(false), contact }
    }

    /// Removes what the wait has drawn on the terminal.
    pub(crate) fn clear(&self) {
        self.bars.clear();
    }

    /// Waits for all these jobs and prints each as it ends.
    pub(crate) async fn wait_for_all(
        &self,
        job_ids: &[&String],
        printer: &EndPrinter,
    ) -> Vec<WaitEnd> {
        let waits = stream::iter(job_ids)
            .map(|job_id| async move { (job_id, self.wait_for_job(job_id).await) });
        let mut waits = waits.buffer_unordered(AT_ONCE);

        let mut ends = Vec::with_capacity(job_ids.len());
        while let Some((job_id, end)) = waits.next().await {
            self.bars.end(job_id);
            self.bars.aside(|| print_end(job_id, &end, printer));
            // Drop results, which can be large and are no longer needed.
            ends.push(match end {
                WaitEnd::Ended(job) => WaitEnd::Ended(Box::new(job.without_result())),
                other => other,
            });
        }
        ends
    }

    /// Waits for one job.
    pub(super) async fn wait_for_job(&self, job_id: &str) -> WaitEnd {
        let url = match self.api.events_of(job_id) {
            Ok(url) => url,
            Err(error) => return WaitEnd::Unknown(error),
        };

        let mut news = follow(self.api.clone(), url);
        let mut seen = false;
        while let Ok(Some(next)) = timeout_at(self.deadline, news.recv()).await {
            self.contact.lock().take();
            match next {
                StreamUpdate::Job(job) if job.is_terminal() => return WaitEnd::Ended(job),
                StreamUpdate::Job(job) => {
                    seen = true;
                    self.bars.show(&job);
                }
                StreamUpdate::Open => self.troubled.store(false, Ordering::Relaxed),
                StreamUpdate::Missed => {}
                StreamUpdate::Trouble(error) => {
                    seen = false;
                    self.report_trouble(&error);
                }
                StreamUpdate::Ended(error) => return WaitEnd::Unknown(error),
            }
        }

        if seen { WaitEnd::Open } else { self.check_once_more(job_id).await }
    }

    /// Requests the state of a job that sent no events: it may have ended long ago.
    async fn check_once_more(&self, job_id: &str) -> WaitEnd {
        match self.api.get_within(job_id, LAST_CHECK).await {
            Ok(job) if job.is_terminal() => WaitEnd::Ended(Box::new(job)),
            Ok(_) => WaitEnd::Open,
            Err(error) if error.is_passing() => WaitEnd::Open,
            Err(error) => WaitEnd::Unknown(error),
        }
    }

    /// Tells the user, once per outage, that the server is unreachable.
    fn report_trouble(&self, error: &ApiError) {
        // A server that shuts down properly also cuts its streams. Only a failure to reopen the
        // stream is worth a message.
        if !matches!(error, ApiError::Lost { .. }) && !self.troubled.swap(true, Ordering::Relaxed) {
            let error = fleet_ops::errors::chain(error);
            self.bars.aside(|| output::problem(&format!("{error}; retrying until the timeout")));
        }
    }
}

fn print_end(job_id: &str, end: &WaitEnd, printer: &EndPrinter) {
    match end {
        WaitEnd::Ended(job) => printer.print(&job.event),
        WaitEnd::Open => {}
        WaitEnd::Unknown(error) => {
            output::problem(&format!("{job_id}: {}", fleet_ops::errors::chain(error)));
        }
    }
}

fn count(ends: &[WaitEnd], state: JobState) -> usize {
    ends.iter().filter(|end| matches!(end, WaitEnd::Ended(job) if job.event.state == state)).count()
}

/// Returns the number of jobs that succeeded with a result that was too large to keep.
fn count_omitted(ends: &[WaitEnd]) -> usize {
    ends.iter()
        .filter(|end| matches!(end, WaitEnd::Ended(job) if job.event.has_lost_its_result()))
        .count()
}

fn summary(ends: &[WaitEnd]) -> Value {
    json!({
        "jobs": ends.len(),
        "succeeded": count(ends, JobState::Succeeded),
        "failed": count(ends, JobState::Failed),
        "expired": count(ends, JobState::Expired),
        "cancelled": count(ends, JobState::Cancelled),
        "resultOmitted": count_omitted(ends),
        "waiting": ends.iter().filter(|end| matches!(end, WaitEnd::Open)).count(),
        "unknown": ends.iter().filter(|end| matches!(end, WaitEnd::Unknown(_))).count(),
    })
}

/// Returns the exit code of the command.
pub(super) fn exit_code(ends: &[WaitEnd]) -> u8 {
    match () {
        () if ends.iter().any(|end| matches!(end, WaitEnd::Open)) => TIMED_OUT,
        () if count(ends, JobState::Succeeded) < ends.len() => FAILED,
        () if count_omitted(ends) > 0 => NO_RESULT,
        () => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::{super::render::tests::job, *};

    #[test]
    fn exit_codes_and_summary() {
        let ended = |state| WaitEnd::Ended(Box::new(job("j", state, 0)));
        let unknown = || WaitEnd::Unknown(ApiError::Usage("no such job".to_owned()));
        let check =
            |ends: Vec<WaitEnd>, expected| assert_eq!(exit_code(&ends), expected, "{ends:?}");
        check(vec![ended(JobState::Succeeded), ended(JobState::Succeeded)], 0);
        check(vec![ended(JobState::Succeeded), ended(JobState::Cancelled)], 1);
        check(vec![ended(JobState::Succeeded), unknown()], 1);

        let mut omitted = job("j", JobState::Succeeded, 0);
        omitted.event.omit_result(fleet_job::event::ResultOmitted { bytes: 9, limit_bytes: 5 });
        let omitted = || WaitEnd::Ended(Box::new(omitted.clone()));
        check(vec![ended(JobState::Succeeded), omitted()], 4);
        check(vec![ended(JobState::Failed), omitted()], 1);
        check(vec![ended(JobState::Failed), unknown(), WaitEnd::Open], 3);

        let summary = summary(&[ended(JobState::Failed), unknown(), WaitEnd::Open]);
        assert_eq!(
            summary,
            json!({"jobs": 3, "succeeded": 0, "failed": 1, "expired": 0, "cancelled": 0, "resultOmitted": 0, "waiting": 1, "unknown": 1})
        );
    }
}

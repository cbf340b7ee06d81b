//! `mcp-fleet jobs cancel`: cancels jobs.

use std::process::ExitCode;

use clap_complete::engine::ArgValueCompleter;
use fleet_job::view::{CancelOutcome, Cancellation};
use futures::{StreamExt as _, stream};
use serde_json::json;

use super::api::MAX_WAIT;
use crate::{
    api_error::ApiError, error::CliError, output, server_args::ServerArgs, suggestions,
    wait_notice::WaitNotice,
};

/// The number of concurrent requests.
const AT_ONCE: usize = 8;

const EXAMPLES: &str = "Examples:
  mcp-fleet jobs cancel job-123 --reason 'wrong arguments'
  mcp-fleet jobs list --state queued --tenant acme --all --json \\
    | jq -r .jobID | xargs -d '\\n' mcp-fleet jobs cancel --

Exit codes:
  0  all jobs are cancelled
  1  a job had already ended otherwise, or a request failed
  3  a job has not ended yet or is unknown to the server: the workers have been asked to cancel it,
     and its tool may take a while to stop";

#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    #[command(flatten)]
    server: ServerArgs,

    /// The ids of the jobs
    #[arg(value_name = "JOB_ID", required = true, add = ArgValueCompleter::new(suggestions::jobs))]
    job_ids: Vec<String>,

    /// The reason, which is shown with the jobs
    #[arg(long, value_name = "TEXT")]
    reason: Option<String>,

    /// How long to wait for each job to end, in seconds
    #[arg(
        long,
        default_value_t = 10,
        value_parser = clap::value_parser!(u64).range(..=MAX_WAIT),
        value_name = "SECONDS",
    )]
    wait: u64,

    /// Print one JSON object per job
    #[arg(help_heading = "Output", long)]
    json: bool,
}

pub(crate) async fn run(args: Args) -> Result<ExitCode, CliError> {
    let api = args.server.api()?;
    let (reason, wait) = (args.reason.as_deref(), args.wait);
    let api = &api;

    let asked = stream::iter(&args.job_ids)
        .map(|job_id| async move { (job_id, api.cancel(job_id, reason, wait).await) });
    let mut asked = asked.buffered(AT_ONCE);
    let mut outcomes = Vec::new();
    let _notice = WaitNotice::new(format!("the jobs to end, at mcp-server {}", api.name()));

    while let Some((job_id, answer)) = asked.next().await {
        outcomes.push(answer.as_ref().ok().map(|cancellation| cancellation.outcome));
        print_outcome(job_id, answer, args.json);
    }

    Ok(ExitCode::from(exit_code(&outcomes)))
}

fn print_outcome(job_id: &str, answer: Result<Cancellation, ApiError>, as_json: bool) {
    match answer {
        Ok(cancellation) if as_json => output::json(&cancellation),
        Ok(cancellation) => output::line(&describe_outcome(job_id, &cancellation)),
        Err(error) => {
            let error = fleet_ops::errors::chain(&error);
            if as_json {
                output::json(&json!({ "jobID": job_id, "outcome": "unknown", "error": error }));
            }
            output::problem(&format!("{job_id}: {error}"));
        }
    }
}

fn describe_outcome(job_id: &str, cancellation: &Cancellation) -> String {
    let Some(job) = &cancellation.job else {
        return format!(
            "{job_id} is unknown to the server; if it waits in Kafka, the workers will drop it when they reach it"
        );
    };

    let state = job.event.state.as_str();
    match cancellation.outcome {
        CancelOutcome::Cancelled => format!("{job_id} is cancelled"),
        CancelOutcome::TooLate => {
            format!("{job_id} could not be cancelled: it had already {state}")
        }
        CancelOutcome::Requested => {
            format!("{job_id} is still {state}; its cancellation has been requested")
        }
    }
}

/// Returns the exit code of the command; `None` stands for a failed request.
fn exit_code(outcomes: &[Option<CancelOutcome>]) -> u8 {
    let any = |wanted| outcomes.contains(&wanted);
    match () {
        () if any(None) || any(Some(CancelOutcome::TooLate)) => 1,
        () if any(Some(CancelOutcome::Requested)) => 3,
        () => 0,
    }
}

#[cfg(test)]
mod tests {
    use fleet_job::event::JobState;

    use super::{super::render::tests::job, *};

    #[test]
    fn the_worst_outcome_is_the_exit_code() {
        use CancelOutcome::{Cancelled, Requested, TooLate};
        let check = |outcomes: &[Option<CancelOutcome>], expected| {
            assert_eq!(exit_code(outcomes), expected, "{outcomes:?}");
        };
        check(&[Some(Cancelled), Some(Cancelled)], 0);
        check(&[Some(Cancelled), Some(Requested)], 3);
        check(&[Some(Requested), Some(TooLate)], 1);
        check(&[Some(Requested), None], 1);
    }

    #[test]
    fn outcomes_are_described() {
        let check = |outcome, state, expected| {
            let job = Some(job("j", state, 0));
            assert_eq!(
                describe_outcome("j", &Cancellation { outcome, known: true, job }),
                expected
            );
        };
        check(CancelOutcome::Cancelled, JobState::Cancelled, "j is cancelled");
        check(
            CancelOutcome::TooLate,
            JobState::Succeeded,
            "j could not be cancelled: it had already succeeded",
        );
        check(
            CancelOutcome::Requested,
            JobState::Running,
            "j is still running; its cancellation has been requested",
        );
        let unknown = Cancellation { outcome: CancelOutcome::Requested, known: false, job: None };
        assert!(describe_outcome("j", &unknown).contains("j is unknown to the server"));
    }
}

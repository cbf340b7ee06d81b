//! `mcp-fleet jobs cancel`.

use std::process::ExitCode;

use fleet_job::view::{CancelOutcome, Cancellation};
use futures::{StreamExt as _, stream};
use serde_json::json;

use super::{
    api::{MAX_WAIT, ServerArgs},
    error::ApiError,
};
use crate::{error::CliError, output, patience::Patience};

/// How many are asked for at once.
const AT_ONCE: usize = 8;

const EXAMPLES: &str = "Examples:
  mcp-fleet jobs cancel job-123 --reason 'wrong arguments'
  mcp-fleet jobs list --state queued --tenant acme --all --json | jq -r .jobID | xargs mcp-fleet jobs cancel

Exit code 0 means that all are cancelled, 1 that one had ended otherwise, 3 that one has not ended yet, or that nothing is
known of one: the workers know, and its tool may take its time.";

#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    #[command(flatten)]
    server: ServerArgs,

    /// The jobs' ids.
    #[arg(value_name = "JOB_ID", required = true)]
    job_ids: Vec<String>,

    /// Why, for whoever looks at the jobs later.
    #[arg(long, value_name = "TEXT")]
    reason: Option<String>,

    /// How long to wait for each to end, in seconds.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(..=MAX_WAIT), value_name = "SECONDS")]
    wait: u64,

    /// Print one JSON object a job.
    #[arg(long)]
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
    let _patience = Patience::new(format!("the jobs to end, at mcp-server {}", api.name()));
    while let Some((job_id, answer)) = asked.next().await {
        outcomes.push(answer.as_ref().ok().map(|cancellation| cancellation.outcome));
        say(job_id, answer, args.json);
    }
    Ok(ExitCode::from(code(&outcomes)))
}

fn say(job_id: &str, answer: Result<Cancellation, ApiError>, as_json: bool) {
    match answer {
        Ok(cancellation) if as_json => output::json(&cancellation),
        Ok(cancellation) => output::line(&text(job_id, &cancellation)),
        Err(error) => {
            let error = fleet_ops::errors::chain(&error);
            if as_json {
                output::json(&json!({ "jobID": job_id, "outcome": "unknown", "error": error }));
            }
            output::problem(&format!("{job_id}: {error}"));
        }
    }
}

fn text(job_id: &str, cancellation: &Cancellation) -> String {
    let Some(job) = &cancellation.job else {
        return format!(
            "nothing is known of {job_id}; if it waits in Kafka, the workers drop it when they come to it"
        );
    };
    let state = job.event.state.as_str();
    match cancellation.outcome {
        CancelOutcome::Cancelled => format!("{job_id} is cancelled"),
        CancelOutcome::TooLate => format!("{job_id} could not be cancelled: it had {state} before"),
        CancelOutcome::Requested => {
            format!("{job_id} is still {state}; its cancellation was asked for")
        }
    }
}

/// What the command ends with; `None` stands for a job about which nothing was learned.
fn code(outcomes: &[Option<CancelOutcome>]) -> u8 {
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
            assert_eq!(code(outcomes), expected, "{outcomes:?}");
        };
        check(&[Some(Cancelled), Some(Cancelled)], 0);
        check(&[Some(Cancelled), Some(Requested)], 3);
        check(&[Some(Requested), Some(TooLate)], 1);
        check(&[Some(Requested), None], 1);
    }

    #[test]
    fn what_it_came_to_is_said() {
        let check = |outcome, state, expected| {
            let job = Some(job("j", state, 0));
            assert_eq!(text("j", &Cancellation { outcome, known: true, job }), expected);
        };
        check(CancelOutcome::Cancelled, JobState::Cancelled, "j is cancelled");
        check(
            CancelOutcome::TooLate,
            JobState::Succeeded,
            "j could not be cancelled: it had succeeded before",
        );
        check(
            CancelOutcome::Requested,
            JobState::Running,
            "j is still running; its cancellation was asked for",
        );
        let unknown = Cancellation { outcome: CancelOutcome::Requested, known: false, job: None };
        assert!(text("j", &unknown).contains("nothing is known of j"));
    }
}

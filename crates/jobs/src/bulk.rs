//! Operations on all jobs that match a filter, in steps of one page of the list.
//!
//! Each step is decided on, limited and recorded job by job, as if the jobs had been named one by
//! one. A step can be repeated: a job that has ended is not cancelled, and another run of a job has
//! an id that follows from the operation's name. So an operation goes on at any replica, whatever
//! happened to the one before, and ends when its client sends no more steps.

use std::time::{Duration, Instant};

use fleet_access::{Action, Resource};
use fleet_job::{
    bulk::{BulkItem, BulkOutcome, BulkReport},
    event::{JobEvent, JobState},
    filter::JobFilter,
    trace::TraceContext,
    view::CancelOutcome,
};
use fleet_ledger::{Cursor, Known, Query, query::MAX_LIMIT};
use fleet_ops::clock;
use futures::stream::{self, StreamExt as _};

use super::{Caller, Jobs, JobsError, RunRequest, caller::derived_id};

/// How many jobs of a step are worked on at once.
const CONCURRENCY: usize = 16;
/// How long a preview counts.
const PREVIEW_TIME: Duration = Duration::from_secs(2);
/// The most jobs that a preview names.
const MAX_SAMPLE: usize = 50;
/// The longest name of a tool in a report, in characters.
const SHOWN_TOOL: usize = 256;

/// What is done with the jobs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BulkAction {
    /// Cancel those that have not ended.
    Cancel {
        /// The reason, for people.
        reason: Option<String>,
    },
    /// Run those again that have ended.
    Run {
        /// The name of the operation.
        operation: String,
    },
}

impl BulkAction {
    /// Limits a filter without states to the states of jobs that the operation applies to.
    fn narrow(&self, filter: &mut JobFilter) {
        if filter.states.is_empty() {
            let wants_ended = matches!(self, Self::Run { .. });
            let states = JobState::ALL.into_iter();
            filter.states = states.filter(|state| state.is_terminal() == wants_ended).collect();
        }
    }

    /// Whether the operation applies to a job that the caller may see.
    fn applies(&self, event: &JobEvent, caller: &Caller) -> bool {
        match self {
            Self::Cancel { .. } => {
                !event.state.is_terminal()
                    && caller.decide_about(Action::CancelJob, event).is_allowed()
            }
            Self::Run { .. } => event.state.is_terminal(),
        }
    }

    fn operation(&self) -> Option<String> {
        match self {
            Self::Cancel { .. } => None,
            Self::Run { operation } => Some(operation.clone()),
        }
    }
}

impl Jobs {
    /// Says what an operation would do, without doing anything.
    ///
    /// # Errors
    ///
    /// Returns an error if the ledger can't be queried.
    pub async fn preview_bulk(
        &self,
        action: &BulkAction,
        mut query: Query,
        caller: &Caller,
    ) -> Result<BulkReport, JobsError> {
        self.check_log_is_read()?;
        action.narrow(&mut query.filter);
        query.visibility = caller.visibility();
        query.limit = MAX_LIMIT;

        let started = Instant::now();
        let mut report =
            BulkReport { dry_run: true, operation: action.operation(), ..BulkReport::default() };
        loop {
            let page = self.search_page(query.clone()).await?;
            for known in page.jobs.iter().filter(|known| action.applies(&known.event, caller)) {
                match report.jobs.len() {
                    0..MAX_SAMPLE => report.add(item_of(&known.event, BulkOutcome::Planned)),
                    _ => report.matched += 1,
                }
            }

            report.complete = page.next.is_none();
            if report.complete || started.elapsed() >= PREVIEW_TIME {
                return Ok(report);
            }
            query.after = page.next;
        }
    }

    /// Does one step of an operation: for the jobs on one page of the list.
    ///
    /// # Errors
    ///
    /// Returns an error if the ledger can't be queried. What fails for single jobs is in the report.
    pub async fn step_bulk(
        &self,
        action: &BulkAction,
        mut query: Query,
        caller: &Caller,
        trace: &TraceContext,
    ) -> Result<BulkReport, JobsError> {
        self.check_log_is_read()?;
        action.narrow(&mut query.filter);
        query.visibility = caller.visibility();

        let page = self.search_page(query).await?;
        let jobs = page.jobs.into_iter().filter(|known| action.applies(&known.event, caller));
        let jobs: Vec<Known> = jobs.collect();
        let done: Vec<(BulkItem, bool)> = stream::iter(jobs)
            .map(|known| self.do_for_one(action, known, caller, trace))
            .buffered(CONCURRENCY)
            .collect()
            .await;

        let mut report = BulkReport {
            complete: page.next.is_none(),
            next_cursor: page.next.as_ref().map(Cursor::to_string),
            retry_step: done.iter().any(|(_, may_pass)| *may_pass),
            operation: action.operation(),
            ..BulkReport::default()
        };
        done.into_iter().for_each(|(item, _)| report.add(item));
        Ok(report)
    }

    /// Does for one job what the operation does. Returns whether a failure may pass.
    async fn do_for_one(
        &self,
        action: &BulkAction,
        known: Known,
        caller: &Caller,
        trace: &TraceContext,
    ) -> (BulkItem, bool) {
        let (event, item) = (&known.event, item_of(&known.event, BulkOutcome::Done));
        let done = match action {
            BulkAction::Cancel { reason } => {
                self.cancel_one(event, reason.as_deref(), caller).await.map(|()| None)
            }
            BulkAction::Run { operation } => {
                self.run_one(&event.job_id, operation, caller, trace).await.map(Some)
            }
        };

        match done {
            Ok(new_job_id) => (BulkItem { new_job_id, ..item }, false),
            Err(error) => {
                let detail = Some(shown(&error));
                (BulkItem { outcome: BulkOutcome::Failed, detail, ..item }, error.is_retryable())
            }
        }
    }

    async fn cancel_one(
        &self,
        event: &JobEvent,
        reason: Option<&str>,
        caller: &Caller,
    ) -> Result<(), JobsError> {
        let resource = Resource::job(event.owner.as_deref(), event.tenant.as_deref());
        drop(caller.admit(Action::CancelJob, &resource, 0, clock::monotonic())?);
        let cancelled = self.cancel(&event.job_id, caller, reason, Duration::ZERO).await?;
        match (cancelled.outcome, cancelled.job) {
            (CancelOutcome::TooLate, Some(job)) => Err(JobsError::TooLate(job.summary())),
            _ => Ok(()),
        }
    }

    async fn run_one(
        &self,
        job_id: &str,
        operation: &str,
        caller: &Caller,
        trace: &TraceContext,
    ) -> Result<String, JobsError> {
        let owner = caller.owner.as_deref().unwrap_or_default();
        let new_id = derived_id("run", &[owner, operation, job_id]);
        let run = RunRequest { job_id: Some(new_id.clone()), ..RunRequest::default() };
        self.run_again(job_id, run, caller, trace).await?;
        Ok(new_id)
    }
}

fn item_of(event: &JobEvent, outcome: BulkOutcome) -> BulkItem {
    BulkItem {
        job_id: event.job_id.clone(),
        state: event.state,
        tool: event.tool.as_ref().map(|tool| tool.chars().take(SHOWN_TOOL).collect()),
        outcome,
        new_job_id: None,
        detail: None,
    }
}

/// What a caller is told about an error.
fn shown(error: &JobsError) -> String {
    match error {
        JobsError::Store(_) => {
            // The error names files, which only the operator should know.
            tracing::error!(error = error.to_string(), "the ledger failed");
            "the ledger failed; see the server's log".to_owned()
        }
        error => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use fleet_access::Asker;
    use fleet_job::time::Timestamp;

    use super::*;

    fn cancel() -> BulkAction {
        BulkAction::Cancel { reason: None }
    }

    fn run() -> BulkAction {
        BulkAction::Run { operation: "o".to_owned() }
    }

    #[test]
    fn an_operation_looks_only_at_jobs_that_it_applies_to() {
        let states = |action: BulkAction, states: &[JobState]| {
            let mut filter = JobFilter { states: states.to_vec(), ..JobFilter::default() };
            action.narrow(&mut filter);
            filter.states
        };
        use JobState::{
            AwaitingApproval, Cancelled, Expired, Failed, Queued, Retrying, Running, Succeeded,
        };
        assert_eq!(states(cancel(), &[]), [Queued, Running, Retrying, AwaitingApproval]);
        assert_eq!(states(run(), &[]), [Succeeded, Failed, Cancelled, Expired]);
        assert_eq!(states(run(), &[Failed]), [Failed], "what the caller asks for stays");
    }

    #[test]
    fn only_open_jobs_are_cancelled_and_only_ended_ones_run_again() {
        let me = Caller::new(Some("me".to_owned()), None, Asker::local());
        let applies = |action: BulkAction, state, owner: &str| {
            let owner = Some(owner.to_owned());
            let event = JobEvent { owner, ..JobEvent::new("j", state, Timestamp::default()) };
            action.applies(&event, &me)
        };
        assert!(applies(cancel(), JobState::Running, "me"));
        assert!(!applies(cancel(), JobState::Succeeded, "me"));
        assert!(!applies(cancel(), JobState::Running, "you"));
        assert!(applies(run(), JobState::Succeeded, "me"));
        assert!(!applies(run(), JobState::Queued, "me"));
    }
}

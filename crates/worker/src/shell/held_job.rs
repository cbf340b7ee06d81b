//! A job in this worker's hands, and the stages it goes through. Pure.
//!
//! A job waits, runs, waits for its next attempt, and so on, until its end is written. What belongs
//! to one stage lives in that stage: a task in the attempt it runs, results of finished calls in
//! the wait between two attempts, the result in the end that carries it.

use std::sync::Arc;

use fleet_job::{
    envelope::{Envelope, JobType},
    event::Waiting,
    outcome::JobError,
    size::json_bytes,
    time::Timestamp,
};
use tokio::task::AbortHandle;

use super::write_state::WriteState;
use crate::call_results::{FinishedCalls, KeptResult};

/// A job in this worker's hands.
pub(super) struct HeldJob {
    pub(super) envelope: Arc<Envelope>,
    stage: Stage,
    errors: Option<Errors>,
    /// When the newest attempt that has ended was started.
    last_start: Option<Timestamp>,
    /// Whether that attempt was turned away, because something the job needs is unavailable.
    pub(super) was_turned_away: bool,
    /// What the job waits for through no fault of its own, as its events say.
    pub(super) waiting: Option<Waiting>,
    /// The reason that came with a request to cancel the job.
    pub(super) cancel_reason: Option<String>,
    /// How many bytes the engine counts for this job beyond those of its record.
    pub(super) counted_bytes: u64,
}

/// How far a job has come.
enum Stage {
    /// The job waits for its turn, its time, or something that is unavailable. `done` has the calls
    /// that earlier attempts have finished.
    Waiting { done: FinishedCalls },
    /// An attempt is under way, and has those calls.
    Running(Run),
    /// The job's end is written, or the record it goes on as. `result` is what the job succeeded
    /// with.
    Ending { result: Option<KeptResult>, writing: WriteState },
}

/// An attempt under way.
pub(super) struct Run {
    /// Its number, from 1.
    pub(super) attempt: u32,
    pub(super) started_at: Timestamp,
    /// The task that makes the calls.
    pub(super) task: AbortHandle,
}

/// The errors of a job's failed attempts.
struct Errors {
    first: JobError,
    /// The newest one. `None` if another worker made all failed attempts: only the first error
    /// travels with a job.
    last: Option<JobError>,
}

impl HeldJob {
    /// A job that has just arrived. `first_error` and `waiting` come with a job that returns from
    /// the delayed topic.
    pub(super) fn new(
        envelope: Envelope,
        first_error: Option<JobError>,
        waiting: Option<Waiting>,
    ) -> Self {
        Self {
            envelope: Arc::new(envelope),
            stage: Stage::Waiting { done: FinishedCalls::default() },
            errors: first_error.map(|first| Errors { first, last: None }),
            last_start: None,
            was_turned_away: false,
            waiting,
            cancel_reason: None,
            counted_bytes: 0,
        }
    }

    pub(super) fn job_type(&self) -> JobType {
        self.envelope.work.job_type()
    }

    /// The attempt under way, if any.
    pub(super) fn run(&self) -> Option<&Run> {
        match &self.stage {
            Stage::Running(run) => Some(run),
            Stage::Waiting { .. } | Stage::Ending { .. } => None,
        }
    }

    /// When the newest attempt was started.
    pub(super) fn started_at(&self) -> Option<Timestamp> {
        self.run().map(|run| run.started_at).or(self.last_start)
    }

    pub(super) fn first_error(&self) -> Option<&JobError> {
        self.errors.as_ref().map(|errors| &errors.first)
    }

    pub(super) fn last_error(&self) -> Option<&JobError> {
        self.errors.as_ref()?.last.as_ref()
    }

    /// The result of a job that has succeeded.
    pub(super) fn result(&self) -> Option<&KeptResult> {
        match &self.stage {
            Stage::Ending { result, .. } => result.as_ref(),
            Stage::Waiting { .. } | Stage::Running(_) => None,
        }
    }

    /// The state of the writes that end the job; `None` before its end.
    pub(super) fn writing(&self) -> Option<&WriteState> {
        match &self.stage {
            Stage::Ending { writing, .. } => Some(writing),
            Stage::Waiting { .. } | Stage::Running(_) => None,
        }
    }

    /// Like [`writing`](Self::writing), to change it.
    pub(super) fn writing_mut(&mut self) -> Option<&mut WriteState> {
        match &mut self.stage {
            Stage::Ending { writing, .. } => Some(writing),
            Stage::Waiting { .. } | Stage::Running(_) => None,
        }
    }

    /// How far the writes that end the job have come; `None` before its end.
    pub(super) fn into_writing(self) -> Option<WriteState> {
        match self.stage {
            Stage::Ending { writing, .. } => Some(writing),
            Stage::Waiting { .. } | Stage::Running(_) => None,
        }
    }

    /// How many bytes the job holds beyond those of its record, while no attempt is under way.
    pub(super) fn extra_bytes(&self) -> u64 {
        let results = match &self.stage {
            Stage::Waiting { done } => done.held_bytes(),
            Stage::Running(_) => 0,
            Stage::Ending { result, .. } => result.as_ref().map_or(0, KeptResult::held_bytes),
        };

        results + self.last_error().map_or(0, json_bytes)
    }

    // --- Transitions ----------------------------------------------------------------------------

    /// Hands out the finished calls to the next attempt; `None` if the job does not wait for one.
    /// [`begin_attempt`](Self::begin_attempt) must follow.
    pub(super) fn take_done(&mut self) -> Option<FinishedCalls> {
        match &mut self.stage {
            Stage::Waiting { done } => Some(std::mem::take(done)),
            Stage::Running(_) | Stage::Ending { .. } => None,
        }
    }

    /// The job waits no longer: `run` is under way.
    pub(super) fn begin_attempt(&mut self, run: Run) {
        self.stage = Stage::Running(run);
    }

    /// The attempt is over, and the job waits for what comes next with the finished calls. Returns
    /// the number of the attempt; `None` if none was under way: one that is aborted may have ended
    /// just before, and its end comes twice then.
    pub(super) fn end_attempt(&mut self, done: FinishedCalls) -> Option<u32> {
        let Stage::Running(run) = &self.stage else { return None };
        let attempt = run.attempt;

        self.last_start = Some(run.started_at);
        self.stage = Stage::Waiting { done };
        Some(attempt)
    }

    /// The attempt that has just ended brought the job's result: nothing but its end is left.
    pub(super) fn succeed(&mut self, result: KeptResult) {
        self.stage = Stage::Ending { result: Some(result), writing: WriteState::Due };
    }

    /// Keeps the error of an attempt that has failed.
    pub(super) fn add_error(&mut self, error: JobError) {
        match &mut self.errors {
            Some(errors) => errors.last = Some(error),
            None => {
                // Nothing but the message of the first error is ever reported.
                let first = JobError::new(error.kind, error.message.clone());
                self.errors = Some(Errors { first, last: Some(error) });
            }
        }
    }

    /// The job's end, or the record it goes on as, is about to be written. Returns how far earlier
    /// writes have come.
    pub(super) fn begin_writing(&mut self) -> WriteState {
        if let Stage::Ending { writing, .. } = &mut self.stage {
            return std::mem::replace(writing, WriteState::HandedOver);
        }

        self.stage = Stage::Ending { result: None, writing: WriteState::HandedOver };
        WriteState::Due
    }

    /// The delayed topic can't take the job, so it waits in memory. Only jobs that have no results
    /// yet are deferred.
    pub(super) fn wait_in_memory(&mut self) {
        self.stage = Stage::Waiting { done: FinishedCalls::default() };
    }

    /// The task that works for the job, if any.
    pub(super) fn task(&self) -> Option<&AbortHandle> {
        match &self.stage {
            Stage::Waiting { .. } => None,
            Stage::Running(run) => Some(&run.task),
            Stage::Ending { writing, .. } => writing.task(),
        }
    }
}

#[cfg(test)]
mod tests {
    use fleet_job::{
        envelope::{ToolCall, Work},
        outcome::ErrorKind,
    };
    use serde_json::json;

    use super::*;
    use crate::call_results::Results;

    fn job() -> HeldJob {
        let envelope = Envelope::new("j", Work::ToolCall(ToolCall::new(None, "t")));
        HeldJob::new(envelope, None, None)
    }

    fn error(message: &str) -> JobError {
        JobError::new(ErrorKind::Tool, message)
    }

    fn at(ms: i64) -> Timestamp {
        Timestamp::from_millis(ms).unwrap()
    }

    fn run(attempt: u32, started_at: Timestamp) -> Run {
        Run { attempt, started_at, task: tokio::spawn(async {}).abort_handle() }
    }

    #[tokio::test]
    async fn results_and_errors_outlast_the_attempts_that_brought_them() {
        let mut job = job();
        assert_eq!(job.take_done(), Some(FinishedCalls::default()));

        job.begin_attempt(run(1, at(5)));
        assert_eq!((job.started_at(), job.take_done()), (Some(at(5)), None));

        let results = Results::from([(0, json!("one"))]);
        let done = FinishedCalls { results, ..Default::default() };
        assert_eq!(job.end_attempt(done.clone()), Some(1));
        job.add_error(error("first").with_data(json!({"much": "detail"})));
        assert_eq!(job.first_error(), Some(&error("first")), "without its details");
        assert!(job.last_error().is_some_and(|error| error.data.is_some()));
        assert_eq!((job.started_at(), job.task().is_none()), (Some(at(5)), true));
        assert!(job.extra_bytes() > done.held_bytes());

        assert_eq!(job.take_done(), Some(done));
        job.begin_attempt(run(2, at(9)));
        assert_eq!(job.end_attempt(FinishedCalls::default()), Some(2));
        job.add_error(error("second"));
        assert_eq!(job.first_error(), Some(&error("first")));
        assert_eq!((job.last_error(), job.started_at()), (Some(&error("second")), Some(at(9))));
    }

    #[tokio::test]
    async fn an_attempt_ends_once() {
        let mut job = job();
        job.begin_attempt(run(1, at(5)));
        assert!(job.run().is_some() && job.task().is_some());
        assert_eq!(job.end_attempt(FinishedCalls::default()), Some(1));

        job.succeed(KeptResult::within(json!("r"), 100));
        assert_eq!(job.end_attempt(FinishedCalls::default()), None);
        assert!(job.result().is_some(), "what comes late changes nothing");
    }

    #[test]
    fn only_the_first_error_travels_with_a_job() {
        let envelope = job().envelope.as_ref().clone();
        let mut job = HeldJob::new(envelope, Some(error("elsewhere")), None);
        assert_eq!((job.first_error(), job.last_error()), (Some(&error("elsewhere")), None));

        job.add_error(error("here"));
        assert_eq!(job.first_error(), Some(&error("elsewhere")));
        assert_eq!(job.last_error(), Some(&error("here")));
    }

    #[test]
    fn a_result_is_kept_until_the_end_is_written() {
        let mut job = job();
        assert!(job.writing().is_none());
        job.succeed(KeptResult::within(json!("r"), 100));
        assert!(matches!(job.begin_writing(), WriteState::Due));

        *job.writing_mut().unwrap() = WriteState::Unacknowledged(None);
        assert!(matches!(job.begin_writing(), WriteState::Unacknowledged(None)));
        assert_eq!(job.result(), Some(&KeptResult::within(json!("r"), 100)));
    }

    #[test]
    fn a_job_that_can_not_be_deferred_waits_again() {
        let mut job = job();
        assert!(matches!(job.begin_writing(), WriteState::Due));
        assert!(job.take_done().is_none());

        job.wait_in_memory();
        assert!(job.writing().is_none() && job.take_done().is_some());
    }
}

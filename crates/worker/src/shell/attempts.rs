//! Attempts: how they start, report progress, and end.

use std::time::{Duration, Instant};

use fleet_engine::{Attempt, Input, Token};
use fleet_job::{
    event::Progress,
    outcome::{ErrorKind, Failure, FailureClass, JobError},
};
use fleet_ops::invariant;
use metrics::{counter, histogram};
use tracing::Instrument as _;

use super::{
    Shell,
    answers::{Answer, send_answer},
    held_job::{HeldJob, Run},
};
use crate::{
    call_results::FinishedCalls,
    execute::{self, AttemptContext, AttemptEnd, REPORTED_CHANGE},
    metrics as names,
    outages::Outage,
};

impl Shell {
    /// Starts an attempt in a task of its own, unless its job is paused.
    pub(super) fn start_attempt(&mut self, token: Token, attempt: u32) {
        if self.refuse_paused(token, attempt) {
            return;
        }

        let started_at = self.clock.now();
        let Some(context) = self.prepare_attempt(token) else { return };
        let Some(held) = self.jobs.get(&token) else { return };
        let running = self.reporter.running_event(&held.subject(), started_at, attempt);

        let (client, news) = (self.client.clone(), self.answers.clone());
        let tell = move |told| send_answer(&news, Answer::News(token, told));
        let work = async move {
            let started = Instant::now();
            match execute::make_attempt(&client, context, attempt, tell).await {
                Ok(end) => {
                    let took = started.elapsed();
                    Answer::AttemptEnded { token, end: Box::new(end), took }
                }
                Err(done) => Answer::AttemptNotMade(token, done),
            }
        };
        let task = self.spawn_task(work.instrument(held.log_span()), move || after_panic(token));

        let Some(job) = self.jobs.job_mut(&token) else { return };
        job.begin_attempt(Run { attempt, started_at, task });
        // A pause that has ended keeps nothing from running.
        job.waiting.take_if(|waiting| waiting.pause.is_some());
        if job.waiting.is_some() {
            // The call may be turned away again; until that is clear, the job's events go on saying
            // that it waits.
            self.unpublished_runs.push(token);
        } else {
            self.publish_event(running);
        }
    }

    /// Collects what an attempt needs. Takes the finished calls out of the job.
    fn prepare_attempt(&mut self, token: Token) -> Option<AttemptContext> {
        let held = self.jobs.get_mut(&token)?;
        let is_settled = self.settled.recall(Instant::now(), &held.identity).is_some();
        invariant::check("I4", !is_settled, format_args!("{token:?} runs after it was settled"));

        held.begin_span(&self.reporter.group);
        let (record, trace) = (held.record.clone(), held.trace().clone());
        let job = held.job_mut()?;
        let done = job.take_done()?;
        let timeout_ms = job.envelope.timeout_ms;
        Some(AttemptContext {
            timeout: timeout_ms.map_or(self.args.call_timeout, Duration::from_millis),
            envelope: job.envelope.clone(),
            record,
            progress: self.args.progress(),
            trace,
            done,
            max_result_bytes: self.args.max_event_bytes,
            contact: self.contact.clone(),
        })
    }

    /// Publishes how far a job has come. After the attempt has ended that would be wrong for ever.
    pub(super) fn publish_progress(&self, token: Token, progress: Progress) {
        let Some(held) = self.jobs.get(&token) else { return };
        let Some(run) = held.job().and_then(HeldJob::run) else { return };

        let now = self.clock.now();
        let event = self.reporter.progress_event(&held.subject(), now, run.attempt, progress);
        self.publish_event(event);
    }

    /// Tells the engine how many bytes a job holds beyond its record, if that has changed enough.
    pub(super) fn count_bytes(&mut self, token: Token, extra: u64) {
        let Some(held) = self.jobs.get_mut(&token) else { return };
        let record_bytes = held.record_bytes;
        let Some(job) = held.job_mut() else { return };
        if extra.abs_diff(job.counted_bytes) < REPORTED_CHANGE {
            return;
        }

        job.counted_bytes = extra;
        let bytes = record_bytes.saturating_add(usize::try_from(extra).unwrap_or(usize::MAX));
        self.feed_engine(Input::Holds(token, bytes));
    }

    /// Aborts the call of a cancelled job.
    pub(super) fn abort_attempt(&mut self, token: Token) {
        let Some(run) = self.jobs.get(&token).and_then(|held| held.job()?.run()) else { return };
        run.task.abort();

        let took = self.clock.now().since(run.started_at);
        let error =
            JobError::new(ErrorKind::Cancelled, "the job was cancelled while it was running");
        let end = Box::new(AttemptEnd::failed(Failure::retry(error)));
        send_answer(&self.answers, Answer::AttemptEnded { token, end, took });
    }

    /// Contact with the group was lost before the attempt's first call, so the attempt doesn't
    /// count.
    pub(super) fn withdraw_attempt(&mut self, token: Token, done: FinishedCalls) {
        let Some(job) = self.jobs.job_mut(&token) else { return };
        if job.end_attempt(done).is_some() {
            self.feed_engine(Input::Finished(token, Attempt::NotMade));
        }
    }

    /// Takes up how an attempt ended, and reports it to the engine.
    pub(super) fn finish_attempt(&mut self, token: Token, end: AttemptEnd, took: Duration) {
        let AttemptEnd { outcome, turned_away, done } = end;

        // A job that we no longer hold was fenced off: the partition's new owner runs it.
        let Some(held) = self.jobs.get_mut(&token) else {
            tracing::info!(
                ?token,
                "a call ended after its partition was given away; its outcome is dropped"
            );
            return;
        };
        let Some(job) = held.job_mut() else { return };
        // A call that was aborted may have ended just before.
        let Some(number) = job.end_attempt(done) else { return };
        job.was_turned_away = false;

        let (attempt, label) = match outcome {
            Ok(result) => {
                job.succeed(result);
                (Attempt::Succeeded, "succeeded")
            }
            // The outcome of an aborted call says nothing about job or server.
            Err(failure) if failure.error.kind == ErrorKind::Cancelled => {
                (Attempt::Failed(failure.class, None), "cancelled")
            }
            Err(failure) => {
                let label = label_of(failure.class);
                tracing::debug!(
                    job_id = job.envelope.job_id,
                    error = %failure.error,
                    class = label,
                    "attempt failed"
                );
                (self.take_failure(token, failure, turned_away, number), label)
            }
        };

        counter!(names::ATTEMPTS.name, "outcome" => label).increment(1);
        histogram!(names::DURATION.name, "outcome" => label).record(took.as_secs_f64());
        let extra = self.jobs.job_mut(&token).map_or(0, |job| job.extra_bytes());
        self.count_bytes(token, extra);
        self.feed_engine(Input::Finished(token, attempt));
    }

    /// Keeps what a failed attempt means for its job. An outage is not the job's fault, and must
    /// not end up as the reason why the job failed (I7). `turned_away` is why another call was
    /// turned away, beside one that has failed.
    fn take_failure(
        &mut self,
        token: Token,
        failure: Failure,
        turned_away: Option<Failure>,
        number: u32,
    ) -> Attempt {
        let class = failure.class;
        let Some(job) = self.jobs.job_mut(&token) else { return Attempt::Failed(class, None) };

        if let Some((need, outage)) = Outage::from_failure(&failure, self.clock.now()) {
            job.was_turned_away = true;
            return self.note_turned_away(token, &failure, number, need, outage);
        }

        job.waiting = None;
        job.add_error(failure.error);

        let wish = failure.retry_after;
        let away = turned_away
            .as_ref()
            .and_then(|failure| Some((failure, Outage::from_failure(failure, self.clock.now())?)));
        let Some((failure, (Some(need), outage))) = away else {
            return Attempt::Failed(class, wish);
        };
        self.note_outage(failure, Some(need), outage);
        Attempt::FailedBeside { need, need_wish: failure.retry_after, wish }
    }
}

/// The metric's label for a failed attempt.
fn label_of(class: FailureClass) -> &'static str {
    match class {
        FailureClass::Unavailable => "unavailable",
        FailureClass::Held(_) => "held",
        FailureClass::Retry => "retry",
        FailureClass::Permanent => "permanent",
    }
}

/// How an attempt ends whose task has panicked.
fn after_panic(token: Token) -> Answer {
    let error = JobError::new(
        ErrorKind::Protocol,
        "the worker failed while making the call; see its log for details",
    );
    let end = Box::new(AttemptEnd::failed(Failure::retry(error)));
    Answer::AttemptEnded { token, end, took: Duration::ZERO }
}

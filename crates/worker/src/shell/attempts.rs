//! Attempts: their start, their progress, and how they ended.

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
    call_results::{KeptResult, Results},
    execute::{self, AttemptContext, REPORTED_CHANGE},
    metrics as names,
    outages::Outage,
};

impl Shell {
    /// Begins an attempt.
    pub(super) fn start_attempt(&mut self, token: Token, attempt: u32) {
        let now = self.clock.now();
        let Some(held) = self.jobs.get_mut(&token) else { return };
        if self.settled.recall(Instant::now(), &held.identity).is_some() {
            invariant::violated("I4", format_args!("{token:?} runs after it was settled"));
        }
        held.begin_span(&self.reporter.group);
        let (record, trace) = (held.record.clone(), held.trace().clone());
        let Some(job) = held.job_mut() else { return };
        let Some(done) = job.take_done() else { return };
        let job = AttemptContext {
            timeout: job.envelope.timeout_ms.map_or(self.args.call_timeout, Duration::from_millis),
            envelope: job.envelope.clone(),
            record,
            progress: self.args.progress(),
            trace,
            done,
            max_result_bytes: self.args.max_event_bytes,
            contact: self.contact.clone(),
        };
        let log = held.log_span();
        let running = self.reporter.running_event(&held.subject(), now, attempt);
        let (client, news) = (self.client.clone(), self.answers.clone());
        let tell = move |told| send_answer(&news, Answer::News(token, told));
        let task = self.spawn_task(
            async move {
                let started = Instant::now();
                let (outcome, done) = execute::make_attempt(&client, job, attempt, tell).await;
                match outcome {
                    Some(outcome) => {
                        Answer::AttemptEnded { token, outcome, done, took: started.elapsed() }
                    }
                    None => Answer::AttemptNotMade(token, done),
                }
            }
            .instrument(log),
            move || {
                let error = JobError::new(
                    ErrorKind::Protocol,
                    "the worker failed while it made the call; its log says more",
                );
                let outcome = Err(Failure::retry(error));
                Answer::AttemptEnded {
                    token,
                    outcome,
                    done: Results::default(),
                    took: Duration::ZERO,
                }
            },
        );
        let Some(job) = self.jobs.job_mut(&token) else { return };
        job.begin_attempt(Run { attempt, started_at: now, task });
        if job.waiting.is_some() {
            // Its call may be turned away once more; then its events go on saying that it waits.
            self.unpublished_runs.push(token);
        } else {
            self.publish_event(Some(running));
        }
    }

    /// Writes how far a job has come. After its end, or between two attempts, that would be wrong
    /// for ever.
    pub(super) fn publish_progress(&self, token: Token, progress: Progress) {
        let now = self.clock.now();
        let Some(held) = self.jobs.get(&token) else { return };
        let Some(run) = held.job().and_then(HeldJob::run) else { return };
        let event = self.reporter.progress_event(&held.subject(), now, run.attempt, progress);
        self.publish_event(Some(event));
    }

    /// Counts what a job holds beside its record among the bytes held in memory.
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

    /// Contact with the group was lost before the attempt's first call.
    pub(super) fn withdraw_attempt(&mut self, token: Token, done: Results) {
        let Some(job) = self.jobs.job_mut(&token) else { return };
        if job.end_attempt(done).is_some() {
            self.feed_engine(Input::Finished(token, Attempt::NotMade));
        }
    }

    /// Stops the call that a cancelled job makes.
    pub(super) fn abort_attempt(&mut self, token: Token) {
        let now = self.clock.now();
        let Some(run) = self.jobs.get(&token).and_then(|held| held.job()?.run()) else { return };
        run.task.abort();
        let took = now.since(run.started_at);
        let error = JobError::new(ErrorKind::Cancelled, "the job was cancelled while it ran");
        let outcome = Err(Failure::retry(error));
        send_answer(
            &self.answers,
            Answer::AttemptEnded { token, outcome, done: Results::default(), took },
        );
    }

    /// Says of an attempt what it came to, and remembers of it what the job's end will tell.
    pub(super) fn finish_attempt(
        &mut self,
        token: Token,
        outcome: Result<KeptResult, Failure>,
        done: Results,
        took: Duration,
    ) {
        let now = self.clock.now();
        // A job that is no longer held was fenced off: whoever has the partition now runs it.
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
            // What an aborted call came to says nothing about job or server.
            Err(failure) if failure.error.kind == ErrorKind::Cancelled => {
                (Attempt::Failed(failure.class, None), "cancelled")
            }
            Err(failure) => {
                let label = match failure.class {
                    FailureClass::Unavailable => "unavailable",
                    FailureClass::Held(_) => "held",
                    FailureClass::Retry => "retry",
                    FailureClass::Permanent => "permanent",
                };
                tracing::debug!(job_id = job.envelope.job_id, error = %failure.error, class = label, "attempt failed");
                match Outage::from_failure(&failure, now) {
                    // An outage is not the job's; it must not end up as the reason why the job
                    // failed (I7).
                    Some((need, outage)) => {
                        job.was_turned_away = true;
                        (self.note_turned_away(token, &failure, number, need, outage), label)
                    }
                    None => {
                        job.waiting = None;
                        job.add_error(failure.error);
                        (Attempt::Failed(failure.class, failure.retry_after), label)
                    }
                }
            }
        };
        counter!(names::ATTEMPTS.name, "outcome" => label).increment(1);
        histogram!(names::DURATION.name, "outcome" => label).record(took.as_secs_f64());
        let extra = self.jobs.job_mut(&token).map_or(0, |job| job.extra_bytes());
        self.count_bytes(token, extra);
        self.feed_engine(Input::Finished(token, attempt));
    }
}

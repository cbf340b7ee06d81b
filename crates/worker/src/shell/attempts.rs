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
    answers::{Done, give},
    held::Held,
};
use crate::{
    execute::{self, GRAIN, Job},
    metrics as names,
    outages::Outage,
    results::{Kept, Results},
};

impl Shell {
    /// Begins an attempt.
    pub(super) fn start(&mut self, token: Token, attempt: u32) {
        let now = self.clock.now();
        let Some(held) = self.jobs.get_mut(&token) else { return };
        let Some(envelope) = held.envelope.clone() else { return };
        if self.settled.get(Instant::now(), &held.identity).is_some() {
            invariant::violated("I4", format_args!("{token:?} runs after it was settled"));
        }
        held.process(&self.reporter.group);
        held.started_at = Some(now);
        held.running = true;
        held.attempt = attempt;
        let job = Job {
            timeout: envelope.timeout_ms.map_or(self.args.call_timeout, Duration::from_millis),
            envelope,
            record: held.record.clone(),
            progress: self.args.progress(),
            trace: held.trace().clone(),
            done: std::mem::take(&mut held.done),
            max_result_bytes: self.args.max_event_bytes,
            contact: self.contact.clone(),
        };
        let log = held.log();
        let running = self.reporter.running(&held.subject(), now, attempt);
        let (client, news) = (self.client.clone(), self.done.clone());
        let tell = move |told| give(&news, Done::News(token, told));
        let task = self.spawn(
            async move {
                let started = Instant::now();
                let (outcome, done) = execute::attempt(&client, job, attempt, tell).await;
                match outcome {
                    Some(outcome) => {
                        Done::Attempt { token, outcome, done, took: started.elapsed() }
                    }
                    None => Done::NotMade(token, done),
                }
            }
            .instrument(log),
            move || {
                let error = JobError::new(
                    ErrorKind::Protocol,
                    "the worker failed while it made the call; its log says more",
                );
                let outcome = Err(Failure::retry(error));
                Done::Attempt { token, outcome, done: Results::default(), took: Duration::ZERO }
            },
        );
        let Some(held) = self.jobs.get_mut(&token) else { return };
        held.task = Some(task);
        if held.waiting.is_some() {
            // Its call may be turned away once more; then its events go on saying that it waits.
            self.quiet.push(token);
        } else {
            self.announce(Some(running));
        }
    }

    /// Writes how far a job has come. After its end, or between two attempts, that would be wrong
    /// for ever.
    pub(super) fn progressed(&self, token: Token, progress: Progress) {
        let now = self.clock.now();
        let running = self.jobs.get(&token).filter(|held| held.running);
        let event = running
            .map(|held| self.reporter.progress(&held.subject(), now, held.attempt, progress));
        self.announce(event);
    }

    /// Counts what a job holds beside its record among the bytes held in memory.
    pub(super) fn holds(&mut self, token: Token, extra: u64) {
        let Some(held) = self.jobs.get_mut(&token) else { return };
        if extra.abs_diff(held.counted_bytes) < GRAIN {
            return;
        }
        held.counted_bytes = extra;
        let bytes = held.record_bytes.saturating_add(usize::try_from(extra).unwrap_or(usize::MAX));
        self.feed(Input::Holds(token, bytes));
    }

    /// Contact with the group was lost before the attempt's first call.
    pub(super) fn not_made(&mut self, token: Token, done: Results) {
        let Some(held) = self.jobs.get_mut(&token) else { return };
        if !std::mem::take(&mut held.running) {
            return;
        }
        held.task = None;
        held.done = done;
        self.feed(Input::Finished(token, Attempt::NotMade));
    }

    /// Says of an attempt what it came to, and remembers of it what the job's end will tell.
    pub(super) fn attempted(
        &mut self,
        token: Token,
        outcome: Result<Kept, Failure>,
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
        // A call that was aborted may have ended just before.
        if !std::mem::take(&mut held.running) {
            return;
        }
        held.task = None;
        held.done = done;
        held.met_outage = false;
        let (attempt, label) = match outcome {
            Ok(result) => {
                held.result = Some(result);
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
                tracing::debug!(job_id = held.job_id, error = %failure.error, class = label, "attempt failed");
                match Outage::of(&failure, now) {
                    // An outage is not the job's; it must not end up as the reason why the job
                    // failed (I7).
                    Some((need, outage)) => {
                        held.met_outage = true;
                        (self.turned_away(token, &failure, need, outage), label)
                    }
                    None => {
                        held.waiting = None;
                        // Of the first error only the message is ever told.
                        let JobError { kind, message, .. } = &failure.error;
                        held.first_error
                            .get_or_insert_with(|| JobError::new(*kind, message.clone()));
                        held.last_error = Some(failure.error);
                        (Attempt::Failed(failure.class, failure.retry_after), label)
                    }
                }
            }
        };
        counter!(names::ATTEMPTS.name, "outcome" => label).increment(1);
        histogram!(names::DURATION.name, "outcome" => label).record(took.as_secs_f64());
        let extra = self.jobs.get(&token).map_or(0, Held::extra_bytes);
        self.holds(token, extra);
        self.feed(Input::Finished(token, attempt));
    }
}

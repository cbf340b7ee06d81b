//! What is away, and which jobs wait for it: said in events, metrics and the log.

use std::time::Duration;

use fleet_engine::{Attempt, BreakerState, Need, Status, Token};
use fleet_job::{
    event::Waiting,
    outcome::{Failure, WaitReason},
};
use metrics::gauge;

use super::{Shell, topic_of};
use crate::{
    metrics as names,
    outages::{Outage, is_published},
    readiness::Obstacle,
};

/// An outage that is over sooner is told only of the jobs that have met it.
const TELL_AFTER: Duration = Duration::from_secs(5);
/// A call that has not been turned away for so long is under way.
const QUIET: Duration = Duration::from_secs(1);
/// How many jobs say in one go that they wait.
const TELL_AT_ONCE: usize = 512;
impl Shell {
    /// A call was turned away through no fault of the job's: says so, once for each outage. Returns
    /// what that is to the engine.
    pub(super) fn note_turned_away(
        &mut self,
        token: Token,
        failure: &Failure,
        attempt: u32,
        need: Option<Need>,
        outage: Outage,
    ) -> Attempt {
        let (reason, server) = (outage.reason.as_str(), outage.server.clone());
        if self.outages.note_outage(need, outage) {
            let error = &failure.error;
            match need {
                None => {
                    tracing::warn!(%error, "the MCP server is unavailable: jobs wait, none spends an attempt");
                    self.set_obstacle(
                        Obstacle::NoServer,
                        format!("the MCP server is unavailable: {error}"),
                    );
                }
                Some(_) => tracing::warn!(
                    %error, server, reason,
                    "what jobs need behind the MCP server is unavailable: they wait and spend no attempt, others go on"
                ),
            }
        }
        self.publish_waiting(token, need, attempt.saturating_sub(1));
        match need {
            None => Attempt::Failed(failure.class, failure.retry_after),
            Some(need) => Attempt::Held(need, failure.retry_after),
        }
    }

    /// Writes that a job waits, unless it has been written for this outage; `true` if it was now.
    fn publish_waiting(&mut self, token: Token, need: Option<Need>, attempts: u32) -> bool {
        let now = self.clock.now();
        let (Some(outage), Some(held)) = (self.outages.get(need), self.jobs.get_mut(&token)) else {
            return false;
        };
        let written_at = held.record.timestamp.unwrap_or_default();
        let Some(job) = held.job_mut() else { return false };
        let since = match &job.waiting {
            Some(said) if said.server == outage.server => said.since,
            _ => outage.since.max(written_at),
        };
        let waiting: Waiting = outage.as_waiting(since);
        if is_published(job.waiting.as_ref(), &waiting) {
            return false;
        }
        job.waiting = Some(waiting.clone());
        let event = self.reporter.held_event(&held.subject(), now, attempts, waiting);
        self.publish_event(Some(event));
        true
    }

    /// Says of jobs that have waited that they run, once their calls have not been turned away at
    /// once.
    pub(super) fn publish_running(&mut self) {
        let now = self.clock.now();
        for token in std::mem::take(&mut self.unpublished_runs) {
            let Some(held) = self.jobs.get_mut(&token) else { continue };
            let Some(job) = held.job_mut() else { continue };
            let Some(run) = job.run() else { continue };
            let (started, attempt) = (run.started_at, run.attempt);
            if now.since(started) < QUIET {
                self.unpublished_runs.push(token);
                continue;
            }
            job.waiting = None;
            let event = self.reporter.running_event(&held.subject(), started, attempt);
            self.publish_event(Some(event));
        }
    }

    /// Counts what waits, lets those say so that have not started, and forgets outages that are
    /// over.
    pub(super) fn track_outages(&mut self, status: &Status) {
        let is_open = status.breaker != BreakerState::Closed;
        let lasts = |need: Option<Need>| match need {
            None => is_open,
            Some(need) => status.holds.iter().any(|hold| hold.need == need),
        };
        for over in
            self.outages.remove_unless(lasts).into_iter().filter(|over| over.server.is_some())
        {
            tracing::info!(
                server = over.server,
                reason = over.reason.as_str(),
                "the hosted server answers again"
            );
        }

        let now = self.clock.now();
        let mut waiting = [0_usize; WaitReason::ALL.len()];
        let mut untold = Vec::new();
        let patience = TELL_AFTER.min(self.args.max_park / 8);
        for (token, need, attempts) in self.engine.held_jobs() {
            let Some(outage) = self.outages.get(need) else { continue };
            let index = WaitReason::ALL.iter().position(|reason| *reason == outage.reason);
            index.into_iter().for_each(|index| waiting[index] += 1);
            if now.since(outage.since) >= patience {
                untold.push((token, need, attempts));
            }
        }
        for (reason, count) in WaitReason::ALL.iter().zip(waiting) {
            gauge!(names::WAITING.name, "reason" => reason.as_str()).set(count as f64);
        }

        let mut told = 0;
        for (token, need, attempts) in untold {
            told += usize::from(self.publish_waiting(token, need, attempts));
            if told == TELL_AT_ONCE {
                break;
            }
        }
        self.track_stalls(status);
    }

    /// Says of each partition once that it is not read because it is full of jobs that wait, and
    /// once that it is read again.
    fn track_stalls(&mut self, status: &Status) {
        for one in &status.partitions {
            if !one.is_stalled {
                if self.stalled.remove(&one.partition) {
                    tracing::info!(
                        topic = topic_of(one.partition),
                        partition = one.partition.number,
                        "the partition no longer waits for what was unavailable"
                    );
                }
            } else if self.stalled.insert(one.partition) {
                tracing::warn!(
                    topic = topic_of(one.partition),
                    partition = one.partition.number,
                    held = one.held,
                    open = one.open,
                    "a partition is paused: its window is full of jobs that wait for what is unavailable, or stand behind them"
                );
            }
        }
    }
}

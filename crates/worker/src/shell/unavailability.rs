//! Jobs that wait for something unavailable: in events, in metrics and in the log.

use std::time::Duration;

use fleet_engine::{Attempt, BreakerState, Need, Status, Token};
use fleet_job::outcome::{Failure, WaitReason};
use metrics::gauge;

use super::{Shell, topic_of};
use crate::{
    metrics as names,
    outages::{Outage, is_published},
    readiness::Obstacle,
};

/// A shorter outage is only published for the jobs whose calls were turned away.
const PUBLISH_AFTER: Duration = Duration::from_secs(5);
/// A call that was not turned away for this long has got through.
const TURNED_AWAY_WITHIN: Duration = Duration::from_secs(1);
/// How many events about waiting jobs are published at once.
const PUBLISH_LIMIT: usize = 512;

impl Shell {
    /// A call was turned away through no fault of its job: reports a new outage, and that the job
    /// waits. Returns how the attempt ended, in the engine's terms.
    pub(super) fn note_turned_away(
        &mut self,
        token: Token,
        failure: &Failure,
        attempt: u32,
        need: Option<Need>,
        outage: Outage,
    ) -> Attempt {
        self.note_outage(failure, need, outage);

        self.publish_waiting(token, need, attempt.saturating_sub(1));
        match need {
            None => Attempt::Failed(failure.class, failure.retry_after),
            Some(need) => Attempt::Held(need, failure.retry_after),
        }
    }

    /// Reports an outage, if it is new.
    pub(super) fn note_outage(&mut self, failure: &Failure, need: Option<Need>, outage: Outage) {
        let (reason, server) = (outage.reason.as_str(), outage.server.clone());
        if self.outages.note_outage(need, outage) {
            let error = &failure.error;
            match need {
                None => {
                    tracing::warn!(
                        %error,
                        "the MCP server is unavailable: jobs wait and spend no attempts"
                    );
                    self.set_obstacle(
                        Obstacle::NoServer,
                        format!("the MCP server is unavailable: {error}"),
                    );
                }
                Some(_) => tracing::warn!(
                    %error,
                    server,
                    reason,
                    "something behind the MCP server is unavailable: jobs that need it wait and \
                     spend no attempts, other jobs go on"
                ),
            }
        }
    }

    /// Publishes that a job waits. Returns `false` if its events say so already.
    pub(super) fn publish_waiting(
        &mut self,
        token: Token,
        need: Option<Need>,
        attempts: u32,
    ) -> bool {
        let Some(outage) = self.outages.get(need) else { return false };
        let Some(held) = self.jobs.get_mut(&token) else { return false };
        let written_at = held.record.timestamp.unwrap_or_default();
        let Some(job) = held.job_mut() else { return false };

        let since = match &job.waiting {
            Some(published) if outage.is_cause_of(published) => published.since,
            _ => outage.since.max(written_at),
        };
        let waiting = outage.as_waiting(since);
        if is_published(job.waiting.as_ref(), &waiting) {
            return false;
        }

        job.waiting = Some(waiting.clone());
        let now = self.clock.now();
        let event = self.reporter.held_event(&held.subject(), now, attempts, waiting);
        self.publish_event(event);
        true
    }

    /// Publishes that jobs which have waited run now, once it is clear that their calls were not
    /// turned away.
    pub(super) fn publish_running(&mut self) {
        let now = self.clock.now();
        for token in std::mem::take(&mut self.unpublished_runs) {
            let Some(held) = self.jobs.get_mut(&token) else { continue };
            let Some(job) = held.job_mut() else { continue };
            let Some(run) = job.run() else { continue };
            let (started_at, attempt) = (run.started_at, run.attempt);
            if now.since(started_at) < TURNED_AWAY_WITHIN {
                self.unpublished_runs.push(token);
                continue;
            }

            job.waiting = None;
            let event = self.reporter.running_event(&held.subject(), started_at, attempt);
            self.publish_event(event);
        }
    }

    /// Forgets outages that are over, counts the jobs that wait, and publishes that they do.
    pub(super) fn track_outages(&mut self, status: &Status) {
        self.end_outages(status);
        self.published_pauses = 0;

        let now = self.clock.now();
        let patience = PUBLISH_AFTER.min(self.args.max_park / 8);
        let mut counts = [0_usize; WaitReason::ALL.len()];
        let mut to_publish = Vec::new();
        for (token, need, attempts) in self.engine.held_jobs() {
            let Some(outage) = self.outages.get(need) else { continue };
            let index = WaitReason::ALL.iter().position(|reason| *reason == outage.reason);
            index.into_iter().for_each(|index| counts[index] += 1);
            if now.since(outage.since) >= patience {
                to_publish.push((token, need, attempts));
            }
        }

        for (reason, count) in WaitReason::ALL.iter().zip(counts) {
            gauge!(names::WAITING.name, "reason" => reason.as_str()).set(count as f64);
        }

        let mut published = 0;
        for (token, need, attempts) in to_publish {
            published += usize::from(self.publish_waiting(token, need, attempts));
            if published == PUBLISH_LIMIT {
                break;
            }
        }

        self.track_stalls(status);
    }

    fn end_outages(&mut self, status: &Status) {
        let is_open = status.breaker != BreakerState::Closed;
        let lasts = |need: Option<Need>| match need {
            None => is_open,
            Some(need) => status.holds.iter().any(|hold| hold.need == need),
        };

        let over = self.outages.remove_unless(lasts);
        for outage in over.into_iter().filter(|outage| outage.server.is_some()) {
            tracing::info!(
                server = outage.server,
                reason = outage.reason.as_str(),
                "the hosted server answers again"
            );
        }
    }

    /// Logs once that a partition is not read because it is full of jobs that wait, and once that
    /// it is read again.
    fn track_stalls(&mut self, status: &Status) {
        for partition in &status.partitions {
            let (topic, number) = (topic_of(partition.partition), partition.partition.number);

            if partition.is_stalled {
                if self.stalled.insert(partition.partition) {
                    tracing::warn!(
                        topic,
                        partition = number,
                        held = partition.held,
                        open = partition.open,
                        "a partition is paused: it is full of jobs that wait for something \
                         unavailable, or for such a job"
                    );
                }
            } else if self.stalled.remove(&partition.partition) {
                tracing::info!(
                    topic,
                    partition = number,
                    "the partition no longer waits for anything unavailable"
                );
            }
        }
    }
}

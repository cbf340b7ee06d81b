//! What comes back from calls and writes.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use fleet_engine::{Input, Token};
use fleet_job::{envelope::JobType, event::JobState, outcome::Failure};
use fleet_kafka::{KafkaError, producer::Outgoing};
use metrics::counter;
use tokio::sync::mpsc;

use super::{Shell, topic_of};
use crate::{
    execute::AttemptNews,
    metrics as names,
    readiness::Obstacle,
    report::Settlement,
    results::{Kept, Results},
};

/// What comes back from tasks.
pub(super) enum Done {
    /// Comes before the attempt's own end, since one task sends both.
    News(Token, AttemptNews),
    Attempt {
        token: Token,
        outcome: Result<Kept, Failure>,
        done: Results,
        took: Duration,
    },
    /// Contact with the group was lost before the attempt's first call. With the calls that earlier
    /// attempts have done.
    NotMade(Token, Results),
    /// With the event that says so.
    Written(Token, JobState, Arc<Outgoing>),
    /// The event that was all there was to write was not written.
    Undelivered(Token, JobState, Arc<Outgoing>, KafkaError),
    /// The end of a job that had ended before.
    WrittenAgain(Token),
    PassedOn(Token),
    /// Of the delayed topic; the group that it names has members that run it.
    LeftToItsGroup(Token, String),
    NotDeferred(Token),
    /// With what is left to write, if it is an end.
    NotWritten(Token, Option<Box<Settlement>>),
    Probed(bool),
}

impl Shell {
    pub(super) fn done(&mut self, done: Done) {
        match done {
            Done::News(token, AttemptNews::Progress(progress)) => self.progressed(token, progress),
            Done::News(token, AttemptNews::Holds(bytes)) => self.holds(token, bytes),
            Done::Attempt { token, outcome, done, took } => {
                self.attempted(token, outcome, done, took)
            }
            Done::NotMade(token, done) => self.not_made(token, done),
            Done::Written(token, state, event) => {
                if let Some(held) = self.jobs.get(&token) {
                    let kind = held.job_type().map_or("unknown", JobType::as_str);
                    counter!(names::SETTLED.name, "state" => state.as_str(), "type" => kind)
                        .increment(1);
                    tracing::debug!(job_id = held.job_id, state = state.as_str(), "settled");
                }
                self.written(token, Some(event));
            }
            Done::Undelivered(token, state, event, error) => {
                self.undelivered(token, state, event, error)
            }
            Done::WrittenAgain(token) => self.written(token, None),
            Done::PassedOn(token) => {
                counter!(names::PASSED_ON.name, "topic" => topic_of(token.partition)).increment(1);
                self.written(token, None);
            }
            Done::LeftToItsGroup(token, group) => {
                counter!(names::PASSED_OVER.name).increment(1);
                let partition = token.partition.number;
                tracing::info!(
                    group,
                    partition,
                    offset = token.offset,
                    "a delayed job is left to its group"
                );
                self.written(token, None);
            }
            Done::NotDeferred(token) => {
                if let Some(job) = self.jobs.job_mut(&token) {
                    job.wait_in_memory();
                }
                self.feed(Input::NotDeferred(token));
            }
            Done::NotWritten(token, unwritten) => {
                // Of a job that is no longer ours this says nothing about Kafka: such writes are
                // called off.
                let Some(held) = self.jobs.get_mut(&token) else { return };
                held.keep_unacknowledged(unwritten);
                self.set_obstacle(
                    Obstacle::WritesFail,
                    "Kafka does not take the ends of jobs; nothing is lost, they are written again",
                );
                self.feed(Input::WriteFailed(token));
            }
            Done::Probed(ok) => self.feed(Input::Probed(ok)),
        }
    }

    /// A record is settled: by this event, by another record, or as it was before.
    fn written(&mut self, token: Token, event: Option<Arc<Outgoing>>) {
        self.clear_obstacle(Obstacle::WritesFail);
        let now = Instant::now();
        if let Some(held) = self.jobs.get(&token) {
            // What is known with its end stays so.
            if !held.is_repeat() {
                self.settled.add(now, held.identity, event);
            }
            if self.partitions.contains(&token.partition) {
                self.uncommitted.settled(token.partition, now);
            }
        }
        self.feed(Input::Written(token));
    }
}

pub(super) fn give(done: &mpsc::UnboundedSender<Done>, what: Done) {
    // The shell outlives its tasks but at the very end, when nothing is waited for.
    if done.send(what).is_err() {
        tracing::debug!("a task ended after its worker");
    }
}

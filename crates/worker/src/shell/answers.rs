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
    call_results::{KeptResult, Results},
    execute::AttemptNews,
    metrics as names,
    readiness::Obstacle,
    report::Settlement,
};

/// What comes back from tasks.
pub(super) enum Answer {
    /// Comes before the attempt's own end, since one task sends both.
    News(Token, AttemptNews),
    AttemptEnded {
        token: Token,
        outcome: Result<KeptResult, Failure>,
        done: Results,
        took: Duration,
    },
    /// Contact with the group was lost before the attempt's first call. With the calls that earlier
    /// attempts have done.
    AttemptNotMade(Token, Results),
    /// With the event that says so.
    Written(Token, JobState, Arc<Outgoing>),
    /// The event that was all there was to write was not written.
    EventNotWritten(Token, JobState, Arc<Outgoing>, KafkaError),
    /// The end of a job that had ended before.
    EndRepeated(Token),
    PassedOn(Token),
    /// Of the delayed topic; the group that it names has members that run it.
    LeftToOwnGroup(Token, String),
    NotDeferred(Token),
    /// With what is left to write, if it is an end.
    NotWritten(Token, Option<Box<Settlement>>),
    Probed(bool),
}

impl Shell {
    pub(super) fn handle_answer(&mut self, done: Answer) {
        match done {
            Answer::News(token, AttemptNews::Progress(progress)) => {
                self.publish_progress(token, progress)
            }
            Answer::News(token, AttemptNews::HeldBytes(bytes)) => self.count_bytes(token, bytes),
            Answer::AttemptEnded { token, outcome, done, took } => {
                self.finish_attempt(token, outcome, done, took)
            }
            Answer::AttemptNotMade(token, done) => self.withdraw_attempt(token, done),
            Answer::Written(token, state, event) => {
                if let Some(held) = self.jobs.get(&token) {
                    let kind = held.job_type().map_or("unknown", JobType::as_str);
                    counter!(names::SETTLED.name, "state" => state.as_str(), "type" => kind)
                        .increment(1);
                    tracing::debug!(job_id = held.job_id, state = state.as_str(), "settled");
                }
                self.finish_record(token, Some(event));
            }
            Answer::EventNotWritten(token, state, event, error) => {
                self.handle_unwritten_event(token, state, event, error)
            }
            Answer::EndRepeated(token) => self.finish_record(token, None),
            Answer::PassedOn(token) => {
                counter!(names::PASSED_ON.name, "topic" => topic_of(token.partition)).increment(1);
                self.finish_record(token, None);
            }
            Answer::LeftToOwnGroup(token, group) => {
                counter!(names::PASSED_OVER.name).increment(1);
                let partition = token.partition.number;
                tracing::info!(
                    group,
                    partition,
                    offset = token.offset,
                    "a delayed job is left to its group"
                );
                self.finish_record(token, None);
            }
            Answer::NotDeferred(token) => {
                if let Some(job) = self.jobs.job_mut(&token) {
                    job.wait_in_memory();
                }
                self.feed_engine(Input::NotDeferred(token));
            }
            Answer::NotWritten(token, unwritten) => {
                // Of a job that is no longer ours this says nothing about Kafka: such writes are
                // called off.
                let Some(held) = self.jobs.get_mut(&token) else { return };
                held.keep_unacknowledged(unwritten);
                self.set_obstacle(
                    Obstacle::WritesFail,
                    "Kafka does not take the ends of jobs; nothing is lost, they are written again",
                );
                self.feed_engine(Input::WriteFailed(token));
            }
            Answer::Probed(ok) => self.feed_engine(Input::Probed(ok)),
        }
    }

    /// A record is settled: by this event, by another record, or as it was before.
    fn finish_record(&mut self, token: Token, event: Option<Arc<Outgoing>>) {
        self.clear_obstacle(Obstacle::WritesFail);
        let now = Instant::now();
        if let Some(held) = self.jobs.get(&token) {
            // What is known with its end stays so.
            if !held.is_repeat() {
                self.settled.remember(now, held.identity, event);
            }
            if self.partitions.contains(&token.partition) {
                self.uncommitted.note_settled(token.partition, now);
            }
        }
        self.feed_engine(Input::Written(token));
    }
}

pub(super) fn send_answer(done: &mpsc::UnboundedSender<Answer>, what: Answer) {
    // The shell outlives its tasks but at the very end, when nothing is waited for.
    if done.send(what).is_err() {
        tracing::debug!("a task ended after its worker");
    }
}

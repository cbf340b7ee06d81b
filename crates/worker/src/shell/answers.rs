//! What tasks and the producer answer: attempts that have ended, writes that have or have not been
//! acknowledged.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use fleet_engine::{Input, Token};
use fleet_job::{envelope::JobType, event::JobState};
use fleet_kafka::{KafkaError, producer::Outgoing};
use metrics::counter;
use tokio::sync::mpsc;

use super::{Shell, topic_of, write_state::WriteState};
use crate::{
    call_results::FinishedCalls,
    execute::{AttemptEnd, AttemptNews},
    metrics as names,
    readiness::Obstacle,
    report::Settlement,
};

/// What comes back to the loop.
pub(super) enum Answer {
    /// An attempt goes on. Arrives before the end of the attempt, because one task sends both.
    News(Token, AttemptNews),
    AttemptEnded {
        token: Token,
        end: Box<AttemptEnd>,
        took: Duration,
    },
    /// Contact with the group was lost before the attempt's first call. Carries the calls that
    /// earlier attempts have finished back.
    AttemptNotMade(Token, FinishedCalls),
    /// The job is settled, with this event.
    Written(Token, JobState, Arc<Outgoing>),
    /// The event, which was all there was to write, was not acknowledged.
    EventNotWritten(Token, JobState, Arc<Outgoing>, KafkaError),
    /// The end of a job that this worker had settled before is written once more.
    EndRepeated(Token),
    PassedOn(Token),
    /// A record of the delayed topic names another group, which has members to run its job.
    LeftToOwnGroup(Token, String),
    /// The delayed topic can't take the job.
    NotDeferred(Token),
    /// A write was not acknowledged. Carries what is left to write, if it is an end.
    NotWritten(Token, Option<Box<Settlement>>),
    Probed(bool),
}

impl Shell {
    pub(super) fn handle_answer(&mut self, answer: Answer) {
        match answer {
            Answer::News(token, AttemptNews::Progress(progress)) => {
                self.publish_progress(token, progress)
            }
            Answer::News(token, AttemptNews::HeldBytes(bytes)) => self.count_bytes(token, bytes),
            Answer::AttemptEnded { token, end, took } => self.finish_attempt(token, *end, took),
            Answer::AttemptNotMade(token, done) => self.withdraw_attempt(token, done),

            Answer::Written(token, state, event) => {
                self.count_settled(token, state);
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
                tracing::info!(
                    group,
                    partition = token.partition.number,
                    offset = token.offset,
                    "left a delayed job to its own consumer group"
                );
                self.finish_record(token, None);
            }
            Answer::NotDeferred(token) => {
                if let Some(job) = self.jobs.job_mut(&token) {
                    job.wait_in_memory();
                }
                self.feed_engine(Input::NotDeferred(token));
            }
            Answer::NotWritten(token, rest) => self.handle_failed_write(token, rest),

            Answer::Probed(ok) => self.feed_engine(Input::Probed(ok)),
        }
    }

    fn count_settled(&self, token: Token, state: JobState) {
        let Some(held) = self.jobs.get(&token) else { return };
        let job_type = held.job_type().map_or("unknown", JobType::as_str);

        counter!(names::SETTLED.name, "state" => state.as_str(), "type" => job_type).increment(1);
        tracing::debug!(job_id = held.job_id, state = state.as_str(), "settled");
    }

    /// Lets go of a settled record. `event` is the terminal event, if this worker has just written
    /// it.
    fn finish_record(&mut self, token: Token, event: Option<Arc<Outgoing>>) {
        self.clear_obstacle(Obstacle::WritesFail);

        let now = Instant::now();
        if let Some(held) = self.jobs.get_mut(&token) {
            held.set_writing(WriteState::Acknowledged);
            // A repeat is remembered already, with its event.
            if !held.is_repeat() {
                self.settled.remember(now, held.identity, event);
            }
            if self.partitions.contains(&token.partition) {
                self.uncommitted.note_settled(token.partition, now);
            }
        }

        self.feed_engine(Input::Written(token));
    }

    fn handle_failed_write(&mut self, token: Token, rest: Option<Box<Settlement>>) {
        // If the job is no longer ours, its writes were called off, which says nothing about Kafka.
        let Some(held) = self.jobs.get_mut(&token) else { return };
        held.set_writing(WriteState::Unacknowledged(rest));

        self.set_obstacle(
            Obstacle::WritesFail,
            "Kafka does not accept the ends of jobs; nothing is lost, they will be written again",
        );
        self.feed_engine(Input::WriteFailed(token));
    }
}

pub(super) fn send_answer(answers: &mpsc::UnboundedSender<Answer>, answer: Answer) {
    // The loop outlives its tasks until the very end, when nothing waits for an answer.
    if answers.send(answer).is_err() {
        tracing::debug!("a task ended after its worker");
    }
}

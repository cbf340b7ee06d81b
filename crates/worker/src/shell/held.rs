//! What the loop holds: jobs, answers of tasks, partitions to give back, and its clock.

use std::{
    collections::HashMap,
    sync::{Arc, mpsc as std_mpsc},
    time::{Duration, Instant},
};

use fleet_engine::Token;
use fleet_group::{FinalCommit, Partition};
use fleet_job::{
    delayed::Delayed,
    envelope::Envelope,
    event::{JobState, Waiting},
    outcome::{Failure, JobError},
    record::RawRecord,
    size::json_bytes,
    time::Timestamp,
    trace::TraceContext,
};
use fleet_kafka::{KafkaError, producer::Outgoing};
use fleet_ops::trace::{Span, SpanKind};
use foldhash::fast::RandomState;
use tokio::task::AbortHandle;

use super::settled::Settled;
use crate::{
    execute::AttemptNews,
    report::{Settlement, Subject},
    results::{Kept, Results},
};

/// A job in this worker's hands.
pub(super) struct Held {
    pub(super) record: Arc<RawRecord>,
    /// The id of the topic that the job's first record stands in, where it is known.
    pub(super) topic_id: Option<Arc<str>>,
    /// What the record is known by once it is settled.
    pub(super) identity: Settled,
    /// The trace of which its record says that it is a part.
    pub(super) trace: TraceContext,
    /// What is done with it, once something is.
    pub(super) span: Option<Span>,
    /// The event with which it ended before it came again.
    pub(super) end: Option<Arc<Outgoing>>,
    /// When it was due, if it has waited in the delayed topic.
    pub(super) due: Option<Timestamp>,
    /// How it came here, if through the delayed topic.
    pub(super) delayed: Option<Delayed>,
    pub(super) envelope: Option<Arc<Envelope>>,
    pub(super) job_id: String,
    pub(super) started_at: Option<Timestamp>,
    pub(super) first_error: Option<JobError>,
    pub(super) last_error: Option<JobError>,
    pub(super) result: Option<Kept>,
    /// Calls of a job with several that have succeeded already.
    pub(super) done: Results,
    /// How many bytes its record holds, unpacked and with its headers.
    pub(super) record_bytes: usize,
    /// How many bytes the engine knows it to hold beside its record.
    pub(super) counted_bytes: u64,
    /// What is left to write of its end, after a write that was not acknowledged. The broker may
    /// have it all the same, so the very same bytes are written again: they are the same end then.
    pub(super) unwritten: Option<Box<Settlement>>,
    /// Why it was cancelled, where it was and somebody has said so.
    pub(super) cancel_reason: Option<String>,
    /// It waited in the delayed topic and goes back before its time, since it was cancelled.
    pub(super) recalled: bool,
    /// An attempt is under way.
    pub(super) running: bool,
    /// Its end is written, or was to be.
    pub(super) settling: bool,
    /// The number of the attempt.
    pub(super) attempt: u32,
    /// The last attempt found no server.
    pub(super) met_outage: bool,
    /// What it waits for through no fault of its own, as its events say.
    pub(super) waiting: Option<Waiting>,
    pub(super) task: Option<AbortHandle>,
}

impl Held {
    pub(super) fn new(record: RawRecord, identity: Settled, job_id: String) -> Self {
        Self {
            trace: TraceContext::of_record(&record),
            span: None,
            record_bytes: record.size(),
            record: Arc::new(record),
            topic_id: None,
            identity,
            end: None,
            due: None,
            delayed: None,
            envelope: None,
            job_id,
            started_at: None,
            first_error: None,
            last_error: None,
            result: None,
            done: Results::default(),
            counted_bytes: 0,
            unwritten: None,
            cancel_reason: None,
            recalled: false,
            running: false,
            settling: false,
            attempt: 0,
            met_outage: false,
            waiting: None,
            task: None,
        }
    }

    /// How many bytes it holds beside its record.
    pub(super) fn extra_bytes(&self) -> u64 {
        let result = self.result.as_ref().map_or(0, Kept::held_bytes);
        let error = self.last_error.as_ref().map_or(0, json_bytes);
        self.done.held_bytes() + result + error
    }

    pub(super) fn subject(&self) -> Subject<'_> {
        Subject {
            record: &self.record,
            topic_id: self.topic_id.as_deref(),
            envelope: self.envelope.as_deref(),
            job_id: &self.job_id,
            started_at: self.started_at,
            first_error: self.first_error.as_ref(),
            last_error: self.last_error.as_ref(),
            result: self.result.as_ref(),
            cancel_reason: self.cancel_reason.as_deref(),
            trace: self.trace(),
        }
    }

    /// Since when it could have been done: since it was written, or since its time came.
    fn since(&self) -> Option<Timestamp> {
        let not_before = self.envelope.as_ref().and_then(|envelope| envelope.not_before);
        self.record.timestamp.max(not_before).max(self.due)
    }

    /// The trace in which this worker speaks of it.
    pub(super) fn trace(&self) -> &TraceContext {
        self.span.as_ref().map_or(&self.trace, Span::context)
    }

    /// Says in the span how it ends.
    pub(super) fn concluded(&self, state: JobState) {
        let Some(span) = &self.span else { return };
        span.set("fleet.job.state", state.as_str());
        // Once, and not with every try to write it.
        if state == JobState::Failed && self.task.is_none() {
            // In the words of the tool it stands in the event; a log has other readers.
            let kind = self.last_error.as_ref().map(|error| error.kind.as_str());
            self.log().in_scope(|| {
                tracing::info!(kind, "the job has failed; it goes to the dead letters")
            });
        }
        match (state, &self.last_error) {
            (JobState::Failed, Some(error)) => span.fail(error.kind.as_str(), &error.message),
            (JobState::Failed | JobState::Expired, _) => {
                span.fail(state.as_str(), "it was never done")
            }
            _ => {}
        }
    }

    /// What log lines about it are put under.
    pub(super) fn log(&self) -> tracing::Span {
        self.span.as_ref().map_or_else(tracing::Span::none, |span| span.log(Some(&self.job_id)))
    }

    /// The span of its processing, begun if it is not yet, as OpenTelemetry's conventions for
    /// messaging name it.
    pub(super) fn process(&mut self, group: &str) -> &Span {
        let Self { record, trace, job_id, envelope, .. } = self;
        self.span.get_or_insert_with(|| {
            let topic = &record.position.topic;
            Span::start(SpanKind::Consumer, format!("process {topic}"), trace, || {
                let kind = envelope
                    .as_ref()
                    .map_or("unknown", |envelope| envelope.work.job_type().as_str());
                let position = &record.position;
                [
                    ("messaging.system", "kafka".into()),
                    ("messaging.operation.type", "process".into()),
                    ("messaging.operation.name", "process".into()),
                    ("messaging.destination.name", position.topic.clone().into()),
                    ("messaging.destination.partition.id", position.partition.to_string().into()),
                    ("messaging.kafka.offset", position.offset.into()),
                    ("messaging.consumer.group.name", group.to_owned().into()),
                    ("messaging.message.id", job_id.clone().into()),
                    ("fleet.job.id", job_id.clone().into()),
                    ("fleet.job.type", kind.into()),
                ]
            })
        })
    }
}

/// All jobs in this worker's hands, by token and by id. Several records can have one job id.
#[derive(Default)]
pub(super) struct Jobs {
    /// In boxes: a table of large entries is moved whole when it grows, and is half empty most of
    /// the time.
    held: HashMap<Token, Box<Held>, RandomState>,
    by_id: HashMap<String, Vec<Token>, RandomState>,
}

impl Jobs {
    pub(super) fn insert(&mut self, token: Token, held: Box<Held>) {
        self.by_id.entry(held.job_id.clone()).or_default().push(token);
        self.held.insert(token, held);
    }

    pub(super) fn remove(&mut self, token: &Token) -> Option<Box<Held>> {
        let held = self.held.remove(token)?;
        if let Some(tokens) = self.by_id.get_mut(&held.job_id) {
            tokens.retain(|other| other != token);
            if tokens.is_empty() {
                self.by_id.remove(&held.job_id);
            }
        }
        Some(held)
    }

    pub(super) fn get(&self, token: &Token) -> Option<&Held> {
        self.held.get(token).map(Box::as_ref)
    }

    pub(super) fn get_mut(&mut self, token: &Token) -> Option<&mut Held> {
        self.held.get_mut(token).map(Box::as_mut)
    }

    pub(super) fn contains(&self, token: &Token) -> bool {
        self.held.contains_key(token)
    }

    pub(super) fn len(&self) -> usize {
        self.held.len()
    }

    /// Since when the oldest record of a topic in hand could have been done.
    pub(super) fn oldest(&self, topic: u16) -> Option<Timestamp> {
        let of_topic = self.held.iter().filter(|(token, _)| token.partition.topic == topic);
        of_topic.filter_map(|(_, held)| held.since()).min()
    }

    /// The jobs of this id.
    pub(super) fn of(&self, job_id: &str) -> Vec<Token> {
        self.by_id.get(job_id).cloned().unwrap_or_default()
    }
}

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

/// Partitions that the poll thread waits to give back.
pub(super) struct Revoke {
    pub(super) partitions: Vec<Partition>,
    pub(super) deadline: Instant,
    pub(super) reply: std_mpsc::SyncSender<Vec<FinalCommit>>,
}

/// The wall clock, made monotonic: it starts at the system's time and then follows the steady
/// clock.
pub(super) struct Clock {
    base: Timestamp,
    start: Instant,
}

impl Clock {
    pub(super) fn new() -> Self {
        Self { base: fleet_ops::clock::now(), start: Instant::now() }
    }

    pub(super) fn now(&self) -> Timestamp {
        self.base.plus(self.start.elapsed())
    }

    /// When `at` will be, or when this clock was started. The same for the same `at`, whenever it
    /// is asked.
    pub(super) fn instant(&self, at: Timestamp) -> Instant {
        self.start + at.since(self.base)
    }
}

#[cfg(test)]
mod tests {
    use fleet_group::{Partition, log::LogName};
    use fleet_job::record::Position;

    use super::*;

    #[test]
    fn jobs_are_found_by_id_for_as_long_as_they_are_held() {
        let partition = Partition { topic: 0, number: 0 };
        let token = |offset| Token { partition, offset, generation: 1 };
        let held = |id: &str, offset| {
            let position = Position { topic: "t".to_owned(), partition: 0, offset };
            let record = RawRecord {
                position,
                timestamp: None,
                key: None,
                value: None,
                headers: Vec::new(),
            };
            Held::new(
                record,
                Settled::new(LogName::UNKNOWN, partition, offset, id, None),
                id.to_owned(),
            )
        };
        let mut jobs = Jobs::default();
        for (offset, id) in [(0, "a"), (1, "b"), (2, "a")] {
            jobs.insert(token(offset), Box::new(held(id, offset)));
        }
        assert_eq!(jobs.of("a"), [token(0), token(2)]);
        assert!(jobs.remove(&token(0)).is_some() && jobs.remove(&token(0)).is_none());
        assert_eq!(jobs.of("a"), [token(2)]);
        jobs.remove(&token(2));
        assert!(jobs.of("a").is_empty() && !jobs.by_id.contains_key("a"));
        assert_eq!((jobs.len(), jobs.contains(&token(1))), (1, true));
    }
}

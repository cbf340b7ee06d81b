//! A job in this worker's hands.

use std::sync::Arc;

use fleet_job::{
    delayed::Delayed,
    envelope::Envelope,
    event::{JobState, Waiting},
    outcome::JobError,
    record::RawRecord,
    size::json_bytes,
    time::Timestamp,
    trace::TraceContext,
};
use fleet_kafka::producer::Outgoing;
use fleet_ops::trace::{Span, SpanKind};
use tokio::task::AbortHandle;

use super::settled::Settled;
use crate::{
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
    pub(super) fn since(&self) -> Option<Timestamp> {
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

//! A record in this worker's hands: what it is, and how it is reported.

use std::sync::Arc;

use fleet_job::{
    delayed::Delayed, envelope::JobType, event::JobState, outcome::JobError, record::RawRecord,
    time::Timestamp, trace::TraceContext,
};
use fleet_kafka::producer::Outgoing;
use fleet_ops::trace::{Span, SpanKind};
use tokio::task::AbortHandle;

use super::{held_job::HeldJob, recently_settled::RecordIdentity, write_state::WriteState};
use crate::report::Subject;

/// A record that this worker has read and that is not settled yet.
pub(super) struct HeldRecord {
    pub(super) record: Arc<RawRecord>,
    /// The id of the topic that holds the job's first record, if known.
    pub(super) topic_id: Option<Arc<str>>,
    /// Identifies the record once it is settled.
    pub(super) identity: RecordIdentity,
    /// The id under which it is reported.
    pub(super) job_id: String,
    /// How many bytes it takes, unpacked and with its headers.
    pub(super) record_bytes: usize,
    /// Since when its job could have been done: since it was written, or since its time came.
    pub(super) ready_since: Option<Timestamp>,
    /// The trace that the record says it is part of.
    trace: TraceContext,
    /// The span of its processing, once that has begun.
    span: Option<Span>,
    pub(super) content: Content,
}

/// What a record is, and how far it has come.
pub(super) enum Content {
    Job(HeldJob),
    /// Anything else: no attempt is made, and it only has to be written on.
    NotRun(NotRun, WriteState),
}

/// A record that is not run here.
pub(super) enum NotRun {
    /// Not a valid job; it becomes a dead letter with `error`.
    Rejected { error: JobError, first_error: Option<JobError> },
    /// A job in the delayed topic, with the header it came with. One that is recalled was
    /// cancelled, and goes back before its time.
    Relay { header: Delayed, is_recalled: bool },
    /// A record of the delayed topic without that header: somebody else put it there.
    Stray,
    /// A job that this worker has settled before. The event with which it ended is written again.
    Repeat { end: Arc<Outgoing>, job_type: Option<JobType> },
}

/// What a cancel request finds a job doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Activity {
    Waiting,
    Running,
    Ending,
}

impl Activity {
    /// The value of the metric's label.
    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Self::Waiting => "waiting",
            Self::Running => "running",
            Self::Ending => "ending",
        }
    }
}

impl HeldRecord {
    pub(super) fn new(
        record: RawRecord,
        identity: RecordIdentity,
        job_id: String,
        content: Content,
    ) -> Self {
        Self {
            trace: TraceContext::of_record(&record),
            span: None,
            record_bytes: record.size(),
            ready_since: record.timestamp,
            record: Arc::new(record),
            topic_id: None,
            identity,
            job_id,
            content,
        }
    }

    pub(super) fn job(&self) -> Option<&HeldJob> {
        match &self.content {
            Content::Job(job) => Some(job),
            Content::NotRun(..) => None,
        }
    }

    /// The owner of the job; `None` if it belongs to nobody, or is not known.
    pub(super) fn owner(&self) -> Option<&str> {
        self.job()?.envelope.owner.as_deref()
    }

    pub(super) fn job_mut(&mut self) -> Option<&mut HeldJob> {
        match &mut self.content {
            Content::Job(job) => Some(job),
            Content::NotRun(..) => None,
        }
    }

    /// The type of the job, if the record could be read as one.
    pub(super) fn job_type(&self) -> Option<JobType> {
        match &self.content {
            Content::Job(job) => Some(job.job_type()),
            Content::NotRun(NotRun::Repeat { job_type, .. }, _) => *job_type,
            Content::NotRun(..) => None,
        }
    }

    /// Whether this worker has settled it before, and remembers its end.
    pub(super) fn is_repeat(&self) -> bool {
        matches!(self.content, Content::NotRun(NotRun::Repeat { .. }, _))
    }

    /// What reports say of it.
    pub(super) fn subject(&self) -> Subject<'_> {
        let bare = Subject {
            record: &self.record,
            topic_id: self.topic_id.as_deref(),
            envelope: None,
            job_id: &self.job_id,
            started_at: None,
            first_error: None,
            last_error: None,
            result: None,
            cancel_reason: None,
            trace: self.trace(),
        };

        match &self.content {
            Content::Job(job) => Subject {
                envelope: Some(&job.envelope),
                started_at: job.started_at(),
                first_error: job.first_error(),
                last_error: job.last_error(),
                result: job.result(),
                cancel_reason: job.cancel_reason.as_deref(),
                ..bare
            },
            Content::NotRun(NotRun::Rejected { error, first_error }, _) => {
                Subject { first_error: first_error.as_ref(), last_error: Some(error), ..bare }
            }
            Content::NotRun(..) => bare,
        }
    }

    pub(super) fn activity(&self) -> Activity {
        match &self.content {
            Content::Job(job) if job.run().is_some() => Activity::Running,
            Content::Job(job) if job.writing().is_some() => Activity::Ending,
            Content::Job(_) | Content::NotRun(_, WriteState::Due) => Activity::Waiting,
            Content::NotRun(..) => Activity::Ending,
        }
    }

    // --- Its end --------------------------------------------------------------------------------

    /// The record's end, or the record it goes on as, is about to be written. Returns how far
    /// earlier writes have come.
    pub(super) fn begin_writing(&mut self) -> WriteState {
        match &mut self.content {
            Content::Job(job) => job.begin_writing(),
            Content::NotRun(_, writing) => std::mem::replace(writing, WriteState::HandedOver),
        }
    }

    /// The writes of the record's end have come this far.
    pub(super) fn set_writing(&mut self, new: WriteState) {
        let writing = match &mut self.content {
            Content::Job(job) => job.writing_mut(),
            Content::NotRun(_, writing) => Some(writing),
        };
        if let Some(writing) = writing {
            *writing = new;
        }
    }

    /// The terminal event that the broker may have or may still get, if nothing else is to be
    /// written. A repeat is remembered with its event already.
    pub(super) fn into_unconfirmed_event(self) -> Option<Arc<Outgoing>> {
        match self.content {
            Content::Job(job) => job.into_writing()?.into_unconfirmed_event(),
            Content::NotRun(_, writing) => writing.into_unconfirmed_event(),
        }
    }

    /// The task that works for it, if any.
    pub(super) fn task(&self) -> Option<&AbortHandle> {
        match &self.content {
            Content::Job(job) => job.task(),
            Content::NotRun(_, writing) => writing.task(),
        }
    }

    // --- Traces and logs ------------------------------------------------------------------------

    /// The trace in which this worker reports it.
    pub(super) fn trace(&self) -> &TraceContext {
        self.span.as_ref().map_or(&self.trace, Span::context)
    }

    /// The span for log lines about it.
    pub(super) fn log_span(&self) -> tracing::Span {
        self.span.as_ref().map_or_else(tracing::Span::none, |span| span.log(Some(&self.job_id)))
    }

    /// The span of its processing, named as OpenTelemetry's conventions for messaging say. Begins
    /// it if necessary.
    pub(super) fn begin_span(&mut self, group: &str) -> &Span {
        let job_type = self.job_type().map_or("unknown", JobType::as_str);
        let Self { record, trace, job_id, .. } = self;

        self.span.get_or_insert_with(|| {
            let position = &record.position;
            let name = format!("process {}", position.topic);
            Span::start(SpanKind::Consumer, name, trace, || {
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
                    ("fleet.job.type", job_type.into()),
                ]
            })
        })
    }

    /// Records in the span how the job ends, and logs a failure if this `is_first_try` to write
    /// the end.
    pub(super) fn record_end(&self, state: JobState, is_first_try: bool) {
        let Some(span) = &self.span else { return };
        span.set("fleet.job.state", state.as_str());
        let error = self.subject().last_error;

        if state == JobState::Failed && is_first_try {
            // The event carries the tool's own message; keep it out of the log, which has a wider
            // audience.
            let kind = error.map(|error| error.kind.as_str());
            self.log_span().in_scope(|| {
                tracing::info!(kind, "the job has failed; it goes to the dead letters")
            });
        }

        match (state, error) {
            (JobState::Failed, Some(error)) => span.fail(error.kind.as_str(), &error.message),
            (JobState::Failed | JobState::Expired, _) => {
                span.fail(state.as_str(), "it was never done")
            }
            _ => {}
        }
    }
}

//! The records that are written about a job, ready to send: events, dead letters and replies. Pure.

use std::time::Duration;

use crate::{
    call_results::KeptResult,
    delay_tiers::{NextStop, Tiers},
};
use fleet_codes::APPROVAL_REQUIRED;
use fleet_engine::Terminal;
use fleet_job::{
    approval::{AskedApproval, PendingApproval},
    dead_letter::DeadLetter,
    delayed::Delayed,
    envelope::{Envelope, Work},
    event::{JobEvent, JobState, Progress, ResultOmitted, Source, Timings, Waiting},
    outcome::{ErrorKind, JobError},
    record::{Header, RawRecord},
    size::json_bytes,
    time::Timestamp,
    topics::Topics,
    trace::TraceContext,
};
use fleet_kafka::producer::Outgoing;

/// Who reports, and to which topics.
#[derive(Debug, Clone)]
pub(crate) struct Reporter {
    pub(crate) topics: Topics,
    /// The tiers of the delayed topic, if there is one.
    pub(crate) tiers: Option<Tiers>,
    pub(crate) worker: String,
    pub(crate) group: String,
    pub(crate) max_event_bytes: usize,
}

/// What reports say about a job.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Subject<'a> {
    pub(crate) record: &'a RawRecord,
    /// The id of the record's topic, if known.
    pub(crate) topic_id: Option<&'a str>,
    /// Absent if the record is not a valid job.
    pub(crate) envelope: Option<&'a Envelope>,
    /// The id under which the job is reported.
    pub(crate) job_id: &'a str,
    pub(crate) started_at: Option<Timestamp>,
    pub(crate) first_error: Option<&'a JobError>,
    pub(crate) last_error: Option<&'a JobError>,
    pub(crate) result: Option<&'a KeptResult>,
    /// The reason that came with the cancel request.
    pub(crate) cancel_reason: Option<&'a str>,
    /// The trace in which it is reported.
    pub(crate) trace: &'a TraceContext,
}

/// A record, and its short form for a topic that does not take records of that size.
#[derive(Debug, Clone)]
pub(crate) struct Letter {
    pub(crate) whole: Outgoing,
    pub(crate) bare: Outgoing,
}

/// The records that have to be acknowledged before a job is settled.
#[derive(Debug, Clone)]
pub(crate) struct Settlement {
    pub(crate) state: JobState,
    pub(crate) dead_letter: Option<(ErrorKind, Letter)>,
    pub(crate) event: Outgoing,
    pub(crate) reply: Option<Outgoing>,
}

impl Settlement {
    /// An end that takes only an event.
    pub(crate) fn of_event(state: JobState, event: Outgoing) -> Self {
        Self { state, dead_letter: None, event, reply: None }
    }

    /// Whether it takes only an event.
    pub(crate) fn is_event_only(&self) -> bool {
        self.dead_letter.is_none() && self.reply.is_none()
    }
}

/// The headers of a job's trace, if its record does not have them.
fn missing_trace_headers(subject: &Subject<'_>) -> Vec<Header> {
    let has_one =
        subject.record.headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("traceparent"));
    if has_one { Vec::new() } else { subject.trace.headers() }
}

/// Leaves the choice of the partition to the key.
pub(crate) const ANY_PARTITION: i32 = -1;

impl Reporter {
    fn base_event(
        &self,
        subject: &Subject<'_>,
        state: JobState,
        now: Timestamp,
        attempts: u32,
    ) -> JobEvent {
        let bare = match subject.envelope {
            Some(envelope) => JobEvent::about(envelope, state, now),
            None => JobEvent::new(subject.job_id, state, now),
        };

        JobEvent {
            attempts,
            source: Some(Source {
                topic_id: subject.topic_id.map(str::to_owned),
                ..Source::from(&subject.record.position)
            }),
            submitted_at: subject.record.timestamp,
            worker: Some(self.worker.clone()),
            ..bare
        }
    }

    fn build_record(&self, subject: &Subject<'_>, topic: &str, value: Vec<u8>) -> Outgoing {
        Outgoing {
            timestamp: None,
            partition: None,
            topic: topic.to_owned(),
            key: Some(subject.job_id.as_bytes().to_vec()),
            value: Some(value),
            // Readers of the event go on with the trace.
            headers: subject.trace.headers(),
        }
    }

    /// The event of a job that has started.
    pub(crate) fn running_event(
        &self,
        subject: &Subject<'_>,
        now: Timestamp,
        attempt: u32,
    ) -> Outgoing {
        let event = self.base_event(subject, JobState::Running, now, attempt);
        self.build_record(subject, &self.topics.events, event.to_bytes())
    }

    /// The event of a running job that has come this far.
    pub(crate) fn progress_event(
        &self,
        subject: &Subject<'_>,
        now: Timestamp,
        attempt: u32,
        progress: Progress,
    ) -> Outgoing {
        let event = self.base_event(subject, JobState::Running, now, attempt);
        let event = JobEvent { progress: Some(progress), ..event };
        self.build_record(subject, &self.topics.events, event.to_bytes())
    }

    /// The event of a job that waits for its next attempt until `at`.
    pub(crate) fn waiting_event(
        &self,
        subject: &Subject<'_>,
        now: Timestamp,
        attempts: u32,
        at: Timestamp,
    ) -> Outgoing {
        let state = if attempts == 0 { JobState::Queued } else { JobState::Retrying };
        let mut event = self.base_event(subject, state, now, attempts);
        event.error = subject.last_error.cloned();
        event.next_attempt_at = Some(at);
        self.build_record(subject, &self.topics.events, self.bounded_bytes(event))
    }

    /// The event of a job that waits for something unavailable.
    pub(crate) fn held_event(
        &self,
        subject: &Subject<'_>,
        now: Timestamp,
        attempts: u32,
        waiting: Waiting,
    ) -> Outgoing {
        let state = if attempts == 0 { JobState::Queued } else { JobState::Retrying };
        let mut event = self.base_event(subject, state, now, attempts);
        event.error = subject.last_error.cloned();
        event.waiting = Some(waiting);
        self.build_record(subject, &self.topics.events, self.bounded_bytes(event))
    }

    /// The end of a job; `None` if the job goes on as another record.
    pub(crate) fn build_settlement(
        &self,
        subject: &Subject<'_>,
        now: Timestamp,
        terminal: Terminal,
        attempts: u32,
    ) -> Option<Settlement> {
        if terminal == Terminal::Failed
            && let Some(settlement) = self.build_request_for_approval(subject, now, attempts)
        {
            return Some(settlement);
        }
        let state = match terminal {
            Terminal::Succeeded => JobState::Succeeded,
            Terminal::Failed | Terminal::Rejected => JobState::Failed,
            Terminal::Expired => JobState::Expired,
            Terminal::Cancelled => JobState::Cancelled,
            Terminal::Deferred(_) | Terminal::Relayed | Terminal::Again => return None,
        };
        let error = match terminal {
            Terminal::Failed | Terminal::Rejected => {
                Some(subject.last_error.cloned().unwrap_or_else(|| lost_error(attempts)))
            }
            Terminal::Expired => Some(expired_error(subject)),
            Terminal::Cancelled => Some(cancelled_error(subject)),
            _ => None,
        };

        let mut event = self.base_event(subject, state, now, attempts);
        event.timings = Some(Timings::new(subject.record.timestamp, subject.started_at, now));
        match subject.result.filter(|_| terminal == Terminal::Succeeded) {
            Some(KeptResult::Whole { result, .. }) => event.result = Some(result.clone()),
            Some(KeptResult::Omitted(omitted)) => event.omit_result(omitted.clone()),
            None => {}
        }
        event.error.clone_from(&error);
        let value = self.bounded_bytes(event);

        let reply_to = subject.envelope.and_then(|envelope| envelope.reply_to.as_deref());
        let reply = reply_to.map(|topic| self.build_record(subject, topic, value.clone()));
        let dead_letter = error
            .filter(|_| state == JobState::Failed)
            .map(|error| (error.kind, self.dead_letter(subject, now, error, attempts)));
        Some(Settlement {
            state,
            dead_letter,
            reply,
            event: self.build_record(subject, &self.topics.events, value),
        })
    }

    /// What is written about a job whose only call has to be approved first: the record leaves, and
    /// its event holds what a server writes again once somebody has approved it. `None` if the job
    /// has failed for another reason, or can't wait: the calls of a batch that are done would be
    /// made again.
    fn build_request_for_approval(
        &self,
        subject: &Subject<'_>,
        now: Timestamp,
        attempts: u32,
    ) -> Option<Settlement> {
        let error = subject.last_error?;
        let wants_approval = error.error_code.as_deref() == Some(APPROVAL_REQUIRED.as_str());
        let envelope = subject.envelope.filter(|_| wants_approval)?;
        if !matches!(envelope.work, Work::ToolCall(_)) {
            return None;
        }
        let asked = AskedApproval::of_data(error.data.as_ref()?)?;
        let latest = now.plus(Duration::from_millis(asked.approval_ttl_ms?));
        let expires_at = envelope.deadline.map_or(latest, |deadline| deadline.min(latest));

        let RawRecord { key, value, headers, .. } = subject.record;
        let (key, value) = (key.as_deref(), value.as_deref()?);
        let pending = PendingApproval::of_record(value, key, headers, asked.rule, expires_at)?;
        // Nobody has called the tool, so no attempt is spent.
        let attempts = attempts.saturating_sub(1);
        let event = JobEvent {
            approval: Some(Box::new(pending)),
            ..self.base_event(subject, JobState::AwaitingApproval, now, attempts)
        };
        let value = event.to_bytes();
        if value.len() > self.max_event_bytes {
            return None;
        }
        let event = self.build_record(subject, &self.topics.events, value);
        Some(Settlement::of_event(JobState::AwaitingApproval, event))
    }

    /// The dead letter of a job that has failed. The short form has no value.
    fn dead_letter(
        &self,
        subject: &Subject<'_>,
        now: Timestamp,
        error: JobError,
        attempts: u32,
    ) -> Letter {
        let letter = DeadLetter {
            job_id: subject.job_id.to_owned(),
            error,
            first_error: subject.first_error.cloned(),
            attempts,
            worker: self.worker.clone(),
            group: self.group.clone(),
            time: now,
        };

        let whole = Outgoing {
            timestamp: None,
            partition: None,
            topic: self.topics.dlq.clone(),
            key: subject.record.key.clone(),
            value: subject.record.value.clone(),
            headers: [letter.headers(subject.record), missing_trace_headers(subject)].concat(),
        };
        let short_headers = letter.headers_without_record(subject.record);
        let bare = Outgoing {
            timestamp: None,
            partition: None,
            topic: self.topics.dlq.clone(),
            key: subject.record.key.clone(),
            value: None,
            headers: [short_headers, subject.trace.headers()].concat(),
        };
        Letter { whole, bare }
    }

    /// Where a job that is due at `until` goes at `now`.
    pub(crate) fn next_stop(&self, now: Timestamp, until: Timestamp) -> NextStop {
        self.tiers.map_or(NextStop::Return, |tiers| tiers.next_stop(now, until))
    }

    /// The record as which a waiting job goes on: into the delayed topic, or from there back to its
    /// own. The short form has no added header, and leaves the partition to the key.
    pub(crate) fn passed_on_letter(
        &self,
        record: &RawRecord,
        delayed: Delayed,
        next: NextStop,
    ) -> Letter {
        let (topic, partition, look_at) = match next {
            NextStop::Wait(tier, look_at) => (&self.topics.delayed, tier, look_at),
            NextStop::Return => (&self.topics.jobs, delayed.partition, delayed.until),
        };
        let header = Delayed { look_at, ..delayed }.header();

        let whole = Outgoing {
            timestamp: None,
            topic: topic.clone(),
            partition: Some(partition).filter(|partition| *partition != ANY_PARTITION),
            key: record.key.clone(),
            value: record.value.clone(),
            headers: record.headers.iter().cloned().chain([header]).collect(),
        };
        Letter {
            bare: Outgoing { partition: None, headers: record.headers.clone(), ..whole.clone() },
            whole,
        }
    }

    /// The bytes of an event, without whatever would make it too large for a record.
    fn bounded_bytes(&self, mut event: JobEvent) -> Vec<u8> {
        let limit = self.max_event_bytes;
        let bytes = event.to_bytes();
        if bytes.len() <= limit {
            return bytes;
        }

        if let Some(result) = event.result.take() {
            let bytes = json_bytes(&result);
            event.omit_result(ResultOmitted { bytes, limit_bytes: limit as u64 });
        }
        if let Some(error) = &mut event.error {
            error.data = None;
            error.message.truncate(error.message.floor_char_boundary(limit / 4));
        }
        let bytes = event.to_bytes();
        if bytes.len() <= limit {
            return bytes;
        }

        // What is left is the producer's own metadata, which the dead letter or the job's record
        // still has.
        event.metadata.clear();
        event.to_bytes()
    }
}

/// The shortest form of a terminal event that still says how the job ended.
pub(crate) fn shorten_event(event: &Outgoing, state: JobState, now: Timestamp) -> Outgoing {
    // JSON that can just be written may be nested too deeply to be read again.
    let read = event.value.as_deref().and_then(|bytes| serde_json::from_slice(bytes).ok());
    let shortest = || {
        JobEvent::new(String::from_utf8_lossy(event.key.as_deref().unwrap_or_default()), state, now)
    };
    let value = Some(read.map_or_else(shortest, drop_details).to_bytes());
    Outgoing { value, headers: Vec::new(), ..event.clone() }
}

fn drop_details(mut event: JobEvent) -> JobEvent {
    if let Some(result) = event.result.take() {
        event.omit_result(ResultOmitted { bytes: json_bytes(&result), limit_bytes: 0 });
    }
    if let Some(error) = &mut event.error {
        error.data = None;
        error.message.truncate(error.message.floor_char_boundary(1024));
    }
    event.metadata.clear();
    if event.approval.take().is_some() {
        // Without its record, nobody could let the job run.
        event.state = JobState::Failed;
        let message = "the job has to be approved first, and is too large to wait for that in the \
                       events topic";
        let error = JobError::new(ErrorKind::JsonRpc, message);
        event.error = Some(error.with_error_code(APPROVAL_REQUIRED));
    }
    event
}

/// The error of a job whose attempts were all spent by workers that died before reporting.
fn lost_error(attempts: u32) -> JobError {
    let message =
        format!("all {attempts} attempts were spent before this worker took the job over");
    JobError::new(ErrorKind::ConnectionLost, message)
}

fn expired_error(subject: &Subject<'_>) -> JobError {
    let deadline = subject.envelope.and_then(|envelope| envelope.deadline).unwrap_or_default();
    let message = match subject.last_error {
        Some(last) => {
            format!(
                "the deadline {deadline} leaves no time for another attempt; the last one: {last}"
            )
        }
        None => format!("the deadline {deadline} passed before the job could start"),
    };
    JobError::new(ErrorKind::Expired, message)
}

fn cancelled_error(subject: &Subject<'_>) -> JobError {
    let message = match subject.cancel_reason {
        Some(reason) => format!("cancelled: {reason}"),
        None => "cancelled".to_owned(),
    };
    JobError::new(ErrorKind::Cancelled, message)
}

#[cfg(test)]
mod tests {
    use fleet_job::{decode, outcome::Failure, record::Position};
    use serde_json::{Value, json};

    use super::*;
    use crate::{
        call_plan::Plan,
        call_results::{Failures, Results},
    };

    const LIMIT: usize = 900 << 10;

    fn reporter() -> Reporter {
        Reporter {
            topics: Topics::default(),
            tiers: None,
            worker: "w".to_owned(),
            group: "g".to_owned(),
            max_event_bytes: LIMIT,
        }
    }

    fn record(value: &Value) -> RawRecord {
        let position = Position { topic: "mcp-jobs".to_owned(), partition: 0, offset: 7 };
        let value = Some(value.to_string().into_bytes());
        RawRecord { position, timestamp: None, key: None, value, headers: Vec::new() }
    }

    fn subject<'a>(record: &'a RawRecord, envelope: &'a Envelope) -> Subject<'a> {
        Subject {
            record,
            topic_id: None,
            envelope: Some(envelope),
            job_id: &envelope.job_id,
            started_at: None,
            first_error: None,
            last_error: None,
            result: None,
            cancel_reason: None,
            trace: &UNTRACED,
        }
    }

    const UNTRACED: TraceContext = TraceContext { parent: None, state: None };

    fn event(settlement: &Settlement) -> JobEvent {
        let value = settlement.event.value.as_deref().unwrap();
        assert!(value.len() <= LIMIT, "{} bytes", value.len());
        serde_json::from_slice(value).unwrap()
    }

    #[test]
    fn a_call_that_has_to_be_approved_leaves_with_its_record() {
        let job = |payload: Value, kind: &str| {
            record(&json!({"jobID": "j", "jobType": kind, "payload": payload}))
        };
        let end_of = |record: &RawRecord, data: Value| {
            let envelope = decode::decode(record, 1 << 20).unwrap();
            let error = JobError {
                data: Some(data),
                ..JobError::new(ErrorKind::JsonRpc, "ask").with_error_code(APPROVAL_REQUIRED)
            };
            let subject = Subject { last_error: Some(&error), ..subject(record, &envelope) };
            let (now, failed) = (Timestamp::default(), Terminal::Failed);
            reporter().build_settlement(&subject, now, failed, 1).unwrap()
        };

        let asked =
            || json!({"rule": "ask", "approvalTtlMs": 1_000, "reason": "approval-required"});
        let call = job(json!({"tool": "t"}), "tool-call");
        let left = end_of(&call, asked());
        assert!(left.is_event_only() && left.state == JobState::AwaitingApproval);
        let event = event(&left);
        let pending = event.awaits_approval().unwrap();
        assert_eq!((pending.rule.as_str(), event.attempts), ("ask", 0));
        assert_eq!(pending.expires_at, Timestamp::default().plus(Duration::from_secs(1)));
        assert_eq!(pending.record("mcp-jobs").value, call.value);

        // If the topic does not take it, it fails for good, since nobody could approve it.
        let short = shorten_event(&left.event, left.state, Timestamp::default());
        let short: JobEvent = serde_json::from_slice(short.value.as_deref().unwrap()).unwrap();
        assert_eq!((short.state, short.approval), (JobState::Failed, None));

        let batch = job(json!({"calls": [{"tool": "t"}]}), "tool-batch");
        for (record, data) in
            [(&batch, asked()), (&call, json!({"rule": "ask"})), (&call, json!(7))]
        {
            let failed = end_of(record, data);
            assert!(failed.state == JobState::Failed && failed.dead_letter.is_some());
        }
    }

    /// The largest batch there can be, with results that are small one by one.
    #[test]
    fn the_end_of_ten_thousand_calls_fits_into_a_record() {
        let calls = vec![json!({"tool": "t"}); fleet_job::envelope::MAX_BATCH_CALLS];
        let record =
            record(&json!({"jobID": "j", "jobType": "tool-batch", "payload": {"calls": calls}}));
        let envelope = decode::decode(&record, 1 << 20).unwrap();
        let plan = Plan::new(&envelope.work);
        let result = json!({"content": [{"type": "text", "text": "x".repeat(100)}]});
        let mut results = Results::default();
        (0..plan.calls.len()).for_each(|index| results.insert(index, result.clone(), LIMIT as u64));
        assert_eq!(results.held_bytes(), 0, "what can't be written is not held");

        let (reporter, now) = (reporter(), Timestamp::default());
        let kept = plan.combine_outcomes(&mut results, &Failures::default(), LIMIT as u64).unwrap();

        let subject = Subject { result: Some(&kept), ..subject(&record, &envelope) };
        let end = event(&reporter.build_settlement(&subject, now, Terminal::Succeeded, 1).unwrap());
        assert_eq!((end.calls, end.result), (Some(10_000), None));
        assert_eq!(end.code.as_deref(), Some("result-omitted"));
        assert!(end.result_omitted.is_some_and(|omitted| omitted.bytes > LIMIT as u64));

        let failure = Failure::permanent(JobError::new(ErrorKind::Tool, "no").with_data(result));
        let mut failures = Failures::default();
        (0..plan.calls.len())
            .for_each(|index| failures.insert(index, failure.clone(), LIMIT as u64));
        let failed =
            plan.combine_outcomes(&mut Results::default(), &failures, LIMIT as u64).unwrap_err();
        let subject = Subject { last_error: Some(&failed.error), result: None, ..subject };
        let settlement = reporter.build_settlement(&subject, now, Terminal::Failed, 1).unwrap();
        let error = event(&settlement).error.unwrap();
        assert_eq!((&*error.message, error.data), ("10000 of 10000 calls failed; `t`: no", None));

        let letter = settlement.dead_letter.unwrap().1.whole;
        let headers: usize = letter
            .headers
            .iter()
            .map(|(name, value)| name.len() + value.as_ref().map_or(0, Vec::len))
            .sum();
        assert!(headers < 64 << 10, "{headers} bytes of headers");
    }

    #[test]
    fn a_cancelled_job_says_why() {
        let record =
            record(&json!({"jobID": "j", "jobType": "tool-call", "payload": {"tool": "t"}}));
        let envelope = decode::decode(&record, 1 << 20).unwrap();

        let check = |cancel_reason, expected: &str| {
            let subject = Subject { cancel_reason, ..subject(&record, &envelope) };
            let settlement = reporter()
                .build_settlement(&subject, Timestamp::default(), Terminal::Cancelled, 0)
                .unwrap();
            assert!(settlement.dead_letter.is_none());
            let error = event(&settlement).error.unwrap();
            assert_eq!((error.kind, &*error.message), (ErrorKind::Cancelled, expected));
        };

        check(None, "cancelled");
        check(Some("not needed"), "cancelled: not needed");
    }
}

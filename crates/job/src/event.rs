//! Job events: one record on the events topic per transition of a job. The newest event of a job is
//! its state.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::{
    approval::PendingApproval,
    envelope::{Envelope, Work},
    outcome::JobError,
    record::Position,
    time::Timestamp,
};

/// The initial capacity of a serialized event, which suffices for most events.
const USUAL_BYTES: usize = 1024;

/// The code of a job that succeeded but whose result was too large to keep.
pub const RESULT_OMITTED: &str = "result-omitted";

/// The states of a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum JobState {
    /// The job was accepted and written to the jobs topic.
    Queued,
    /// An attempt is running.
    Running,
    /// An attempt failed, and another one will follow.
    Retrying,
    /// The job is done and has a result.
    Succeeded,
    /// The job failed for good; its record is also in the dead letters.
    Failed,
    /// The job was stopped on request.
    Cancelled,
    /// The job's deadline passed before it could start, or nobody approved it in time.
    Expired,
    /// The job waits for the approval of somebody who may give it.
    #[serde(rename = "awaiting_approval")]
    AwaitingApproval,
}

impl JobState {
    /// All states. Stores keep indexes into this list, so new states may only be appended.
    pub const ALL: [Self; 8] = [
        Self::Queued,
        Self::Running,
        Self::Retrying,
        Self::Succeeded,
        Self::Failed,
        Self::Cancelled,
        Self::Expired,
        Self::AwaitingApproval,
    ];

    /// Returns whether no other state can follow.
    pub fn is_terminal(self) -> bool {
        matches!(self, Self::Succeeded | Self::Failed | Self::Cancelled | Self::Expired)
    }

    /// Returns the name in JSON and in metric labels.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Running => "running",
            Self::Retrying => "retrying",
            Self::Succeeded => "succeeded",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
            Self::Expired => "expired",
            Self::AwaitingApproval => "awaiting_approval",
        }
    }
}

/// One transition of a job: the value of a record on the events topic.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(title = "mcp-fleet job event")]
pub struct JobEvent {
    /// The id of the job, which is also the record's key. A record without a readable id is
    /// reported under `topic/partition/offset`.
    #[serde(rename = "jobID")]
    pub job_id: String,
    /// The state that the job entered.
    pub state: JobState,
    /// The time of the transition.
    pub time: Timestamp,
    /// The kind of job; absent if the envelope could not be read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub job_type: Option<String>,
    /// The name under which the called tool is offered, for a `tool-call`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tool: Option<String>,
    /// The number of calls, for a `tool-batch`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub calls: Option<u32>,
    /// When the job's record was written.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub submitted_at: Option<Timestamp>,
    /// The number of attempts spent so far, including the current one.
    #[serde(default)]
    pub attempts: u32,
    /// The job's record.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<Source>,
    /// The worker that wrote the event.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub worker: Option<String>,
    /// The progress that the tool has reported, in a `running` event.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub progress: Option<Progress>,
    /// The tool's result, in a `succeeded` event.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub result: Option<Value>,
    /// The size of a result that was too large for a record.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub result_omitted: Option<ResultOmitted>,
    /// A qualification of the state: `result-omitted` if the job succeeded but its result was not
    /// kept anywhere.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub code: Option<String>,
    /// The error, in a `retrying`, `failed`, `cancelled` or `expired` event.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<JobError>,
    /// The earliest time of the next attempt, in a `retrying` event.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_attempt_at: Option<Timestamp>,
    /// What the job waits for through no fault of its own, in a `queued` or `retrying` event.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub waiting: Option<Waiting>,
    /// What waits for approval, in an `awaiting_approval` event.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub approval: Option<Box<PendingApproval>>,
    /// How long the job waited and ran, in a terminal event.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timings: Option<Timings>,
    /// The tenant that the job belongs to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tenant: Option<String>,
    /// The submitter as known to the server that accepted the job.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner: Option<String>,
    /// The producer's idempotency key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub idempotency_key: Option<String>,
    /// The producer's own data.
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    pub metadata: Map<String, Value>,
}

impl JobEvent {
    /// Creates an event with only the required fields.
    pub fn new(job_id: impl Into<String>, state: JobState, time: Timestamp) -> Self {
        Self {
            job_id: job_id.into(),
            state,
            time,
            job_type: None,
            tool: None,
            calls: None,
            submitted_at: None,
            attempts: 0,
            source: None,
            worker: None,
            progress: None,
            result: None,
            result_omitted: None,
            code: None,
            error: None,
            next_attempt_at: None,
            waiting: None,
            approval: None,
            timings: None,
            tenant: None,
            owner: None,
            idempotency_key: None,
            metadata: Map::new(),
        }
    }

    /// Creates an event about the job in `envelope`, with the fields that all its events repeat.
    pub fn about(envelope: &Envelope, state: JobState, time: Timestamp) -> Self {
        let (tool, calls) = match &envelope.work {
            Work::ToolCall(call) => (Some(call.exposed_name()), None),
            Work::ToolBatch(batch) => (None, u32::try_from(batch.calls.len()).ok()),
            Work::ServerInit(_) => (None, None),
        };

        Self {
            job_type: Some(envelope.work.job_type().as_str().to_owned()),
            tool,
            calls,
            tenant: envelope.tenant.clone(),
            owner: envelope.owner.clone(),
            idempotency_key: envelope.idempotency_key.clone(),
            metadata: envelope.metadata.clone(),
            ..Self::new(&*envelope.job_id, state, time)
        }
    }

    /// Leaves the result out because of its size.
    pub fn omit_result(&mut self, omitted: ResultOmitted) {
        self.result = None;
        self.result_omitted = Some(omitted);
        self.code = Some(RESULT_OMITTED.to_owned());
    }

    /// Returns whether the job succeeded but its result was not kept. Also recognizes older events,
    /// which had no code for this.
    pub fn has_lost_its_result(&self) -> bool {
        self.state == JobState::Succeeded && self.result_omitted.is_some()
    }

    /// Returns whether the job has ended. A task's round that asks for input has a result but is
    /// not an end: the answers arrive as another record of the same job.
    pub fn is_over(&self) -> bool {
        self.state.is_terminal() && !self.asks_for_input()
    }

    /// Returns whether the job is a task that waits for input (`resultType: input_required`,
    /// SEP-2322).
    pub fn asks_for_input(&self) -> bool {
        let kind = self.result.as_ref().and_then(|result| result.get("resultType")?.as_str());
        self.state == JobState::Succeeded && kind == Some("input_required")
    }

    /// Returns the event as the value of a record.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(USUAL_BYTES);
        // Strings, numbers and maps with string keys always serialize.
        if serde_json::to_writer(&mut bytes, self).is_err() {
            bytes.clear();
        }
        bytes
    }
}

/// The position of a job's record.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Source {
    /// The name of the topic.
    pub topic: String,
    /// The id of the topic, if the broker reveals it: a topic that is deleted and created again
    /// under the same name gets another id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub topic_id: Option<String>,
    /// The number of the partition.
    pub partition: i32,
    /// The offset in the partition.
    pub offset: i64,
}

impl From<&Position> for Source {
    fn from(position: &Position) -> Self {
        Self {
            topic: position.topic.clone(),
            topic_id: None,
            partition: position.partition,
            offset: position.offset,
        }
    }
}

impl std::fmt::Display for Source {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}/{}", self.topic, self.partition, self.offset)
    }
}

/// What a job waits for, which costs it no attempts (I7): something unavailable, or the end of a
/// pause.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Waiting {
    /// The reason: `server-unavailable`, `server-busy`, `upstream-unauthorized` or `rate-limited`
    /// for hosted servers, `unavailable` or `unauthorized` for mcp-server itself, `paused` if people
    /// have paused the job. More may be added.
    pub reason: String,
    /// The hosted server, if the reason concerns one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub server: Option<String>,
    /// When the job began to wait.
    pub since: Timestamp,
    /// The id of the pause that keeps the job from starting.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pause: Option<String>,
    /// Who has paused the job, for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub by: Option<String>,
    /// Why the job was paused, for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
    /// When the pause ends by itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until: Option<Timestamp>,
}

impl std::fmt::Display for Waiting {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.pause.is_some() {
            return self.write_pause(f);
        }

        match &self.server {
            Some(server) => write!(f, "waiting for server `{server}`: {}", self.reason),
            None => write!(f, "waiting for mcp-server: {}", self.reason),
        }
    }
}

impl Waiting {
    fn write_pause(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("waiting: paused")?;
        if let Some(by) = &self.by {
            write!(f, " by {by}")?;
        }
        if let Some(until) = self.until {
            write!(f, " until {until}")?;
        }
        match &self.why {
            Some(why) => write!(f, " ({why})"),
            None => Ok(()),
        }
    }
}

/// The progress that a tool has reported.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Progress {
    /// Increases with every notification. In a batch: the number of calls that are done.
    #[serde(deserialize_with = "crate::number::f64")]
    pub progress: f64,
    /// The final value of `progress`, if known.
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        deserialize_with = "crate::number::option_f64"
    )]
    pub total: Option<f64>,
    /// The tool's description of its progress, for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
}

/// The size of a result that was too large for a record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ResultOmitted {
    /// The size of the result as JSON, in bytes.
    pub bytes: u64,
    /// The largest size that would have been kept, in bytes.
    pub limit_bytes: u64,
}

/// How long a job waited and ran, as measured by the worker.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Timings {
    /// The timestamp of the job's record.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub submitted_at: Option<Timestamp>,
    /// The start of the last attempt.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started_at: Option<Timestamp>,
    /// When the outcome was known.
    pub finished_at: Timestamp,
    /// The time from the record's timestamp to the start of the last attempt, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub waited_ms: Option<u64>,
    /// The duration of the last attempt, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ran_ms: Option<u64>,
}

impl Timings {
    /// Computes the timings of a job from the times at which it was written, started and ended.
    pub fn new(
        submitted_at: Option<Timestamp>,
        started_at: Option<Timestamp>,
        finished_at: Timestamp,
    ) -> Self {
        let ms =
            |later: Timestamp, earlier: Timestamp| later.as_millis().abs_diff(earlier.as_millis());

        Self {
            submitted_at,
            started_at,
            finished_at,
            waited_ms: started_at
                .zip(submitted_at)
                .map(|(start, submit)| if start > submit { ms(start, submit) } else { 0 }),
            ran_ms: started_at.map(|start| ms(finished_at, start)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pause_is_described_by_who_ordered_it_until_when_and_why() {
        let waiting = |by: Option<&str>, until: Option<i64>| {
            let waiting = Waiting {
                reason: "paused".to_owned(),
                pause: Some("p".to_owned()),
                by: by.map(str::to_owned),
                why: Some("migration".to_owned()),
                until: until.map(Timestamp::from_millis_clamped),
                ..Waiting::default()
            };
            waiting.to_string()
        };
        assert_eq!(waiting(None, None), "waiting: paused (migration)");
        assert_eq!(
            waiting(Some("ada"), Some(0)),
            "waiting: paused by ada until 1970-01-01T00:00:00.000Z (migration)"
        );
    }
}

//! What a job leaves behind on the events topic: one record per transition, the newest of a job id
//! being its state.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::{
    envelope::{Envelope, Work},
    outcome::JobError,
    record::Position,
    time::Timestamp,
};

/// Room for most events, so that they are not moved while they are written.
const USUAL_BYTES: usize = 1024;

/// The code of a job that has succeeded and whose result was too large to be kept.
pub const RESULT_OMITTED: &str = "result-omitted";

/// The states of a job. The last four are terminal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum JobState {
    /// Accepted and written to the jobs topic.
    Queued,
    /// An attempt is under way.
    Running,
    /// An attempt has failed and another one will follow.
    Retrying,
    /// Done, with a result.
    Succeeded,
    /// Given up; the record is in the dead letters too.
    Failed,
    /// Stopped on request.
    Cancelled,
    /// Its deadline passed before it could start.
    Expired,
}

impl JobState {
    /// All states, in the order in which jobs go through them. Stores keep places in this list: it
    /// only grows at its end.
    pub const ALL: [Self; 7] = [
        Self::Queued,
        Self::Running,
        Self::Retrying,
        Self::Succeeded,
        Self::Failed,
        Self::Cancelled,
        Self::Expired,
    ];

    /// Whether no other state can follow.
    pub fn is_terminal(self) -> bool {
        matches!(self, Self::Succeeded | Self::Failed | Self::Cancelled | Self::Expired)
    }

    /// The name on the wire, also used as a metric label.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Running => "running",
            Self::Retrying => "retrying",
            Self::Succeeded => "succeeded",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
            Self::Expired => "expired",
        }
    }
}

/// One transition of one job, the value of a record on the events topic.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(title = "mcp-fleet job event")]
pub struct JobEvent {
    /// The job's id, which is the record's key too. A record that holds no readable id is reported
    /// under `topic/partition/offset`.
    #[serde(rename = "jobID")]
    pub job_id: String,
    /// The state that the job has entered.
    pub state: JobState,
    /// When.
    pub time: Timestamp,
    /// The kind of job; absent where the envelope could not be read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub job_type: Option<String>,
    /// The tool that a `tool-call` calls, under the name that the server offers it by.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tool: Option<String>,
    /// How many calls a `tool-batch` makes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub calls: Option<u32>,
    /// When the record that asks for the job was written.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub submitted_at: Option<Timestamp>,
    /// Attempts spent so far, this one included.
    #[serde(default)]
    pub attempts: u32,
    /// The record that asked for the job.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<Source>,
    /// The worker that reports.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub worker: Option<String>,
    /// How far the tool says it has come, in a `running` event.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub progress: Option<Progress>,
    /// What the tool returned, in a `succeeded` event.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub result: Option<Value>,
    /// What stands in for a result that is too large for a record.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub result_omitted: Option<ResultOmitted>,
    /// Why the state is not all that it seems: `result-omitted` if the job has succeeded and its
    /// result exists nowhere.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub code: Option<String>,
    /// Why, in a `retrying`, `failed`, `cancelled` or `expired` event.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<JobError>,
    /// When the next attempt may start, in a `retrying` event.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_attempt_at: Option<Timestamp>,
    /// What the job waits for through no fault of its own, in a `queued` or `retrying` event.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub waiting: Option<Waiting>,
    /// How long things took, in a terminal event.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timings: Option<Timings>,
    /// Whose job it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tenant: Option<String>,
    /// Who submitted it, as the server that took it knows them.
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
    /// A bare event; the other fields are filled in by whoever reports.
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
            timings: None,
            tenant: None,
            owner: None,
            idempotency_key: None,
            metadata: Map::new(),
        }
    }

    /// An event about the job in `envelope`, with what every one of its events repeats.
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

    /// Leaves the result out, which has so many bytes where only `limit_bytes` are allowed.
    pub fn omit_result(&mut self, omitted: ResultOmitted) {
        self.result = None;
        self.result_omitted = Some(omitted);
        self.code = Some(RESULT_OMITTED.to_owned());
    }

    /// Whether the job has succeeded and nobody can read its result, also in an event from before
    /// there was a code for it.
    pub fn has_lost_its_result(&self) -> bool {
        self.state == JobState::Succeeded && self.result_omitted.is_some()
    }

    /// Whether the job has come to its end. A task's round that asks for input is a result, and no
    /// end: the answers come as another record of the same job.
    pub fn is_over(&self) -> bool {
        self.state.is_terminal() && !self.asks_for_input()
    }

    /// Whether the job is a task that waits for input (`resultType: input_required`, SEP-2322).
    pub fn asks_for_input(&self) -> bool {
        let kind = self.result.as_ref().and_then(|result| result.get("resultType")?.as_str());
        self.state == JobState::Succeeded && kind == Some("input_required")
    }

    /// The event as the bytes of a record's value.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(USUAL_BYTES);
        // Strings, numbers, maps with string keys: nothing in the struct can fail to become JSON.
        if serde_json::to_writer(&mut bytes, self).is_err() {
            bytes.clear();
        }
        bytes
    }
}

/// The record that asked for a job.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Source {
    /// The topic.
    pub topic: String,
    /// The topic's own id, where the broker has told it: a topic that was deleted and made again
    /// under its old name has another one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub topic_id: Option<String>,
    /// The partition.
    pub partition: i32,
    /// The offset.
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

/// What a job waits for: something that it needs is unavailable, which spends none of its attempts
/// (I7).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Waiting {
    /// Why: `server-unavailable`, `server-busy`, `upstream-unauthorized` and `rate-limited` of what
    /// our server hosts, `unavailable` and `unauthorized` of our server itself. Others may be
    /// added.
    pub reason: String,
    /// The hosted server, where it is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub server: Option<String>,
    /// Since when.
    pub since: Timestamp,
}

impl std::fmt::Display for Waiting {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.server {
            Some(server) => write!(f, "waits for server `{server}`: {}", self.reason),
            None => write!(f, "waits for mcp-server: {}", self.reason),
        }
    }
}

/// How far a tool says it has come.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Progress {
    /// Grows from one notice to the next. In a batch: the calls that are done.
    #[serde(deserialize_with = "crate::number::f64")]
    pub progress: f64,
    /// What `progress` will be at the end, where that is known.
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        deserialize_with = "crate::number::option_f64"
    )]
    pub total: Option<f64>,
    /// What the tool says about it, for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
}

/// What stands in for a result that is too large for a record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ResultOmitted {
    /// How large the result was, in bytes of JSON.
    pub bytes: u64,
    /// How large it might have been.
    pub limit_bytes: u64,
}

/// How long things took, as the worker saw it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Timings {
    /// The record's own timestamp.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub submitted_at: Option<Timestamp>,
    /// The start of the last attempt.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started_at: Option<Timestamp>,
    /// When the outcome was known.
    pub finished_at: Timestamp,
    /// From the record's timestamp to the start of the last attempt, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub waited_ms: Option<u64>,
    /// The last attempt, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ran_ms: Option<u64>,
}

impl Timings {
    /// The timings of a job that was written at `submitted_at`, started at `started_at` and ended
    /// at `finished_at`.
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

//! How an envelope is spelled in JSON, and the schema of that spelling.
//!
//! The structs here are what serde and schemars see. Bounds are not checked here but in
//! [`decode`](crate::decode), which can name the field and say what to do.

use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Map, Value};

use crate::{
    envelope::{Envelope, JobType, ToolBatch, ToolCall, Work},
    time::Timestamp,
};

/// The envelope on topic `mcp-jobs`, in the spelling that this project writes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(title = "mcp-fleet job envelope")]
pub struct WireEnvelope {
    /// The producer's name for the job, at most 256 bytes.
    #[serde(rename = "jobID")]
    #[schemars(length(min = 1, max = 256))]
    pub job_id: String,
    /// What kind of job it is: `server-init`, `tool-call` or `tool-batch`.
    #[schemars(with = "JobType")]
    pub job_type: String,
    /// What the job needs, as JSON in a string or as an object. Its shape follows from `jobType`.
    #[serde(default, skip_serializing_if = "Value::is_null")]
    #[schemars(with = "WirePayload")]
    pub payload: Value,
    /// 0 (last) to 9 (first); 4 where absent.
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        deserialize_with = "crate::number::option_whole"
    )]
    #[schemars(range(min = 0, max = 9))]
    pub priority: Option<u64>,
    /// The job must not start before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not_before: Option<Timestamp>,
    /// The job must not start after; a job that is late ends as `expired`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deadline: Option<Timestamp>,
    /// How long one attempt may take, in milliseconds.
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        deserialize_with = "crate::number::option_whole"
    )]
    #[schemars(range(min = 1, max = 86_400_000))]
    pub timeout_ms: Option<u64>,
    /// After so many spent attempts the job has failed.
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        deserialize_with = "crate::number::option_whole"
    )]
    #[schemars(range(min = 1, max = 100))]
    pub max_attempts: Option<u64>,
    /// What a tool can recognise a repeat by; the job id serves where it is absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 256))]
    pub idempotency_key: Option<String>,
    /// A topic that gets a copy of the terminal event.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = r"^[a-zA-Z0-9._-]{1,249}$"))]
    pub reply_to: Option<String>,
    /// Whose job it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 256))]
    pub tenant: Option<String>,
    /// Who submitted it, as the server that took it knows them. Written by the server.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 256))]
    pub owner: Option<String>,
    /// The producer's own data, copied into every event.
    #[serde(default, skip_serializing_if = "Map::is_empty", deserialize_with = "null_is_default")]
    pub metadata: Map<String, Value>,
    /// Fields that this version does not know are kept.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

/// The payload in either spelling; only the schema needs this type.
#[derive(JsonSchema)]
#[serde(untagged)]
#[expect(
    dead_code,
    clippy::large_enum_variant,
    reason = "the type stands for its schema and is never built"
)]
enum WirePayload {
    /// The payload as JSON in a string.
    Text(String),
    /// A `tool-call`.
    ToolCall(ToolCall),
    /// A `tool-batch`.
    ToolBatch(ToolBatch),
    /// A `server-init`: an object with `mcpServers` (or `servers`).
    ServerInit(Map<String, Value>),
}

/// Reads `null` as the type's default: many producers write absent fields as null.
pub(crate) fn null_is_default<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Default + Deserialize<'de>,
{
    Ok(Option::<T>::deserialize(deserializer)?.unwrap_or_default())
}

impl From<&Envelope> for WireEnvelope {
    fn from(envelope: &Envelope) -> Self {
        Self {
            job_id: envelope.job_id.clone(),
            job_type: envelope.work.job_type().as_str().to_owned(),
            payload: payload(&envelope.work),
            priority: envelope.priority.map(u64::from),
            not_before: envelope.not_before,
            deadline: envelope.deadline,
            timeout_ms: envelope.timeout_ms,
            max_attempts: envelope.max_attempts.map(|n| u64::from(n.get())),
            idempotency_key: envelope.idempotency_key.clone(),
            reply_to: envelope.reply_to.clone(),
            tenant: envelope.tenant.clone(),
            owner: envelope.owner.clone(),
            metadata: envelope.metadata.clone(),
            extra: envelope.extra.clone(),
        }
    }
}

fn payload(work: &Work) -> Value {
    match work {
        Work::ServerInit(servers) => Value::Object(servers.clone()),
        Work::ToolCall(call) => call_value(call),
        Work::ToolBatch(batch) => {
            let mut object = batch.extra.clone();
            object.insert("calls".to_owned(), batch.calls.iter().map(call_value).collect());
            if let Some(parallel) = batch.parallel {
                object.insert("parallel".to_owned(), parallel.into());
            }
            Value::Object(object)
        }
    }
}

fn call_value(call: &ToolCall) -> Value {
    let mut object = call.extra.clone();
    if let Some(server) = &call.server {
        object.insert("server".to_owned(), server.clone().into());
    }
    object.insert("tool".to_owned(), call.tool.clone().into());
    if !call.arguments.is_empty() {
        object.insert("arguments".to_owned(), Value::Object(call.arguments.clone()));
    }
    if let Some(round) = &call.task {
        // Maps with string keys: nothing in it can fail to become a value.
        object.insert("task".to_owned(), serde_json::to_value(round).unwrap_or_default());
    }
    Value::Object(object)
}

impl Envelope {
    /// The envelope as JSON, in the spelling with an inline payload.
    pub fn to_json(&self) -> Value {
        // Strings, numbers, maps with string keys: nothing in the struct can fail to become a
        // value.
        serde_json::to_value(WireEnvelope::from(self)).unwrap_or_default()
    }
}

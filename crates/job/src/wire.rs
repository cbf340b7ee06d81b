//! The JSON form of an envelope, and its schema.
//!
//! serde and schemars work on the structs in this module. [`decode`](crate::decode) checks the
//! bounds, since it can name the field and say what to do.

use schemars::{JsonSchema, Schema, SchemaGenerator, generate::SchemaSettings};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Map, Value};

use crate::{
    envelope::{Envelope, JobType, ToolBatch, ToolCall, Work},
    time::Timestamp,
};

/// The envelope on topic `mcp-jobs`, in the form that this project writes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(title = "mcp-fleet job envelope")]
pub struct WireEnvelope {
    /// The producer's id for the job, at most 256 bytes.
    #[serde(rename = "jobID")]
    #[schemars(length(min = 1, max = 256))]
    pub job_id: String,
    /// The kind of job: `server-init`, `tool-call` or `tool-batch`.
    #[schemars(with = "JobType")]
    pub job_type: String,
    /// The job's data, as an object or as JSON in a string. Its structure depends on `jobType`.
    #[serde(default, skip_serializing_if = "Value::is_null")]
    #[schemars(with = "WirePayload")]
    pub payload: Value,
    /// The priority, from 0 (last) to 9 (first); 4 if absent.
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        deserialize_with = "crate::number::option_whole"
    )]
    #[schemars(range(min = 0, max = 9))]
    pub priority: Option<u64>,
    /// The earliest time at which the job may start.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not_before: Option<Timestamp>,
    /// The latest time at which the job may start; a job that is late ends as `expired`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deadline: Option<Timestamp>,
    /// The time limit for one attempt in milliseconds.
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        deserialize_with = "crate::number::option_whole"
    )]
    #[schemars(range(min = 1, max = 86_400_000))]
    pub timeout_ms: Option<u64>,
    /// The number of attempts after which the job has failed.
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        deserialize_with = "crate::number::option_whole"
    )]
    #[schemars(range(min = 1, max = 100))]
    pub max_attempts: Option<u64>,
    /// A key by which a tool can recognize a repeated call; the job id is used if this is absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 256))]
    pub idempotency_key: Option<String>,
    /// A topic that receives a copy of the terminal event.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = r"^[a-zA-Z0-9._-]{1,249}$"))]
    pub reply_to: Option<String>,
    /// The tenant that the job belongs to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 256))]
    pub tenant: Option<String>,
    /// The submitter as known to the server that accepted the job. Written by the server.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 256))]
    pub owner: Option<String>,
    /// The producer's own data, which is copied into every event.
    #[serde(default, skip_serializing_if = "Map::is_empty", deserialize_with = "null_is_default")]
    pub metadata: Map<String, Value>,
    /// Fields that this version does not know. They are kept.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

impl WireEnvelope {
    /// The schema of the fields that a job can have whatever its work is, for requests that become
    /// envelopes: all but the ids, the work, and what only a server writes.
    pub fn options_schema(_: &mut SchemaGenerator) -> Schema {
        // A generator of its own, so that the definitions of other fields stay out of the document.
        let settings = SchemaSettings::draft2020_12().with(|it| it.inline_subschemas = true);
        let mut schema = Self::json_schema(&mut settings.into_generator());

        for keyword in ["title", "description", "required"] {
            schema.remove(keyword);
        }
        if let Some(Value::Object(properties)) = schema.get_mut("properties") {
            for field in ["jobID", "jobType", "payload", "idempotencyKey", "owner"] {
                properties.shift_remove(field);
            }
        }
        schema
    }
}

/// The payload in either form; used only for the schema.
#[derive(JsonSchema)]
#[serde(untagged)]
#[expect(
    dead_code,
    clippy::large_enum_variant,
    reason = "the type only describes a schema and is never created"
)]
enum WirePayload {
    /// The payload as JSON in a string.
    Text(String),
    /// The payload of a `tool-call`.
    ToolCall(ToolCall),
    /// The payload of a `tool-batch`.
    ToolBatch(ToolBatch),
    /// The payload of a `server-init`: an object with `mcpServers` (or `servers`).
    ServerInit(Map<String, Value>),
}

/// Reads `null` as the type's default, since many producers write absent fields as null.
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
        // A map with string keys always becomes a value.
        object.insert("task".to_owned(), serde_json::to_value(round).unwrap_or_default());
    }

    Value::Object(object)
}

impl Envelope {
    /// Returns the envelope as JSON, with the payload as an object.
    pub fn to_json(&self) -> Value {
        // Strings, numbers and maps with string keys always become a value.
        serde_json::to_value(WireEnvelope::from(self)).unwrap_or_default()
    }
}

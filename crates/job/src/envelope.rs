//! The job envelope: what a producer asks for.
//!
//! [`Envelope`] is the meaning; [`wire`](crate::wire) knows the spelling. Unknown fields are kept
//! at every level and written back, so that producers and tools can carry their own.

use std::num::NonZeroU32;

use serde_json::{Map, Value};

use crate::{time::Timestamp, tool_name};

/// The longest job id, idempotency key or tenant, in bytes.
pub const MAX_ID_BYTES: usize = 256;
/// The most bytes that `metadata` may have as JSON.
pub const MAX_METADATA_BYTES: u64 = 64 * 1024;
/// The highest priority; 0 is the lowest.
pub const MAX_PRIORITY: u8 = 9;
/// The priority of a job that names none.
pub const DEFAULT_PRIORITY: u8 = 4;
/// The most attempts a job may ask for.
pub const MAX_ATTEMPTS: u32 = 100;
/// The longest time a single call may take: one day, in milliseconds.
pub const MAX_TIMEOUT_MS: u64 = 86_400_000;
/// The most calls in one batch.
pub const MAX_BATCH_CALLS: usize = 10_000;
/// The most calls of a batch that may run at once.
pub const MAX_BATCH_PARALLEL: u32 = 64;

/// A job as its producer asked for it. Made by [`decode`](crate::decode::decode), which checks
/// every bound stated here.
#[derive(Debug, Clone, PartialEq)]
pub struct Envelope {
    /// The producer's name for the job: 1 to [`MAX_ID_BYTES`] bytes without control characters.
    pub job_id: String,
    /// What to do.
    pub work: Work,
    /// 0 (last) to [`MAX_PRIORITY`] (first).
    pub priority: Option<u8>,
    /// The job must not start before.
    pub not_before: Option<Timestamp>,
    /// The job must not start after; a job that is late ends as `expired`.
    pub deadline: Option<Timestamp>,
    /// How long one attempt may take, in milliseconds, 1 to [`MAX_TIMEOUT_MS`].
    pub timeout_ms: Option<u64>,
    /// After so many spent attempts the job has failed; 1 to [`MAX_ATTEMPTS`].
    pub max_attempts: Option<NonZeroU32>,
    /// What a tool can recognise a repeat by; the job id serves where it is absent.
    pub idempotency_key: Option<String>,
    /// A topic that gets a copy of the terminal event.
    pub reply_to: Option<String>,
    /// Whose job it is.
    pub tenant: Option<String>,
    /// Who submitted it, as the server that took it knows them: an opaque name, made from their
    /// credentials. Nobody else gets to see the job there.
    pub owner: Option<String>,
    /// The producer's own data, copied into every event.
    pub metadata: Map<String, Value>,
    /// Fields that this version does not know, kept as they came.
    pub extra: Map<String, Value>,
}

impl Envelope {
    /// An envelope with nothing but an id and work.
    pub fn new(job_id: impl Into<String>, work: Work) -> Self {
        Self {
            job_id: job_id.into(),
            work,
            priority: None,
            not_before: None,
            deadline: None,
            timeout_ms: None,
            max_attempts: None,
            idempotency_key: None,
            reply_to: None,
            tenant: None,
            owner: None,
            metadata: Map::new(),
            extra: Map::new(),
        }
    }

    /// What a tool can recognise a repeat of this job by.
    pub fn idempotency_key(&self) -> &str {
        self.idempotency_key.as_deref().unwrap_or(&self.job_id)
    }
}

/// What a job does.
#[derive(Debug, Clone, PartialEq)]
#[expect(
    clippy::large_enum_variant,
    reason = "a job is read once and then shared; a box would only make it harder to write down"
)]
pub enum Work {
    /// Host the servers of an `mcpServers` configuration: one `server_initialize` call each. The
    /// map is the payload as it came; decoding has made sure that
    /// [`McpServers`](crate::mcp_servers::McpServers) reads it.
    ServerInit(Map<String, Value>),
    /// Call one tool.
    ToolCall(ToolCall),
    /// Call many tools as one job.
    ToolBatch(ToolBatch),
}

impl Work {
    /// The `jobType` on the wire.
    pub fn job_type(&self) -> JobType {
        match self {
            Self::ServerInit(_) => JobType::ServerInit,
            Self::ToolCall(_) => JobType::ToolCall,
            Self::ToolBatch(_) => JobType::ToolBatch,
        }
    }
}

/// The kinds of job. The set is closed so that it can label metrics.
#[derive(
    Debug,
    Clone,
    Copy,
    PartialEq,
    Eq,
    Hash,
    serde::Serialize,
    serde::Deserialize,
    schemars::JsonSchema,
)]
#[serde(rename_all = "kebab-case")]
pub enum JobType {
    /// [`Work::ServerInit`]
    ServerInit,
    /// [`Work::ToolCall`]
    ToolCall,
    /// [`Work::ToolBatch`]
    ToolBatch,
}

impl JobType {
    /// All kinds, for messages that list them.
    pub const ALL: [Self; 3] = [Self::ServerInit, Self::ToolCall, Self::ToolBatch];

    /// The name on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::ServerInit => "server-init",
            Self::ToolCall => "tool-call",
            Self::ToolBatch => "tool-batch",
        }
    }

    /// The kind that `name` stands for.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.as_str() == name)
    }
}

/// One call of one tool.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ToolCall {
    /// The hosted server whose tool it is; without it, `tool` is the server's own or an already
    /// qualified name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1))]
    pub server: Option<String>,
    /// The tool's name.
    #[schemars(length(min = 1))]
    pub tool: String,
    /// The tool's arguments; an empty object where absent.
    #[serde(
        default,
        skip_serializing_if = "Map::is_empty",
        deserialize_with = "crate::wire::null_is_default"
    )]
    pub arguments: Map<String, Value>,
    /// Set where somebody waits for the call as an MCP task, and can be asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub task: Option<TaskRound>,
    /// Fields that this version does not know, kept as they came.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

impl ToolCall {
    /// A call without arguments.
    pub fn new(server: Option<String>, tool: impl Into<String>) -> Self {
        Self { server, tool: tool.into(), arguments: Map::new(), task: None, extra: Map::new() }
    }

    /// The name under which the server offers the tool.
    pub fn exposed_name(&self) -> String {
        match &self.server {
            Some(server) => tool_name::exposed(server, &self.tool),
            None => self.tool.clone(),
        }
    }
}

/// One round of a call that is an MCP task (`io.modelcontextprotocol/tasks`): what the caller can
/// be asked for, and what it has answered. A tool that asks for input ends the round; the answers
/// come as another job of the same id. An error of the tool's is the call's answer, so it is not
/// tried again.
#[derive(
    Debug, Clone, Default, PartialEq, serde::Serialize, serde::Deserialize, schemars::JsonSchema,
)]
#[serde(rename_all = "camelCase")]
pub struct TaskRound {
    /// The caller's capabilities, as it declared them.
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    pub client_capabilities: Map<String, Value>,
    /// The answers to what the tool asked for in the round before.
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    pub input_responses: Map<String, Value>,
    /// What the tool wants to be reminded of, as it gave it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request_state: Option<String>,
}

/// Many calls as one job.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ToolBatch {
    /// The calls, 1 to [`MAX_BATCH_CALLS`].
    #[schemars(length(min = 1, max = 10_000))]
    pub calls: Vec<ToolCall>,
    /// How many of them may run at once, 1 to [`MAX_BATCH_PARALLEL`]; one after the other where
    /// absent.
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        deserialize_with = "crate::number::option_whole"
    )]
    #[schemars(range(min = 1, max = 64))]
    pub parallel: Option<u32>,
    /// Fields that this version does not know, kept as they came.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

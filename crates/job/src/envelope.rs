//! The job envelope: a producer's request.
//!
//! [`Envelope`] is the meaning; [`wire`](crate::wire) has the JSON form. Unknown fields are kept at
//! every level and written back, so that producers and tools can add their own.

use std::{borrow::Cow, num::NonZeroU32};

use serde_json::{Map, Value};

use crate::{mcp_servers, time::Timestamp, tool_name};

/// The longest job id, idempotency key or tenant, in bytes.
pub const MAX_ID_BYTES: usize = 256;
/// The largest size of `metadata` as JSON, in bytes.
pub const MAX_METADATA_BYTES: u64 = 64 * 1024;
/// The highest priority; 0 is the lowest.
pub const MAX_PRIORITY: u8 = 9;
/// The priority of a job that does not set one.
pub const DEFAULT_PRIORITY: u8 = 4;
/// The largest number of attempts that a job may ask for.
pub const MAX_ATTEMPTS: u32 = 100;
/// The longest time limit of one attempt in milliseconds: one day.
pub const MAX_TIMEOUT_MS: u64 = 86_400_000;
/// The largest number of calls in a batch.
pub const MAX_BATCH_CALLS: usize = 10_000;
/// The largest number of calls of a batch that may run at once.
pub const MAX_BATCH_PARALLEL: u32 = 64;

/// A job as its producer asked for it. [`decode`](crate::decode::decode) creates it and checks
/// every bound stated here.
#[derive(Debug, Clone, PartialEq)]
pub struct Envelope {
    /// The producer's id for the job: 1 to [`MAX_ID_BYTES`] bytes without control characters.
    pub job_id: String,
    /// What the job does.
    pub work: Work,
    /// The priority, from 0 (last) to [`MAX_PRIORITY`] (first).
    pub priority: Option<u8>,
    /// The earliest time at which the job may start.
    pub not_before: Option<Timestamp>,
    /// The latest time at which the job may start; a job that is late ends as `expired`.
    pub deadline: Option<Timestamp>,
    /// The time limit for one attempt in milliseconds, from 1 to [`MAX_TIMEOUT_MS`].
    pub timeout_ms: Option<u64>,
    /// The number of attempts after which the job has failed, from 1 to [`MAX_ATTEMPTS`].
    pub max_attempts: Option<NonZeroU32>,
    /// A key by which a tool can recognize a repeated call; the job id is used if this is absent.
    pub idempotency_key: Option<String>,
    /// A topic that receives a copy of the terminal event.
    pub reply_to: Option<String>,
    /// The tenant that the job belongs to.
    pub tenant: Option<String>,
    /// The submitter as known to the server that accepted the job: an opaque name derived from the
    /// submitter's credentials. The server shows the job to no one else.
    pub owner: Option<String>,
    /// The producer's own data, which is copied into every event.
    pub metadata: Map<String, Value>,
    /// Fields that this version does not know, kept as they are.
    pub extra: Map<String, Value>,
}

impl Envelope {
    /// Creates an envelope with only an id and work.
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

    /// Returns the key by which a tool can recognize a repeated call of this job.
    pub fn idempotency_key(&self) -> &str {
        self.idempotency_key.as_deref().unwrap_or(&self.job_id)
    }
}

/// What a job does.
#[derive(Debug, Clone, PartialEq)]
#[expect(
    clippy::large_enum_variant,
    reason = "a job is read once and then shared, and a box would only make jobs harder to write down"
)]
pub enum Work {
    /// Host the servers of an `mcpServers` configuration, with one `server_initialize` call each.
    /// The map is the payload as written; decoding has verified that
    /// [`McpServers`](crate::mcp_servers::McpServers) can read it.
    ServerInit(Map<String, Value>),
    /// Call one tool.
    ToolCall(ToolCall),
    /// Call many tools as one job.
    ToolBatch(ToolBatch),
}

/// One call that a job makes.
#[derive(Debug, Clone, PartialEq)]
pub struct PlannedCall<'a> {
    /// The tool's full name.
    pub tool: Cow<'a, str>,
    /// The arguments.
    pub arguments: Cow<'a, Map<String, Value>>,
    /// The round of the task that the call belongs to. The calls of a batch belong to none, since
    /// nobody could tell which of them has asked for input.
    pub round: Option<&'a TaskRound>,
    /// The name of the call in a result with several: that of the server or of the tool.
    pub label: Cow<'a, str>,
}

/// The tool that starts a hosted server.
const INITIALIZE: &str = "server_initialize";

impl Work {
    /// Returns the calls that the job makes, in their order. What is signed and what is called
    /// comes from here.
    pub fn calls(&self) -> impl Iterator<Item = PlannedCall<'_>> {
        let (calls, is_batch, servers) = match self {
            Self::ToolCall(call) => (std::slice::from_ref(call), false, None),
            Self::ToolBatch(batch) => (&batch.calls[..], true, None),
            // Decoding makes sure that there are servers.
            Self::ServerInit(payload) => (&[][..], false, mcp_servers::roots::find(payload).ok()),
        };

        let calls = calls.iter().map(move |call| {
            let tool = call.exposed_name();
            PlannedCall {
                label: tool.clone().into(),
                tool: tool.into(),
                arguments: Cow::Borrowed(&call.arguments),
                round: call.task.as_ref().filter(|_| !is_batch),
            }
        });
        let servers = servers.into_iter().flat_map(|found| found.entries);
        calls.chain(servers.map(|(name, config)| PlannedCall {
            tool: INITIALIZE.into(),
            arguments: Cow::Owned(Map::from_iter([
                ("name".to_owned(), name.clone().into()),
                ("config".to_owned(), config.clone()),
            ])),
            round: None,
            label: name.into(),
        }))
    }

    /// Returns the kind of job.
    pub fn job_type(&self) -> JobType {
        match self {
            Self::ServerInit(_) => JobType::ServerInit,
            Self::ToolCall(_) => JobType::ToolCall,
            Self::ToolBatch(_) => JobType::ToolBatch,
        }
    }
}

/// The kinds of jobs. The set is closed so that it can label metrics.
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

    /// Returns the name of the kind in JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::ServerInit => "server-init",
            Self::ToolCall => "tool-call",
            Self::ToolBatch => "tool-batch",
        }
    }

    /// Returns the kind with this name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.as_str() == name)
    }
}

/// One call of one tool.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ToolCall {
    /// The hosted server that has the tool. If this is absent, `tool` is one of mcp-server's own
    /// tools or an already qualified name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1))]
    pub server: Option<String>,
    /// The name of the tool.
    #[schemars(length(min = 1))]
    pub tool: String,
    /// The arguments of the call; an empty object if absent.
    #[serde(
        default,
        skip_serializing_if = "Map::is_empty",
        deserialize_with = "crate::wire::null_is_default"
    )]
    pub arguments: Map<String, Value>,
    /// Present if a caller waits for this call as an MCP task and can answer questions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub task: Option<TaskRound>,
    /// Fields that this version does not know, kept as they are.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

impl ToolCall {
    /// Creates a call without arguments.
    pub fn new(server: Option<String>, tool: impl Into<String>) -> Self {
        Self { server, tool: tool.into(), arguments: Map::new(), task: None, extra: Map::new() }
    }

    /// Returns the name under which mcp-server offers the tool.
    pub fn exposed_name(&self) -> String {
        match &self.server {
            Some(server) => tool_name::exposed(server, &self.tool),
            None => self.tool.clone(),
        }
    }
}

/// One round of a call that is an MCP task (`io.modelcontextprotocol/tasks`): what the caller can
/// be asked for, and what it has answered. A tool that asks for input ends the round, and the
/// answers arrive as another job with the same id. An error of the tool is the call's result and is
/// not retried.
#[derive(
    Debug, Clone, Default, PartialEq, serde::Serialize, serde::Deserialize, schemars::JsonSchema,
)]
#[serde(rename_all = "camelCase")]
pub struct TaskRound {
    /// The caller's capabilities, as the caller declared them.
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    pub client_capabilities: Map<String, Value>,
    /// The answers to the tool's questions of the previous round.
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    pub input_responses: Map<String, Value>,
    /// The tool's opaque state from the previous round.
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
    /// The number of calls that may run at once, from 1 to [`MAX_BATCH_PARALLEL`]; 1 if absent.
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        deserialize_with = "crate::number::option_whole"
    )]
    #[schemars(range(min = 1, max = 64))]
    pub parallel: Option<u32>,
    /// Fields that this version does not know, kept as they are.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

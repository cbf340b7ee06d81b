//! Documents of the REST interface that no type of `fleet-job` describes, as far as screens show
//! them.

use fleet_job::{time::Timestamp, view::JobView};
use serde::Deserialize;
use serde_json::{Map, Value};

/// An error of the REST interface.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct ProblemView {
    /// The kind of problem for people.
    pub title: String,
    /// The HTTP status.
    pub status: u16,
    /// What is wrong with the request.
    pub detail: String,
    /// The stable code.
    pub code: Option<String>,
    /// The rule that refused the request.
    pub rule: Option<String>,
}

/// A tool that can be called.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ToolView {
    /// The name under which the tool is offered.
    pub name: String,
    /// The hosted server that has the tool.
    #[serde(default)]
    pub server: Option<String>,
    /// The tool's name at that server.
    pub tool: String,
    /// The title for people.
    #[serde(default)]
    pub title: Option<String>,
    /// What the tool does.
    #[serde(default)]
    pub description: Option<String>,
    /// What the tool says of itself.
    #[serde(default)]
    pub annotations: Value,
    /// How calls have gone.
    pub calls: CallsView,
    /// The schema of the arguments; only of a single tool.
    #[serde(default)]
    pub input_schema: Value,
    /// The schema of structured results; only of a single tool.
    #[serde(default)]
    pub output_schema: Value,
}

/// How calls of a tool have gone at one replica.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct CallsView {
    /// Since when they are counted.
    pub since: Option<Timestamp>,
    /// Their number.
    pub calls: u64,
    /// The share of those that failed.
    pub error_share: Option<f64>,
    /// The median of their durations, in milliseconds.
    pub p50_ms: Option<f64>,
    /// The duration that 95 % of them did not exceed, in milliseconds.
    pub p95_ms: Option<f64>,
}

/// The tools that can be called.
#[derive(Debug, Clone, Deserialize)]
pub struct ToolList {
    /// The tools.
    pub tools: Vec<ToolView>,
    /// Whether these are all.
    pub complete: bool,
}

/// The hosted servers.
#[derive(Debug, Clone, Deserialize)]
pub struct ServerList {
    /// The servers.
    pub servers: Vec<ServerView>,
}

/// A hosted server.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ServerView {
    /// The server's name.
    pub name: String,
    /// What it is doing.
    pub state: String,
    /// How it is reached.
    #[serde(default)]
    pub transport: Option<String>,
    /// What it says about itself.
    #[serde(default)]
    pub server_info: Option<ServerInfoView>,
    /// The MCP revision of the connection.
    #[serde(default)]
    pub protocol_version: Option<String>,
    /// The process id.
    #[serde(default)]
    pub pid: Option<u32>,
    /// How long it has been running, in milliseconds.
    #[serde(default)]
    pub uptime_ms: Option<u64>,
    /// The offered tools.
    #[serde(default)]
    pub tools: Vec<OfferedToolView>,
    /// What can't be offered.
    #[serde(default)]
    pub hidden_tools: Vec<Value>,
    /// How often it was restarted.
    #[serde(default)]
    pub restarts: u32,
    /// The number of running calls.
    #[serde(default)]
    pub calls_in_flight: u64,
    /// The number of waiting calls.
    #[serde(default)]
    pub calls_waiting: u64,
    /// Whether calls are let through.
    pub breaker: BreakerView,
    /// The last problem.
    #[serde(default)]
    pub last_error: Option<String>,
    /// The end of the standard error.
    #[serde(default)]
    pub stderr_tail: Option<String>,
}

/// What a server says about itself.
#[derive(Debug, Clone, Deserialize)]
pub struct ServerInfoView {
    /// The name.
    pub name: String,
    /// The version.
    pub version: String,
}

/// A tool of a server.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct OfferedToolView {
    /// The tool's name here.
    pub exposed_as: String,
    /// What the tool does.
    #[serde(default)]
    pub description: Option<String>,
}

/// Whether calls are let through to a server.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct BreakerView {
    /// `closed`, `open` or `probing`.
    pub state: String,
    /// How long it stays open, in milliseconds.
    #[serde(default)]
    pub retry_after_ms: Option<u64>,
    /// The error of the last lost call.
    #[serde(default)]
    pub last_failure: String,
}

/// What would happen to servers if they were hosted.
#[derive(Debug, Clone, Deserialize)]
pub struct ServerChecks {
    /// One entry per server.
    pub servers: Vec<ServerCheckView>,
    /// Oddities of the configuration.
    #[serde(default)]
    pub warnings: Vec<String>,
}

/// What would happen to a server.
#[derive(Debug, Clone, Deserialize)]
pub struct ServerCheckView {
    /// The server's name.
    pub name: String,
    /// `allowed`, `refused`, `fails` or `disabled`.
    pub verdict: String,
    /// Why it is not allowed, and what would allow it.
    #[serde(default)]
    pub reason: Option<String>,
    /// The rule of the policy that allows it.
    #[serde(default)]
    pub rule: Value,
    /// The program that would be started.
    #[serde(default)]
    pub program: Option<String>,
    /// The names of the program's environment variables.
    #[serde(default)]
    pub environment: Option<Vec<String>>,
    /// The addresses to connect to.
    #[serde(default)]
    pub addresses: Vec<String>,
    /// Oddities.
    #[serde(default)]
    pub warnings: Vec<String>,
}

/// Dead letters.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LetterList {
    /// Their topic.
    pub topic: String,
    /// The number of letters.
    pub letters: u64,
    /// How many of them have been replayed.
    pub replayed: u64,
    /// The letters by reason.
    pub reasons: Vec<ReasonView>,
    /// The newest letters.
    pub newest_letters: Vec<LetterView>,
    /// Whether the whole topic was read in time.
    pub complete: bool,
}

/// The letters of one reason.
#[derive(Debug, Clone, Deserialize)]
pub struct ReasonView {
    /// The kind of error.
    pub kind: String,
    /// The tool, or the start of the message.
    pub about: String,
    /// The number of letters.
    pub count: u64,
    /// How many of them have been replayed.
    pub replayed: u64,
    /// When the first of the jobs died.
    pub oldest: Option<Timestamp>,
    /// When the last of the jobs died.
    pub newest: Option<Timestamp>,
    /// The letters over time.
    #[serde(default)]
    pub slots: Vec<SlotView>,
}

/// The letters of some time.
#[derive(Debug, Clone, Deserialize)]
pub struct SlotView {
    /// The beginning of the time.
    pub start: Timestamp,
    /// Its end.
    pub end: Timestamp,
    /// The number of letters.
    pub letters: u64,
}

/// A dead letter, and its record if it is alone.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LetterView {
    /// The position of the letter.
    pub letter: String,
    /// The id of the job.
    #[serde(rename = "jobID")]
    pub job_id: String,
    /// The kind of error.
    pub kind: String,
    /// The error for people.
    pub message: String,
    /// The tool, or the type of job.
    #[serde(default)]
    pub what: Option<String>,
    /// The number of attempts.
    pub attempts: u32,
    /// When the worker gave up.
    pub time: Option<Timestamp>,
    /// The worker that gave up.
    #[serde(default)]
    pub worker: Option<String>,
    /// How often the job had been replayed before.
    pub replay_count: u32,
    /// Whether this letter has been replayed.
    pub replayed: bool,
    /// The job's record.
    #[serde(default)]
    pub origin: Value,
    /// The message of the first attempt's error.
    #[serde(default)]
    pub first_error: Option<String>,
    /// The headers.
    #[serde(default)]
    pub headers: Vec<Value>,
    /// The key.
    #[serde(default)]
    pub key: Value,
    /// The value.
    #[serde(default)]
    pub value: Value,
}

/// What a replay has done or would do.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ReplayView {
    /// How often a letter's job may have been replayed.
    pub max_replays: u32,
    /// The number of letters, by what is done with them.
    pub verdicts: Map<String, Value>,
    /// The number of letters to replay.
    pub to_replay: u64,
    /// The number of letters that were replayed.
    pub replayed: u64,
    /// The number that could not be.
    pub failed: u64,
    /// The number that is left for another request.
    pub left: u64,
    /// The letters.
    pub letters: Vec<ReplayedLetterView>,
    /// Why the replay ended early.
    #[serde(default)]
    pub error: Option<String>,
}

/// What is done with a letter.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ReplayedLetterView {
    /// The position of the letter.
    pub letter: String,
    /// The id of the job.
    #[serde(rename = "jobID")]
    pub job_id: String,
    /// The kind of error.
    pub kind: String,
    /// What is done.
    pub verdict: String,
    /// Why it could not be replayed.
    #[serde(default)]
    pub error: Option<String>,
}

/// What a deletion has done or would do.
#[derive(Debug, Clone, Deserialize)]
pub struct PurgeView {
    /// The topic of the letters.
    pub topic: String,
    /// The number of letters.
    pub letters: u64,
}

/// A job together with its history and its record, as far as they could be read.
#[derive(Debug, Clone)]
pub struct JobPage {
    /// The job.
    pub job: JobView,
    /// The history, or the reason why it could not be read.
    pub history: Result<fleet_job::view::JobHistory, ProblemView>,
    /// The record, or the reason why it could not be read.
    pub record: Result<fleet_job::view::JobRecord, ProblemView>,
}

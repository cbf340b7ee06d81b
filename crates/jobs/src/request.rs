//! What somebody asks to be done, before it is an envelope. Pure.

use fleet_job::{
    decode,
    envelope::{Envelope, JobType, ToolCall, Work},
    filter::JobFilter,
    time::Timestamp,
};
use fleet_ledger::{Cursor, Query, query::MAX_LIMIT};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::caller::{Caller, derived_id};

/// The most jobs on a page where nobody says.
const DEFAULT_LIMIT: usize = 50;

/// A job to submit: either `tool` (with `server` and `arguments`), or `calls` (with `parallel`), or
/// `mcpServers`; or an envelope's own `jobType` and `payload`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct JobRequest {
    /// The job's id; made where it is not given. A job of this id that is there already is not
    /// submitted again.
    #[serde(rename = "jobID", default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 256))]
    pub job_id: Option<String>,
    /// `tool-call`, `tool-batch` or `server-init`; follows from the other fields where it is not
    /// given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<JobType>")]
    pub job_type: Option<String>,
    /// What the job needs, as in an envelope: an object, or JSON in a string.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<Payload>")]
    pub payload: Option<Value>,
    /// The tool to call.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1))]
    pub tool: Option<String>,
    /// The hosted server whose tool it is; without it, `tool` is the server's own or a full name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1))]
    pub server: Option<String>,
    /// The tool's arguments.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub arguments: Option<Map<String, Value>>,
    /// Many calls as one job, at most 10,000.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 10_000))]
    pub calls: Option<Vec<CallRequest>>,
    /// How many of `calls` may run at once, 1 to 64; one after the other where it is not given.
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        deserialize_with = "fleet_job::number::option_whole"
    )]
    #[schemars(range(min = 1, max = 64))]
    pub parallel: Option<u64>,
    /// Servers to host, by name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mcp_servers: Option<Map<String, Value>>,
    /// Jobs of one key start in the order in which they were submitted, one at a time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 256))]
    pub key: Option<String>,
    /// 0 (last) to 9 (first); 4 where it is not given.
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        deserialize_with = "fleet_job::number::option_whole"
    )]
    #[schemars(range(min = 0, max = 9))]
    pub priority: Option<u64>,
    /// The job must not start before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not_before: Option<Timestamp>,
    /// The job must not start after.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deadline: Option<Timestamp>,
    /// How long one attempt may take, in milliseconds.
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        deserialize_with = "fleet_job::number::option_whole"
    )]
    #[schemars(range(min = 1, max = 86_400_000))]
    pub timeout_ms: Option<u64>,
    /// After so many spent attempts the job has failed.
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        deserialize_with = "fleet_job::number::option_whole"
    )]
    #[schemars(range(min = 1, max = 100))]
    pub max_attempts: Option<u64>,
    /// A job that was submitted with this key by the same caller is not submitted again: its state
    /// is the answer. Tools get to see it too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 256))]
    pub idempotency_key: Option<String>,
    /// A topic that gets a copy of the last event.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = r"^[a-zA-Z0-9._-]{1,249}$"))]
    pub reply_to: Option<String>,
    /// Whose job it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 256))]
    pub tenant: Option<String>,
    /// Your own data, copied into every event.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metadata: Option<Map<String, Value>>,
    /// Other fields are kept in the envelope.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

/// One call of a batch.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct CallRequest {
    /// The tool to call.
    #[schemars(length(min = 1))]
    pub tool: String,
    /// The hosted server whose tool it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1))]
    pub server: Option<String>,
    /// The tool's arguments.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub arguments: Option<Map<String, Value>>,
    /// Other fields are kept in the envelope.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

/// The payload in either spelling; only the schema needs this type.
#[derive(JsonSchema)]
#[serde(untagged)]
#[expect(dead_code, reason = "the type stands for its schema and is never built")]
enum Payload {
    /// JSON in a string.
    Text(String),
    /// An object.
    Object(Map<String, Value>),
}

/// A job that is ready to be written.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Prepared {
    pub(crate) envelope: Envelope,
    /// The record's key.
    pub(crate) key: Option<String>,
    /// Whether there can be a job of this id already.
    pub(crate) may_exist: bool,
}

/// What is wrong with a request: which field, and what to do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct BadRequest(pub String);

impl JobRequest {
    /// A call of one tool.
    pub fn call(tool: impl Into<String>, arguments: Map<String, Value>) -> Self {
        Self { tool: Some(tool.into()), arguments: Some(arguments), ..Self::default() }
    }

    /// The job that is asked for by `caller`. A job without an id gets one that follows from its
    /// idempotency key, or is `fresh`.
    pub(crate) fn prepare(
        self,
        caller: &Caller,
        fresh: impl FnOnce() -> String,
    ) -> Result<Prepared, BadRequest> {
        let may_exist = self.job_id.is_some() || self.idempotency_key.is_some();
        let owner = caller.owner.clone();
        let job_id = match (&self.job_id, &self.idempotency_key) {
            (Some(id), _) => id.clone(),
            (None, Some(key)) => derived_id("key", &[owner.as_deref().unwrap_or_default(), key]),
            (None, None) => fresh(),
        };
        let key = self.key.clone();
        if key.as_ref().is_some_and(|key| !(1..=256).contains(&key.len())) {
            return Err(BadRequest("`key` must have 1 to 256 bytes".to_owned()));
        }
        let (job_type, payload) = self.work_payload()?;
        let mut object = match serde_json::to_value(self.without_work_fields()) {
            Ok(Value::Object(object)) => object,
            // A struct becomes an object.
            _ => Map::new(),
        };
        // Who somebody is, and what they may answer for, they can't say themselves.
        object.shift_remove("owner");
        object.insert("jobID".to_owned(), job_id.into());
        object.insert("jobType".to_owned(), job_type.into());
        object.insert("payload".to_owned(), payload);
        let mut envelope = decode::from_value(object).map_err(|error| BadRequest(error.message))?;
        let calls: &mut [ToolCall] = match &mut envelope.work {
            Work::ToolCall(call) => std::slice::from_mut(call),
            Work::ToolBatch(batch) => &mut batch.calls,
            Work::ServerInit(_) => &mut [],
        };
        calls.iter_mut().for_each(|call| call.task = None);
        envelope.owner = owner;
        Ok(Prepared { envelope, key, may_exist })
    }

    /// The kind of job and its payload, in whichever way they were given.
    fn work_payload(&self) -> Result<(String, Value), BadRequest> {
        let ways = [
            self.payload.is_some(),
            self.tool.is_some(),
            self.calls.is_some(),
            self.mcp_servers.is_some(),
        ];
        if ways.iter().filter(|given| **given).count() != 1 {
            let message = "a job needs exactly one of `tool`, `calls`, `mcpServers` and `payload`";
            return Err(BadRequest(message.to_owned()));
        }
        for (field, given, with, with_it) in [
            ("server", self.server.is_some(), "tool", self.tool.is_some()),
            ("arguments", self.arguments.is_some(), "tool", self.tool.is_some()),
            ("parallel", self.parallel.is_some(), "calls", self.calls.is_some()),
        ] {
            if given && !with_it {
                return Err(BadRequest(format!(
                    "`{field}` goes with `{with}`, which this job has not"
                )));
            }
        }
        let (job_type, payload) = if let Some(payload) = &self.payload {
            let job_type = self.job_type.clone();
            let job_type = job_type.ok_or_else(|| {
                BadRequest("`jobType` is missing: `payload` goes with it".to_owned())
            })?;
            return Ok((job_type, payload.clone()));
        } else if let Some(tool) = &self.tool {
            let mut payload = Map::new();
            payload.insert("tool".to_owned(), tool.clone().into());
            let server = self.server.clone().map(|server| ("server".to_owned(), server.into()));
            let arguments = self.arguments.clone().map(|map| ("arguments".to_owned(), map.into()));
            payload.extend(server.into_iter().chain(arguments));
            (JobType::ToolCall, payload.into())
        } else if let Some(calls) = &self.calls {
            (JobType::ToolBatch, json!({"calls": calls, "parallel": self.parallel}))
        } else {
            (JobType::ServerInit, json!({"mcpServers": self.mcp_servers}))
        };
        match &self.job_type {
            Some(given) if given != job_type.as_str() => {
                let follows = job_type.as_str();
                Err(BadRequest(format!(
                    "`jobType` is `{given}`, but the other fields make it a `{follows}`"
                )))
            }
            _ => Ok((job_type.as_str().to_owned(), payload)),
        }
    }

    /// What remains for the envelope's own fields.
    fn without_work_fields(self) -> Self {
        Self {
            job_id: None,
            job_type: None,
            payload: None,
            tool: None,
            server: None,
            arguments: None,
            calls: None,
            parallel: None,
            mcp_servers: None,
            key: None,
            ..self
        }
    }
}

/// A page of the list of jobs, as somebody asks for it.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct PageRequest {
    /// Which jobs.
    pub filter: JobFilter,
    /// The most jobs on a page.
    pub limit: Option<usize>,
    /// Where the page before ended.
    pub cursor: Option<String>,
}

impl PageRequest {
    /// The question to the ledger.
    ///
    /// # Errors
    /// Where the limit, the type or the cursor is none.
    pub fn into_query(self) -> Result<Query, BadRequest> {
        let limit = self.limit.unwrap_or(DEFAULT_LIMIT);
        if !(1..=MAX_LIMIT).contains(&limit) {
            return Err(BadRequest(format!("`limit` is {limit}; it must be 1 to {MAX_LIMIT}")));
        }
        if let Some(job_type) = &self.filter.job_type
            && JobType::from_name(job_type).is_none()
        {
            let known = JobType::ALL.map(JobType::as_str).join(", ");
            return Err(BadRequest(format!(
                "`jobType`: `{job_type}` is unknown; known are {known}"
            )));
        }
        let after = match &self.cursor {
            None => None,
            Some(text) => Some(Cursor::parse(text).ok_or_else(|| {
                BadRequest(
                    "`cursor` is none: take `nextCursor` of the page before as it is".to_owned(),
                )
            })?),
        };
        Ok(Query { filter: self.filter, asker: None, limit, after })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prepare(value: Value) -> Result<Prepared, BadRequest> {
        let request: JobRequest = serde_json::from_value(value).unwrap();
        request.prepare(&Caller { owner: Some("me".to_owned()) }, || "fresh".to_owned())
    }

    #[test]
    fn all_ways_to_ask_become_envelopes() {
        let call = prepare(json!({"tool": "t", "server": "s", "arguments": {"a": 1}, "key": "k"}))
            .unwrap();
        assert_eq!(call.key.as_deref(), Some("k"));
        assert_eq!(call.envelope.job_id, "fresh");
        assert!(!call.may_exist);
        assert_eq!(call.envelope.owner.as_deref(), Some("me"));
        assert!(
            matches!(&call.envelope.work, Work::ToolCall(call) if call.exposed_name() == "s__t")
        );
        assert!(call.envelope.extra.is_empty(), "{:?}", call.envelope.extra);
        let batch = prepare(json!({"calls": [{"tool": "t"}], "parallel": 3})).unwrap();
        assert!(
            matches!(&batch.envelope.work, Work::ToolBatch(batch) if batch.parallel == Some(3))
        );
        let odd = prepare(json!({"calls": [{"tool": "t", "note": {"z": 1, "a": 2}}]})).unwrap();
        let Work::ToolBatch(odd) = odd.envelope.work else { panic!("not a batch") };
        assert_eq!(
            Value::from(odd.calls[0].extra.clone()).to_string(),
            r#"{"note":{"z":1,"a":2}}"#
        );
        let init = prepare(json!({"mcpServers": {"a": {"command": "x"}}})).unwrap();
        assert_eq!(init.envelope.work.job_type(), JobType::ServerInit);
        let raw = json!({"jobID": "j", "jobType": "tool-call", "payload": "{\"tool\":\"t\"}", "team": "x"});
        let raw = prepare(raw).unwrap();
        assert_eq!((raw.envelope.job_id.as_str(), raw.may_exist), ("j", true));
        assert_eq!(raw.envelope.extra["team"], "x");
    }

    #[test]
    fn a_job_with_an_idempotency_key_has_an_id_that_follows_from_it() {
        let job = |key: &str| prepare(json!({"tool": "t", "idempotencyKey": key})).unwrap();
        assert!(job("a").may_exist);
        assert_eq!(job("a").envelope.job_id, job("a").envelope.job_id);
        assert_ne!(job("a").envelope.job_id, job("b").envelope.job_id);
        assert_eq!(job("a").envelope.idempotency_key.as_deref(), Some("a"));
    }

    #[test]
    fn nobody_says_who_they_are_or_that_somebody_waits() {
        let job =
            json!({"owner": "root", "jobType": "tool-call", "payload": {"tool": "t", "task": {}}});
        let job = prepare(job).unwrap();
        assert_eq!(job.envelope.owner.as_deref(), Some("me"));
        assert!(matches!(job.envelope.work, Work::ToolCall(ToolCall { task: None, .. })));
    }

    #[test]
    fn what_is_wrong_names_its_field() {
        for (bad, names) in [
            (json!({}), "exactly one of"),
            (json!({"tool": "t", "calls": []}), "exactly one of"),
            (json!({"payload": {}}), "`jobType` is missing"),
            (json!({"tool": "t", "parallel": 2}), "`parallel` goes with `calls`"),
            (json!({"calls": [{"tool": "t"}], "arguments": {}}), "`arguments` goes with `tool`"),
            (json!({"tool": "t", "jobType": "tool-batch"}), "`jobType` is `tool-batch`"),
            (json!({"tool": ""}), "`payload.tool` is empty"),
            (json!({"tool": "t", "key": ""}), "`key`"),
            (
                json!({"calls": vec![json!({"tool": "t"}); 10_001]}),
                "`payload.calls` has 10001 calls",
            ),
            (json!({"tool": "t", "priority": 10}), "`priority` is 10"),
            (json!({"tool": "t", "jobID": "a\nb"}), "`jobID` contains control characters"),
        ] {
            let error = prepare(bad).unwrap_err().to_string();
            assert!(error.contains(names), "{error}");
        }
    }
}

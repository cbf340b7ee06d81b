//! The vendor keys that calls and results carry in MCP's `_meta`, and the trace context that goes
//! with a record.
//!
//! MCP reserves unprefixed names and those below `modelcontextprotocol`; ours stand below
//! `io.mcp-fleet`.

use serde_json::{Map, Value};
use sha2::{Digest as _, Sha256};

use crate::{
    envelope::{Envelope, TaskRound, Work},
    record::RawRecord,
    trace::TraceContext,
};

/// How many digits of a round's hash are in its key: 64 bits tell the rounds of one job apart.
const ROUND_DIGITS: usize = 16;

/// Begins every key of ours.
pub const PREFIX: &str = "io.mcp-fleet/";
/// In a call: the job's id.
pub const JOB_ID: &str = "io.mcp-fleet/jobId";
/// In a call: which attempt it is, counted from 1.
pub const ATTEMPT: &str = "io.mcp-fleet/attempt";
/// In a call: what a repeat can be recognised by. In a batch every call has its own, with `#index`
/// behind it; in a task every round has, with `#` and a hash of its answers behind it.
pub const IDEMPOTENCY_KEY: &str = "io.mcp-fleet/idempotencyKey";
/// In an error result: `true` when trying again can't help.
pub const FINAL: &str = "io.mcp-fleet/final";
/// In a result: `true` when it was remembered from an earlier call of the same job and no tool ran
/// for it.
pub const REPEATED: &str = "io.mcp-fleet/repeated";

/// In an error result: details for programs.
pub const ERROR_DETAILS: &str = "io.mcp-fleet/details";
/// In a list of tools: the hosted servers that are unavailable, and why.
pub const UNAVAILABLE: &str = "io.mcp-fleet/unavailable";
/// In a tool of a list: that calls of it take long. `true` or `optional` where it can be called
/// without tasks too, `required` where not, `after-input` where it asks for input at once and takes
/// long after that.
pub const LONG_RUNNING: &str = "io.mcp-fleet/longRunning";

/// What travels from the record to the call beside the trace's context (W3C Baggage).
const BAGGAGE: &str = "baggage";

/// The `_meta` of a call made for a job, within `trace`.
pub fn for_call(
    envelope: &Envelope,
    attempt: u32,
    index: Option<usize>,
    record: &RawRecord,
    trace: &TraceContext,
) -> Map<String, Value> {
    let key = envelope.idempotency_key();
    let mut meta = Map::new();
    meta.insert(JOB_ID.to_owned(), envelope.job_id.clone().into());
    meta.insert(ATTEMPT.to_owned(), attempt.into());
    let key = match (index, round(envelope)) {
        (Some(index), _) => format!("{key}#{index}"),
        (None, Some(round)) => format!("{key}#{round}"),
        (None, None) => key.to_owned(),
    };
    meta.insert(IDEMPOTENCY_KEY.to_owned(), key.into());
    trace.put_into(&mut meta);
    if let Some(value) = record.header(BAGGAGE).or_else(|| record.header(&format!("ce_{BAGGAGE}")))
    {
        meta.insert(BAGGAGE.to_owned(), value.into());
    }
    meta
}

/// What tells a later round of a task from the first one, which has the same job id and the same
/// arguments.
fn round(envelope: &Envelope) -> Option<String> {
    let Work::ToolCall(call) = &envelope.work else { return None };
    let TaskRound { input_responses, request_state, .. } = call.task.as_ref()?;
    if input_responses.is_empty() && request_state.is_none() {
        return None;
    }
    let answers = serde_json::json!([input_responses, request_state]).to_string();
    let digest = Sha256::digest(answers.as_bytes());
    let hash: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
    Some(hash[..ROUND_DIGITS].to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::Position;

    #[test]
    fn rounds_of_one_task_can_be_told_apart_and_repeats_of_one_cant() {
        let key = |task: &str| {
            let job = format!(
                r#"{{"jobID":"j","jobType":"tool-call","payload":{{"tool":"t","arguments":{{}}{task}}}}}"#
            );
            let position = Position { topic: "t".to_owned(), partition: 0, offset: 0 };
            let value = Some(job.into_bytes());
            let record =
                RawRecord { position, timestamp: None, key: None, value, headers: Vec::new() };
            let envelope = crate::decode::decode(&record, 1 << 20).unwrap();
            for_call(&envelope, 1, None, &record, &TraceContext::default())[IDEMPOTENCY_KEY]
                .as_str()
                .unwrap()
                .to_owned()
        };
        let answered =
            r#","task":{"inputResponses":{"name":{"action":"accept"}},"requestState":"s"}"#;
        assert_eq!((key(""), key(r#","task":{}"#)), ("j".to_owned(), "j".to_owned()));
        assert!(key(answered).starts_with("j#") && key(answered).len() == 2 + ROUND_DIGITS);
        assert_eq!(key(answered), key(answered));
        assert_ne!(key(answered), key(r#","task":{"requestState":"s"}"#));
        assert_ne!(key(answered), key(&answered.replace("accept", "decline")));
    }

    #[test]
    fn equal_calls_of_one_batch_can_be_told_apart() {
        let call = r#"{"tool":"t","arguments":{}}"#;
        let job = format!(
            r#"{{"jobID":"j","jobType":"tool-batch","payload":{{"calls":[{call},{call}]}}}}"#
        );
        let position = Position { topic: "t".to_owned(), partition: 0, offset: 0 };
        let value = Some(job.into_bytes());
        let record = RawRecord { position, timestamp: None, key: None, value, headers: Vec::new() };
        let envelope = crate::decode::decode(&record, 1 << 20).unwrap();
        let trace = TraceContext::default();
        let key = |attempt, index| {
            for_call(&envelope, attempt, index, &record, &trace)[IDEMPOTENCY_KEY].clone()
        };
        assert_ne!(key(1, Some(0)), key(1, Some(1)));
        assert_eq!(key(1, Some(1)), key(2, Some(1)), "an attempt repeats its calls");
    }
}

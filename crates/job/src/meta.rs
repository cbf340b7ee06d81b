//! The vendor keys in the `_meta` of calls and results, and the trace context of a record.
//!
//! MCP reserves names without a prefix and names below `modelcontextprotocol`. Ours are below
//! `io.mcp-fleet`.

use serde_json::{Map, Value};
use sha2::{Digest as _, Sha256};

use crate::{
    envelope::{Envelope, TaskRound, Work},
    record::RawRecord,
    trace::TraceContext,
};

/// The length of the hash in the key of a round, in hexadecimal digits: 64 bits suffice to
/// distinguish the rounds of one job.
const ROUND_DIGITS: usize = 16;

/// The prefix of all our keys.
pub const PREFIX: &str = "io.mcp-fleet/";
/// In a call: the id of the job.
pub const JOB_ID: &str = "io.mcp-fleet/jobId";
/// In a call: the number of the attempt, counted from 1.
pub const ATTEMPT: &str = "io.mcp-fleet/attempt";
/// In a call: a key by which the tool can recognize a repeated call. In a batch each call has its
/// own key, with `#index` appended; in a task each round has, with `#` and a hash of its answers
/// appended.
pub const IDEMPOTENCY_KEY: &str = "io.mcp-fleet/idempotencyKey";
/// In a call that a worker makes for a job: the job's signature and what shows that the call belongs
/// to it; an empty object if the job is not signed.
pub const SIGNED_JOB: &str = "io.mcp-fleet/signedJob";
/// In an error result: `true` if a retry cannot help.
pub const FINAL: &str = "io.mcp-fleet/final";
/// In a result: `true` if it was remembered from an earlier call of the same job, so that no tool
/// ran for this call.
pub const REPEATED: &str = "io.mcp-fleet/repeated";

/// In the metadata of a job: the id of the job that it is another run of.
pub const RUN_OF: &str = "io.mcp-fleet/runOf";

/// In an error result: details for programs.
pub const ERROR_DETAILS: &str = "io.mcp-fleet/details";
/// In a list of tools: the hosted servers that are unavailable, and why.
pub const UNAVAILABLE: &str = "io.mcp-fleet/unavailable";
/// In a listed tool: that its calls take long. `true` or `optional` if the tool can also be called
/// without tasks, `required` if it cannot, and `after-input` if it asks for input at once and takes
/// long afterwards.
pub const LONG_RUNNING: &str = "io.mcp-fleet/longRunning";

/// The W3C Baggage header, which is passed from the record to the call besides the trace context.
const BAGGAGE: &str = "baggage";

/// Returns the `_meta` of a call that is made for a job within `trace`.
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

    let key = match (index, round_hash(envelope)) {
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

/// Returns what distinguishes a later round of a task from the first one, which has the same job id
/// and arguments.
fn round_hash(envelope: &Envelope) -> Option<String> {
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
    fn rounds_of_a_task_have_different_keys_but_repeats_of_a_round_have_the_same() {
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
    fn equal_calls_of_a_batch_have_different_keys() {
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

//! The vendor keys that calls and results carry in MCP's `_meta`, and the trace context that goes with a record.
//!
//! MCP reserves unprefixed names and those below `modelcontextprotocol`; ours stand below `io.mcp-fleet`.

use serde_json::{Map, Value};

use crate::{envelope::Envelope, record::RawRecord};

/// In a call: the job's id.
pub const JOB_ID: &str = "io.mcp-fleet/jobId";
/// In a call: which attempt it is, counted from 1.
pub const ATTEMPT: &str = "io.mcp-fleet/attempt";
/// In a call: what a repeat can be recognised by. In a batch every call has its own, with `#index` behind it.
pub const IDEMPOTENCY_KEY: &str = "io.mcp-fleet/idempotencyKey";
/// In an error result: `true` when trying again can't help.
pub const FINAL: &str = "io.mcp-fleet/final";
/// In a result: `true` when it was remembered from an earlier call of the same job and no tool ran for it.
pub const REPEATED: &str = "io.mcp-fleet/repeated";

/// The W3C trace context headers that travel from the record to the call.
const TRACE_HEADERS: [&str; 3] = ["traceparent", "tracestate", "baggage"];

/// The `_meta` of a call made for a job.
pub fn for_call(
    envelope: &Envelope,
    attempt: u32,
    index: Option<usize>,
    record: &RawRecord,
) -> Map<String, Value> {
    let key = envelope.idempotency_key();
    let mut meta = Map::new();
    meta.insert(JOB_ID.to_owned(), envelope.job_id.clone().into());
    meta.insert(ATTEMPT.to_owned(), attempt.into());
    let key = index.map_or_else(|| key.to_owned(), |index| format!("{key}#{index}"));
    meta.insert(IDEMPOTENCY_KEY.to_owned(), key.into());
    for name in TRACE_HEADERS {
        if let Some(value) = record.header(name).or_else(|| record.header(&format!("ce_{name}"))) {
            meta.insert(name.to_owned(), value.into());
        }
    }
    meta
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::Position;

    #[test]
    fn equal_calls_of_one_batch_can_be_told_apart() {
        let call = r#"{"tool":"t","arguments":{}}"#;
        let job = format!(r#"{{"jobID":"j","jobType":"tool-batch","payload":{{"calls":[{call},{call}]}}}}"#);
        let position = Position { topic: "t".to_owned(), partition: 0, offset: 0 };
        let value = Some(job.into_bytes());
        let record = RawRecord { position, timestamp: None, key: None, value, headers: Vec::new() };
        let envelope = crate::decode::decode(&record, 1 << 20).unwrap();
        let key = |attempt, index| for_call(&envelope, attempt, index, &record)[IDEMPOTENCY_KEY].clone();
        assert_ne!(key(1, Some(0)), key(1, Some(1)));
        assert_eq!(key(1, Some(1)), key(2, Some(1)), "an attempt repeats its calls");
    }
}

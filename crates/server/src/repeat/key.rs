//! The key by which a repeat is recognised.

use fleet_access::Asker;
use fleet_job::meta::{IDEMPOTENCY_KEY, JOB_ID};
use fleet_ops::http::{CREDENTIALS, credential_bytes};
use http::request::Parts;
use rmcp::model::{CallToolRequestParams, JsonObject};
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

/// A digest of everything that identifies a call: job id, idempotency key, tool, arguments, and the
/// caller: the principal if it was verified, or else the credentials that came.
///
/// It is a digest because arguments can be large and credentials should not be kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Key([u8; 32]);

impl Key {
    /// The key of a call. `None` if the call belongs to no job, or if it is a later round of a call
    /// that needed input, which only the tool itself can answer.
    pub(crate) fn of(
        params: &CallToolRequestParams,
        meta: &Map<String, Value>,
        parts: Option<&Parts>,
    ) -> Option<Self> {
        if params.input_responses.is_some() || params.request_state.is_some() {
            return None;
        }

        let job_id = meta.get(JOB_ID)?.as_str().filter(|job_id| !job_id.is_empty())?;

        let mut hasher = Sha256::new();
        hash_text(&mut hasher, job_id);
        // An idempotency key of another type is invalid, but still distinguishes calls.
        hash_value(&mut hasher, meta.get(IDEMPOTENCY_KEY).unwrap_or(&Value::Null));
        hash_text(&mut hasher, &params.name);
        hash_object(&mut hasher, params.arguments.as_ref().unwrap_or(&JsonObject::new()));

        hash_caller(&mut hasher, parts);
        Some(Self(hasher.finalize().into()))
    }

    #[cfg(test)]
    pub(super) fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }
}

/// Hashes who calls. A verified principal is the same caller with every key and token of its own.
fn hash_caller(hasher: &mut Sha256, parts: Option<&Parts>) {
    let asker = parts.and_then(|parts| parts.extensions.get::<Asker>());
    if let Some(principal) = asker.map(Asker::principal).filter(|principal| principal.is_verified())
    {
        hasher.update(b"p");
        return hash_bytes(hasher, principal.id().as_bytes());
    }

    hasher.update(b"c");
    for name in &CREDENTIALS {
        let values: Vec<_> = parts.map_or_else(Vec::new, |parts| {
            let values = parts.headers.get_all(name).iter();
            values.map(|value| credential_bytes(name, value)).collect()
        });
        hash_count(hasher, values.len());
        values.iter().for_each(|value| hash_bytes(hasher, value));
    }
}

/// Hashes a value in a canonical form: the order of members doesn't matter, and different values
/// never have the same form, because each value begins with its type and, if it has one, its
/// length.
fn hash_value(hasher: &mut Sha256, value: &Value) {
    match value {
        Value::Null => hasher.update(b"0"),
        Value::Bool(false) => hasher.update(b"f"),
        Value::Bool(true) => hasher.update(b"t"),
        Value::Number(number) => {
            hasher.update(b"n");
            hash_text(hasher, &number.to_string());
        }
        Value::String(string) => {
            hasher.update(b"s");
            hash_text(hasher, string);
        }
        Value::Array(items) => {
            hasher.update(b"a");
            hash_count(hasher, items.len());
            items.iter().for_each(|item| hash_value(hasher, item));
        }
        Value::Object(members) => {
            hasher.update(b"o");
            hash_object(hasher, members);
        }
    }
}

fn hash_object(hasher: &mut Sha256, members: &Map<String, Value>) {
    let mut members: Vec<_> = members.iter().collect();
    members.sort_unstable_by_key(|(name, _)| name.as_str());
    hash_count(hasher, members.len());
    for (name, member) in members {
        hash_text(hasher, name);
        hash_value(hasher, member);
    }
}

fn hash_text(hasher: &mut Sha256, text: &str) {
    hash_bytes(hasher, text.as_bytes());
}

fn hash_bytes(hasher: &mut Sha256, bytes: &[u8]) {
    hash_count(hasher, bytes.len());
    hasher.update(bytes);
}

fn hash_count(hasher: &mut Sha256, count: usize) {
    hasher.update((count as u64).to_be_bytes());
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use fleet_access::{CurrentRights, Principal};
    use http::HeaderValue;
    use serde_json::json;

    use super::*;

    fn key(call: &Value) -> Option<Key> {
        let params: CallToolRequestParams = serde_json::from_value(call["params"].clone()).unwrap();
        let meta = call["meta"].as_object().unwrap();
        let (mut parts, ()) = http::Request::new(()).into_parts();
        for (name, value) in call["headers"].as_object().into_iter().flatten() {
            let name = http::HeaderName::try_from(name).unwrap();
            parts.headers.insert(name, HeaderValue::from_str(value.as_str().unwrap()).unwrap());
        }
        if let Some(subject) = call["subject"].as_str() {
            let via = fleet_access::Via::Token;
            let kind = fleet_access::PrincipalKind::Person;
            let principal = Principal::new("https://idp", subject, kind, via);
            parts.extensions.insert(Asker::new(Arc::new(principal), CurrentRights::default()));
        }
        Key::of(&params, meta, Some(&parts))
    }

    fn call() -> Value {
        json!({
            "params": {"name": "t", "arguments": {"a": 1, "b": {"x": [1, "2"], "y": null}}},
            "meta": {JOB_ID: "j", IDEMPOTENCY_KEY: "k", "io.mcp-fleet/attempt": 1},
        })
    }

    #[test]
    fn keys_differ_only_between_different_calls() {
        let check = |pointer: &str, value: Value, same: bool| {
            let (base, mut other) = (call(), call());
            let (parent, name) = pointer.rsplit_once('/').unwrap();
            other.pointer_mut(parent).unwrap()[name.replace("~1", "/")] = value;
            assert_eq!(key(&base) == key(&other), same, "{other}");
        };
        check("/meta/io.mcp-fleet~1attempt", json!(2), true);
        check("/meta/traceparent", json!("x"), true);
        check("/params/arguments", json!({"b": {"y": null, "x": [1, "2"]}, "a": 1}), true);
        check("/meta/io.mcp-fleet~1jobId", json!("other"), false);
        check("/meta/io.mcp-fleet~1idempotencyKey", json!("k#1"), false);
        check("/params/name", json!("u"), false);
        check("/params/arguments/a", json!("1"), false);
        check("/params/arguments/a", json!(1.0), false);
        check("/params/arguments/b/x", json!([1, 2]), false);
        check("/params/arguments/b/x", json!(["2", 1]), false);
        check("/params/arguments/b/y", json!({}), false);
        check("/params/arguments", json!({}), false);
        check("/headers", json!({"authorization": "Bearer a"}), false);
        check("/headers", json!({"x-api-key": "a"}), false);
        check("/headers", json!({"accept": "a"}), true);
    }

    #[test]
    fn a_principal_repeats_a_call_with_new_credentials() {
        let of = |subject: &str, token: &str| {
            let mut call = call();
            call["subject"] = json!(subject);
            call["headers"] = json!({ "authorization": token });
            key(&call)
        };
        assert_eq!(of("a", "Bearer 1"), of("a", "Bearer 2"));
        assert_ne!(of("a", "Bearer 1"), of("b", "Bearer 1"));
    }

    #[test]
    fn fields_do_not_run_into_each_other() {
        let of = |job: &str, idempotency: &str| {
            key(
                &json!({"params": {"name": "t"}, "meta": {JOB_ID: job, IDEMPOTENCY_KEY: idempotency}}),
            )
        };
        assert_ne!(of("ab", "c"), of("a", "bc"));
        let bare = json!({"params": {"name": "t"}, "meta": {JOB_ID: "j"}});
        let empty = json!({"params": {"name": "t", "arguments": {}}, "meta": {JOB_ID: "j"}});
        assert_eq!(key(&bare), key(&empty), "missing arguments equal empty ones");
    }

    #[test]
    fn calls_without_a_job_and_later_rounds_have_no_key() {
        let check = |call: Value| assert_eq!(key(&call), None, "{call}");
        check(json!({"params": {"name": "t"}, "meta": {}}));
        check(json!({"params": {"name": "t"}, "meta": {JOB_ID: ""}}));
        check(json!({"params": {"name": "t"}, "meta": {JOB_ID: 7}}));
        check(json!({"params": {"name": "t", "requestState": "s"}, "meta": {JOB_ID: "j"}}));
    }
}

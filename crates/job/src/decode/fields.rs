//! The fields of an envelope, and the checks of their bounds.

use std::num::NonZeroU32;

use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use super::{is_envelope, payload};
use crate::{
    envelope::{
        Envelope, MAX_ATTEMPTS, MAX_ID_BYTES, MAX_METADATA_BYTES, MAX_PRIORITY, MAX_TIMEOUT_MS,
    },
    number,
    outcome::{ErrorKind, JobError},
    size::{clipped, json_bytes},
    topics,
    wire::WireEnvelope,
    wrapping,
};

/// The longest message about an envelope, in bytes. A message may repeat parts of the envelope,
/// which may be long.
const MAX_MESSAGE: usize = 4096;

pub(super) fn invalid(message: String) -> JobError {
    JobError::new(ErrorKind::InvalidEnvelope, clipped(&message, MAX_MESSAGE))
}

/// Reads a `T`. An error names the position of the problem below `prefix`.
pub(super) fn read_typed<T: DeserializeOwned>(value: Value, prefix: &str) -> Result<T, JobError> {
    let read = match number::has_plain_numbers(&value) {
        true => serde_path_to_error::deserialize(value),
        false => serde_json::from_str(&value.to_string())
            .or_else(|_| serde_path_to_error::deserialize(value)),
    };
    read.map_err(|error| {
        let path = error.path().to_string();
        let place = match (prefix, path.as_str()) {
            ("", ".") => "the envelope".to_owned(),
            (prefix, ".") => format!("`{prefix}`"),
            ("", path) => format!("`{path}`"),
            (prefix, path) => format!("`{prefix}.{path}`"),
        };
        invalid(format!("{place}: {}", error.into_inner()))
    })
}

/// Decodes an envelope and checks every bound.
pub(super) fn decode_fields(mut object: Map<String, Value>) -> Result<Envelope, JobError> {
    if !is_envelope(&object)
        && let Some(member) = wrapping::find_member_with(&object, is_envelope)
    {
        return Err(invalid(format!(
            "`jobID` is missing, but `{member}` contains a job envelope; write that as the record's value"
        )));
    }

    let hint = spelling_hint(&object);
    let with_hint = |error: JobError| invalid(format!("{}{hint}", error.message));

    // Unknown fields are kept, for which serde copies the whole object, so take out what may be
    // large.
    let payload = object.shift_remove("payload").unwrap_or_default();

    // `null` means absent in optional fields only; the required fields reject it.
    let wire: WireEnvelope = read_typed(Value::Object(object), "").map_err(with_hint)?;

    check_id(&wire.job_id).map_err(|why| invalid(format!("`jobID` {why}")))?;
    let work = payload::decode_work(&wire.job_type, payload).map_err(with_hint)?;
    check_bounds(&wire)?;

    Ok(Envelope {
        job_id: wire.job_id,
        work,
        priority: check_range("priority", wire.priority, 0, u64::from(MAX_PRIORITY))?
            .map(|n| n as u8),
        not_before: wire.not_before,
        deadline: wire.deadline,
        timeout_ms: check_range("timeoutMs", wire.timeout_ms, 1, MAX_TIMEOUT_MS)?,
        max_attempts: check_range("maxAttempts", wire.max_attempts, 1, u64::from(MAX_ATTEMPTS))?
            .and_then(|n| NonZeroU32::new(n as u32)),
        idempotency_key: wire.idempotency_key,
        reply_to: wire.reply_to,
        tenant: wire.tenant,
        owner: wire.owner,
        metadata: wire.metadata,
        extra: wire.extra,
    })
}

/// Checks the fields that need more than a range.
fn check_bounds(wire: &WireEnvelope) -> Result<(), JobError> {
    for (field, value) in [
        ("idempotencyKey", &wire.idempotency_key),
        ("tenant", &wire.tenant),
        ("owner", &wire.owner),
    ] {
        if let Some(value) = value {
            check_id(value).map_err(|why| invalid(format!("`{field}` {why}")))?;
        }
    }

    let metadata_bytes = json_bytes(&wire.metadata);
    if metadata_bytes > MAX_METADATA_BYTES {
        return Err(invalid(format!(
            "`metadata` has {metadata_bytes} bytes; at most {MAX_METADATA_BYTES} are allowed, since every event repeats it"
        )));
    }

    if let Some(topic) = &wire.reply_to
        && !topics::is_valid_name(topic)
    {
        return Err(invalid(format!("`replyTo`: `{topic}` is not a valid Kafka topic name")));
    }

    for (field, time) in [("notBefore", wire.not_before), ("deadline", wire.deadline)] {
        if let Some(time) = time {
            time.check_plausible().map_err(|why| invalid(format!("`{field}`: {why}")))?;
        }
    }

    if let (Some(start), Some(end)) = (wire.not_before, wire.deadline)
        && start > end
    {
        return Err(invalid(format!("`notBefore` ({start}) is later than `deadline` ({end})")));
    }

    Ok(())
}

/// The fields of an envelope that people often misspell.
const FIELDS: [&str; 12] = [
    "jobID",
    "jobType",
    "payload",
    "priority",
    "notBefore",
    "deadline",
    "timeoutMs",
    "maxAttempts",
    "idempotencyKey",
    "replyTo",
    "tenant",
    "metadata",
];

/// Returns a hint about fields of `object` that differ from known ones only by case, `_` and `-`.
/// Such fields alone are no error, since unknown fields are kept.
fn spelling_hint(object: &Map<String, Value>) -> String {
    let folded = |name: &str| name.replace(['_', '-'], "").to_ascii_lowercase();
    let meant = |name: &str| FIELDS.into_iter().find(|field| folded(field) == folded(name));
    let hints = object.keys().filter_map(|name| {
        let field = meant(name).filter(|field| !object.contains_key(*field))?;
        Some(format!("write `{field}` instead of `{name}`"))
    });

    let hints: Vec<_> = hints.collect();
    if hints.is_empty() { String::new() } else { format!(" ({})", hints.join(", ")) }
}

pub(super) fn check_range(
    field: &str,
    value: Option<u64>,
    min: u64,
    max: u64,
) -> Result<Option<u64>, JobError> {
    match value {
        Some(n) if !(min..=max).contains(&n) => {
            Err(invalid(format!("`{field}` is {n}; it must be {min} to {max}")))
        }
        other => Ok(other),
    }
}

/// Checks an id that is used in keys, headers and logs.
pub(super) fn check_id(id: &str) -> Result<(), String> {
    if id.is_empty() {
        Err("is empty".to_owned())
    } else if id.len() > MAX_ID_BYTES {
        Err(format!("has {} bytes; at most {MAX_ID_BYTES} are allowed", id.len()))
    } else if id.chars().any(char::is_control) {
        Err("contains control characters".to_owned())
    } else {
        Ok(())
    }
}

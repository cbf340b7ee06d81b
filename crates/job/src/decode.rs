//! Decoding a record into a job, or into an error that names the field and says what to do.
//!
//! Three forms are read: the fleet's own JSON, CloudEvents in Kafka's structured mode, and
//! CloudEvents in its binary mode (`cloud_events`). All three become one [`WireEnvelope`] and pass
//! the same checks. Layers that serializers and connectors put around an envelope are removed first
//! (`wrapping`).

use std::num::NonZeroU32;

use base64::Engine as _;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use crate::{
    envelope::{
        Envelope, JobType, MAX_ATTEMPTS, MAX_BATCH_CALLS, MAX_BATCH_PARALLEL, MAX_ID_BYTES,
        MAX_METADATA_BYTES, MAX_PRIORITY, MAX_TIMEOUT_MS, ToolBatch, ToolCall, Work,
    },
    mcp_servers::{self, McpServers},
    number,
    outcome::{ErrorKind, JobError},
    record::RawRecord,
    size::{clipped, json_bytes},
    topics,
    wire::WireEnvelope,
    wrapping::{self, Opened, kind_of},
};

/// Why a record is not a job. The caller keeps the record itself, byte for byte.
#[derive(Debug, Clone, PartialEq)]
pub struct DecodeError {
    /// What is wrong, with the name of the field and what to do.
    pub error: JobError,
    /// The job id if it could be read, so that the failure can be reported under it.
    pub job_id: Option<String>,
}

impl std::fmt::Display for DecodeError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.error.fmt(f)
    }
}

impl std::error::Error for DecodeError {}

/// Decodes a record into a job.
///
/// # Errors
///
/// Returns a [`DecodeError`] of kind
/// - [`ErrorKind::TooLarge`] if the value exceeds `max_bytes`,
/// - [`ErrorKind::Undecodable`] if the value is not a JSON object,
/// - [`ErrorKind::InvalidEnvelope`] if a field is missing, of the wrong type or out of bounds, or
///   if there is no envelope inside the layers around the value.
pub fn decode(record: &RawRecord, max_bytes: usize) -> Result<Envelope, DecodeError> {
    decode_counted(record, max_bytes).map(|(envelope, _)| envelope)
}

/// Decodes a record into a job and returns the number of bytes that were decompressed for it, which
/// is 0 if the value was not compressed.
///
/// # Errors
///
/// Returns the errors of [`decode`].
pub fn decode_counted(
    record: &RawRecord,
    max_bytes: usize,
) -> Result<(Envelope, usize), DecodeError> {
    let value = record.value.as_deref().ok_or_else(|| {
        anonymous(
            ErrorKind::Undecodable,
            "the record has no value; a job must be a JSON object".to_owned(),
        )
    })?;
    if value.len() > max_bytes {
        return Err(anonymous(
            ErrorKind::TooLarge,
            format!(
                "the record's value has {} bytes, but the worker accepts at most {max_bytes}; \
                 pass large data by reference, or raise MCP_MAX_JOB_BYTES",
                value.len()
            ),
        ));
    }

    let opened = match cloud_event_headers(record) {
        Some(attributes) => binary_cloud_event(attributes, value, max_bytes)?,
        None => {
            let is_declared = is_declared_cloud_event(record);
            let opened = open(value, max_bytes, |object| is_declared || is_envelope(object))?;
            match is_declared || looks_like_cloud_event(&opened.object) {
                true => structured_cloud_event(opened, max_bytes)?,
                false => opened,
            }
        }
    };

    let object = opened.object;

    let job_id = object
        .get("jobID")
        .and_then(Value::as_str)
        .filter(|id| check_id(id).is_ok())
        .map(str::to_owned);

    let envelope = from_object(object).map_err(|error| DecodeError { error, job_id })?;
    Ok((envelope, opened.unpacked))
}

/// Decodes one envelope from JSON text, as `mcp-fleet submit` does before it sends anything.
///
/// # Errors
///
/// Returns the errors of [`decode`], except for the size limit.
pub fn from_json(text: &[u8]) -> Result<Envelope, DecodeError> {
    let opened = open(text, usize::MAX, is_envelope)?;
    let object = match looks_like_cloud_event(&opened.object) {
        true => structured_cloud_event(opened, usize::MAX)?.object,
        false => opened.object,
    };

    let job_id = object.get("jobID").and_then(Value::as_str).map(str::to_owned);
    from_object(object).map_err(|error| DecodeError { error, job_id })
}

/// Decodes one envelope from an object that is known to be an envelope and not a CloudEvent.
///
/// # Errors
///
/// Returns the errors of [`decode`], except for the size limit.
pub fn from_value(object: Map<String, Value>) -> Result<Envelope, JobError> {
    from_object(object)
}

fn anonymous(kind: ErrorKind, message: String) -> DecodeError {
    DecodeError { error: JobError::new(kind, message), job_id: None }
}

fn open(
    value: &[u8],
    limit: usize,
    is_wanted: impl Fn(&Map<String, Value>) -> bool,
) -> Result<Opened, DecodeError> {
    wrapping::open(value, limit, is_wanted).map_err(|error| DecodeError { error, job_id: None })
}

/// Returns whether an object is meant to be an envelope, valid or not.
fn is_envelope(object: &Map<String, Value>) -> bool {
    object.contains_key("jobID") || object.contains_key("jobType") || looks_like_cloud_event(object)
}

// --- CloudEvents --------------------------------------------------------------------------------

/// The prefix of CloudEvents attributes in Kafka headers.
const CE_PREFIX: &str = "ce_";
/// The prefix of the content type in structured mode.
const CE_STRUCTURED: &str = "application/cloudevents+json";
/// The attributes for fields of the envelope. CloudEvents requires attributes to be in lower case.
const CE_FIELDS: [(&str, &str); 9] = [
    ("priority", "priority"),
    ("notbefore", "notBefore"),
    ("deadline", "deadline"),
    ("timeoutms", "timeoutMs"),
    ("maxattempts", "maxAttempts"),
    ("idempotencykey", "idempotencyKey"),
    ("replyto", "replyTo"),
    ("tenant", "tenant"),
    ("metadata", "metadata"),
];

/// Returns the `ce_` headers of a binary-mode event, which has a `ce_specversion`.
fn cloud_event_headers(record: &RawRecord) -> Option<Map<String, Value>> {
    record.header("ce_specversion")?;
    let attributes = record.headers.iter().filter_map(|(name, value)| {
        let (prefix, attribute) = name.split_at_checked(CE_PREFIX.len())?;
        let text = std::str::from_utf8(value.as_deref()?).ok()?;
        prefix
            .eq_ignore_ascii_case(CE_PREFIX)
            .then(|| (attribute.to_ascii_lowercase(), Value::String(text.to_owned())))
    });

    Some(attributes.collect())
}

fn binary_cloud_event(
    attributes: Map<String, Value>,
    value: &[u8],
    max_bytes: usize,
) -> Result<Opened, DecodeError> {
    let opened = open(value, max_bytes, |_| true)?;
    let payload = Value::Object(opened.object);
    Ok(Opened { object: from_attributes(attributes, Some(payload)), ..opened })
}

fn is_declared_cloud_event(record: &RawRecord) -> bool {
    let content_type = record.header("content-type");
    content_type
        .is_some_and(|value| value.trim_start().to_ascii_lowercase().starts_with(CE_STRUCTURED))
}

fn looks_like_cloud_event(object: &Map<String, Value>) -> bool {
    object.contains_key("specversion") && !object.contains_key("jobID")
}

fn structured_cloud_event(opened: Opened, limit: usize) -> Result<Opened, DecodeError> {
    let Opened { mut object, mut unpacked } = opened;
    let data = match (object.shift_remove("data"), object.shift_remove("data_base64")) {
        (Some(data), _) => Some(data),
        (None, Some(Value::String(text))) => {
            let bytes =
                base64::engine::general_purpose::STANDARD.decode(&text).map_err(|source| {
                    anonymous(
                        ErrorKind::Undecodable,
                        format!("the CloudEvent's `data_base64` is not valid base64: {source}"),
                    )
                })?;

            let data = open(&bytes, limit, |_| true)?;
            unpacked += data.unpacked;
            Some(Value::Object(data.object))
        }
        (None, _) => None,
    };

    Ok(Opened { object: from_attributes(object, data), unpacked })
}

/// Converts the attributes and data of a CloudEvent into an envelope. Attributes that are not
/// fields of the envelope are kept under their own names.
fn from_attributes(mut attributes: Map<String, Value>, data: Option<Value>) -> Map<String, Value> {
    let mut object = Map::new();

    if let Some(id) = attributes.shift_remove("id") {
        object.insert("jobID".to_owned(), id);
    }
    if let Some(kind) = attributes.shift_remove("type") {
        object.insert("jobType".to_owned(), without_namespace(kind));
    }
    if let Some(data) = data {
        object.insert("payload".to_owned(), data);
    }

    for (name, value) in attributes {
        match CE_FIELDS.iter().find(|(attribute, _)| *attribute == name) {
            Some((_, field)) => object.insert((*field).to_owned(), typed_attribute(field, value)),
            None => object.insert(name, value),
        };
    }

    object
}

/// Removes the namespace of a CloudEvents type, which is usually a reverse-DNS name:
/// `io.mcp-fleet.tool-call` is a `tool-call`.
fn without_namespace(kind: Value) -> Value {
    let known = kind
        .as_str()
        .and_then(|text| text.rsplit('.').next())
        .and_then(JobType::from_name)
        .map(|kind| kind.as_str().into());
    known.unwrap_or(kind)
}

/// Parses attributes that are numbers or objects. In headers every attribute is text, so these are
/// written as JSON.
fn typed_attribute(field: &str, value: Value) -> Value {
    let is_json = matches!(field, "priority" | "timeoutMs" | "maxAttempts" | "metadata");
    match &value {
        Value::String(text) if is_json => serde_json::from_str(text).unwrap_or(value),
        _ => value,
    }
}

// --- Checks -------------------------------------------------------------------------------------

/// The longest message about an envelope, in bytes. A message may repeat parts of the envelope,
/// which may be long.
const MAX_MESSAGE: usize = 4096;

fn invalid(message: String) -> JobError {
    JobError::new(ErrorKind::InvalidEnvelope, clipped(&message, MAX_MESSAGE))
}

/// Reads a `T`. An error names the position of the problem below `prefix`.
fn typed<T: DeserializeOwned>(value: Value, prefix: &str) -> Result<T, JobError> {
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
fn from_object(mut object: Map<String, Value>) -> Result<Envelope, JobError> {
    if !is_envelope(&object)
        && let Some(member) = wrapping::holder(&object, is_envelope)
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
    let wire: WireEnvelope = typed(Value::Object(object), "").map_err(with_hint)?;

    check_id(&wire.job_id).map_err(|why| invalid(format!("`jobID` {why}")))?;
    let work = work(&wire.job_type, payload).map_err(with_hint)?;
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

    Ok(Envelope {
        job_id: wire.job_id,
        work,
        priority: bounded("priority", wire.priority, 0, u64::from(MAX_PRIORITY))?.map(|n| n as u8),
        not_before: wire.not_before,
        deadline: wire.deadline,
        timeout_ms: bounded("timeoutMs", wire.timeout_ms, 1, MAX_TIMEOUT_MS)?,
        max_attempts: bounded("maxAttempts", wire.max_attempts, 1, u64::from(MAX_ATTEMPTS))?
            .and_then(|n| NonZeroU32::new(n as u32)),
        idempotency_key: wire.idempotency_key,
        reply_to: wire.reply_to,
        tenant: wire.tenant,
        owner: wire.owner,
        metadata: wire.metadata,
        extra: wire.extra,
    })
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

fn bounded(field: &str, value: Option<u64>, min: u64, max: u64) -> Result<Option<u64>, JobError> {
    match value {
        Some(n) if !(min..=max).contains(&n) => {
            Err(invalid(format!("`{field}` is {n}; it must be {min} to {max}")))
        }
        other => Ok(other),
    }
}

/// Checks an id that is used in keys, headers and logs.
fn check_id(id: &str) -> Result<(), String> {
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

/// Decodes the work of a job from its type and payload.
fn work(job_type: &str, payload: Value) -> Result<Work, JobError> {
    let kind = JobType::from_name(job_type).ok_or_else(|| {
        let known = JobType::ALL.map(JobType::as_str).join(", ");
        invalid(format!("`jobType`: `{job_type}` is unknown; expected one of {known}"))
    })?;

    let payload = match payload {
        Value::String(text) if kind == JobType::ServerInit => configuration_in(&text)?,
        Value::String(text) => payload_in(&text)?,
        Value::Null => {
            return Err(invalid(format!("`payload` is missing; a {job_type} job needs one")));
        }
        other => other,
    };

    let Value::Object(mut object) = payload else {
        return Err(invalid(format!(
            "`payload` is a JSON {}; it must be an object",
            kind_of(&payload)
        )));
    };

    match kind {
        JobType::ServerInit => server_init(Value::Object(object)),
        JobType::ToolCall => {
            let arguments = take_arguments(&mut object);
            let call: ToolCall = typed(Value::Object(object), "payload")?;
            check_call(&call, "payload")?;
            Ok(Work::ToolCall(with_arguments(call, arguments)))
        }
        JobType::ToolBatch => {
            let calls = object.get_mut("calls").and_then(Value::as_array_mut).into_iter().flatten();
            let arguments: Vec<_> =
                calls.map(|call| call.as_object_mut().and_then(take_arguments)).collect();
            let mut batch: ToolBatch = typed(Value::Object(object), "payload")?;
            check_batch(&batch)?;

            let calls = batch.calls.into_iter().zip(arguments);
            batch.calls = calls.map(|(call, arguments)| with_arguments(call, arguments)).collect();
            Ok(Work::ToolBatch(batch))
        }
    }
}

/// Parses a payload in a string. Some producers encode it twice, so it may be a string inside a
/// string.
fn payload_in(text: &str) -> Result<Value, JobError> {
    let read = |text: &str| {
        serde_json::from_str(text).map_err(|source| {
            invalid(format!("`payload` is a string that does not contain valid JSON: {source}"))
        })
    };
    match read(text)? {
        Value::String(inner) => read(&inner),
        other => Ok(other),
    }
}

/// Parses a configuration in a string, which may have comments and other deviations from JSON.
fn configuration_in(text: &str) -> Result<Value, JobError> {
    let read = |text: &str| {
        mcp_servers::text::parse(text.as_bytes())
            .map_err(|error| invalid(format!("`payload`: {error}")))
    };
    match read(text)? {
        Value::String(inner) => read(&inner),
        other => Ok(other),
    }
}

/// Takes the arguments out of a call if they are an object. The typed read reports any other value.
fn take_arguments(call: &mut Map<String, Value>) -> Option<Map<String, Value>> {
    call.get("arguments").filter(|arguments| arguments.is_object())?;
    match call.shift_remove("arguments") {
        Some(Value::Object(arguments)) => Some(arguments),
        _ => None,
    }
}

/// Puts the arguments back into a call.
fn with_arguments(call: ToolCall, arguments: Option<Map<String, Value>>) -> ToolCall {
    ToolCall { arguments: arguments.unwrap_or(call.arguments), ..call }
}

/// Decodes the payload of a `server-init` job.
fn server_init(payload: Value) -> Result<Work, JobError> {
    let servers =
        McpServers::from_value(&payload).map_err(|error| invalid(format!("`payload`: {error}")))?;

    if servers.servers.is_empty() {
        return Err(invalid("`payload.mcpServers` does not name any server".to_owned()));
    }

    if let Some(error) = servers.first_error_of_all() {
        return Err(invalid(format!("`payload`: {error}")));
    }

    match payload {
        Value::Object(object) => Ok(Work::ServerInit(object)),
        // The caller has checked that the payload is an object.
        _ => Err(invalid("`payload` must be an object".to_owned())),
    }
}

fn check_call(call: &ToolCall, place: &str) -> Result<(), JobError> {
    if call.tool.is_empty() {
        return Err(invalid(format!("`{place}.tool` is empty")));
    }
    if call.server.as_deref() == Some("") {
        return Err(invalid(format!(
            "`{place}.server` is empty; leave it out to call one of mcp-server's own tools"
        )));
    }
    Ok(())
}

fn check_batch(batch: &ToolBatch) -> Result<(), JobError> {
    if !(1..=MAX_BATCH_CALLS).contains(&batch.calls.len()) {
        let n = batch.calls.len();
        return Err(invalid(format!(
            "`payload.calls` has {n} calls; it must have 1 to {MAX_BATCH_CALLS}"
        )));
    }

    bounded("payload.parallel", batch.parallel.map(u64::from), 1, u64::from(MAX_BATCH_PARALLEL))?;

    batch
        .calls
        .iter()
        .enumerate()
        .try_for_each(|(index, call)| check_call(call, &format!("payload.calls[{index}]")))
}

//! Decoding a record into a job, or into an error that names the field and says what to do.
//!
//! Three forms are read: the fleet's own JSON, CloudEvents in Kafka's structured mode, and
//! CloudEvents in its binary mode (`cloud_events`). All three become one [`WireEnvelope`](crate::wire::WireEnvelope) and pass
//! the same checks. Layers that serializers and connectors put around an envelope are removed first
//! (`wrapping`).

mod cloud_events;
mod fields;
mod payload;

use serde_json::{Map, Value};

use self::cloud_events::{
    cloud_event_headers, is_declared_cloud_event, looks_like_cloud_event, open_binary_event,
    open_structured_event,
};
use self::fields::{check_id, decode_fields};
use crate::{
    envelope::Envelope,
    outcome::{ErrorKind, JobError},
    record::RawRecord,
    wrapping::{self, Opened},
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
        error_without_id(
            ErrorKind::Undecodable,
            "the record has no value; a job must be a JSON object".to_owned(),
        )
    })?;
    if value.len() > max_bytes {
        return Err(error_without_id(
            ErrorKind::TooLarge,
            format!(
                "the record's value has {} bytes, but the worker accepts at most {max_bytes}; \
                 pass large data by reference, or raise MCP_MAX_JOB_BYTES",
                value.len()
            ),
        ));
    }

    let opened = match cloud_event_headers(record) {
        Some(attributes) => open_binary_event(attributes, value, max_bytes)?,
        None => {
            let is_declared = is_declared_cloud_event(record);
            let opened = open(value, max_bytes, |object| is_declared || is_envelope(object))?;
            match is_declared || looks_like_cloud_event(&opened.object) {
                true => open_structured_event(opened, max_bytes)?,
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

    let envelope = decode_fields(object).map_err(|error| DecodeError { error, job_id })?;
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
        true => open_structured_event(opened, usize::MAX)?.object,
        false => opened.object,
    };

    let job_id = object.get("jobID").and_then(Value::as_str).map(str::to_owned);
    decode_fields(object).map_err(|error| DecodeError { error, job_id })
}

/// Decodes one envelope from an object that is known to be an envelope and not a CloudEvent.
///
/// # Errors
///
/// Returns the errors of [`decode`], except for the size limit.
pub fn from_value(object: Map<String, Value>) -> Result<Envelope, JobError> {
    decode_fields(object)
}

fn error_without_id(kind: ErrorKind, message: String) -> DecodeError {
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

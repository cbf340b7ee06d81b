//! CloudEvents in Kafka's structured mode (one JSON object that contains everything) and in its
//! binary mode (attributes as `ce_` headers, the payload as the value); see the CloudEvents Kafka
//! protocol binding 1.0.2, sections 3.2 and 3.3.

use base64::Engine as _;
use serde_json::{Map, Value};

use super::{DecodeError, error_without_id, open};
use crate::{envelope::JobType, outcome::ErrorKind, record::RawRecord, wrapping::Opened};

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
pub(super) fn cloud_event_headers(record: &RawRecord) -> Option<Map<String, Value>> {
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

pub(super) fn open_binary_event(
    attributes: Map<String, Value>,
    value: &[u8],
    max_bytes: usize,
) -> Result<Opened, DecodeError> {
    let opened = open(value, max_bytes, |_| true)?;
    let payload = Value::Object(opened.object);
    Ok(Opened { object: convert_attributes(attributes, Some(payload)), ..opened })
}

pub(super) fn is_declared_cloud_event(record: &RawRecord) -> bool {
    let content_type = record.header("content-type");
    content_type
        .is_some_and(|value| value.trim_start().to_ascii_lowercase().starts_with(CE_STRUCTURED))
}

pub(super) fn looks_like_cloud_event(object: &Map<String, Value>) -> bool {
    object.contains_key("specversion") && !object.contains_key("jobID")
}

pub(super) fn open_structured_event(opened: Opened, limit: usize) -> Result<Opened, DecodeError> {
    let Opened { mut object, mut unpacked } = opened;
    let data = match (object.shift_remove("data"), object.shift_remove("data_base64")) {
        (Some(data), _) => Some(data),
        (None, Some(Value::String(text))) => {
            let bytes =
                base64::engine::general_purpose::STANDARD.decode(&text).map_err(|source| {
                    error_without_id(
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

    Ok(Opened { object: convert_attributes(object, data), unpacked })
}

/// Converts the attributes and data of a CloudEvent into an envelope. Attributes that are not
/// fields of the envelope are kept under their own names.
fn convert_attributes(
    mut attributes: Map<String, Value>,
    data: Option<Value>,
) -> Map<String, Value> {
    let mut object = Map::new();

    if let Some(id) = attributes.shift_remove("id") {
        object.insert("jobID".to_owned(), id);
    }
    if let Some(kind) = attributes.shift_remove("type") {
        object.insert("jobType".to_owned(), strip_namespace(kind));
    }
    if let Some(data) = data {
        object.insert("payload".to_owned(), data);
    }

    for (name, value) in attributes {
        match CE_FIELDS.iter().find(|(attribute, _)| *attribute == name) {
            Some((_, field)) => object.insert((*field).to_owned(), parse_attribute(field, value)),
            None => object.insert(name, value),
        };
    }

    object
}

/// Removes the namespace of a CloudEvents type, which is usually a reverse-DNS name:
/// `io.mcp-fleet.tool-call` is a `tool-call`.
fn strip_namespace(kind: Value) -> Value {
    let known = kind
        .as_str()
        .and_then(|text| text.rsplit('.').next())
        .and_then(JobType::from_name)
        .map(|kind| kind.as_str().into());
    known.unwrap_or(kind)
}

/// Parses attributes that are numbers or objects. In headers every attribute is text, so these are
/// written as JSON.
fn parse_attribute(field: &str, value: Value) -> Value {
    let is_json = matches!(field, "priority" | "timeoutMs" | "maxAttempts" | "metadata");
    match &value {
        Value::String(text) if is_json => serde_json::from_str(text).unwrap_or(value),
        _ => value,
    }
}

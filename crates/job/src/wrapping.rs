//! Finding the JSON object in a record's value, inside the layers that serializers and connectors
//! put around it.
//!
//! Many producers do not write plain JSON: the serializer of a schema registry prepends the id of a
//! schema, Kafka Connect and Debezium put the value into a member of their own object, and a
//! serializer that is given text turns it into a JSON string. Each such layer is recognized by
//! marks that no envelope has, and is removed. The content is untrusted, so the number of layers
//! and the decompressed size are bounded.

use std::io::Read as _;

use flate2::read::{MultiGzDecoder, ZlibDecoder};
use serde_json::{Map, Value};

use crate::outcome::{ErrorKind, JobError};

use self::{
    bytes::{Compression, GLUE_ZLIB, REGISTRY_HEADERS},
    objects::ObjectWrapping,
};

mod bytes;
mod objects;

/// The largest number of layers, which is more than any chain of connectors makes.
const MAX_LAYERS: usize = 8;
/// The largest decompressed size, for callers without a limit of their own.
const MAX_UNPACKED: usize = 64 << 20;

/// A JSON object that was found inside its layers.
#[derive(Debug)]
pub(crate) struct Opened {
    pub(crate) object: Map<String, Value>,
    /// The number of decompressed bytes; 0 if nothing was compressed.
    pub(crate) unpacked: usize,
}

/// Removes layers from `value` until `is_wanted` accepts an object. If nothing was removed, an
/// object without a known layer is returned as it is.
///
/// # Errors
///
/// Returns an error of kind
/// - [`ErrorKind::TooLarge`] if more than `limit` bytes would be decompressed,
/// - [`ErrorKind::Undecodable`] if the value is neither a JSON object nor wrapped,
/// - [`ErrorKind::InvalidEnvelope`], with the names of the layers, if there is no envelope inside.
pub(crate) fn open(
    value: &[u8],
    limit: usize,
    is_wanted: impl Fn(&Map<String, Value>) -> bool,
) -> Result<Opened, JobError> {
    let mut layers = Layers { names: Vec::new(), unpacked: 0, limit: limit.min(MAX_UNPACKED) };
    let mut found = layers.parse(value)?;

    loop {
        found = match found {
            Value::Object(object) if is_wanted(&object) => return Ok(layers.finish(object)),
            Value::Object(object) => match ObjectWrapping::find(&object) {
                Some(wrapping) => {
                    layers.enter(wrapping.name)?;
                    wrapping.take_inside(object).map_err(|count| layers.not_one_error(count))?
                }
                None if layers.names.is_empty() => return Ok(layers.finish(object)),
                None => return Err(layers.nothing_inside_error("an object without `jobID`")),
            },
            Value::Array(items) if items.iter().any(Value::is_object) => {
                layers.enter("an array")?;
                objects::take_only(Value::Array(items))
                    .map_err(|count| layers.not_one_error(count))?
            }
            Value::String(text) => layers.parse_text(&text)?,
            other => {
                return Err(layers.nothing_inside_error(&format!("a JSON {}", kind_of(&other))));
            }
        };
    }
}

/// Returns the name of the member of `object` that contains a wanted object, as an object or as
/// JSON in a string.
pub(crate) fn find_member_with(
    object: &Map<String, Value>,
    is_wanted: impl Fn(&Map<String, Value>) -> bool,
) -> Option<&str> {
    let holds = |value: &Value| match value {
        Value::Object(object) => is_wanted(object),
        Value::String(text) if text.trim_start().starts_with('{') => {
            serde_json::from_str(text).is_ok_and(|object| is_wanted(&object))
        }
        _ => false,
    };

    object.iter().find(|(_, value)| holds(value)).map(|(name, _)| name.as_str())
}

/// Returns JSON's name for the type of a value.
pub(crate) fn kind_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

const UTF8_MARK: &[u8] = b"\xef\xbb\xbf";

/// The layers that have been removed so far, outermost first.
struct Layers {
    names: Vec<String>,
    unpacked: usize,
    limit: usize,
}

impl Layers {
    fn finish(&self, object: Map<String, Value>) -> Opened {
        Opened { object, unpacked: self.unpacked }
    }

    /// Records that a layer is being removed.
    fn enter(&mut self, name: &str) -> Result<(), JobError> {
        if self.names.len() >= MAX_LAYERS {
            return Err(self.invalid_error(&format!("; at most {MAX_LAYERS} layers are supported")));
        }
        self.names.push(name.to_owned());
        Ok(())
    }

    /// Removes layers that are not JSON from `bytes` and parses the rest as JSON.
    fn parse(&mut self, bytes: &[u8]) -> Result<Value, JobError> {
        if let Some(plain) = bytes.strip_prefix(UTF8_MARK) {
            return self.parse(plain);
        }
        if let Some(compression) = Compression::of(bytes) {
            self.enter(compression.name())?;
            let plain = self.unpack(compression, bytes)?;
            return self.parse(&plain);
        }
        if let Some((text, name)) = bytes::decode_wide_text(bytes) {
            self.enter(name)?;
            return self.parse(text.as_bytes());
        }
        if let Some(name) = bytes::name_unread_format(bytes) {
            self.enter(name)?;
            return Err(self.invalid_error(
                ", which is not supported; write the envelope as plain JSON, and leave compression to the producer \
                 (`compression.type`)",
            ));
        }
        if matches!(bytes.first(), Some(0 | 3)) {
            return self.parse_after_registry_header(bytes);
        }

        // C programs may include the terminating zero of a string.
        let text = bytes.trim_ascii_end();
        let text = text.iter().rposition(|byte| *byte != 0).map_or(text, |last| &text[..=last]);
        match serde_json::from_slice(text) {
            Ok(found) => Ok(found),
            Err(source) => match self.parse_base64(text, "base64")? {
                Some(found) => Ok(found),
                None => Err(self.not_json_error(&source)),
            },
        }
    }

    /// Parses what is encoded in base64. Returns `None` if `text` is not base64 of a known format.
    fn parse_base64(&mut self, text: &[u8], name: &str) -> Result<Option<Value>, JobError> {
        let Some(bytes) = bytes::decode_base64(text) else { return Ok(None) };
        let mut inner = Self { names: self.names.clone(), ..*self };
        inner.enter(name)?;
        let layers = inner.names.len();

        match inner.parse(&bytes) {
            Ok(found) => {
                *self = inner;
                Ok(Some(found))
            }
            // A layer was recognized inside, so the text was base64.
            Err(error) if inner.names.len() > layers => Err(error),
            Err(_) => Ok(None),
        }
    }

    /// Parses the value behind the header of a schema registry, which is JSON only if the
    /// serializer is for JSON.
    fn parse_after_registry_header(&mut self, bytes: &[u8]) -> Result<Value, JobError> {
        let first = bytes.first();
        let of_this_kind = REGISTRY_HEADERS.iter().filter(|(magic, ..)| Some(magic) == first);
        for (_, length, name) in of_this_kind.clone() {
            let Some(rest) = bytes.get(*length..) else { continue };
            let text = rest.strip_prefix(UTF8_MARK).unwrap_or(rest).trim_ascii_start();
            let is_packed = first == Some(&3) && bytes.get(1) == Some(&GLUE_ZLIB);
            if is_packed || matches!(text.first(), Some(b'{' | b'"')) {
                self.enter(name)?;
                return self.parse(text);
            }
        }

        match of_this_kind.clone().next() {
            Some((_, length, name)) if bytes.len() > *length => {
                self.enter(name)?;
                Err(self.invalid_error(
                    ", but what follows is not JSON; Avro and Protobuf are not supported: use the serializer for JSON \
                     Schema, or write plain JSON",
                ))
            }
            _ => {
                let message =
                    "the record's value is not JSON: it starts with a byte that no text contains";
                Err(JobError::new(ErrorKind::Undecodable, message.to_owned()))
            }
        }
    }

    /// Parses the content of a JSON string: JSON, or base64 of it, which is how Connect writes
    /// bytes.
    fn parse_text(&mut self, text: &str) -> Result<Value, JobError> {
        let is_first = self.names.is_empty();
        if let Ok(found) = serde_json::from_str(text.trim_start_matches('\u{feff}')) {
            self.enter("JSON in a JSON string")?;
            return Ok(found);
        }
        if let Some(found) = self.parse_base64(text.as_bytes(), "base64 in a JSON string")? {
            return Ok(found);
        }

        match is_first {
            true => Err(JobError::new(
                ErrorKind::Undecodable,
                "the record's value is a JSON string; a job must be a JSON object".to_owned(),
            )),
            false => Err(self.nothing_inside_error("a string that is not JSON")),
        }
    }

    /// Decompresses `bytes` within the limit.
    fn unpack(&mut self, compression: Compression, bytes: &[u8]) -> Result<Vec<u8>, JobError> {
        let room = self.limit.saturating_sub(self.unpacked);
        let mut plain = Vec::new();

        // Reading one byte more than allowed shows that there is more.
        let most = room as u64 + 1;
        let read = match compression {
            Compression::Gzip => MultiGzDecoder::new(bytes).take(most).read_to_end(&mut plain),
            Compression::Zlib => ZlibDecoder::new(bytes).take(most).read_to_end(&mut plain),
        };

        if plain.len() > room {
            let limit = self.limit;
            let message = format!(
                "the record's value decompresses ({}) to more than the {limit} bytes that the worker accepts; \
                 pass large data by reference, or raise MCP_MAX_JOB_BYTES",
                compression.name()
            );
            return Err(JobError::new(ErrorKind::TooLarge, message));
        }

        read.map_err(|source| {
            self.invalid_error(&format!(" that cannot be decompressed: {source}"))
        })?;
        self.unpacked += plain.len();
        Ok(plain)
    }

    fn not_json_error(&self, source: &serde_json::Error) -> JobError {
        match self.names.is_empty() {
            true => JobError::new(
                ErrorKind::Undecodable,
                format!("the record's value is not JSON: {source}"),
            ),
            false => self.nothing_inside_error(&format!("the content is not JSON: {source}")),
        }
    }

    /// The error for a list, which is not one job.
    fn not_one_error(&self, count: usize) -> JobError {
        self.invalid_error(&format!(
            ", which contains {count} values instead of one; write each job as a separate record"
        ))
    }

    fn nothing_inside_error(&self, found: &str) -> JobError {
        if self.names.is_empty() {
            let message = format!("the record's value is {found}; a job must be a JSON object");
            return JobError::new(ErrorKind::Undecodable, message);
        }
        self.invalid_error(&format!(
            ", but there is no job envelope inside ({found}); write an object with `jobID`, `jobType` and `payload` there"
        ))
    }

    fn invalid_error(&self, rest: &str) -> JobError {
        let layers = self.names.join(", then ");
        JobError::new(
            ErrorKind::InvalidEnvelope,
            format!("the record's value is wrapped in {layers}{rest}"),
        )
    }
}

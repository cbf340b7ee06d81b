//! Finds the object in a record's value, below whatever serializers and connectors have put around
//! it.
//!
//! Many producers don't write plain JSON: a registry's serializer puts the id of a schema in front,
//! Kafka Connect and Debezium put the value into a member of an object of theirs, and a serializer
//! that is given text makes a JSON string of it. Each such layer is recognised by marks that no
//! envelope has, and taken off. What is inside is untrusted, so the number of layers and the size
//! of what is unpacked are bounded.

use std::io::Read as _;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use flate2::read::MultiGzDecoder;
use serde_json::{Map, Value};

use crate::outcome::{ErrorKind, JobError};

/// More layers than any chain of connectors makes.
const MAX_LAYERS: usize = 8;
/// The most that is unpacked, for callers without a limit of their own.
const MAX_UNPACKED: usize = 64 << 20;

/// An object of JSON, and what it took to get at it.
#[derive(Debug)]
pub(crate) struct Opened {
    pub(crate) object: Map<String, Value>,
    /// How many bytes were unpacked from compressed ones; 0 if nothing was compressed.
    pub(crate) unpacked: usize,
}

/// Takes layers off `value` until `is_wanted` says that the object is found. An object that has no
/// known layer is returned as it is, if it was not wrapped.
///
/// # Errors
/// [`ErrorKind::TooLarge`] if more than `limit` bytes would be unpacked, [`ErrorKind::Undecodable`]
/// if the value is no JSON object and not wrapped either, [`ErrorKind::InvalidEnvelope`] with the
/// names of the layers if nothing is found in them.
pub(crate) fn open(
    value: &[u8],
    limit: usize,
    is_wanted: impl Fn(&Map<String, Value>) -> bool,
) -> Result<Opened, JobError> {
    let mut layers = Layers { names: Vec::new(), unpacked: 0, limit: limit.min(MAX_UNPACKED) };
    let mut found = layers.parse(value)?;

    loop {
        found = match found {
            Value::Object(object) if is_wanted(&object) => return Ok(layers.opened(object)),
            Value::Object(mut object) => {
                match WRAPPINGS.iter().find(|wrapping| wrapping.is(&object)) {
                    Some(wrapping) => {
                        layers.enter(wrapping.name.to_owned())?;
                        object.shift_remove(wrapping.inside).unwrap_or_default()
                    }
                    None if layers.names.is_empty() => return Ok(layers.opened(object)),
                    None => return Err(layers.nothing_inside("an object without `jobID`")),
                }
            }
            Value::String(text) => layers.parse_text(&text)?,
            other => return Err(layers.nothing_inside(&format!("a JSON {}", kind_of(&other)))),
        };
    }
}

/// The name of the member of `object` that holds something that `is_wanted`, as an object or as
/// JSON in a string.
pub(crate) fn holder(
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

/// What JSON calls this kind of value.
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

/// A JSON object that a tool makes around the value.
struct Wrapping {
    name: &'static str,
    /// The members by which it is known.
    marks: &'static [&'static str],
    /// The member that holds the value.
    inside: &'static str,
}

impl Wrapping {
    const fn new(name: &'static str, marks: &'static [&'static str], inside: &'static str) -> Self {
        Self { name, marks, inside }
    }

    fn is(&self, object: &Map<String, Value>) -> bool {
        object.contains_key(self.inside) && self.marks.iter().all(|mark| object.contains_key(*mark))
    }
}

const WRAPPINGS: [Wrapping; 9] = [
    Wrapping::new("Kafka Connect's `schema` and `payload`", &["schema"], "payload"),
    Wrapping::new("Debezium's `after`", &["op"], "after"),
    Wrapping::new("Debezium's `after`", &["before"], "after"),
    Wrapping::new("Debezium's `after`", &["source"], "after"),
    Wrapping::new("Maxwell's `data`", &["database", "table"], "data"),
    Wrapping::new("an SNS notification's `Message`", &["TopicArn"], "Message"),
    Wrapping::new("an EventBridge event's `detail`", &["detail-type"], "detail"),
    Wrapping::new("a printed record's `payload`", &["topic", "offset"], "payload"),
    Wrapping::new("a printed record's `value`", &["topic", "offset"], "value"),
];

/// What schema registries put in front of a value: the first byte, how long it is all in all, and
/// what it is called.
const REGISTRY_HEADERS: [(u8, usize, &str); 3] = [
    (0, 5, "Confluent's wire format"),
    (0, 9, "Apicurio's wire format"),
    (3, 18, "the wire format of AWS Glue's schema registry"),
];

/// The first bytes of what is not read, and its name.
const NOT_READ: [(&[u8], &str); 5] = [
    (b"\x28\xb5\x2f\xfd", "zstd"),
    (b"\x04\x22\x4d\x18", "lz4"),
    (b"\xff\x06\x00\x00sNaPpY", "snappy"),
    (b"\x82SNAPPY\0", "snappy"),
    (b"\xac\xed\x00\x05", "Java's object serialization"),
];

const GZIP: &[u8] = b"\x1f\x8b";
const UTF8_MARK: &[u8] = b"\xef\xbb\xbf";

/// The layers that were taken off so far, outermost first.
struct Layers {
    names: Vec<String>,
    unpacked: usize,
    limit: usize,
}

impl Layers {
    fn opened(&self, object: Map<String, Value>) -> Opened {
        Opened { object, unpacked: self.unpacked }
    }

    fn enter(&mut self, name: String) -> Result<(), JobError> {
        if self.names.len() >= MAX_LAYERS {
            return Err(self.invalid(&format!("; more than {MAX_LAYERS} layers are not read")));
        }
        self.names.push(name);
        Ok(())
    }

    /// Takes what is no JSON off `bytes`, and reads the rest as JSON.
    fn parse(&mut self, bytes: &[u8]) -> Result<Value, JobError> {
        if let Some(plain) = bytes.strip_prefix(UTF8_MARK) {
            return self.parse(plain);
        }
        if bytes.starts_with(GZIP) {
            self.enter("gzip".to_owned())?;
            let plain = self.gunzip(bytes)?;
            return self.parse(&plain);
        }
        if let Some(text) = utf16(bytes)
            && text.trim_start().starts_with(['{', '"'])
        {
            self.enter("UTF-16".to_owned())?;
            return self.parse(text.as_bytes());
        }
        if let Some((_, name)) = NOT_READ.iter().find(|(magic, _)| bytes.starts_with(magic)) {
            self.enter((*name).to_owned())?;
            return Err(self.invalid(
                ", which is not read; write the envelope as plain JSON, and leave compression to the producer \
                 (`compression.type`)",
            ));
        }
        if matches!(bytes.first(), Some(0 | 3)) {
            return self.behind_registry_header(bytes);
        }

        serde_json::from_slice(bytes).map_err(|source| match self.names.is_empty() {
            true => JobError::new(
                ErrorKind::Undecodable,
                format!("the record's value is not JSON: {source}"),
            ),
            false => self.nothing_inside(&format!("what is inside is not JSON: {source}")),
        })
    }

    /// The value behind a schema registry's header, which is JSON only if the serializer is one for
    /// JSON.
    fn behind_registry_header(&mut self, bytes: &[u8]) -> Result<Value, JobError> {
        let first = bytes.first();
        let of_this_kind = REGISTRY_HEADERS.iter().filter(|(magic, ..)| Some(magic) == first);
        for (_, length, name) in of_this_kind.clone() {
            let Some(rest) = bytes.get(*length..) else { continue };
            let text = rest.strip_prefix(UTF8_MARK).unwrap_or(rest).trim_ascii_start();
            if matches!(text.first(), Some(b'{' | b'"')) {
                self.enter((*name).to_owned())?;
                return self.parse(text);
            }
        }

        match of_this_kind.clone().next() {
            Some((_, length, name)) if bytes.len() > *length => {
                self.enter((*name).to_owned())?;
                Err(self.invalid(
                    ", and what follows is not JSON; Avro and Protobuf are not read: use the serializer for JSON Schema, \
                     or write plain JSON",
                ))
            }
            _ => {
                let message =
                    "the record's value is not JSON: it begins with a byte that no text has";
                Err(JobError::new(ErrorKind::Undecodable, message.to_owned()))
            }
        }
    }

    /// What a JSON string holds: JSON, or base64 of it, as Connect writes bytes.
    fn parse_text(&mut self, text: &str) -> Result<Value, JobError> {
        let is_first = self.names.is_empty();
        if let Ok(found) = serde_json::from_str(text.trim_start_matches('\u{feff}')) {
            self.enter("JSON in a JSON string".to_owned())?;
            return Ok(found);
        }
        if let Ok(bytes) = STANDARD.decode(text.trim())
            && !bytes.is_empty()
        {
            let mut inner = Self { names: self.names.clone(), ..*self };
            inner.enter("base64 in a JSON string".to_owned())?;
            if let Ok(found) = inner.parse(&bytes) {
                *self = inner;
                return Ok(found);
            }
        }

        match is_first {
            true => Err(JobError::new(
                ErrorKind::Undecodable,
                "the record's value is a JSON string; a job is an object".to_owned(),
            )),
            false => Err(self.nothing_inside("a string that is not JSON")),
        }
    }

    fn gunzip(&mut self, bytes: &[u8]) -> Result<Vec<u8>, JobError> {
        let room = self.limit.saturating_sub(self.unpacked);
        let mut plain = Vec::new();
        // One byte more than there may be shows that there is more.
        let read = MultiGzDecoder::new(bytes).take(room as u64 + 1).read_to_end(&mut plain);
        if plain.len() > room {
            let limit = self.limit;
            let message = format!(
                "the record's value unpacks (gzip) to more than the {limit} bytes that the worker takes: \
                 pass large data by reference, or raise MCP_MAX_JOB_BYTES"
            );
            return Err(JobError::new(ErrorKind::TooLarge, message));
        }
        read.map_err(|source| self.invalid(&format!(" that can't be unpacked: {source}")))?;
        self.unpacked += plain.len();
        Ok(plain)
    }

    fn nothing_inside(&self, found: &str) -> JobError {
        if self.names.is_empty() {
            let message = format!("the record's value is {found}; a job is an object");
            return JobError::new(ErrorKind::Undecodable, message);
        }
        self.invalid(&format!(
            ", and there is no job envelope inside ({found}); write an object with `jobID`, `jobType` and `payload` there"
        ))
    }

    fn invalid(&self, rest: &str) -> JobError {
        let layers = self.names.join(", then ");
        JobError::new(
            ErrorKind::InvalidEnvelope,
            format!("the record's value is wrapped in {layers}{rest}"),
        )
    }
}

/// The text behind a byte order mark of UTF-16.
fn utf16(bytes: &[u8]) -> Option<String> {
    let unit: fn([u8; 2]) -> u16 = match bytes.get(..2)? {
        b"\xff\xfe" => u16::from_le_bytes,
        b"\xfe\xff" => u16::from_be_bytes,
        _ => return None,
    };
    let (pairs, rest) = bytes.get(2..)?.as_chunks::<2>();
    if pairs.is_empty() || !rest.is_empty() {
        return None;
    }
    char::decode_utf16(pairs.iter().copied().map(unit)).collect::<Result<_, _>>().ok()
}

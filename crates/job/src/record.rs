//! A Kafka record as plain data, so that decoding and dead letters need no Kafka library.

use crate::time::Timestamp;

/// One header: a name and a value, which Kafka allows to be absent.
pub type Header = (String, Option<Vec<u8>>);

/// The header of a record, of a job or of a request to cancel one, that holds its signature.
pub const SIGNATURE_HEADER: &str = "mcp-fleet-signature";

/// The position of a record.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Position {
    /// The name of the topic.
    pub topic: String,
    /// The number of the partition.
    pub partition: i32,
    /// The offset in the partition.
    pub offset: i64,
}

/// A record as it was read, byte for byte.
#[derive(Debug, Clone, PartialEq)]
pub struct RawRecord {
    /// The record's position.
    pub position: Position,
    /// The timestamp set by the broker or the producer, if any.
    pub timestamp: Option<Timestamp>,
    /// The record key.
    pub key: Option<Vec<u8>>,
    /// The record value; `None` for a tombstone.
    pub value: Option<Vec<u8>>,
    /// All headers in order, including repeated names.
    pub headers: Vec<Header>,
}

impl RawRecord {
    /// Returns the value of the last header called `name`, if it is UTF-8. Names are compared
    /// without regard to case, as producers used to HTTP expect.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers
            .iter()
            .rev()
            .find(|(header, _)| header.eq_ignore_ascii_case(name))
            .and_then(|(_, value)| std::str::from_utf8(value.as_deref()?).ok())
    }

    /// Returns the number of bytes that the record's contents take in memory.
    pub fn size(&self) -> usize {
        let headers: usize = self
            .headers
            .iter()
            .map(|(name, value)| name.len() + value.as_ref().map_or(0, Vec::len))
            .sum();
        headers + self.key.as_ref().map_or(0, Vec::len) + self.value.as_ref().map_or(0, Vec::len)
    }
}

//! A Kafka record as plain data, so that decoding and dead-lettering need no Kafka library.

use crate::time::Timestamp;

/// One header: a name and bytes, which Kafka allows to be absent.
pub type Header = (String, Option<Vec<u8>>);

/// Where a record stood.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Position {
    /// The topic.
    pub topic: String,
    /// The partition.
    pub partition: i32,
    /// The offset.
    pub offset: i64,
}

/// A record as it was read, byte for byte.
#[derive(Debug, Clone, PartialEq)]
pub struct RawRecord {
    /// Where it stood.
    pub position: Position,
    /// The broker's or producer's timestamp, where there is one.
    pub timestamp: Option<Timestamp>,
    /// The record key.
    pub key: Option<Vec<u8>>,
    /// The record value; absent for a tombstone.
    pub value: Option<Vec<u8>>,
    /// All headers, in order, with repeats.
    pub headers: Vec<Header>,
}

impl RawRecord {
    /// The last header called `name` (case-insensitive, as HTTP-minded producers expect) as text,
    /// where it is UTF-8.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers
            .iter()
            .rev()
            .find(|(header, _)| header.eq_ignore_ascii_case(name))
            .and_then(|(_, value)| std::str::from_utf8(value.as_deref()?).ok())
    }

    /// How many bytes of memory the record's contents take.
    pub fn size(&self) -> usize {
        let headers: usize = self
            .headers
            .iter()
            .map(|(name, value)| name.len() + value.as_ref().map_or(0, Vec::len))
            .sum();
        headers + self.key.as_ref().map_or(0, Vec::len) + self.value.as_ref().map_or(0, Vec::len)
    }
}

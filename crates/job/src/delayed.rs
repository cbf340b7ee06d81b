//! The data that accompanies a job through the delayed topic and back: where the job came from,
//! when it is due, and which attempts it has spent.
//!
//! All of it is one JSON header, so that it is either complete or absent. The reader removes the
//! header from the record: it describes only this one journey and must not get into dead letters
//! and replays.

use serde::{Deserialize, Serialize};

use crate::{
    event::Waiting,
    outcome::JobError,
    record::{Header, Position, RawRecord},
    time::Timestamp,
};

/// The name of the header.
pub const HEADER: &str = "mcp-fleet-delayed";
/// The longest message of a first error that is kept, in bytes.
const MAX_MESSAGE_BYTES: usize = 1024;

/// A job on its way through the delayed topic or back from it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Delayed {
    /// The consumer group that deferred the job; another group on the same topics runs its own
    /// jobs.
    pub group: String,
    /// The topic of the job's first record.
    pub topic: String,
    /// The id of that topic, if known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub topic_id: Option<String>,
    /// The partition of the job's first record.
    pub partition: i32,
    /// The offset of the job's first record.
    pub offset: i64,
    /// The offset, in the same partition, of the record that was deferred: the first record, or a
    /// later one with which the job returned. If the broker's acknowledgement is lost, a record is
    /// relayed twice, and this offset identifies the copies. Absent if a worker of an older version
    /// relayed the record.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub continues: Option<i64>,
    /// The timestamp of the job's first record.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timestamp: Option<Timestamp>,
    /// The earliest time at which the job may start.
    pub until: Timestamp,
    /// When to look at the record in the delayed topic again. All records of one of its partitions
    /// wait equally long, so no record is behind one that is due later.
    pub look_at: Timestamp,
    /// The number of attempts spent.
    #[serde(default)]
    pub attempts: u32,
    /// The error of the first attempt.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub first_error: Option<JobError>,
    /// The unavailable server that the job waits for, if it does not wait for a time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub waiting: Option<Waiting>,
}

impl Delayed {
    /// Returns the header for this data.
    pub fn header(&self) -> Header {
        let mut whole = self.clone();
        if let Some(error) = &mut whole.first_error {
            error.data = None;
            error.message.truncate(error.message.floor_char_boundary(MAX_MESSAGE_BYTES));
        }

        // A struct of plain fields always serializes.
        let value = serde_json::to_vec(&whole).unwrap_or_default();
        (HEADER.to_owned(), Some(value))
    }

    /// Returns the position of the job's first record.
    pub fn origin(&self) -> Position {
        Position { topic: self.topic.clone(), partition: self.partition, offset: self.offset }
    }

    /// Removes the header from `record` and returns its data. The last header counts; an unreadable
    /// one is treated as absent.
    pub fn take(record: &mut RawRecord) -> Option<Self> {
        let is_ours = |(name, _): &Header| name == HEADER;
        let last = record.headers.iter().rev().find(|header| is_ours(header))?;
        let found = last.1.as_deref().and_then(|value| serde_json::from_slice(value).ok());

        record.headers.retain(|header| !is_ours(header));
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::outcome::ErrorKind;

    fn record(headers: Vec<Header>) -> RawRecord {
        let position = Position { topic: "t".into(), partition: 0, offset: 0 };
        RawRecord { position, timestamp: None, key: None, value: None, headers }
    }

    #[test]
    fn a_header_is_read_back_and_removed() {
        let delayed = Delayed {
            group: "mcp-workers".into(),
            topic: "mcp-jobs".into(),
            topic_id: Some("id".into()),
            partition: 3,
            offset: 77,
            continues: Some(80),
            timestamp: Timestamp::from_millis(5),
            until: Timestamp::from_millis(9_000).unwrap(),
            look_at: Timestamp::from_millis(8_000).unwrap(),
            attempts: 2,
            first_error: Some(JobError::new(ErrorKind::Tool, "ä".repeat(2_000))),
            waiting: Some(Waiting {
                reason: "server-unavailable".to_owned(),
                server: Some("db".to_owned()),
                since: Timestamp::from_millis(4).unwrap(),
                ..Waiting::default()
            }),
        };
        let own = ("trace".to_owned(), Some(b"1".to_vec()));
        let mut record = record(vec![delayed.header(), own.clone(), delayed.header()]);
        let found = Delayed::take(&mut record).unwrap();
        assert_eq!(record.headers, [own]);

        assert_eq!(
            found.first_error.as_ref().map(|error| error.message.len()),
            Some(MAX_MESSAGE_BYTES)
        );
        assert_eq!(
            Delayed { first_error: None, ..found },
            Delayed { first_error: None, ..delayed }
        );
    }

    #[test]
    fn an_unreadable_header_is_removed_too() {
        for value in [None, Some(b"{}".to_vec()), Some(vec![0xff])] {
            let mut record = record(vec![(HEADER.to_owned(), value)]);
            assert_eq!(Delayed::take(&mut record), None);
            assert!(record.headers.is_empty());
        }
    }
}

//! What goes with a job through the delayed topic and back: where it came from, when it is due,
//! what it has spent.
//!
//! One header of JSON, so that it is whole or not there. Its reader takes it off the record: it
//! says something about this one journey, and must not go on into dead letters and replays.

use serde::{Deserialize, Serialize};

use crate::{
    event::Waiting,
    outcome::JobError,
    record::{Header, Position, RawRecord},
    time::Timestamp,
};

/// The header's name.
pub const HEADER: &str = "mcp-fleet-delayed";
/// The longest first error that travels along, in bytes.
const MAX_MESSAGE_BYTES: usize = 1024;

/// A job on its way through the delayed topic, or back from there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Delayed {
    /// The consumer group whose job it is: another group on the same topics runs its own jobs.
    pub group: String,
    /// The job's first record: the topic.
    pub topic: String,
    /// The topic's id, where it was known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub topic_id: Option<String>,
    /// Its partition.
    pub partition: i32,
    /// Its offset.
    pub offset: i64,
    /// The offset, in that partition, of the record that was deferred: the first record, or one as
    /// which the job had come back before. If the broker's acknowledgement is lost, a record is
    /// passed on twice, and this is how its copies are known. Absent if a worker of an older
    /// version passed it on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub continues: Option<i64>,
    /// Its timestamp.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timestamp: Option<Timestamp>,
    /// The job must not start before.
    pub until: Timestamp,
    /// When the record in the delayed topic is to be looked at again. All records of one of its
    /// partitions wait equally long, so no record stands behind one that is due later.
    pub look_at: Timestamp,
    /// Attempts spent.
    #[serde(default)]
    pub attempts: u32,
    /// The first attempt's error.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub first_error: Option<JobError>,
    /// What it waits for, where that is no time but something that is unavailable.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub waiting: Option<Waiting>,
}

impl Delayed {
    /// The header.
    pub fn header(&self) -> Header {
        let mut whole = self.clone();
        if let Some(error) = &mut whole.first_error {
            error.data = None;
            error.message.truncate(error.message.floor_char_boundary(MAX_MESSAGE_BYTES));
        }
        // A struct of plain fields can't fail to become JSON.
        let value = serde_json::to_vec(&whole).unwrap_or_default();
        (HEADER.to_owned(), Some(value))
    }

    /// Where the job's first record stood.
    pub fn origin(&self) -> Position {
        Position { topic: self.topic.clone(), partition: self.partition, offset: self.offset }
    }

    /// Takes the header off `record`. The last one counts; what can't be read counts as not there.
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
    fn it_is_read_back_and_taken_off() {
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
    fn what_cant_be_read_is_taken_off_all_the_same() {
        for value in [None, Some(b"{}".to_vec()), Some(vec![0xff])] {
            let mut record = record(vec![(HEADER.to_owned(), value)]);
            assert_eq!(Delayed::take(&mut record), None);
            assert!(record.headers.is_empty());
        }
    }
}

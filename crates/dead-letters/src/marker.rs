//! Replay markers: one record per replayed letter on `<dead-letter topic>.replayed`, compacted.
//!
//! Replaying leaves the dead-letter topic unchanged, so its length stays the number of letters, and
//! other consumers can continue to read it. A marker is written after the replayed record has been
//! acknowledged: an interrupted run may repeat that one job, but never loses one. A marker also
//! holds the letter's timestamp, so it does not apply to the letters of a topic that was deleted
//! and created again.

use std::collections::HashMap;

use fleet_job::{record::RawRecord, time::Timestamp, topics::Topics};
use serde::{Deserialize, Serialize};

use crate::{letter::Letter, text};

/// Returns the topic of the markers.
pub fn marker_topic(topics: &Topics) -> String {
    format!("{}.replayed", topics.dlq)
}

/// The value of a marker. Its key is the letter's position.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Marker {
    /// `topic/partition/offset` of the letter.
    pub letter: String,
    /// The letter's own timestamp, in milliseconds.
    pub letter_timestamp: Option<i64>,
    /// The id of the job.
    #[serde(rename = "jobID")]
    pub job_id: String,
    /// `topic/partition/offset` of the written record.
    pub replayed_to: String,
    /// The replay count of the written record.
    pub replay_count: u32,
    /// When the letter was replayed.
    pub time: Timestamp,
}

impl Marker {
    /// Creates the marker of `letter`, which was written to `to` at `time`.
    pub fn new(letter: &Letter, to: String, time: Timestamp) -> Self {
        Self {
            letter: text::format_position(&letter.place),
            letter_timestamp: letter.timestamp.map(Timestamp::as_millis),
            job_id: letter.job_id.clone(),
            replayed_to: to,
            replay_count: letter.replays.saturating_add(1),
            time,
        }
    }
}

/// The letters that have been replayed.
#[derive(Debug, Default)]
pub struct Replayed(HashMap<(i32, i64), Option<i64>>);

impl Replayed {
    /// Adds a record of the markers' topic. Records that are not markers of letters on `dlq` are
    /// ignored.
    pub fn add(&mut self, dlq: &str, record: &RawRecord) {
        let marker =
            record.value.as_deref().and_then(|value| serde_json::from_slice::<Marker>(value).ok());
        let Some(marker) = marker else { return };
        if let Some(place) = text::parse_position(&marker.letter).filter(|place| place.topic == dlq)
        {
            self.0.insert((place.partition, place.offset), marker.letter_timestamp);
        }
    }

    /// Returns whether `letter` has been replayed.
    pub fn contains(&self, letter: &Letter) -> bool {
        self.0
            .get(&letter.partition_offset())
            .is_some_and(|at| *at == letter.timestamp.map(Timestamp::as_millis))
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use fleet_job::{outcome::ErrorKind, record::Position};

    use super::*;
    use crate::testing::letter;

    pub(crate) fn marker_of(letter: &Letter) -> RawRecord {
        let marker = Marker::new(letter, "mcp-jobs/0/1".into(), Timestamp::default());
        RawRecord {
            position: Position { topic: "mcp-jobs.dlq.replayed".into(), partition: 0, offset: 0 },
            timestamp: None,
            key: None,
            value: Some(serde_json::to_vec(&marker).unwrap()),
            headers: vec![],
        }
    }

    #[test]
    fn a_marker_is_about_one_letter() {
        let replayed_one = letter(5, "j", ErrorKind::Tool, 0);
        let mut replayed = Replayed::default();
        replayed.add("mcp-jobs.dlq", &marker_of(&replayed_one));
        assert!(replayed.contains(&replayed_one));
        assert!(!replayed.contains(&letter(6, "j", ErrorKind::Tool, 0)));
        let mut of_a_new_topic = replayed_one;
        of_a_new_topic.timestamp = Timestamp::from_millis(99);
        assert!(!replayed.contains(&of_a_new_topic));
    }

    #[test]
    fn records_that_are_not_markers_are_ignored() {
        let one = letter(5, "j", ErrorKind::Tool, 0);
        let mut replayed = Replayed::default();
        replayed.add("other.dlq", &marker_of(&one));
        for value in [None, Some(b"{}".to_vec())] {
            replayed.add("mcp-jobs.dlq", &RawRecord { value, ..marker_of(&one) });
        }
        assert!(!replayed.contains(&one));
    }
}

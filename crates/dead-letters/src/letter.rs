//! A dead letter as the commands see it: small, without the record's value. Pure.

use fleet_job::{
    dead_letter::{self, Reasons},
    decode,
    envelope::{ToolCall, Work},
    record::{Position, RawRecord},
    time::Timestamp,
};
use serde::Serialize;

use super::text;

/// The kind of records on the topic that are not our dead letters.
pub(super) const FOREIGN: &str = "foreign";

/// A dead letter.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Letter {
    /// The letter's position in the dead-letter topic.
    pub(super) place: Position,
    /// The record's timestamp.
    pub(super) timestamp: Option<Timestamp>,
    /// The position of the job's record; `None` if the record is not one of our dead letters.
    pub(super) origin: Option<Position>,
    pub(super) job_id: String,
    pub(super) kind: String,
    pub(super) message: String,
    pub(super) attempts: u32,
    pub(super) worker: Option<String>,
    /// When the worker gave up.
    pub(super) time: Option<Timestamp>,
    /// What the job asks for, if that can be decoded.
    pub(super) what: Option<String>,
    /// How often the job had been replayed before it died.
    pub(super) replays: u32,
    /// The size of the record's value, if the letter omits the value.
    pub(super) value_omitted: Option<u64>,
}

impl Letter {
    /// Reads a record of the dead-letter topic.
    pub(super) fn read(record: &RawRecord) -> Self {
        let reasons = Reasons::read(&record.headers);
        let what =
            decode::decode(record, usize::MAX).ok().map(|envelope| describe_work(&envelope.work));
        let replays = dead_letter::replay_count(&record.headers);

        let (place, timestamp) = (record.position.clone(), record.timestamp);

        let Some(reasons) = reasons else {
            return Self {
                job_id: text::format_position(&place),
                place,
                timestamp,
                origin: None,
                kind: FOREIGN.to_owned(),
                message: "not a dead letter of mcp-fleet".to_owned(),
                attempts: 0,
                worker: None,
                time: timestamp,
                what,
                replays,
                value_omitted: None,
            };
        };

        Self {
            place,
            timestamp,
            job_id: reasons.job_id.unwrap_or_else(|| text::format_position(&reasons.origin)),
            kind: reasons.kind.unwrap_or_else(|| "unknown".to_owned()),
            message: reasons.message.unwrap_or_default(),
            attempts: reasons.attempts.unwrap_or(0),
            worker: reasons.worker,
            time: reasons.time.or(timestamp),
            what,
            replays,
            value_omitted: reasons.value_omitted,
            origin: Some(reasons.origin),
        }
    }

    /// Returns the partition and offset of the letter.
    pub(super) fn partition_offset(&self) -> (i32, i64) {
        (self.place.partition, self.place.offset)
    }

    /// Returns what distinguishes letters of one kind: the tool, or the start of the message.
    pub(super) fn about(&self) -> String {
        let beginning =
            || self.message.split([':', '\n', '`']).next().unwrap_or_default().trim().to_owned();
        text::shorten(&self.what.clone().unwrap_or_else(beginning), 48)
    }

    /// Returns the letter in the form of `--json`.
    pub(super) fn summary(&self, replayed: bool) -> Summary<'_> {
        Summary {
            letter: text::format_position(&self.place),
            job_id: &self.job_id,
            kind: &self.kind,
            message: &self.message,
            what: self.what.as_deref(),
            attempts: self.attempts,
            time: self.time,
            worker: self.worker.as_deref(),
            replay_count: self.replays,
            replayed,
        }
    }
}

/// A dead letter as JSON.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Summary<'a> {
    letter: String,
    #[serde(rename = "jobID")]
    job_id: &'a str,
    kind: &'a str,
    message: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    what: Option<&'a str>,
    attempts: u32,
    time: Option<Timestamp>,
    #[serde(skip_serializing_if = "Option::is_none")]
    worker: Option<&'a str>,
    replay_count: u32,
    /// Whether this letter has been replayed.
    replayed: bool,
}

/// Returns the tool of a job, or its type if the job has several calls or none.
fn describe_work(work: &Work) -> String {
    match work {
        Work::ToolCall(ToolCall { server: Some(server), tool, .. }) => format!("{server}__{tool}"),
        Work::ToolCall(call) => call.tool.clone(),
        other => other.job_type().as_str().to_owned(),
    }
}

#[cfg(test)]
pub(super) mod tests {
    use fleet_job::{
        dead_letter::DeadLetter,
        outcome::{ErrorKind, JobError},
    };

    use super::*;

    /// The record of a letter at `0/offset` whose job died at `offset` seconds.
    pub(crate) fn record(offset: i64, job_id: &str, kind: ErrorKind, replays: u32) -> RawRecord {
        let call = r#"{"jobID":"j","jobType":"tool-call","payload":{"server":"s","tool":"t"}}"#;
        let position = |topic: &str| Position { topic: topic.into(), partition: 0, offset };
        let time = Timestamp::from_millis(offset * 1000);
        let mut original = RawRecord {
            position: position("mcp-jobs"),
            timestamp: time,
            key: None,
            value: Some(call.into()),
            headers: vec![],
        };
        for _ in 0..replays {
            original.headers = dead_letter::headers_for_replay(&original.headers);
        }
        let letter = DeadLetter {
            job_id: job_id.into(),
            error: JobError::new(kind, "it broke: badly"),
            first_error: None,
            attempts: 3,
            worker: "w".into(),
            group: "g".into(),
            time: time.unwrap(),
        };
        RawRecord {
            headers: letter.headers(&original),
            position: position("mcp-jobs.dlq"),
            ..original
        }
    }

    pub(crate) fn letter(offset: i64, job_id: &str, kind: ErrorKind, replays: u32) -> Letter {
        Letter::read(&record(offset, job_id, kind, replays))
    }

    #[test]
    fn a_letter_is_read() {
        let letter = letter(7, "job-7", ErrorKind::Tool, 2);
        assert_eq!((&*letter.job_id, &*letter.kind, letter.attempts), ("job-7", "tool", 3));
        assert_eq!((letter.replays, letter.partition_offset()), (2, (0, 7)));
        assert_eq!(letter.about(), "s__t");
        assert_eq!(letter.time, Timestamp::from_millis(7000));
        assert_eq!(letter.origin.unwrap().topic, "mcp-jobs");
    }

    #[test]
    fn without_a_tool_the_message_is_the_subject() {
        let mut record = record(1, "j", ErrorKind::Undecodable, 0);
        record.value = Some(b"no job".to_vec());
        assert_eq!(Letter::read(&record).about(), "it broke");
    }

    #[test]
    fn a_foreign_record_is_recognised() {
        let mut record = record(1, "j", ErrorKind::Tool, 0);
        record.headers.clear();
        let letter = Letter::read(&record);
        assert_eq!(
            (&*letter.kind, &*letter.job_id, letter.origin),
            (FOREIGN, "mcp-jobs.dlq/0/1", None)
        );
    }
}

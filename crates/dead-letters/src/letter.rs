//! A dead letter as people see it: small, without the record's value.

use fleet_job::{
    dead_letter::{self, Reasons},
    decode,
    envelope::{ToolCall, Work},
    record::{Position, RawRecord},
    time::Timestamp,
};
use schemars::JsonSchema;
use serde::Serialize;

use crate::text;

/// The kind of records on the topic that are not our dead letters.
pub const FOREIGN: &str = "foreign";

/// A dead letter.
#[derive(Debug, Clone, PartialEq)]
pub struct Letter {
    /// The letter's position in the dead-letter topic.
    pub place: Position,
    /// The record's timestamp.
    pub timestamp: Option<Timestamp>,
    /// The position of the job's record; `None` if the record is not one of our dead letters.
    pub origin: Option<Position>,
    /// The id of the job; its position if it has none.
    pub job_id: String,
    /// The kind of error.
    pub kind: String,
    /// The error for people.
    pub message: String,
    /// The number of attempts that the job had.
    pub attempts: u32,
    /// The worker that gave up.
    pub worker: Option<String>,
    /// When the worker gave up.
    pub time: Option<Timestamp>,
    /// What the job asks for, if that can be decoded.
    pub what: Option<String>,
    /// The job's submitter, if the job can be decoded and names one.
    pub owner: Option<String>,
    /// The job's tenant, if the job can be decoded and names one.
    pub tenant: Option<String>,
    /// How often the job had been replayed before it died.
    pub replays: u32,
    /// The size of the record's value, if the letter omits the value.
    pub value_omitted: Option<u64>,
}

impl Letter {
    /// Reads a record of the dead-letter topic.
    pub fn read(record: &RawRecord) -> Self {
        let reasons = Reasons::read(&record.headers);
        let envelope = decode::decode(record, usize::MAX).ok();
        let what = envelope.as_ref().map(|envelope| describe_work(&envelope.work));
        let (owner, tenant) =
            envelope.map_or((None, None), |envelope| (envelope.owner, envelope.tenant));
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
                owner,
                tenant,
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
            owner,
            tenant,
            replays,
            value_omitted: reasons.value_omitted,
            origin: Some(reasons.origin),
        }
    }

    /// Returns the partition and offset of the letter.
    pub fn partition_offset(&self) -> (i32, i64) {
        (self.place.partition, self.place.offset)
    }

    /// Returns whether `name` is the id of the job, or the position of the letter or of the job's
    /// record.
    pub fn is_named(&self, name: &str) -> bool {
        self.job_id == name
            || text::format_position(&self.place) == name
            || self.origin.as_ref().is_some_and(|origin| text::format_position(origin) == name)
    }

    /// Returns what distinguishes letters of one kind: the tool, or the start of the message.
    pub fn about(&self) -> String {
        let beginning =
            || self.message.split([':', '\n', '`']).next().unwrap_or_default().trim().to_owned();
        text::shorten(&self.what.clone().unwrap_or_else(beginning), 48)
    }

    /// Returns the letter as JSON.
    pub fn summary(&self, replayed: bool) -> Summary {
        Summary {
            letter: text::format_position(&self.place),
            job_id: self.job_id.clone(),
            kind: self.kind.clone(),
            message: self.message.clone(),
            what: self.what.clone(),
            attempts: self.attempts,
            time: self.time,
            worker: self.worker.clone(),
            replay_count: self.replays,
            replayed,
        }
    }
}

/// A dead letter as JSON.
#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(title = "Dead letter")]
pub struct Summary {
    /// The position of the letter: `topic/partition/offset`.
    pub letter: String,
    /// The id of the job; the position of its record if it has none.
    #[serde(rename = "jobID")]
    pub job_id: String,
    /// The kind of error; `foreign` for a record that is no dead letter of a fleet.
    pub kind: String,
    /// The error for people.
    pub message: String,
    /// The tool that the job calls, or the type of a job with several calls or none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub what: Option<String>,
    /// The number of attempts that the job had.
    pub attempts: u32,
    /// When the worker gave up.
    pub time: Option<Timestamp>,
    /// The worker that gave up.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub worker: Option<String>,
    /// How often the job had been replayed before it died.
    pub replay_count: u32,
    /// Whether this letter has been replayed.
    pub replayed: bool,
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
mod tests {
    use fleet_job::outcome::ErrorKind;

    use super::*;
    use crate::testing::{letter, record};

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

    #[test]
    fn a_letter_is_named_by_job_and_by_both_positions() {
        let letter = letter(4, "job-4", ErrorKind::Tool, 0);
        for name in ["job-4", "mcp-jobs.dlq/0/4", "mcp-jobs/0/4"] {
            assert!(letter.is_named(name), "{name}");
        }
        assert!(!letter.is_named("mcp-jobs/0/5"));
    }
}

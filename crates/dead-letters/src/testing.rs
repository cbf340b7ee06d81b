//! Letters for tests.

use fleet_job::{
    dead_letter::{self, DeadLetter},
    outcome::{ErrorKind, JobError},
    record::{Position, RawRecord},
    time::Timestamp,
};

use crate::letter::Letter;

/// Returns the record of a letter at `0/offset` whose job died at `offset` seconds.
pub fn record(offset: i64, job_id: &str, kind: ErrorKind, replays: u32) -> RawRecord {
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
        time: time.unwrap_or_default(),
    };
    RawRecord { headers: letter.headers(&original), position: position("mcp-jobs.dlq"), ..original }
}

/// The letter in [`record`].
pub fn letter(offset: i64, job_id: &str, kind: ErrorKind, replays: u32) -> Letter {
    Letter::read(&record(offset, job_id, kind, replays))
}

//! The headers of a dead letter.
//!
//! A dead letter is the original record (key, value and headers byte for byte) plus headers that say why. The standard
//! ones are those of Spring for Apache Kafka (`kafka_dlt-*`, in its binary encoding: partition as 4 and offset and
//! timestamp as 8 bytes, big endian), because consoles and consumers exist that read them. What Spring has no header for
//! is text under `mcp-fleet-*`.

use crate::{
    outcome::{ErrorKind, JobError},
    record::{Header, RawRecord},
    time::Timestamp,
};

/// The names of the headers.
pub mod header {
    /// UTF-8: the topic that the record stood on.
    pub const ORIGINAL_TOPIC: &str = "kafka_dlt-original-topic";
    /// 4 bytes, big endian: its partition.
    pub const ORIGINAL_PARTITION: &str = "kafka_dlt-original-partition";
    /// 8 bytes, big endian: its offset.
    pub const ORIGINAL_OFFSET: &str = "kafka_dlt-original-offset";
    /// 8 bytes, big endian: its timestamp in milliseconds.
    pub const ORIGINAL_TIMESTAMP: &str = "kafka_dlt-original-timestamp";
    /// UTF-8: the consumer group that gave up.
    pub const ORIGINAL_CONSUMER_GROUP: &str = "kafka_dlt-original-consumer-group";
    /// UTF-8: `mcp-fleet.` and the error's kind.
    pub const EXCEPTION_FQCN: &str = "kafka_dlt-exception-fqcn";
    /// UTF-8: the error's message.
    pub const EXCEPTION_MESSAGE: &str = "kafka_dlt-exception-message";
    /// UTF-8: the job id, or `topic/partition/offset` where none could be read.
    pub const JOB_ID: &str = "mcp-fleet-job-id";
    /// Decimal: attempts spent.
    pub const ATTEMPTS: &str = "mcp-fleet-attempts";
    /// UTF-8: the message of the first attempt's error, where it is known and differs from the last one's.
    pub const FIRST_ERROR: &str = "mcp-fleet-first-error";
    /// UTF-8: the worker that gave up.
    pub const WORKER: &str = "mcp-fleet-worker";
    /// RFC 3339: when.
    pub const TIME: &str = "mcp-fleet-time";
    /// Decimal: how many bytes of value the original has, on a dead letter that had to leave value and original headers
    /// out because the topic takes no record of that size.
    pub const VALUE_OMITTED: &str = "mcp-fleet-value-omitted";
}

/// The longest error message in a header, in bytes; headers count towards the record's size limit.
const MAX_MESSAGE_BYTES: usize = 2048;

/// Why a record became a dead letter.
#[derive(Debug, Clone, PartialEq)]
pub struct DeadLetter {
    /// The job id, or `topic/partition/offset` where none could be read.
    pub job_id: String,
    /// The last error.
    pub error: JobError,
    /// The first attempt's error, where it is known.
    pub first_error: Option<JobError>,
    /// Attempts spent.
    pub attempts: u32,
    /// The worker that gave up.
    pub worker: String,
    /// Its consumer group.
    pub group: String,
    /// When.
    pub time: Timestamp,
}

impl DeadLetter {
    /// All headers of the dead letter: the record's own first, then the reasons.
    pub fn headers(&self, record: &RawRecord) -> Vec<Header> {
        [record.headers.clone(), self.reasons(record)].concat()
    }

    /// The headers of a dead letter that has no room for its record: only the reasons, and what is missing. The original
    /// is found by its position, as long as its topic keeps it.
    pub fn headers_without_record(&self, record: &RawRecord) -> Vec<Header> {
        let omitted = record.value.as_ref().map_or(0, Vec::len).to_string().into_bytes();
        let mut headers = self.reasons(record);
        headers.push((header::VALUE_OMITTED.to_owned(), Some(omitted)));
        headers
    }

    fn reasons(&self, record: &RawRecord) -> Vec<Header> {
        let position = &record.position;
        let mut headers = Vec::new();
        let mut add = |name: &str, value: Vec<u8>| headers.push((name.to_owned(), Some(value)));
        add(header::ORIGINAL_TOPIC, position.topic.clone().into_bytes());
        add(header::ORIGINAL_PARTITION, position.partition.to_be_bytes().to_vec());
        add(header::ORIGINAL_OFFSET, position.offset.to_be_bytes().to_vec());
        if let Some(timestamp) = record.timestamp {
            add(header::ORIGINAL_TIMESTAMP, timestamp.as_millis().to_be_bytes().to_vec());
        }
        add(header::ORIGINAL_CONSUMER_GROUP, self.group.clone().into_bytes());
        add(header::EXCEPTION_FQCN, exception_name(self.error.kind).into_bytes());
        add(header::EXCEPTION_MESSAGE, shortened(&self.error.message));
        add(header::JOB_ID, self.job_id.clone().into_bytes());
        add(header::ATTEMPTS, self.attempts.to_string().into_bytes());
        if let Some(first) = self.first_error.as_ref().filter(|first| **first != self.error) {
            add(header::FIRST_ERROR, shortened(&first.message));
        }
        add(header::WORKER, self.worker.clone().into_bytes());
        add(header::TIME, self.time.to_string().into_bytes());
        headers
    }
}

/// Partition and offset of the record that a dead letter was, from its headers. The last headers count: a record that
/// was replayed and died again carries those of its earlier deaths too.
pub fn original_place(headers: &[Header]) -> Option<(i32, i64)> {
    let last = |name: &str| headers.iter().rev().find(|(header, _)| header == name)?.1.as_deref();
    let partition = last(header::ORIGINAL_PARTITION)?.try_into().ok()?;
    let offset = last(header::ORIGINAL_OFFSET)?.try_into().ok()?;
    Some((i32::from_be_bytes(partition), i64::from_be_bytes(offset)))
}

/// How an error's kind is written in [`header::EXCEPTION_FQCN`].
pub fn exception_name(kind: ErrorKind) -> String {
    format!("mcp-fleet.{}", kind.as_str())
}

fn shortened(message: &str) -> Vec<u8> {
    let end = message.floor_char_boundary(MAX_MESSAGE_BYTES);
    message.as_bytes()[..end].to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::Position;

    #[test]
    fn the_original_headers_come_first_and_untouched() {
        let record = RawRecord {
            position: Position { topic: "mcp-jobs".into(), partition: 3, offset: 258 },
            timestamp: Timestamp::from_millis(1),
            key: None,
            value: None,
            headers: vec![("a".into(), Some(vec![0xff])), ("a".into(), None)],
        };
        let letter = DeadLetter {
            job_id: "j".into(),
            error: JobError::new(ErrorKind::Tool, "ä".repeat(2000)),
            first_error: Some(JobError::new(ErrorKind::Timeout, "slow")),
            attempts: 3,
            worker: "w".into(),
            group: "g".into(),
            time: Timestamp::default(),
        };
        let headers = letter.headers(&record);
        assert_eq!(headers[..2], record.headers[..]);
        let get = |name: &str| headers.iter().find(|(n, _)| n == name).and_then(|(_, v)| v.clone()).unwrap();
        assert_eq!(get(header::ORIGINAL_PARTITION), [0, 0, 0, 3]);
        assert_eq!(get(header::ORIGINAL_OFFSET), [0, 0, 0, 0, 0, 0, 1, 2]);
        assert_eq!(original_place(&headers), Some((3, 258)));
        assert_eq!(get(header::EXCEPTION_FQCN), b"mcp-fleet.tool");
        assert_eq!(get(header::ATTEMPTS), b"3");
        assert_eq!(get(header::FIRST_ERROR), b"slow");
        let message = String::from_utf8(get(header::EXCEPTION_MESSAGE)).unwrap();
        assert_eq!(message.len(), MAX_MESSAGE_BYTES);
    }
}

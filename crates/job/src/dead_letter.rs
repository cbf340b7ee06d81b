//! The headers of a dead letter.
//!
//! A dead letter is the original record (key, value and headers byte for byte) with headers added
//! that tell why the job failed. Where possible, these are the headers of Spring for Apache Kafka
//! (`kafka_dlt-*`, in Spring's binary encoding: the partition has 4 bytes, offset and timestamp
//! have 8 bytes, all big endian), because existing consoles and consumers can read them. Everything
//! else is text under `mcp-fleet-*`.

use crate::{
    approval,
    outcome::{ErrorKind, JobError},
    record::{Header, Position, RawRecord},
    time::Timestamp,
};

/// The names of the headers.
pub mod header {
    /// UTF-8: the topic of the original record.
    pub const ORIGINAL_TOPIC: &str = "kafka_dlt-original-topic";
    /// 4 bytes, big endian: the partition of the original record.
    pub const ORIGINAL_PARTITION: &str = "kafka_dlt-original-partition";
    /// 8 bytes, big endian: the offset of the original record.
    pub const ORIGINAL_OFFSET: &str = "kafka_dlt-original-offset";
    /// 8 bytes, big endian: the timestamp of the original record in milliseconds.
    pub const ORIGINAL_TIMESTAMP: &str = "kafka_dlt-original-timestamp";
    /// UTF-8: the consumer group that gave up.
    pub const ORIGINAL_CONSUMER_GROUP: &str = "kafka_dlt-original-consumer-group";
    /// UTF-8: `mcp-fleet.` followed by the kind of error.
    pub const EXCEPTION_FQCN: &str = "kafka_dlt-exception-fqcn";
    /// UTF-8: the error's message.
    pub const EXCEPTION_MESSAGE: &str = "kafka_dlt-exception-message";
    /// UTF-8: the job id, or `topic/partition/offset` if no id could be read.
    pub const JOB_ID: &str = "mcp-fleet-job-id";
    /// Decimal: the number of attempts spent.
    pub const ATTEMPTS: &str = "mcp-fleet-attempts";
    /// UTF-8: the message of the first attempt's error, if it is known and differs from the last
    /// one's.
    pub const FIRST_ERROR: &str = "mcp-fleet-first-error";
    /// UTF-8: the worker that gave up.
    pub const WORKER: &str = "mcp-fleet-worker";
    /// RFC 3339: the time of the failure.
    pub const TIME: &str = "mcp-fleet-time";
    /// Decimal: the size of the original value in bytes. Present if the dead letter omits the value
    /// and the original headers because the topic does not accept such large records.
    pub const VALUE_OMITTED: &str = "mcp-fleet-value-omitted";
    /// Decimal: how often the record was replayed from the dead letters. A replayed job carries it
    /// among its own headers, and so does its next dead letter. The last one counts.
    pub const REPLAY_COUNT: &str = "mcp-fleet-replay-count";

    /// The headers that tell why the job failed, which a dead letter has in addition to those of
    /// its record.
    pub(super) const REASONS: [&str; 13] = [
        ORIGINAL_TOPIC,
        ORIGINAL_PARTITION,
        ORIGINAL_OFFSET,
        ORIGINAL_TIMESTAMP,
        ORIGINAL_CONSUMER_GROUP,
        EXCEPTION_FQCN,
        EXCEPTION_MESSAGE,
        JOB_ID,
        ATTEMPTS,
        FIRST_ERROR,
        WORKER,
        TIME,
        VALUE_OMITTED,
    ];
}

/// The prefix of the kind of error in [`header::EXCEPTION_FQCN`].
const EXCEPTION_PREFIX: &str = "mcp-fleet.";

/// The longest error message in a header, in bytes; headers count towards the size limit of a
/// record.
const MAX_MESSAGE_BYTES: usize = 2048;

/// Why a record became a dead letter.
#[derive(Debug, Clone, PartialEq)]
pub struct DeadLetter {
    /// The job id, or `topic/partition/offset` if no id could be read.
    pub job_id: String,
    /// The last error.
    pub error: JobError,
    /// The first attempt's error, if known.
    pub first_error: Option<JobError>,
    /// The number of attempts spent.
    pub attempts: u32,
    /// The worker that gave up.
    pub worker: String,
    /// The consumer group of the worker.
    pub group: String,
    /// The time of the failure.
    pub time: Timestamp,
}

impl DeadLetter {
    /// Returns all headers of the dead letter: those of the record first, then the reasons.
    pub fn headers(&self, record: &RawRecord) -> Vec<Header> {
        [record.headers.clone(), self.reasons(record)].concat()
    }

    /// Returns the headers of a dead letter that omits its record because of its size: the reasons,
    /// and the size of the omitted value. The original can be found by its position, as long as its
    /// topic keeps it.
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
        add(header::EXCEPTION_MESSAGE, shorten(&self.error.message));
        add(header::JOB_ID, self.job_id.clone().into_bytes());
        add(header::ATTEMPTS, self.attempts.to_string().into_bytes());

        if let Some(first) =
            self.first_error.as_ref().filter(|first| first.message != self.error.message)
        {
            add(header::FIRST_ERROR, shorten(&first.message));
        }

        add(header::WORKER, self.worker.clone().into_bytes());
        add(header::TIME, self.time.to_string().into_bytes());
        headers
    }
}

/// Returns partition and offset of the original record from the headers of a dead letter. The last
/// headers count: a record that was replayed and failed again also has those of its earlier
/// failures.
pub fn original_position(headers: &[Header]) -> Option<(i32, i64)> {
    let last = |name: &str| headers.iter().rev().find(|(header, _)| header == name)?.1.as_deref();

    let partition = last(header::ORIGINAL_PARTITION)?.try_into().ok()?;
    let offset = last(header::ORIGINAL_OFFSET)?.try_into().ok()?;
    Some((i32::from_be_bytes(partition), i64::from_be_bytes(offset)))
}

/// The reasons read back from the headers of a dead letter. Only the original position is required,
/// since dead letters of other programs may lack the rest.
#[derive(Debug, Clone, PartialEq)]
pub struct Reasons {
    /// The position of the original record.
    pub origin: Position,
    /// The timestamp of the original record.
    pub origin_timestamp: Option<Timestamp>,
    /// The consumer group that gave up.
    pub group: Option<String>,
    /// The kind of error as written by [`ErrorKind::as_str`], or another program's full name.
    pub kind: Option<String>,
    /// The message of the last error.
    pub message: Option<String>,
    /// The job id, or `topic/partition/offset`.
    pub job_id: Option<String>,
    /// The number of attempts spent.
    pub attempts: Option<u32>,
    /// The message of the first attempt's error, if it differs from the last one's.
    pub first_error: Option<String>,
    /// The worker that gave up.
    pub worker: Option<String>,
    /// The time of the failure.
    pub time: Option<Timestamp>,
    /// The size of the omitted value in bytes, for a dead letter without its record.
    pub value_omitted: Option<u64>,
}

impl Reasons {
    /// Reads the reasons of the last failure. Returns `None` if the headers do not give the
    /// original position.
    pub fn read(headers: &[Header]) -> Option<Self> {
        let block = &headers[reasons_start(headers)?..];

        let bytes =
            |name: &str| block.iter().rev().find(|(header, _)| header == name)?.1.as_deref();
        let text = |name: &str| Some(String::from_utf8_lossy(bytes(name)?).into_owned());

        let (partition, offset) = original_position(block)?;
        let timestamp =
            || bytes(header::ORIGINAL_TIMESTAMP)?.try_into().ok().map(i64::from_be_bytes);

        Some(Self {
            origin: Position { topic: text(header::ORIGINAL_TOPIC)?, partition, offset },
            origin_timestamp: timestamp().and_then(Timestamp::from_millis),
            group: text(header::ORIGINAL_CONSUMER_GROUP),
            kind: text(header::EXCEPTION_FQCN)
                .map(|name| name.strip_prefix(EXCEPTION_PREFIX).map(str::to_owned).unwrap_or(name)),
            message: text(header::EXCEPTION_MESSAGE),
            job_id: text(header::JOB_ID),
            attempts: text(header::ATTEMPTS).and_then(|text| text.parse().ok()),
            first_error: text(header::FIRST_ERROR),
            worker: text(header::WORKER),
            time: text(header::TIME).and_then(|text| text.parse().ok()),
            value_omitted: text(header::VALUE_OMITTED).map(|text| text.parse().unwrap_or(0)),
        })
    }
}

/// Returns the index at which the reasons of the last failure start. They follow the record's own
/// headers and start with the topic, so a producer's headers of the same names are not mistaken for
/// them.
fn reasons_start(headers: &[Header]) -> Option<usize> {
    headers.iter().rposition(|(name, _)| name == header::ORIGINAL_TOPIC)
}

/// The headers of W3C Trace Context.
const TRACE: [&str; 2] = ["traceparent", "tracestate"];

/// Returns how often the record with these headers was replayed; 0 if the count is not a number.
pub fn replay_count(headers: &[Header]) -> u32 {
    let last = headers.iter().rev().find(|(name, _)| name == header::REPLAY_COUNT);
    let text = last.and_then(|(_, value)| std::str::from_utf8(value.as_deref()?).ok());
    text.and_then(|text| text.parse().ok()).unwrap_or(0)
}

/// Returns the headers for a dead letter's record when it returns to its topic: the record's own
/// headers, byte for byte and in order, without the reasons of its failure, and with the count of
/// replays increased by one.
pub fn headers_for_replay(headers: &[Header]) -> Vec<Header> {
    let reasons = reasons_start(headers).unwrap_or(headers.len());
    let is_own = |index: usize, name: &str| {
        // A trace context behind the reasons belongs to the failure.
        let is_reason = header::REASONS.contains(&name) || TRACE.contains(&name);
        // Somebody has approved one run, and not this one.
        let is_other = [header::REPLAY_COUNT, approval::HEADER].contains(&name);
        !is_other && (index < reasons || !is_reason)
    };

    let own = headers.iter().enumerate().filter(|(index, (name, _))| is_own(*index, name));

    let count = replay_count(headers).saturating_add(1).to_string().into_bytes();

    own.map(|(_, header)| header.clone())
        .chain([(header::REPLAY_COUNT.to_owned(), Some(count))])
        .collect()
}

/// Returns the value of [`header::EXCEPTION_FQCN`] for a kind of error.
pub fn exception_name(kind: ErrorKind) -> String {
    format!("{EXCEPTION_PREFIX}{}", kind.as_str())
}

fn shorten(message: &str) -> Vec<u8> {
    let end = message.floor_char_boundary(MAX_MESSAGE_BYTES);
    message.as_bytes()[..end].to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(headers: Vec<Header>) -> RawRecord {
        RawRecord {
            position: Position { topic: "mcp-jobs".into(), partition: 3, offset: 258 },
            timestamp: Timestamp::from_millis(1),
            key: None,
            value: Some(b"{}".to_vec()),
            headers,
        }
    }

    fn letter() -> DeadLetter {
        DeadLetter {
            job_id: "j".into(),
            error: JobError::new(ErrorKind::JsonRpc, "no"),
            first_error: None,
            attempts: 2,
            worker: "w".into(),
            group: "g".into(),
            time: Timestamp::default(),
        }
    }

    #[test]
    fn written_reasons_are_read_back() {
        let headers =
            letter().headers(&record(vec![(header::TIME.into(), Some(b"not ours".to_vec()))]));
        let reasons = Reasons::read(&headers).unwrap();
        assert_eq!(reasons.origin, record(vec![]).position);
        assert_eq!(reasons.origin_timestamp, Timestamp::from_millis(1));
        assert_eq!(
            (reasons.kind.as_deref(), reasons.message.as_deref()),
            (Some("json-rpc"), Some("no"))
        );
        assert_eq!((reasons.attempts, reasons.time), (Some(2), Some(Timestamp::default())));
        assert_eq!((reasons.first_error, reasons.value_omitted), (None, None));

        let bare = Reasons::read(&letter().headers_without_record(&record(vec![]))).unwrap();
        assert_eq!(bare.value_omitted, Some(2));
        assert_eq!(Reasons::read(&[("a".into(), None)]), None);
    }

    #[test]
    fn a_replay_has_the_records_own_headers_and_one_count() {
        let own = vec![
            ("a".to_owned(), Some(vec![0xff])),
            (header::ORIGINAL_TOPIC.to_owned(), Some(b"the producer's own".to_vec())),
            (header::TIME.to_owned(), None),
            ("a".to_owned(), None),
        ];
        let mut headers = own.clone();
        for count in 1..=3_u32 {
            headers = headers_for_replay(&letter().headers(&record(headers)));
            assert_eq!(headers[..own.len()], own[..]);
            assert_eq!(headers.len(), own.len() + 1, "{headers:?}");
            assert_eq!(replay_count(&headers), count);
            assert_eq!(replay_count(&letter().headers(&record(headers.clone()))), count);
        }
    }

    #[test]
    fn a_count_that_is_not_a_number_starts_again() {
        for bad in [&b""[..], b"-1", b"x", &[0xff]] {
            let headers = [(header::REPLAY_COUNT.to_owned(), Some(bad.to_vec()))];
            assert_eq!(replay_count(&headers), 0);
            assert_eq!(
                headers_for_replay(&headers),
                [(header::REPLAY_COUNT.to_owned(), Some(b"1".to_vec()))]
            );
        }
    }

    #[test]
    fn the_original_headers_come_first_and_are_unchanged() {
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

        let get = |name: &str| {
            headers.iter().find(|(n, _)| n == name).and_then(|(_, v)| v.clone()).unwrap()
        };

        assert_eq!(get(header::ORIGINAL_PARTITION), [0, 0, 0, 3]);
        assert_eq!(get(header::ORIGINAL_OFFSET), [0, 0, 0, 0, 0, 0, 1, 2]);
        assert_eq!(original_position(&headers), Some((3, 258)));
        assert_eq!(get(header::EXCEPTION_FQCN), b"mcp-fleet.tool");
        assert_eq!(get(header::ATTEMPTS), b"3");
        assert_eq!(get(header::FIRST_ERROR), b"slow");

        let message = String::from_utf8(get(header::EXCEPTION_MESSAGE)).unwrap();
        assert_eq!(message.len(), MAX_MESSAGE_BYTES);
    }

    #[test]
    fn the_trace_of_the_failure_is_not_replayed_but_that_of_the_record_is() {
        let header = |name: &str, value: &str| (name.to_owned(), Some(value.as_bytes().to_vec()));
        let reasons =
            || vec![header(header::ORIGINAL_TOPIC, "mcp-jobs"), header(header::JOB_ID, "j")];
        let count = || header(header::REPLAY_COUNT, "1");

        let own = header("traceparent", "its own");
        let died = [reasons(), vec![header("traceparent", "of the death")]].concat();
        assert_eq!(headers_for_replay(&died), [count()]);

        let died = [vec![own.clone()], reasons()].concat();
        assert_eq!(headers_for_replay(&died), [own, count()]);
    }
}

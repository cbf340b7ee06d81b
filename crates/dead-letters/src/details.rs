//! Everything about a dead letter, with the original record.

use fleet_job::{
    approval,
    dead_letter::Reasons,
    record::{Header, RawRecord, SIGNATURE_HEADER},
    time::Timestamp,
};
use schemars::JsonSchema;
use serde::Serialize;
use serde_json::Value;

use crate::{
    bytes,
    letter::{Letter, Summary},
    shown,
};

/// Everything about a dead letter as JSON.
#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(title = "Dead letter with its record")]
pub struct Details {
    /// The letter.
    #[serde(flatten)]
    pub summary: Summary,
    /// The job's record.
    pub origin: Option<Origin>,
    /// The consumer group of the worker that gave up.
    pub group: Option<String>,
    /// The message of the first attempt's error, if it differs from that of the last one.
    pub first_error: Option<String>,
    /// The size of the record's value, if the letter omits the value.
    pub value_omitted_bytes: Option<u64>,
    /// The headers, as objects of `name` and `value`.
    pub headers: Vec<Value>,
    /// The key: `{"text": …}`, `{"base64": …}` or null.
    pub key: Value,
    /// The value, in the same form. If the job hosts servers, the values of their environment
    /// variables and headers are `***`.
    pub value: Value,
}

/// The position of a job's record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Origin {
    /// The name of the topic.
    pub topic: String,
    /// The number of the partition.
    pub partition: i32,
    /// The offset in the partition.
    pub offset: i64,
    /// When the record was written.
    pub timestamp: Option<Timestamp>,
}

impl Details {
    /// Collects everything about a letter, which has been replayed or has not.
    pub fn new(letter: &Letter, record: &RawRecord, replayed: bool) -> Self {
        let (mut origin, mut group, mut first_error) = (None, None, None);
        if let Some(reasons) = Reasons::read(&record.headers) {
            origin = Some(Origin {
                topic: reasons.origin.topic,
                partition: reasons.origin.partition,
                offset: reasons.origin.offset,
                timestamp: reasons.origin_timestamp,
            });
            (group, first_error) = (reasons.group, reasons.first_error);
        }

        Self {
            summary: letter.summary(replayed),
            origin,
            group,
            first_error,
            value_omitted_bytes: letter.value_omitted,
            headers: record.headers.iter().filter(is_shown).map(bytes::header_to_json).collect(),
            key: bytes::to_json(record.key.as_deref()),
            value: bytes::to_json(shown::value(record).as_deref()),
        }
    }
}

/// Returns whether a header is for people, and not a signature for servers.
fn is_shown((name, _): &&Header) -> bool {
    ![SIGNATURE_HEADER, approval::HEADER].iter().any(|own| name.eq_ignore_ascii_case(own))
}

#[cfg(test)]
mod tests {
    use fleet_job::outcome::ErrorKind;
    use serde_json::json;

    use super::*;
    use crate::testing::record;

    #[test]
    fn everything_is_there() {
        let record = record(258, "job-4", ErrorKind::Tool, 1);
        let details = json!(Details::new(&Letter::read(&record), &record, true));
        assert_eq!(details["origin"]["offset"], 258);
        assert_eq!((&details["replayCount"], &details["replayed"]), (&json!(1), &json!(true)));
        assert_eq!(details["key"], Value::Null);
        assert!(details["value"]["text"].as_str().unwrap().contains("tool-call"), "{details}");

        let headers = details["headers"].as_array().unwrap().iter();
        let offset: Vec<_> =
            headers.filter(|header| header["name"] == "kafka_dlt-original-offset").collect();
        assert_eq!(offset, [&json!({"name": "kafka_dlt-original-offset", "value": 258})]);
    }
}

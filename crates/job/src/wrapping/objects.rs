//! JSON objects that connectors and message services put around a value.

use serde_json::{Map, Value};

/// A JSON object that a tool puts around a value.
pub(super) struct ObjectWrapping {
    pub(super) name: &'static str,
    /// The members by which the wrapping is recognized.
    marks: &'static [&'static str],
    /// The members that lead to the value. Each may contain a list instead of an object.
    path: &'static [&'static str],
    /// Whether the value itself is in a list.
    is_list: bool,
}

impl ObjectWrapping {
    const fn new(
        name: &'static str,
        marks: &'static [&'static str],
        path: &'static [&'static str],
    ) -> Self {
        Self { name, marks, path, is_list: false }
    }

    const fn of_list(
        name: &'static str,
        marks: &'static [&'static str],
        path: &'static [&'static str],
    ) -> Self {
        Self { name, marks, path, is_list: true }
    }

    /// Returns the wrapping that `object` matches.
    pub(super) fn find(object: &Map<String, Value>) -> Option<&'static Self> {
        WRAPPINGS.iter().find(|wrapping| wrapping.matches(object))
    }

    fn matches(&self, object: &Map<String, Value>) -> bool {
        let has_marks = self.marks.iter().all(|mark| object.contains_key(*mark));
        let Some((first, rest)) = self.path.split_first() else { return false };
        let first = object.get(*first);
        let inside = rest.iter().fold(first, |value, name| first_of(value?)?.get(*name));

        has_marks && inside.is_some_and(|value| !self.is_list || value.is_array())
    }

    /// Takes the value out of `object`. Returns the number of values if a list on the way to it
    /// does not have exactly one.
    pub(super) fn take_inside(&self, mut object: Map<String, Value>) -> Result<Value, usize> {
        let mut value = Value::Null;
        for (depth, name) in self.path.iter().enumerate() {
            if depth > 0 {
                object = match take_only(value)? {
                    Value::Object(object) => object,
                    _ => Map::new(),
                };
            }
            value = object.shift_remove(*name).unwrap_or_default();
        }
        take_only(value)
    }
}

fn first_of(value: &Value) -> Option<&Value> {
    match value {
        Value::Array(items) => items.first(),
        other => Some(other),
    }
}

/// Returns the only element of a list, or the value itself if it is not a list.
///
/// # Errors
///
/// Returns the number of elements if there is not exactly one.
pub(super) fn take_only(value: Value) -> Result<Value, usize> {
    match value {
        Value::Array(items) => match <[Value; 1]>::try_from(items) {
            Ok([only]) => Ok(only),
            Err(items) => Err(items.len()),
        },
        other => Ok(other),
    }
}

const WRAPPINGS: [ObjectWrapping; 16] = [
    ObjectWrapping::new("Kafka Connect's `schema` and `payload`", &["schema"], &["payload"]),
    ObjectWrapping::new("Debezium's `after`", &["op"], &["after"]),
    ObjectWrapping::new("Debezium's `after`", &["before"], &["after"]),
    ObjectWrapping::new("Debezium's `after`", &["source"], &["after"]),
    ObjectWrapping::of_list("Canal's `data`", &["database", "table"], &["data"]),
    ObjectWrapping::new("Maxwell's `data`", &["database", "table"], &["data"]),
    ObjectWrapping::new("an SNS notification's `Message`", &["TopicArn"], &["Message"]),
    ObjectWrapping::new("an EventBridge event's `detail`", &["detail-type"], &["detail"]),
    ObjectWrapping::new("an Event Grid event's `data`", &["eventType"], &["data"]),
    ObjectWrapping::new("a Pub/Sub message's `message.data`", &[], &["message", "data"]),
    ObjectWrapping::new("an SQS event's `Records[].body`", &[], &["Records", "body"]),
    ObjectWrapping::new("an SNS event's `Records[].Sns`", &[], &["Records", "Sns", "Message"]),
    ObjectWrapping::new("a Kinesis event's `Records[]`", &[], &["Records", "kinesis", "data"]),
    ObjectWrapping::new("the REST Proxy's `records[].value`", &[], &["records", "value"]),
    ObjectWrapping::new("a printed record's `payload`", &["topic", "offset"], &["payload"]),
    ObjectWrapping::new("a printed record's `value`", &["topic", "offset"], &["value"]),
];

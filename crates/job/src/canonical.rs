//! JSON in one spelling, so that equal values have equal digests.

use serde_json::{Map, Value};

/// Writes JSON without white space, with the members of each object in the order of their names'
/// UTF-8 bytes. A number stays as it is spelled: whether `1` and `1.0` are the same is for its reader
/// to say, so this is not RFC 8785.
pub fn canonical_json(value: &Value) -> String {
    let mut text = String::new();
    write(value, &mut text);
    text
}

/// Writes an object as [`canonical_json`] does.
pub fn canonical_object(members: &Map<String, Value>) -> String {
    let mut text = String::new();
    write_object(members, &mut text);
    text
}

fn write(value: &Value, text: &mut String) {
    match value {
        Value::Object(members) => write_object(members, text),
        Value::Array(values) => write_list('[', ']', values, text, write),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {
            text.push_str(&value.to_string());
        }
    }
}

fn write_object(members: &Map<String, Value>, text: &mut String) {
    let mut members: Vec<_> = members.iter().collect();
    members.sort_unstable_by_key(|(name, _)| name.as_str());
    write_list('{', '}', members, text, |(name, value), text| {
        text.push_str(&Value::from(name.as_str()).to_string());
        text.push(':');
        write(value, text);
    });
}

fn write_list<T>(
    open: char,
    close: char,
    items: impl IntoIterator<Item = T>,
    text: &mut String,
    write_item: impl Fn(T, &mut String),
) {
    text.push(open);
    for (index, item) in items.into_iter().enumerate() {
        if index > 0 {
            text.push(',');
        }
        write_item(item, text);
    }
    text.push(close);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_order_of_members_and_white_space_do_not_matter() {
        let check = |text: &str, expected: &str| {
            let value = serde_json::from_str(text).unwrap();
            assert_eq!(canonical_json(&value), expected);
        };
        check(
            r#"{"b": [1, {"d": null, "c": "\u00e9\n"}], "a": 1.10}"#,
            r#"{"a":1.10,"b":[1,{"c":"é\n","d":null}]}"#,
        );
        check("[]", "[]");
        assert_eq!(canonical_object(&Map::new()), "{}");
    }
}

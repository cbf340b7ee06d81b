//! Arguments as canonical JSON, so that the same arguments have the same digest.

use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

use crate::hex;

/// Writes JSON without white space, with the members of each object in the order of their names'
/// UTF-8 bytes. A number stays as it is spelled: whether `1` and `1.0` are the same is for the tool
/// to say, so this is not RFC 8785.
pub fn canonical_json(value: &Value) -> String {
    let mut text = String::new();
    write(value, &mut text);
    text
}

/// The SHA-256 of arguments as canonical JSON, in hexadecimal.
pub fn digest_arguments(arguments: &Map<String, Value>) -> String {
    let mut text = String::new();
    write_object(arguments, &mut text);
    hex::encode(&Sha256::digest(text))
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

        let digest = |text: &str| digest_arguments(&serde_json::from_str(text).unwrap());
        assert_eq!(digest(r#"{"a":1,"b":2}"#), digest(r#"{ "b": 2, "a": 1 }"#));
        assert_ne!(digest(r#"{"a":1}"#), digest(r#"{"a":1.0}"#));
        // The digest of `{}`, which any other implementation must agree with.
        assert_eq!(
            digest("{}"),
            "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"
        );
    }
}

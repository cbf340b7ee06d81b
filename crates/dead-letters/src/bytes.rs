//! Formats bytes for people and programs: text as text, other bytes as base64, and Spring's binary
//! numbers as numbers.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use fleet_job::{dead_letter::header, record::Header};
use serde_json::{Value, json};

/// Returns bytes as JSON: `{"text": …}`, `{"base64": …}` or null.
pub fn to_json(bytes: Option<&[u8]>) -> Value {
    match (bytes, bytes.and_then(as_text)) {
        (None, _) => Value::Null,
        (_, Some(text)) => json!({ "text": text }),
        (Some(bytes), None) => json!({ "base64": STANDARD.encode(bytes) }),
    }
}

/// Returns bytes for the terminal.
pub fn to_line(bytes: Option<&[u8]>) -> String {
    match (bytes, bytes.and_then(as_text)) {
        (None, _) => "(none)".to_owned(),
        (_, Some(text)) => text.to_owned(),
        (Some(bytes), None) => format!("base64:{}", STANDARD.encode(bytes)),
    }
}

/// Returns a header as JSON, with the binary numbers of Spring's headers as numbers.
pub fn header_to_json((name, value): &Header) -> Value {
    match number(name, value.as_deref()) {
        Some(number) => json!({ "name": name, "value": number }),
        None => json!({ "name": name, "value": to_json(value.as_deref()) }),
    }
}

/// Returns a header's value for the terminal.
pub fn header_to_line((name, value): &Header) -> String {
    number(name, value.as_deref())
        .map_or_else(|| to_line(value.as_deref()), |number| number.to_string())
}

fn number(name: &str, value: Option<&[u8]>) -> Option<i64> {
    let value = value?;
    match name {
        header::ORIGINAL_PARTITION => value.try_into().ok().map(i32::from_be_bytes).map(i64::from),
        header::ORIGINAL_OFFSET | header::ORIGINAL_TIMESTAMP => {
            value.try_into().ok().map(i64::from_be_bytes)
        }
        _ => None,
    }
}

/// Returns bytes as text if they are UTF-8 without control characters that affect a terminal.
fn as_text(bytes: &[u8]) -> Option<&str> {
    let harmless = |c: char| !c.is_control() || matches!(c, '\n' | '\r' | '\t');
    std::str::from_utf8(bytes).ok().filter(|text| text.chars().all(harmless))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_base64_and_nothing() {
        assert_eq!(to_json(Some(b"a\n")), json!({"text": "a\n"}));
        assert_eq!(to_json(Some(&[0xff, 0])), json!({"base64": "/wA="}));
        assert_eq!(to_json(Some(b"\x1b[2J")), json!({"base64": "G1sySg=="}));
        assert_eq!(to_json(None), Value::Null);
        assert_eq!(to_line(Some(&[0xff, 0])), "base64:/wA=");
    }

    #[test]
    fn springs_numbers() {
        let shown =
            |name: &str, value: &[u8]| header_to_line(&(name.to_owned(), Some(value.to_vec())));
        assert_eq!(shown(header::ORIGINAL_PARTITION, &[0, 0, 1, 0]), "256");
        assert_eq!(shown(header::ORIGINAL_OFFSET, &[0, 0, 0, 0, 0, 0, 1, 2]), "258");
        assert_eq!(shown(header::ORIGINAL_OFFSET, b"12"), "12", "not in Spring's encoding");
        assert_eq!(
            header_to_json(&(header::ORIGINAL_TIMESTAMP.to_owned(), Some(vec![0; 8]))),
            json!({"name": header::ORIGINAL_TIMESTAMP, "value": 0})
        );
    }
}

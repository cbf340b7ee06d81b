//! Messages surrounded by something else: another encoding, other messages before and after, or the
//! text of a log.

use std::borrow::Cow;

use serde_json::{Deserializer, Value};

use crate::message::{Message, read_value};

/// The largest number of positions at which a text is searched for an answer.
const MAX_STARTS: usize = 16;

/// Removes a byte order mark, and converts text that looks like UTF-16 to UTF-8.
pub(crate) fn to_utf8(bytes: &[u8]) -> Cow<'_, [u8]> {
    if let Some(rest) = bytes.strip_prefix(b"\xef\xbb\xbf") {
        return Cow::Borrowed(rest);
    }
    // If lines are split at the other byte of a newline, this byte belongs to the previous line.
    let whole = match bytes {
        [0, 0xff, 0xfe, ..] | [0, b'{' | b'[', 0, ..] => &bytes[1..],
        _ => bytes,
    };
    let (units, is_little) = match whole {
        [0xff, 0xfe, rest @ ..] => (rest, true),
        [0xfe, 0xff, rest @ ..] => (rest, false),
        [b'{' | b'[', 0, ..] => (whole, true),
        [0, b'{' | b'[', ..] => (whole, false),
        _ => return Cow::Borrowed(bytes),
    };
    // Half a unit at the end belongs to a line's end, unless its first half was removed above.
    let units: Vec<u16> = units
        .chunks(2)
        .filter_map(|pair| match *pair {
            [first, second] if is_little => Some(u16::from_le_bytes([first, second])),
            [first, second] => Some(u16::from_be_bytes([first, second])),
            [half] => Some(u16::from(half)).filter(|half| *half != 0),
            _ => None,
        })
        .collect();
    Cow::Owned(String::from_utf16_lossy(&units).into_bytes())
}

/// Returns the JSON values at the start of a text, and the rest of the text.
pub(crate) fn split_values(text: &str) -> (Vec<Value>, &str) {
    let mut values = Vec::new();
    let mut row = Deserializer::from_str(text).into_iter();
    let mut end = 0;
    while let Some(Ok(value)) = row.next() {
        values.push(value);
        end = row.byte_offset();
    }
    (values, text.get(end..).unwrap_or_default())
}

/// Finds answers at the ends of lines in a text that is not JSON. Other messages are ignored: a log
/// also quotes requests and texts of third parties, and truncates answers that are still to come.
/// So an answer must be complete, end its line, and have the member `jsonrpc`.
pub(crate) fn find_answers(text: &str) -> Vec<Message> {
    let mut rest = text;
    for _ in 0..MAX_STARTS {
        let Some(start) = find_object_start(rest) else { break };
        rest = &rest[start..];

        let mut row = Deserializer::from_str(rest).into_iter::<Value>();
        let Some(Ok(value)) = row.next() else {
            rest = &rest[1..];
            continue;
        };

        rest = rest.get(row.byte_offset()..).unwrap_or_default();
        if value.get("jsonrpc").is_none() || !begins_with_line_end(rest) {
            continue;
        }

        let answers: Vec<_> = read_value(value).into_iter().filter(names_its_request).collect();
        if !answers.is_empty() {
            return answers;
        }
    }
    Vec::new()
}

/// Returns whether a message is an answer with the id of its request.
fn names_its_request(message: &Message) -> bool {
    matches!(message, Message::Reply(Some(_), _))
}

/// Returns whether the rest of the first line has no visible characters. Lines of coloured logs end
/// with an escape sequence that resets the terminal.
fn begins_with_line_end(text: &str) -> bool {
    let mut rest = text.split('\n').next().unwrap_or_default().trim();

    while let Some(sequence) = rest.strip_prefix("\u{1b}[") {
        let behind = sequence.trim_start_matches(|c: char| c.is_ascii_digit() || c == ';');
        let Some(behind) = behind.strip_prefix(|c: char| c.is_ascii_alphabetic()) else {
            return false;
        };
        rest = behind.trim();
    }

    rest.is_empty()
}

/// Returns the position at which an object may start.
fn find_object_start(text: &str) -> Option<usize> {
    text.match_indices('{')
        .map(|(at, _)| at)
        .find(|at| text.get(at + 1..).is_some_and(|behind| behind.trim_start().starts_with('"')))
}

#[cfg(test)]
mod tests {
    use serde_json::{Map, json};

    use super::*;
    use crate::{
        message::{Id, Reply, Unreadable, read},
        quote,
    };

    const ANSWER: &str = r#"{"jsonrpc":"2.0","id":7,"result":{}}"#;

    fn answer() -> Message {
        Message::Reply(Some(Id::Number(7)), Reply::Result(Map::new()))
    }

    #[test]
    fn an_answer_is_found_in_its_surroundings() {
        let check = |text: &str| {
            let found = read(text.as_bytes());
            let replies: Vec<_> =
                found.into_iter().filter(|found| matches!(found, Message::Reply(..))).collect();
            assert_eq!(replies, [answer()], "{text}");
        };

        let note = r#"{"jsonrpc":"2.0","method":"notifications/message","params":{}}"#;
        check(&format!("{note}{ANSWER}"));
        check(&format!("{note}\n{ANSWER}\n"));
        check(&format!("{ANSWER}{note}"));
        check(&format!("2026-11-27 INFO called {{work}} {ANSWER}"));
        check(&format!("\u{1b}[32m{ANSWER}\u{1b}[0m"));
        check(&format!("data: {ANSWER}"));
        check(&format!("event: message\ndata: {ANSWER}\n\n"));
        check(&format!("{ANSWER} # done"));
        check(&format!("{ANSWER};"));
        check(&json!(ANSWER).to_string());
        check(&format!("[[{ANSWER}]]"));
    }

    #[test]
    fn all_messages_in_a_row_are_read() {
        let found = read(format!(r#"{{"method":"a"}}{ANSWER}{{"method":"b"}}"#).as_bytes());
        assert!(
            matches!(&found[..], [Message::Notification(a, _), _, Message::Notification(b, _)] if a == "a" && b == "b"),
            "{found:?}"
        );
    }

    #[test]
    fn utf_16_is_read() {
        let little: Vec<u8> = ANSWER.encode_utf16().flat_map(u16::to_le_bytes).collect();
        let big: Vec<u8> = ANSWER.encode_utf16().flat_map(u16::to_be_bytes).collect();

        for text in [
            little.clone(),
            big.clone(),
            [b"\xff\xfe".as_slice(), &little].concat(),
            [b"\0\xff\xfe".as_slice(), &little].concat(),
            [b"\0".as_slice(), &little].concat(),
            [b"\xfe\xff".as_slice(), &big, b"\0"].concat(),
        ] {
            assert_eq!(read(&text), [answer()], "{text:?}");
        }
    }

    #[test]
    fn an_unreadable_answer_in_other_text_names_its_request() {
        let check = |text: &str| {
            let found = read(text.as_bytes());
            let unreadable = |message: &Message| {
                matches!(
                    message,
                    Message::Reply(Some(Id::Number(7)), Reply::Unreadable(Unreadable { .. }))
                )
            };
            assert!(found.iter().any(unreadable), "{}: {found:?}", quote(text, 100));
        };

        check(r"{'jsonrpc': '2.0', 'id': 7, 'result': {'content': [], 'isError': False}}");
        check(r#"{"method":"a"}{"jsonrpc":"2.0","id":7,"result":{"cut"#);
    }

    /// The real answer may still follow on the next line.
    #[test]
    fn answers_quoted_or_truncated_in_a_log_line_are_ignored() {
        let check = |text: &str| {
            let found = read(text.as_bytes());
            assert!(matches!(found[..], [Message::Noise(_)]), "{text}: {found:?}");
        };
        check(r#"DEBUG -> {"jsonrpc":"2.0","id":7,"result":{"content":[…"#);
        check(r#"INFO called {"jsonrpc":"2.0","id":7,"result":{"cut"#);
        check("Sending {'jsonrpc': '2.0', 'id': 7, 'result': {}}");
        check(&format!("fetched {ANSWER} in 3 ms"));
        check(&format!("fetched '{ANSWER}'"));
        check(&format!(r#"DEBUG {{"cut": [{ANSWER}, …"#));
    }

    #[test]
    fn a_log_is_not_a_message() {
        let check = |text: &str| {
            let found = read(text.as_bytes());
            assert!(matches!(found[..], [Message::Noise(_)]), "{text}: {found:?}");
        };
        check(r#"got {"jsonrpc":"2.0","id":7,"method":"tools/call","params":{}}"#);
        check(r#"refused {"id":7,"error":"x"}"#);
        check(r#"answered {"jsonrpc":"2.0","result":{}}"#);
        check("[INFO] ready> {}");
        check(&"{\"".repeat(100_000));
    }
}

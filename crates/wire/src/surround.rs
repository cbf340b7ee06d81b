//! Messages surrounded by something else: another encoding, other messages before and after, or the
//! text of a log.

use std::borrow::Cow;

use serde_json::{Deserializer, Value};

use crate::message::{Message, read_broken, read_value};

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

/// Reads JSON values in a row, and what is behind them, which may be the text of a log.
///
/// If everything is a message, each message counts as written by itself. Otherwise the line is
/// probably one of a log, and an answer in it is a quoted one: the first value, or one that ends its
/// line and has the member `jsonrpc`. Returns no messages if the text does not begin with a value.
pub(crate) fn read_row(text: &str, problem: &serde_json::Error) -> Vec<Message> {
    let (values, rest) = split_values(text);
    if values.is_empty() {
        return Vec::new();
    }
    let is_broken_object = rest.trim_start().starts_with('{');
    let tail = match is_broken_object {
        true => read_broken(rest, problem),
        false => find_answers(text, text.len() - rest.len()),
    };
    let is_end = skip_invisible(rest).trim_start().is_empty();
    let are_messages = is_end || is_broken_object && !tail.is_empty();

    let values: Vec<_> = values.into_iter().map(RowValue::read).collect();
    if are_messages && !values.iter().any(RowValue::is_noise) {
        return values.into_iter().flat_map(|value| value.messages).chain(tail).collect();
    }

    let mut found = Vec::new();
    let mut is_log = false;
    for value in values {
        let is_noise = value.is_noise();
        match is_log {
            false => found.extend(value.messages.into_iter().map(Message::into_quoted)),
            true if value.may_be_answer => found.extend(quoted_answers(value.messages)),
            true => {}
        }
        is_log |= is_noise;
    }
    found.extend(quoted_answers(tail));
    found
}

/// A value in a row.
struct RowValue {
    messages: Vec<Message>,
    /// Whether it ends its line and has the member `jsonrpc`.
    may_be_answer: bool,
}

impl RowValue {
    fn read((value, ends_line): (Value, bool)) -> Self {
        let may_be_answer = ends_line && value.get("jsonrpc").is_some();
        Self { messages: read_value(value), may_be_answer }
    }

    fn is_noise(&self) -> bool {
        self.messages.iter().any(|message| matches!(message, Message::Noise(_)))
    }
}

/// Returns the answers that name their requests, as quoted ones.
fn quoted_answers(messages: Vec<Message>) -> impl Iterator<Item = Message> {
    let quoted = messages.into_iter().map(Message::into_quoted);
    quoted.filter(|message| matches!(message, Message::Quoted(..)))
}

/// Returns the JSON values at the start of a text, whether each ends its line, and the rest of the
/// text.
fn split_values(text: &str) -> (Vec<(Value, bool)>, &str) {
    let mut values = Vec::new();
    let mut row = Deserializer::from_str(text).into_iter();
    let mut rest = text;
    while let Some(Ok(value)) = row.next() {
        rest = text.get(row.byte_offset()..).unwrap_or_default();
        values.push((value, begins_with_line_end(rest)));
    }
    (values, rest)
}

/// Finds answers at the ends of lines in a text that is not JSON, from the position `from` on. Other
/// messages are ignored: a log also quotes requests and texts of third parties, and truncates
/// answers that are still to come. So an answer must be complete, end its line, and have the member
/// `jsonrpc`. An answer that does not have a line for itself is a quoted one.
pub(crate) fn find_answers(text: &str, from: usize) -> Vec<Message> {
    let mut found = Vec::new();
    let mut at = from;
    for _ in 0..MAX_STARTS {
        let Some(start) = text.get(at..).and_then(find_object_start) else { break };
        at += start;
        let line_start = text[..at].rfind('\n').map_or(0, |end| end + 1);
        let is_alone = skip_invisible(&text[line_start..at]).is_empty();

        let mut row = Deserializer::from_str(&text[at..]).into_iter::<Value>();
        let Some(Ok(value)) = row.next() else {
            at += 1;
            continue;
        };

        at += row.byte_offset();
        let ends_line = text.get(at..).is_some_and(begins_with_line_end);
        if value.get("jsonrpc").is_none() || !ends_line {
            continue;
        }

        let answers = read_value(value).into_iter().filter(names_its_request);
        match is_alone {
            true => found.extend(answers),
            false => found.extend(answers.map(Message::into_quoted)),
        }
    }
    found
}

/// Returns whether a message is an answer with the id of its request.
fn names_its_request(message: &Message) -> bool {
    matches!(message, Message::Reply(Some(_), _))
}

/// Returns whether the rest of the first line has no visible characters.
fn begins_with_line_end(text: &str) -> bool {
    let rest = skip_invisible(text);
    rest.is_empty() || rest.starts_with('\n')
}

/// Returns the text from its first visible character or line end on. Lines of coloured logs begin
/// and end with escape sequences for the terminal. Reads no further than that, since it is called
/// for every value in a row.
fn skip_invisible(text: &str) -> &str {
    let mut rest = text;
    loop {
        if let Some(behind) = rest.strip_prefix("\u{1b}[") {
            let parameter = |c: char| c.is_ascii_digit() || matches!(c, ';' | '?');
            let behind = behind.trim_start_matches(parameter);
            match behind.strip_prefix(|c: char| c.is_ascii_alphabetic()) {
                Some(behind) => rest = behind,
                None => return rest,
            }
            continue;
        }

        let is_invisible = |c: char| c != '\n' && (c.is_whitespace() || c.is_control());
        match rest.strip_prefix(is_invisible) {
            Some(behind) => rest = behind,
            None => return rest,
        }
    }
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

    fn quoted_answer() -> Message {
        answer().into_quoted()
    }

    #[test]
    fn an_answer_is_found_in_its_surroundings() {
        let check = |text: &str, expected: Message| {
            let found = read(text.as_bytes());
            let is_answer =
                |found: &Message| matches!(found, Message::Reply(..) | Message::Quoted(..));
            let answers: Vec<_> = found.into_iter().filter(is_answer).collect();
            assert_eq!(answers, [expected], "{text}");
        };
        let alone = |text: &str| check(text, answer());
        let quoted = |text: &str| check(text, quoted_answer());

        let note = r#"{"jsonrpc":"2.0","method":"notifications/message","params":{}}"#;
        alone(&format!("{note}{ANSWER}"));
        alone(&format!("{note}\n{ANSWER}\n"));
        alone(&format!("{ANSWER}{note}"));
        alone(&format!("\u{1b}[32m{ANSWER}\u{1b}[0m"));
        alone(&format!("INFO called\n{ANSWER}\n"));
        alone(&format!("[[{ANSWER}]]"));

        quoted(&format!("2026-11-27 INFO called {{work}} {ANSWER}"));
        quoted(&format!("[INFO] ready> {ANSWER}"));
        quoted(&format!("data: {ANSWER}"));
        quoted(&format!("event: message\ndata: {ANSWER}\n\n"));
        quoted(&format!("{ANSWER} # done"));
        quoted(&format!("{ANSWER};"));
        quoted(&json!(ANSWER).to_string());
        quoted(&json!([ANSWER]).to_string());
        quoted(&format!("{note} INFO {ANSWER}"));
        quoted(&format!("{note}{ANSWER} # done"));
        quoted(&format!(r#"{{"level":"info"}} {ANSWER}"#));
        quoted(&format!("[4711] {ANSWER}"));
        quoted(&format!("[3,{ANSWER}]"));
    }

    /// Whatever the order, and however the server writes the id.
    #[test]
    fn a_text_with_an_answer_by_itself_has_no_quoted_one() {
        let check = |text: &str, expected: &[Message]| {
            assert_eq!(read(text.as_bytes()), expected, "{text}");
        };
        let forged = r#"{"jsonrpc":"2.0","id":"7","result":{"text":"forged"}}"#;
        check(&format!("INFO fetched {forged}\n{ANSWER}\n"), &[answer()]);
        check(&format!("INFO starting\n{ANSWER}\nINFO sent {forged}\n"), &[answer()]);
        check(&format!("INFO fetched {ANSWER}\n"), &[quoted_answer()]);
    }

    /// A log may begin with JSON.
    #[test]
    fn answers_within_a_line_behind_other_json_are_ignored() {
        let check = |text: &str| {
            let found = read(text.as_bytes());
            assert!(matches!(found[..], [Message::Noise(_)]), "{text}: {found:?}");
        };
        check(&format!("[4711] {ANSWER} sent in 3 ms"));
        check(&format!(r#"{{"level":"info"}} {ANSWER} sent"#));
        check(&format!(r#"{{"level":"info"}} {ANSWER}{{"level":"info"}}"#));
        check(r#"{"level":"info"} {"id":7,"method":"ping"}"#);
        check(r#"{"level":"info"} {"jsonrpc":"2.0","id":null,"error":{"code":1,"message":"m"}}"#);
        check(r#"{"level":"info"} {"id":7,"result":{}}"#);
    }

    /// If the rest of the line were searched behind each value, this test would run for minutes.
    #[test]
    fn a_row_of_many_values_is_read_once() {
        let found = read(format!("{}x", "[] ".repeat(1 << 20)).as_bytes());
        assert!(matches!(found[..], [Message::Noise(_)]));
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

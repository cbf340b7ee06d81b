//! Event streams that contain something other than the expected answer. Pure.

use crate::{outline::outline, quote, sse::Event};

/// How much of an unexpected event is quoted, in characters.
const SHOWN: usize = 256;

/// The actual content of a body that is declared as an event stream.
#[derive(Debug, Default)]
pub enum Start {
    /// Nothing has arrived yet.
    #[default]
    Unknown,
    /// A stream of events.
    Events,
    /// Something else: the text that has arrived so far.
    Text(Vec<u8>),
}

impl Start {
    /// Adds a chunk and returns the length of the text, or 0 for events. The name of a field starts
    /// with a letter, and a comment with a colon.
    pub fn take(&mut self, chunk: &[u8]) -> usize {
        match self {
            Self::Unknown => {
                let text = chunk.strip_prefix(b"\xef\xbb\xbf").unwrap_or(chunk);
                *self = match text.trim_ascii_start().first() {
                    None => return 0,
                    Some(b'{' | b'[' | b'<' | b'"') => Self::Text(chunk.to_vec()),
                    Some(_) => Self::Events,
                };
            }
            Self::Events => {}
            Self::Text(text) => text.extend_from_slice(chunk),
        }
        if let Self::Text(text) = self { text.len() } else { 0 }
    }
}

/// An event that is not a message, received while a call waits for its answer. It counts only if
/// no other event follows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Odd {
    /// A description of the event.
    pub why: String,
    /// Whether the event can only be meant as the answer, so that nothing else will come.
    pub is_end: bool,
}

/// Returns what an event without a message means to a call, or `None` if the event does not matter:
/// events of other types do not, nor do texts that cannot be meant as an answer, such as `ping`.
#[must_use]
pub fn odd(event: &Event) -> Option<Odd> {
    let is_error = event.name == "error" && !event.data.is_empty();
    if !is_error && !event.is_message() {
        return None;
    }

    let text = String::from_utf8_lossy(&event.data);
    if !is_error && !text.trim_start().starts_with(['{', '[', '<']) {
        return None;
    }

    let kind = if is_error { "an event `error`" } else { "an event that is not a message" };
    let why = format!("the server sent {kind}: {}", quote(&text, SHOWN));

    let is_broken = text.trim_start().starts_with(['{', '['])
        && serde_json::from_str::<serde_json::Value>(&text).is_err()
        && !outline(&text).has_method;
    Some(Odd { why, is_end: is_error || is_broken })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_instead_of_an_answer_is_recognized() {
        let check = |name: &str, data: &str, expected: Option<bool>| {
            let event = Event { name: name.to_owned(), data: data.into(), ..Event::default() };
            let found = odd(&event);
            assert_eq!(found.as_ref().map(|odd| odd.is_end), expected, "{name}: {data}");
            assert!(found.is_none_or(|odd| odd.why.contains(data)), "{data}");
        };
        check("error", "overloaded", Some(true));
        check("", "{broken", Some(true));
        check("message", "<html>Internal Server Error</html>", Some(false));
        check("message", "Internal Server Error", None);
        check("", "ping", None);
        check("", "", None);
        check("", r#"{"level":"info"}"#, Some(false));
        check("", r#"{"method":"x","params":{broken"#, Some(false));
        check("ping", "1", None);
        check("error", "", None);
    }

    #[test]
    fn a_body_that_is_not_a_stream_is_kept() {
        let check = |chunks: &[&str], expected: Option<&str>| {
            let mut start = Start::default();
            chunks.iter().for_each(|chunk| _ = start.take(chunk.as_bytes()));
            let text = match &start {
                Start::Text(text) => str::from_utf8(text).ok(),
                Start::Unknown | Start::Events => None,
            };
            assert_eq!(text, expected, "{chunks:?}");
        };
        check(&["\n", "{\"a\":", "1}"], Some("{\"a\":1}"));
        check(&["<html>"], Some("<html>"));
        check(&["data: {}\n\n", "{"], None);
        check(&[": hi\n"], None);
        check(&[" \n"], None);
    }
}

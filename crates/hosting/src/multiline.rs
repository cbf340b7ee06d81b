//! Joins messages that a child prints over several lines, as `json.dumps(…, indent=2)` does.
//!
//! Such a message begins with a line that is only a bracket. Its lines are kept until all brackets
//! are closed, or until a line comes that can't be part of it. Does no IO.

use super::stdout::MAX_LINE;

/// The role of a line in a multi-line message.
#[derive(Debug, PartialEq)]
pub(super) enum LineRole {
    /// The line is not part of such a message and must be read by itself.
    Alone {
        /// The lines before it, if they turned out not to be a message.
        abandoned: Option<Vec<u8>>,
    },
    /// The line is part of a message that goes on.
    Held,
    /// The line completes this message.
    Whole(Vec<u8>),
}

/// Joins the lines of messages.
#[derive(Debug, Default)]
pub(super) struct MultilineReader {
    text: Vec<u8>,
    /// The number of open brackets; 0 if no message has begun.
    depth: usize,
}

impl MultilineReader {
    /// Adds the next line.
    pub(super) fn add_line(&mut self, line: &[u8]) -> LineRole {
        // A message on a single line is not indented.
        let is_message = line.starts_with(b"{\"");
        let trimmed = line.trim_ascii();
        if self.depth == 0 {
            if !matches!(trimmed, b"{" | b"[") {
                return LineRole::Alone { abandoned: None };
            }
        } else if is_message || !may_go_on(trimmed) || self.text.len() + line.len() > MAX_LINE {
            self.depth = 0;
            return LineRole::Alone { abandoned: Some(std::mem::take(&mut self.text)) };
        }

        self.text.extend_from_slice(line);
        self.text.push(b'\n');
        self.depth = depth_after(trimmed, self.depth);
        match self.depth {
            0 => LineRole::Whole(std::mem::take(&mut self.text)),
            _ => LineRole::Held,
        }
    }
}

/// Returns whether a line can be part of a value: it begins like a key, a value or a bracket.
fn may_go_on(line: &[u8]) -> bool {
    match line {
        [] | [b'"' | b'{' | b'}' | b'[' | b']' | b',' | b'-' | b'0'..=b'9', ..] => true,
        other => [b"true".as_slice(), b"false", b"null"].iter().any(|word| {
            other.strip_prefix(*word).is_some_and(|rest| matches!(rest.trim_ascii(), b"" | b","))
        }),
    }
}

/// Returns the number of open brackets after a line. Strings don't span lines.
fn depth_after(line: &[u8], mut depth: usize) -> usize {
    let mut is_in_string = false;
    let mut bytes = line.iter();
    while let Some(byte) = bytes.next() {
        match byte {
            b'\\' if is_in_string => _ = bytes.next(),
            b'"' => is_in_string = !is_in_string,
            b'{' | b'[' if !is_in_string => depth += 1,
            b'}' | b']' if !is_in_string => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    depth
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn a_message_over_several_lines_is_joined() {
        let message = json!({"jsonrpc": "2.0", "id": 7, "result": {"content": [{"text": "}\"]{", "n": [-1, true, null, {}]}]}});
        let mut reader = MultilineReader::default();
        for written in [&message, &json!([message])] {
            let text = serde_json::to_string_pretty(written).unwrap();
            let mut steps: Vec<_> =
                text.lines().map(|line| reader.add_line(line.as_bytes())).collect();
            let Some(LineRole::Whole(whole)) = steps.pop() else { panic!("{steps:?}") };
            assert_eq!(serde_json::from_slice::<Value>(&whole).unwrap(), *written);
            assert!(steps.iter().all(|step| *step == LineRole::Held), "{steps:?}");
        }
        assert_eq!(reader.add_line(b"{}"), LineRole::Alone { abandoned: None });
    }

    #[test]
    fn a_lone_bracket_does_not_swallow_a_message() {
        let answer = br#"{"id":7,"result":{},"jsonrpc":"2.0"}"#.as_slice();
        for line in [b"[INFO] ready".as_slice(), b"ready {", b"trueish", answer] {
            let mut reader = MultilineReader::default();
            assert_eq!(reader.add_line(b" { \r"), LineRole::Held);
            let is_given_up =
                matches!(reader.add_line(line), LineRole::Alone { abandoned: Some(_) });
            // A line that begins like a list may be one.
            assert_eq!(is_given_up, line != b"[INFO] ready", "{line:?}");
            let next = reader.add_line(answer);
            assert!(
                matches!(next, LineRole::Alone { .. }),
                "an answer behind it is read: {next:?}"
            );
        }
    }
}

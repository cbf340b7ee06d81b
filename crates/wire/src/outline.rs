//! The outline of a message that is not JSON or is too large to keep: which request it answers.

use serde_json::Value;

use crate::message::Id;

/// The top level of a JSON object, as far as it could be parsed.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Outline {
    /// The ids of the message; several if the member is repeated.
    pub(crate) ids: Vec<Id>,
    /// Whether there is a `method`, so that the message is not an answer.
    pub(crate) has_method: bool,
    /// Whether there is a `result` or an `error`.
    pub(crate) has_answer: bool,
    /// Whether every bracket is closed. If not, the message may have been cut in transit.
    pub(crate) whole: bool,
}

/// Parses the outline of a text that starts as an object does. Only strings and brackets are
/// examined, and depth costs nothing.
pub(crate) fn outline(text: &str) -> Outline {
    let mut outline = Outline::default();
    let bytes = text.as_bytes();
    let mut depth = 0_usize;
    let mut key: Option<&str> = None;
    let mut at = 0;

    while let Some(byte) = bytes.get(at) {
        match byte {
            b'{' | b'[' => depth += 1,
            b'}' | b']' => {
                depth = depth.saturating_sub(1);
                if depth == 0 {
                    outline.whole = true;
                    return outline;
                }
            }
            // Python prints its strings in single quotes.
            quote @ (b'"' | b'\'') => {
                let end = find_string_end(bytes, at, *quote);
                let string = text.get(at..end).unwrap_or_default();
                if depth == 1 && key.is_none() {
                    key = Some(string);
                } else if depth == 1 {
                    outline.note(key, string);
                }
                at = end;
                continue;
            }
            b':' if depth == 1 => {
                let value = text.get(at + 1..).unwrap_or_default();
                let end = value.find([',', '}', ']', '{', '[', '"', '\'']).unwrap_or(value.len());
                outline.note(key, value.get(..end).unwrap_or_default());
                // Skip the value: a text of nothing but colons would be searched to its end for
                // each of them.
                at += 1 + end;
                continue;
            }
            b',' if depth == 1 => key = None,
            _ => {}
        }
        at += 1;
    }

    outline
}

impl Outline {
    /// Returns the last id, which is the one that a JSON parser keeps.
    pub(crate) fn id(&self) -> Option<&Id> {
        self.ids.last()
    }

    /// Records a member of the top level.
    fn note(&mut self, key: Option<&str>, value: &str) {
        let quotes = ['"', '\''];
        match key.map(|key| key.trim_matches(quotes)) {
            Some("id") => self.ids.extend(parse_id(value)),
            Some("method") => self.has_method = true,
            Some("result" | "error") => self.has_answer = true,
            _ => {}
        }
    }
}

/// Parses an id as written in JSON or Python.
fn parse_id(written: &str) -> Option<Id> {
    let written = written.trim();
    match written.strip_prefix('\'') {
        Some(text) => Some(Id::Text(text.trim_end_matches('\'').to_owned())),
        None => Id::of(&serde_json::from_str::<Value>(written).ok()?),
    }
}

/// Returns the position after the closing quote of the string that starts here.
fn find_string_end(bytes: &[u8], start: usize, quote: u8) -> usize {
    let mut at = start + 1;
    while let Some(byte) = bytes.get(at) {
        match byte {
            b'\\' => at += 2,
            byte if *byte == quote => return at + 1,
            _ => at += 1,
        }
    }
    bytes.len()
}

/// Returns the id of an object from the object's end, if the id is one of its last members, as some
/// writers arrange it.
pub(crate) fn find_id_at_end(tail: &str) -> Option<Id> {
    let (_, behind) = tail.rsplit_once("\"id\"")?;
    let value = behind.trim_start().strip_prefix(':')?;
    let end = value.find([',', '}'])?;

    let (value, rest) = value.split_at(end);
    let rest: String = rest.chars().filter(|c| !c.is_whitespace()).collect();

    let is_end = matches!(rest.as_str(), "}" | ",\"jsonrpc\":\"2.0\"}");
    let found = is_end.then(|| serde_json::from_str::<Value>(value.trim()).ok()).flatten();
    found.as_ref().and_then(Id::of)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn number(id: i64) -> Option<Id> {
        Some(Id::Number(id))
    }

    #[test]
    fn ids_are_found_in_texts_that_are_not_json() {
        let check = |text: &str, id: Option<Id>, whole: bool| {
            let found = outline(text);
            assert_eq!((found.id().cloned(), found.whole), (id, whole), "{text}");
        };

        check(r#"{"jsonrpc":"2.0","id":7,"result":{"a":1e400,"id":9}}"#, number(7), true);
        check(r#"{"result":{"id":9,"t":"\"id\":3,"},"id" : 7 }"#, number(7), true);
        check(r#"{"id":"a-1","result":{"t":"cut"#, Some(Id::Text("a-1".to_owned())), false);
        check(r#"{"id":null,"error":{}}"#, None, true);
        check(r#"{"result":[[[{"id":1}]]]}"#, None, true);
        check(r#"{"id":"#, None, false);
        check(r#"{'id': 7, 'result': {"it's": 'a "b" {'}}"#, number(7), true);
        check(r#"{'id': 'a', 'result': {}}"#, Some(Id::Text("a".to_owned())), true);
        check(r#"{"id":7,"result":{},"id":99}"#, number(99), true);
        check(&format!("{{\"id\":7,\"result\":{}", "[".repeat(100_000)), number(7), false);

        assert!(outline(r#"{"id":7,"method":"x""#).has_method);
        assert!(outline(r#"{"id":7,"error":"#).has_answer);
        assert!(!outline(r#"{"level":"info"}"#).has_answer);
    }

    /// Searching the rest of the text for every colon would take hours.
    #[test]
    fn a_text_of_colons_is_read_once() {
        let colons = ":".repeat(2 << 20);
        assert_eq!(outline(&format!("{{{colons}")), Outline::default());
        assert_eq!(outline(&format!("{{\"id\":7,\"a\"{colons}")).id(), number(7).as_ref());
    }

    #[test]
    fn ids_are_found_at_the_end() {
        let check = |text: &str, id: Option<Id>| assert_eq!(find_id_at_end(text), id, "{text}");
        check(r#"AAAA"}]},"jsonrpc":"2.0","id":7}"#, number(7));
        check(r#"AAAA"}]},"id":7,"jsonrpc":"2.0"}"#, number(7));
        check(r#"AAAA"},"id":7}]},"jsonrpc":"2.0"}"#, None);
        check(r#"AAAA"}]}}"#, None);
    }
}

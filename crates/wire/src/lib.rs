//! Reading what MCP servers send, without IO. Both clients of the workspace use this crate: the
//! worker's own (`fleet-mcp-client`) and the gateway's (`mcp-server`, on top of rmcp), so that
//! neither rejects what the other accepts.

pub mod body;
pub mod cursor;
pub mod encoding;
pub mod head;
mod mend;
mod message;
mod outline;
pub mod revision;
pub mod session;
pub mod sse;
pub mod stream;
mod surround;

use std::borrow::Cow;

pub use message::{
    Answer, Id, Message, Reply, RpcError, Unreadable, answer_in, id_of_long, ids_in, is_cut, read,
};

/// Cuts a text to at most `max` bytes and a sign of the cut.
#[must_use]
pub fn shorten(text: &str, max: usize) -> Cow<'_, str> {
    match text.len() > max {
        true => Cow::Owned(format!("{}…", &text[..text.floor_char_boundary(max)])),
        false => Cow::Borrowed(text),
    }
}

/// Quotes text of the other side on one line, with at most `max` characters.
#[must_use]
pub fn quote(text: &str, max: usize) -> String {
    let mut quoted = String::new();
    // Limit the text before cleaning it: it may consist of megabytes of white space.
    let end = text.char_indices().nth(max.saturating_mul(4)).map_or(text.len(), |(end, _)| end);
    let (start, rest) = text.split_at(end);
    let is_gap = |c: char| c.is_whitespace() || c.is_control();

    for word in start.split(is_gap).filter(|word| !word.is_empty()) {
        if !quoted.is_empty() {
            quoted.push(' ');
        }
        quoted.push_str(word);
    }

    let too_long = quoted.char_indices().nth(max).map(|(end, _)| end);
    if let Some(end) = too_long {
        quoted.truncate(end);
    }
    if too_long.is_some() || !rest.trim_matches(is_gap).is_empty() {
        quoted.push('…');
    }
    quoted
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_that_was_cut_says_so() {
        assert_eq!(shorten("four", 4), "four");
        assert_eq!(shorten("fünf", 2), "f…");
        assert_eq!(shorten("fünf", 3), "fü…");
    }
}

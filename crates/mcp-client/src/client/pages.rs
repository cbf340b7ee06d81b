//! The pages of a server's list of tools.

use std::collections::HashSet;

use fleet_wire::cursor::read_cursor;
use serde_json::{Map, Value};

/// The largest number of pages that are read. A list with more is refused.
pub(super) const MAX_PAGES: usize = 1000;

/// The pages that were read so far.
#[derive(Debug, Default)]
pub(super) struct Pages {
    cursor: Option<String>,
    cursors: HashSet<String>,
    /// The tools as JSON, to tell whether a page has new ones.
    seen: HashSet<String>,
    is_later: bool,
}

/// What follows a page.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// Another page.
    Page,
    /// The end of the list.
    End,
    /// Pages that repeat earlier ones.
    Circle,
}

impl Pages {
    /// Returns the parameters of the request for the next page.
    pub(super) fn params(&self) -> Map<String, Value> {
        let cursor = self.cursor.iter();
        cursor.map(|cursor| ("cursor".to_owned(), cursor.clone().into())).collect()
    }

    /// Appends the tools of a page to `tools`, except those of earlier pages.
    pub(super) fn add_page(&mut self, mut page: Value, tools: &mut Vec<Value>) -> Next {
        let found = page.get_mut("tools").and_then(Value::as_array_mut);
        let mut has_new_tools = false;
        for tool in found.map(std::mem::take).unwrap_or_default() {
            let is_new = self.seen.insert(tool.to_string());
            has_new_tools |= is_new;
            // Duplicates in the first page are the server's mistake; duplicates of earlier pages
            // mean that the pages repeat.
            if is_new || !self.is_later {
                tools.push(tool);
            }
        }
        self.is_later = true;

        let next = page.get_mut("nextCursor").map(Value::take);
        let cursor = read_cursor(next).unwrap_or_else(|other| {
            let cursor = fleet_wire::quote(&other.to_string(), 120);
            tracing::warn!(cursor, "ignoring the cursor of a list of tools: it is not a string");
            None
        });
        let Some(cursor) = cursor else { return Next::End };
        if !has_new_tools || !self.cursors.insert(cursor.clone()) {
            return Next::Circle;
        }
        self.cursor = Some(cursor);
        Next::Page
    }
}

/// Logs that the pages of a list repeat.
pub(super) fn warn_of_circle(endpoint: &str) {
    tracing::warn!(
        endpoint,
        "the pages of a server's list of tools repeat; using the tools so far"
    );
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn page(names: &[&str], next: Value) -> Value {
        let tools: Vec<Value> = names.iter().map(|name| json!({"name": name})).collect();
        json!({"tools": tools, "nextCursor": next})
    }

    #[test]
    fn a_list_ends_when_its_pages_repeat() {
        let check = |pages: &[Value], last: Next, names: &[&str]| {
            let (mut list, mut tools) = (Pages::default(), Vec::new());
            let mut after: Vec<_> =
                pages.iter().map(|page| list.add_page(page.clone(), &mut tools)).collect();
            assert_eq!(after.pop(), Some(last), "{pages:?}");
            assert!(after.iter().all(|next| *next == Next::Page), "{after:?}");
            let found: Vec<_> = tools.iter().map(|tool| tool["name"].as_str().unwrap()).collect();
            assert_eq!(found, names, "{pages:?}");
        };
        let same = page(&["a", "b"], json!("8"));
        check(&[same.clone(), same.clone()], Next::Circle, &["a", "b"]);
        // Another cursor each time, and nothing new.
        check(&[same.clone(), page(&["b"], json!("9"))], Next::Circle, &["a", "b"]);
        check(&[page(&[], json!("9"))], Next::Circle, &[]);
        // Two cursors in turn, with something new each time.
        let turns = [same, page(&["c"], json!("9")), page(&["d"], json!("8"))];
        check(&turns, Next::Circle, &["a", "b", "c", "d"]);
        check(&[page(&["a"], json!(""))], Next::End, &["a"]);
        check(&[page(&["a"], json!(2)), page(&["b"], Value::Null)], Next::End, &["a", "b"]);
        // A cursor of another type costs the pages behind it only.
        check(&[page(&["a"], json!({"page": 2}))], Next::End, &["a"]);
        check(&[page(&["a", "a"], Value::Null)], Next::End, &["a", "a"]);
    }
}

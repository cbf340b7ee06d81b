//! The W3C Trace Context of a job, as records, requests and MCP's `_meta` carry it.
//!
//! The context is passed on unchanged if this process does not take part in the trace. Spans are
//! made in `fleet-ops`.

use serde_json::{Map, Value};

use crate::record::{Header, RawRecord};

/// The longest value that is passed on, in bytes. W3C Trace Context requires at least 512 for
/// `tracestate`.
const MAX_BYTES: usize = 1024;
const PARENT: &str = "traceparent";
const STATE: &str = "tracestate";
/// The prefix of the headers in CloudEvents' binary mode (distributed tracing extension).
const CLOUD_EVENTS: &str = "ce_";

/// `traceparent` and `tracestate`; empty if there is no trace.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TraceContext {
    /// The `traceparent` (W3C Trace Context, section 3.2).
    pub parent: Option<String>,
    /// The `tracestate` (section 3.3), which is meaningless without a parent.
    pub state: Option<String>,
}

impl TraceContext {
    /// Reads the context through `lookup`, which returns the value of a name. Values that are too
    /// long are left out.
    pub fn find<'a>(lookup: impl Fn(&str) -> Option<&'a str>) -> Self {
        let take = |name| lookup(name).filter(|value| value.len() <= MAX_BYTES).map(str::to_owned);
        let parent = take(PARENT);

        Self { state: parent.as_ref().and_then(|_| take(STATE)), parent }
    }

    /// Returns the context in a record's headers.
    pub fn of_record(record: &RawRecord) -> Self {
        Self::find(|name| {
            record.header(name).or_else(|| record.header(&format!("{CLOUD_EVENTS}{name}")))
        })
    }

    /// Returns the context in a request's `_meta`.
    pub fn of_meta(meta: &Map<String, Value>) -> Self {
        Self::find(|name| meta.get(name)?.as_str())
    }

    /// Returns the names and values that are present.
    pub fn pairs(&self) -> impl Iterator<Item = (&'static str, &str)> {
        let both = [(PARENT, &self.parent), (STATE, &self.state)];
        both.into_iter().filter_map(|(name, value)| Some((name, value.as_deref()?)))
    }

    /// Returns the context as headers of a record.
    pub fn headers(&self) -> Vec<Header> {
        self.pairs()
            .map(|(name, value)| (name.to_owned(), Some(value.as_bytes().to_vec())))
            .collect()
    }

    /// Writes the context to a call's `_meta` in place of any other context there.
    pub fn put_into(&self, meta: &mut Map<String, Value>) {
        if self.parent.is_none() {
            return;
        }

        meta.shift_remove(STATE);
        for (name, value) in self.pairs() {
            meta.insert(name.to_owned(), value.into());
        }
    }

    /// Returns the id of the trace: 32 hexadecimal digits.
    pub fn trace_id(&self) -> Option<&str> {
        self.part(1, 32)
    }

    /// Returns the id of the span that the context refers to: 16 hexadecimal digits.
    pub fn span_id(&self) -> Option<&str> {
        self.part(2, 16)
    }

    fn part(&self, index: usize, length: usize) -> Option<&str> {
        let part = self.parent.as_deref()?.split('-').nth(index)?;
        let is_id = part.len() == length && part.bytes().all(|byte| byte.is_ascii_hexdigit());
        is_id.then_some(part)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PARENT_TEXT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    fn found(headers: &[(&str, &str)]) -> TraceContext {
        TraceContext::find(|name| {
            headers.iter().find(|(header, _)| *header == name).map(|(_, value)| *value)
        })
    }

    #[test]
    fn a_context_is_passed_on_unchanged() {
        let context = found(&[(PARENT, PARENT_TEXT), (STATE, "a=b")]);
        assert_eq!(context.pairs().collect::<Vec<_>>(), [(PARENT, PARENT_TEXT), (STATE, "a=b")]);
        assert_eq!(context.trace_id(), Some("0af7651916cd43dd8448eb211c80319c"));
        assert_eq!(context.span_id(), Some("b7ad6b7169203331"));

        let mut meta = Map::new();
        meta.insert(STATE.to_owned(), "old=1".into());
        found(&[(PARENT, "x")]).put_into(&mut meta);
        assert_eq!(
            (meta.get(PARENT), meta.get(STATE)),
            (Some(&"x".into()), None),
            "the old state belongs to another trace"
        );
        assert_eq!(TraceContext::of_meta(&meta), found(&[(PARENT, "x")]));
    }

    #[test]
    fn values_that_are_not_a_trace_are_ignored() {
        assert_eq!(found(&[(STATE, "a=b")]), TraceContext::default());
        assert_eq!(found(&[(PARENT, &"x".repeat(MAX_BYTES + 1))]), TraceContext::default());
        assert_eq!(found(&[(PARENT, "00-short-b7ad6b7169203331-01")]).trace_id(), None);
        assert!(TraceContext::default().headers().is_empty());
    }
}

//! The W3C Trace Context of a job, as records, requests and MCP's `_meta` carry it.
//!
//! It is passed on as it came where this process takes no part in the trace. Nothing here makes
//! spans; that is `fleet-ops`.

use serde_json::{Map, Value};

use crate::record::{Header, RawRecord};

/// The longest header that is passed on, in bytes (W3C Trace Context asks for at least 512 of
/// tracestate).
const MAX_BYTES: usize = 1024;
const PARENT: &str = "traceparent";
const STATE: &str = "tracestate";
/// Where CloudEvents in binary mode have it (the distributed tracing extension).
const CLOUD_EVENTS: &str = "ce_";

/// `traceparent` and `tracestate`; empty where there is no trace.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TraceContext {
    /// W3C Trace Context, section 3.2.
    pub parent: Option<String>,
    /// Section 3.3; of no use without the other.
    pub state: Option<String>,
}

impl TraceContext {
    /// What `lookup` finds by the two names. What is too long is left out.
    pub fn find<'a>(lookup: impl Fn(&str) -> Option<&'a str>) -> Self {
        let take = |name| lookup(name).filter(|value| value.len() <= MAX_BYTES).map(str::to_owned);
        let parent = take(PARENT);
        Self { state: parent.as_ref().and_then(|_| take(STATE)), parent }
    }

    /// The context that a record brings along.
    pub fn of_record(record: &RawRecord) -> Self {
        Self::find(|name| {
            record.header(name).or_else(|| record.header(&format!("{CLOUD_EVENTS}{name}")))
        })
    }

    /// The context in a request's `_meta`.
    pub fn of_meta(meta: &Map<String, Value>) -> Self {
        Self::find(|name| meta.get(name)?.as_str())
    }

    /// Name and value of what there is.
    pub fn pairs(&self) -> impl Iterator<Item = (&'static str, &str)> {
        let both = [(PARENT, &self.parent), (STATE, &self.state)];
        both.into_iter().filter_map(|(name, value)| Some((name, value.as_deref()?)))
    }

    /// The headers of a record.
    pub fn headers(&self) -> Vec<Header> {
        self.pairs()
            .map(|(name, value)| (name.to_owned(), Some(value.as_bytes().to_vec())))
            .collect()
    }

    /// Puts the context into a call's `_meta`, in the place of one that is there.
    pub fn put_into(&self, meta: &mut Map<String, Value>) {
        if self.parent.is_none() {
            return;
        }
        meta.shift_remove(STATE);
        for (name, value) in self.pairs() {
            meta.insert(name.to_owned(), value.into());
        }
    }

    /// The trace's id: 32 hexadecimal digits.
    pub fn trace_id(&self) -> Option<&str> {
        self.part(1, 32)
    }

    /// The id of the span that this context is of: 16 hexadecimal digits.
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
    fn what_came_is_passed_on() {
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
            "the state is of another trace"
        );
        assert_eq!(TraceContext::of_meta(&meta), found(&[(PARENT, "x")]));
    }

    #[test]
    fn what_is_no_trace_is_none() {
        assert_eq!(found(&[(STATE, "a=b")]), TraceContext::default());
        assert_eq!(found(&[(PARENT, &"x".repeat(MAX_BYTES + 1))]), TraceContext::default());
        assert_eq!(found(&[(PARENT, "00-short-b7ad6b7169203331-01")]).trace_id(), None);
        assert!(TraceContext::default().headers().is_empty());
    }
}

//! Decoding server-sent events from bytes as they arrive.
//!
//! This decoder exists for the sake of its limits. An event that exceeds its limit is an error at
//! the very byte where it does, so an endless event cannot fill our memory. Events are returned one
//! at a time, so a chunk with very many events cannot either: the caller handles each before the
//! next one is decoded. Comments and unknown fields are skipped, as the standard requires.

use bytes::{Buf as _, Bytes};

/// The default limit for the size of an event.
pub const MAX_EVENT: usize = 16 << 20;

/// An event exceeded the limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EventTooLarge;

/// One event. Blocks without data, id or delay are not events: comments only keep a connection
/// alive.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Event {
    /// The type of the event; empty for a message.
    pub name: String,
    /// The data, which may be empty.
    pub data: Vec<u8>,
    /// The position at which the stream can be resumed.
    pub id: Option<String>,
    /// The delay before reconnecting, in milliseconds.
    pub retry: Option<u64>,
}

impl Event {
    /// Returns whether this is a message, in contrast to an event of another type or one that only
    /// gives the position in the stream.
    #[must_use]
    pub fn is_message(&self) -> bool {
        matches!(self.name.as_str(), "" | "message") && !self.data.is_empty()
    }

    /// Returns the number of bytes in the event.
    fn size(&self) -> usize {
        self.name.len() + self.data.len() + self.id.as_ref().map_or(0, String::len)
    }
}

/// Decodes chunks of bytes into events.
#[derive(Debug)]
pub struct Decoder {
    limit: usize,
    line: Vec<u8>,
    event: Event,
    has_data: bool,
    after_cr: bool,
    first_line: bool,
}

impl Decoder {
    /// Creates a decoder for events of up to `limit` bytes.
    #[must_use]
    pub fn new(limit: usize) -> Self {
        Self {
            limit,
            line: Vec::new(),
            event: Event::default(),
            has_data: false,
            after_cr: false,
            first_line: true,
        }
    }

    /// Reads `input` up to the end of the next event and removes what was read. Returns `None` if
    /// all of `input` was read and the event continues in the next chunk.
    ///
    /// # Errors
    ///
    /// Returns an error if the current event is too large. The stream cannot be read any further
    /// then.
    pub fn next_event(&mut self, input: &mut Bytes) -> Result<Option<Event>, EventTooLarge> {
        loop {
            // A line ends with CR, LF or both, which may arrive in two chunks.
            if self.after_cr && !input.is_empty() {
                self.after_cr = false;
                if input.starts_with(b"\n") {
                    input.advance(1);
                }
            }

            let Some(end) = input.iter().position(|byte| matches!(byte, b'\n' | b'\r')) else {
                self.grow(input)?;
                input.clear();
                return Ok(None);
            };
            self.grow(&input[..end])?;
            self.after_cr = input[end] == b'\r';
            input.advance(end + 1);
            if let Some(event) = self.end_line() {
                return Ok(Some(event));
            }
        }
    }

    /// Returns the event at the end of the stream that lacks only the blank line after it. The
    /// standard drops such an event because it may be cut, so the caller should use it only if its
    /// data is complete.
    #[must_use]
    pub fn finish(mut self) -> Option<Event> {
        // If the last line was cut, this ends the line but not the event.
        let event = self.end_line();
        if self.has_data { self.end_line() } else { event }
    }

    /// Adds bytes to the current line.
    fn grow(&mut self, bytes: &[u8]) -> Result<(), EventTooLarge> {
        // Comments are dropped as they arrive, however long they are.
        if self.line.first() == Some(&b':') {
            return Ok(());
        }

        if self.line.is_empty() && bytes.first() == Some(&b':') {
            self.line.push(b':');
            return Ok(());
        }

        if self.event.size() + self.line.len() + bytes.len() > self.limit {
            return Err(EventTooLarge);
        }

        self.line.extend_from_slice(bytes);
        Ok(())
    }

    /// Ends the line and, if the line is blank, the event.
    fn end_line(&mut self) -> Option<Event> {
        let line = std::mem::take(&mut self.line);
        let mut rest = line.as_slice();
        if std::mem::take(&mut self.first_line) {
            rest = rest.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(rest);
        }

        let ended = rest.is_empty();
        if !ended {
            self.take_field(rest);
        }

        // Reuse the allocation.
        self.line = line;
        self.line.clear();

        if ended { self.end_event() } else { None }
    }

    fn end_event(&mut self) -> Option<Event> {
        self.has_data = false;
        let event = std::mem::take(&mut self.event);
        let says_something = !event.data.is_empty() || event.id.is_some() || event.retry.is_some();
        says_something.then_some(event)
    }

    fn take_field(&mut self, line: &[u8]) {
        let colon = line.iter().position(|byte| *byte == b':').unwrap_or(line.len());
        let (field, value) = line.split_at(colon);
        let value = value.strip_prefix(b":").unwrap_or(value);
        let value = value.strip_prefix(b" ").unwrap_or(value);
        let text = || String::from_utf8_lossy(value).into_owned();

        match field {
            b"data" => {
                if std::mem::replace(&mut self.has_data, true) {
                    self.event.data.push(b'\n');
                }
                self.event.data.extend_from_slice(value);
            }
            b"event" => self.event.name = text(),
            b"id" if !value.contains(&0) => self.event.id = Some(text()),
            b"retry" => self.event.retry = text().parse().ok(),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn decode(chunks: &[&[u8]], limit: usize) -> Result<Vec<Event>, EventTooLarge> {
        let mut decoder = Decoder::new(limit);
        let mut events = Vec::new();
        for chunk in chunks {
            let mut chunk = Bytes::copy_from_slice(chunk);
            while let Some(event) = decoder.next_event(&mut chunk)? {
                events.push(event);
            }
        }
        Ok(events)
    }

    /// Checks that the events are the same however the bytes are cut.
    fn check(text: &str, expected: &[(&str, &str)]) {
        let bytes = text.as_bytes();
        let single: Vec<&[u8]> = bytes.chunks(1).collect();
        for chunks in [vec![bytes], single] {
            let events = decode(&chunks, 100).unwrap();
            let found: Vec<_> = events
                .iter()
                .map(|event| (&*event.name, str::from_utf8(&event.data).unwrap()))
                .collect();
            assert_eq!(found, expected, "{text:?}");
        }
    }

    #[test]
    fn events_are_decoded() {
        check("data: a\n\n", &[("", "a")]);
        check("data:a\r\n\r\ndata: b\r\rdata: c\n\n", &[("", "a"), ("", "b"), ("", "c")]);
        check("event: message\nretry: 5\ndata: {\ndata: }\n\n", &[("message", "{\n}")]);
        check("event: endpoint\ndata: /m?s=1\n\n", &[("endpoint", "/m?s=1")]);
        check(": keep-alive\n\n:\n\ndata:\n\nevent: a\n\n", &[]);
        check("\u{FEFF}data: a\n\n", &[("", "a")]);
        check("database: x\nunknown\ndata\ndata: b\n\n", &[("", "\nb")]);
        check("data: unfinished", &[]);
    }

    #[test]
    fn a_stream_can_be_resumed_at_an_event() {
        let events = decode(&[b"id: 7\nretry: 300\ndata:\n\nid: 8\ndata: x\n\n"], 100).unwrap();
        assert_eq!(
            events[0],
            Event { id: Some("7".to_owned()), retry: Some(300), ..Event::default() }
        );
        assert!(!events[0].is_message() && events[1].is_message());
    }

    #[test]
    fn an_event_that_lacks_only_the_blank_line_is_not_lost() {
        for (text, expected) in
            [("data: a\n", Some("a")), ("data: a", Some("a")), ("data: a\n\n", None), ("", None)]
        {
            let mut decoder = Decoder::new(100);
            let mut chunk = Bytes::from_static(text.as_bytes());
            while decoder.next_event(&mut chunk).unwrap().is_some() {}
            let data = decoder.finish().map(|event| String::from_utf8(event.data).unwrap());
            assert_eq!(data.as_deref(), expected, "{text:?}");
        }
    }

    #[test]
    fn events_are_returned_one_at_a_time() {
        let mut decoder = Decoder::new(100);
        let mut chunk = Bytes::from_static(b"data: a\n\ndata: b\n\ndata: c");
        let mut next = || {
            let event = decoder.next_event(&mut chunk).unwrap();
            (event.map(|event| event.data), chunk.len())
        };
        assert_eq!(next(), (Some(b"a".to_vec()), 16));
        assert_eq!(next(), (Some(b"b".to_vec()), 7));
        assert_eq!(next(), (None, 0));
        assert_eq!(decoder.finish().unwrap().data, b"c");
    }

    #[test]
    fn a_block_with_only_an_id_is_an_event() {
        let events = decode(&[b"id\n\nid: 7\n\nid: 8\0\n\n"], 100).unwrap();
        let ids: Vec<_> = events.iter().map(|event| event.id.as_deref()).collect();
        assert_eq!(ids, [Some(""), Some("7")]);
    }

    #[test]
    fn an_event_cannot_exceed_the_limit() {
        assert_eq!(decode(&[b"data: 123456", b"7890"], 12), Err(EventTooLarge));
        assert_eq!(decode(&[b"data: 1\ndata: 2\n", b"data: 3\n"], 8), Err(EventTooLarge));

        let long_comment = [b":".as_slice(), &[b'x'; 1000], b"\ndata: a\n\n"].concat();
        assert_eq!(decode(&[&long_comment], 12).unwrap().len(), 1);

        assert_eq!(decode(&[b"id: 123456\n", b"event: 1\n", b"data: 1\n"], 12), Err(EventTooLarge));

        let comments = b": keep-alive\n".repeat(100);
        assert!(decode(&[&comments], 20).unwrap().is_empty());

        let many = b"data: 1234\n\n".repeat(100);
        assert_eq!(decode(&[&many], 12).unwrap().len(), 100);
    }

    proptest! {
        #[test]
        fn it_does_not_matter_how_a_stream_is_cut(text in "(data|event|id)?:? ?[a-z:]{0,3}(\r|\n|\r\n)?(.|\r\n|\n\n){0,20}", at in 0_usize..40) {
            let bytes = text.as_bytes();
            let whole = decode(&[bytes], 1000).unwrap();
            let (head, tail) = bytes.split_at(at.min(bytes.len()));
            prop_assert_eq!(decode(&[head, tail], 1000).unwrap(), whole);
        }
    }
}

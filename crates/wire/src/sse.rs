//! Server-sent events, decoded from bytes as they come.
//!
//! Written here because the limit is the point: an event that grows past it is an error at the byte
//! where it does, so a server can't fill our memory with one event that never ends. Comments and
//! unknown fields are skipped, as the standard says.

/// An event grew past the limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EventTooLarge;

/// One event. There is none without data, id or delay: comments keep a connection alive and say
/// nothing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Event {
    /// What kind of event it is; empty for a message.
    pub name: String,
    /// Its data, which may be empty.
    pub data: Vec<u8>,
    /// Where the stream can be resumed.
    pub id: Option<String>,
    /// After how many milliseconds to connect again.
    pub retry: Option<u64>,
}

impl Event {
    /// Whether this is a message, and not an event of another kind or one that only says where the
    /// stream is.
    #[must_use]
    pub fn is_message(&self) -> bool {
        matches!(self.name.as_str(), "" | "message") && !self.data.is_empty()
    }
}

/// Turns chunks of bytes into events.
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
    /// A decoder that takes events of up to `limit` bytes.
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

    /// Takes the next bytes and appends every event that they complete.
    ///
    /// # Errors
    ///
    /// If the event that is being read is too large. Events before it are in `events`.
    pub fn push(&mut self, chunk: &[u8], events: &mut Vec<Event>) -> Result<(), EventTooLarge> {
        let mut rest = chunk;
        if self.after_cr && !rest.is_empty() {
            self.after_cr = false;
            rest = rest.strip_prefix(b"\n").unwrap_or(rest);
        }

        while let Some(end) = rest.iter().position(|byte| matches!(byte, b'\n' | b'\r')) {
            self.grow(&rest[..end])?;
            self.end_line(events);
            let cr = rest[end] == b'\r';
            rest = &rest[end + 1..];
            if cr {
                match rest.first() {
                    Some(b'\n') => rest = &rest[1..],
                    Some(_) => {}
                    None => self.after_cr = true,
                }
            }
        }
        self.grow(rest)
    }

    /// The event that lacks nothing but the blank line behind it, at the end of the stream. The
    /// standard drops it, since it may be cut; the caller takes it only if its data is whole.
    #[must_use]
    pub fn finish(mut self) -> Option<Event> {
        let mut events = Vec::new();
        self.end_line(&mut events);
        if !self.line.is_empty() || self.has_data {
            self.line.clear();
            self.end_line(&mut events);
        }
        events.pop()
    }

    fn grow(&mut self, bytes: &[u8]) -> Result<(), EventTooLarge> {
        // A comment is dropped as it comes, however long it is.
        if self.line.first() == Some(&b':') {
            return Ok(());
        }
        if self.line.is_empty() && bytes.first() == Some(&b':') {
            self.line.push(b':');
            return Ok(());
        }
        if self.event.data.len() + self.line.len() + bytes.len() > self.limit {
            return Err(EventTooLarge);
        }
        self.line.extend_from_slice(bytes);
        Ok(())
    }

    fn end_line(&mut self, events: &mut Vec<Event>) {
        let line = std::mem::take(&mut self.line);
        let mut rest = line.as_slice();
        if std::mem::take(&mut self.first_line) {
            rest = rest.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(rest);
        }
        if rest.is_empty() {
            self.end_event(events);
        } else {
            self.take_field(rest);
        }
        // Its room is used again.
        self.line = line;
        self.line.clear();
    }

    fn end_event(&mut self, events: &mut Vec<Event>) {
        let event = std::mem::take(&mut self.event);
        self.has_data = false;
        if !event.data.is_empty() || event.id.is_some() || event.retry.is_some() {
            events.push(event);
        }
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
            decoder.push(chunk, &mut events)?;
        }
        Ok(events)
    }

    /// The same events must come out however the bytes are cut.
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
    fn events_come_out() {
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
    fn what_lacks_only_the_blank_line_is_not_lost() {
        for (text, expected) in
            [("data: a\n", Some("a")), ("data: a", Some("a")), ("data: a\n\n", None), ("", None)]
        {
            let mut decoder = Decoder::new(100);
            decoder.push(text.as_bytes(), &mut Vec::new()).unwrap();
            let data = decoder.finish().map(|event| String::from_utf8(event.data).unwrap());
            assert_eq!(data.as_deref(), expected, "{text:?}");
        }
    }

    #[test]
    fn an_event_can_not_grow_past_the_limit() {
        assert_eq!(decode(&[b"data: 123456", b"7890"], 12), Err(EventTooLarge));
        assert_eq!(decode(&[b"data: 1\ndata: 2\n", b"data: 3\n"], 8), Err(EventTooLarge));
        let long_comment = [b":".as_slice(), &[b'x'; 1000], b"\ndata: a\n\n"].concat();
        assert_eq!(decode(&[&long_comment], 12).unwrap().len(), 1);
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

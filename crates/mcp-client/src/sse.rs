//! Server-sent events, decoded from bytes as they come.
//!
//! Written here because the limit is the point: an event that grows past it is an error at the byte where it does, so
//! a server can't fill our memory with one event that never ends. Unknown fields and comments are skipped, as the
//! standard says; identifiers and event names are of no use to one call and are not kept.

/// An event grew past the limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct EventTooLarge;

/// Turns chunks of bytes into the data of events.
#[derive(Debug)]
pub(crate) struct Decoder {
    limit: usize,
    line: Vec<u8>,
    data: Vec<u8>,
    has_data: bool,
    after_cr: bool,
    first_line: bool,
}

impl Decoder {
    /// A decoder that takes events of up to `limit` bytes.
    pub(crate) fn new(limit: usize) -> Self {
        Self { limit, line: Vec::new(), data: Vec::new(), has_data: false, after_cr: false, first_line: true }
    }

    /// Takes the next bytes and appends the data of every event that they complete. Events without data (keep-alive,
    /// priming) are left out.
    pub(crate) fn push(&mut self, chunk: &[u8], events: &mut Vec<Vec<u8>>) -> Result<(), EventTooLarge> {
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

    fn grow(&mut self, bytes: &[u8]) -> Result<(), EventTooLarge> {
        // A comment is dropped as it comes, however long it is.
        if self.line.first() == Some(&b':') {
            return Ok(());
        }
        if self.line.is_empty() && bytes.first() == Some(&b':') {
            self.line.push(b':');
            return Ok(());
        }
        if self.data.len() + self.line.len() + bytes.len() > self.limit {
            return Err(EventTooLarge);
        }
        self.line.extend_from_slice(bytes);
        Ok(())
    }

    fn end_line(&mut self, events: &mut Vec<Vec<u8>>) {
        let mut line = self.line.as_slice();
        if std::mem::take(&mut self.first_line) {
            line = line.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(line);
        }
        if line.is_empty() {
            let data = std::mem::take(&mut self.data);
            if std::mem::take(&mut self.has_data) && !data.is_empty() {
                events.push(data);
            }
        } else if let Some(value) =
            line.strip_prefix(b"data").filter(|v| matches!(v.first(), None | Some(b':')))
        {
            let value = value.strip_prefix(b":").unwrap_or(value);
            if std::mem::replace(&mut self.has_data, true) {
                self.data.push(b'\n');
            }
            self.data.extend_from_slice(value.strip_prefix(b" ").unwrap_or(value));
        }
        self.line.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decode(chunks: &[&[u8]], limit: usize) -> Result<Vec<String>, EventTooLarge> {
        let mut decoder = Decoder::new(limit);
        let mut events = Vec::new();
        for chunk in chunks {
            decoder.push(chunk, &mut events)?;
        }
        Ok(events.into_iter().map(|data| String::from_utf8(data).unwrap()).collect())
    }

    /// The same events must come out however the bytes are cut.
    fn check(text: &str, expected: &[&str]) {
        let bytes = text.as_bytes();
        assert_eq!(decode(&[bytes], 100).unwrap(), expected, "{text:?}");
        let single: Vec<&[u8]> = bytes.chunks(1).collect();
        assert_eq!(decode(&single, 100).unwrap(), expected, "{text:?} byte by byte");
    }

    #[test]
    fn events_come_out() {
        check("data: a\n\n", &["a"]);
        check("data:a\r\n\r\ndata: b\r\rdata: c\n\n", &["a", "b", "c"]);
        check("event: message\nid: 1\nretry: 5\ndata: {\ndata: }\n\n", &["{\n}"]);
        check(": keep-alive\n\n:\n\ndata:\n\nid: 7\n\n", &[]);
        check("\u{FEFF}data: a\n\n", &["a"]);
        check("database: x\nunknown\ndata\ndata: b\n\n", &["\nb"]);
        check("data: unfinished", &[]);
    }

    #[test]
    fn an_event_can_not_grow_past_the_limit() {
        assert_eq!(decode(&[b"data: 123456", b"7890"], 12), Err(EventTooLarge));
        assert_eq!(decode(&[b"data: 1\ndata: 2\n", b"data: 3\n"], 8), Err(EventTooLarge));
        let long_comment = [b":".as_slice(), &[b'x'; 1000], b"\ndata: a\n\n"].concat();
        assert_eq!(decode(&[&long_comment], 12).unwrap(), ["a"]);
        let many = b"data: 1234\n\n".repeat(100);
        assert_eq!(decode(&[&many], 12).unwrap().len(), 100);
    }
}

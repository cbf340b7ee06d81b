//! Server-sent events, decoded from bytes as they come. Pure.
//!
//! Beside the data, what is needed to go on after a cut is kept: the id, which by the standard
//! counts even in a block that holds nothing else.

/// What a block of the stream says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Event {
    /// The id in this block, if there is one; an empty one takes back those before.
    pub(super) id: Option<String>,
    /// The event's name; empty where it has none.
    pub(super) name: String,
    /// The data; absent in a block that only names an id.
    pub(super) data: Option<String>,
}

/// An event grew past the limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct TooLarge;

/// Turns chunks of bytes into events.
#[derive(Debug)]
pub(super) struct Decoder {
    limit: usize,
    line: Vec<u8>,
    event: Event,
    bytes: usize,
    after_cr: bool,
    first_line: bool,
}

impl Decoder {
    /// A decoder that takes events of up to `limit` bytes.
    pub(super) fn new(limit: usize) -> Self {
        Self {
            limit,
            line: Vec::new(),
            event: Event::default(),
            bytes: 0,
            after_cr: false,
            first_line: true,
        }
    }

    /// Takes the next bytes and appends every event that they complete.
    pub(super) fn push(
        &mut self,
        chunk: &[u8],
        events: &mut impl Extend<Event>,
    ) -> Result<(), TooLarge> {
        for &byte in chunk {
            // A line ends with CR, LF or both; both can come in two chunks.
            if std::mem::take(&mut self.after_cr) && byte == b'\n' {
                continue;
            }
            match byte {
                b'\n' | b'\r' => {
                    self.after_cr = byte == b'\r';
                    events.extend(self.end_line());
                }
                byte => {
                    self.bytes += 1;
                    if self.bytes > self.limit {
                        return Err(TooLarge);
                    }
                    self.line.push(byte);
                }
            }
        }
        Ok(())
    }

    fn end_line(&mut self) -> Option<Event> {
        let line = std::mem::take(&mut self.line);
        let line = String::from_utf8_lossy(&line);
        let line = match std::mem::take(&mut self.first_line) {
            true => line.trim_start_matches('\u{FEFF}'),
            false => &line,
        };
        if line.is_empty() {
            self.bytes = 0;
            let event = std::mem::take(&mut self.event);
            return (event.data.is_some() || event.id.is_some()).then_some(event);
        }
        let (field, value) = line.split_once(':').unwrap_or((line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match field {
            "data" => match &mut self.event.data {
                Some(data) => {
                    data.push('\n');
                    data.push_str(value);
                }
                data => *data = Some(value.to_owned()),
            },
            "event" => value.clone_into(&mut self.event.name),
            "id" if !value.contains('\0') => self.event.id = Some(value.to_owned()),
            // A comment (the field without a name), `retry`, or something of the future.
            _ => self.bytes -= line.len().min(self.bytes),
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decode(chunks: &[&[u8]], limit: usize) -> Result<Vec<Event>, TooLarge> {
        let (mut decoder, mut events) = (Decoder::new(limit), Vec::new());
        for chunk in chunks {
            decoder.push(chunk, &mut events)?;
        }
        Ok(events)
    }

    /// The same events must come out however the bytes are cut.
    fn check(text: &str, expected: &[(Option<&str>, &str, Option<&str>)]) {
        let expected: Vec<_> = expected
            .iter()
            .map(|(id, name, data)| Event {
                id: id.map(str::to_owned),
                name: (*name).to_owned(),
                data: data.map(str::to_owned),
            })
            .collect();
        assert_eq!(decode(&[text.as_bytes()], 100).unwrap(), expected, "{text:?}");
        let single: Vec<&[u8]> = text.as_bytes().chunks(1).collect();
        assert_eq!(decode(&single, 100).unwrap(), expected, "{text:?} byte by byte");
    }

    #[test]
    fn events_are_decoded() {
        check("id: 3-17\nevent: state\ndata: {}\n\n", &[(Some("3-17"), "state", Some("{}"))]);
        check(
            "data:a\r\n\r\ndata: b\r\rdata\n\n",
            &[(None, "", Some("a")), (None, "", Some("b")), (None, "", Some(""))],
        );
        check("\u{FEFF}data: a\ndata: ä\n\n", &[(None, "", Some("a\nä"))]);
        check(": keep-alive\n\nretry: 5\n\nid: 7\n\n", &[(Some("7"), "", None)]);
        check("data: unfinished", &[]);
    }

    #[test]
    fn an_event_can_not_grow_past_the_limit_and_comments_do_not_count() {
        assert_eq!(decode(&[b"data: 123456", b"7890"], 12), Err(TooLarge));
        assert_eq!(decode(&[&b": keep-alive\n".repeat(100)], 20).unwrap(), []);
        assert_eq!(decode(&[&b"data: 1234\n\n".repeat(100)], 12).unwrap().len(), 100);
    }
}

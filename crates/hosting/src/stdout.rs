//! What a child writes on its standard output, line by line.
//!
//! Programs print banners where MCP must stand, and broken ones write without end. The watch counts
//! lines that are not JSON-RPC, so that a failed handshake can say so. A line that is longer than
//! any message may be is not kept, and a line without end ends the stream.

use std::sync::Arc;

use parking_lot::Mutex;
use tokio::io::{AsyncBufReadExt, AsyncRead, BufReader};

/// The longest line that a child may write.
pub(crate) const MAX_LINE: usize = 16 * 1024 * 1024;
/// How many times longer a line may be before it is taken for one without end. A line that is too
/// long is not kept, and fails only the call whose answer it is.
const PATIENCE: usize = 4;
/// How much is kept of each end of a line that is too long, to tell whose answer it is.
const ENDS: usize = 512;
/// How many lines of garbage are put up with before the handshake is done.
const MAX_GARBAGE_BEFORE_HANDSHAKE: u64 = 100;
const SHOWN: usize = 120;
/// How much room is kept for the next line.
const KEPT: usize = 256 * 1024;

/// What was noticed. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct StdoutWatch {
    seen: Arc<Mutex<Seen>>,
}

#[derive(Debug, Default)]
struct Seen {
    garbage_lines: u64,
    first_garbage: String,
    handshake_done: bool,
    broken: Option<String>,
}

impl StdoutWatch {
    /// From now on garbage is no reason to give up.
    pub fn set_handshake_done(&self) {
        self.lock().handshake_done = true;
    }

    /// Why the stream was ended, if it was.
    pub fn broken(&self) -> Option<String> {
        self.lock().broken.clone()
    }

    /// What is wrong with the output, if something is.
    pub fn complaint(&self) -> Option<String> {
        let seen = self.lock();
        if let Some(broken) = &seen.broken {
            return Some(broken.clone());
        }
        (seen.garbage_lines > 0).then(|| {
            format!(
                "it wrote {} line(s) on standard output that are not JSON-RPC, the first being {:?}",
                seen.garbage_lines, seen.first_garbage
            )
        })
    }

    /// Notes a line that is not JSON-RPC. Whether the child may go on.
    pub(super) fn note_garbage(&self, line: &[u8]) -> bool {
        let mut seen = self.lock();
        seen.garbage_lines += 1;
        if seen.garbage_lines == 1 {
            let shown = &line[..line.len().min(SHOWN)];
            seen.first_garbage = String::from_utf8_lossy(shown).trim().to_owned();
        }
        seen.handshake_done || seen.garbage_lines <= MAX_GARBAGE_BEFORE_HANDSHAKE
    }

    /// Notes that a line does not end.
    pub(super) fn note_endless(&self, limit: usize) {
        self.lock().broken =
            Some(format!("it wrote a line of more than {limit} bytes on standard output"));
    }

    fn lock(&self) -> parking_lot::MutexGuard<'_, Seen> {
        self.seen.lock()
    }
}

/// What comes next on standard output.
pub(super) enum Line<'a> {
    /// A line, without its end.
    Whole(&'a [u8]),
    /// The ends of a line that is longer than `limit`.
    TooLong { head: &'a [u8], tail: &'a [u8], limit: usize },
    /// The beginning of a line that is so much longer than `limit` that its end is not waited for.
    Endless { head: &'a [u8], limit: usize },
    /// The end of the output.
    End,
}

/// Reads lines, and keeps no more of a line than a message may have.
pub(super) struct Lines<R> {
    reader: BufReader<R>,
    limit: usize,
    /// The line that is being read, or its beginning if it is too long.
    line: Vec<u8>,
    /// The end of a line that is too long.
    tail: Vec<u8>,
    length: usize,
    /// The line has been returned, so the next one begins.
    is_returned: bool,
}

impl<R: AsyncRead + Unpin> Lines<R> {
    pub(super) fn new(reader: R) -> Self {
        Self::with_limit(reader, MAX_LINE)
    }

    fn with_limit(reader: R, limit: usize) -> Self {
        let reader = BufReader::with_capacity(64 * 1024, reader);
        Self { reader, limit, line: Vec::new(), tail: Vec::new(), length: 0, is_returned: false }
    }

    /// The next line. May be dropped and called again: a line that has begun is kept.
    pub(super) async fn next_line(&mut self) -> Line<'_> {
        if std::mem::take(&mut self.is_returned) {
            self.line.clear();
            // One large answer should not hold its memory for as long as the child lives.
            self.line.shrink_to(KEPT);
            self.tail.clear();
            self.length = 0;
        }

        loop {
            let bytes = match self.reader.fill_buf().await {
                Ok(bytes) if !bytes.is_empty() => bytes,
                // A line without its end was cut with the pipe.
                Ok(_) | Err(_) => return Line::End,
            };
            let end = bytes.iter().position(|byte| *byte == b'\n');
            let part = &bytes[..end.unwrap_or(bytes.len())];
            let taken = part.len() + usize::from(end.is_some());
            self.length += part.len();
            if self.length <= self.limit {
                self.line.extend_from_slice(part);
            } else {
                keep_ends(&mut self.line, &mut self.tail, part);
            }
            self.reader.consume(taken);

            if self.length > self.limit.saturating_mul(PATIENCE) {
                return Line::Endless { head: &self.line, limit: self.limit };
            }
            if end.is_some() {
                self.is_returned = true;
                return match self.length > self.limit {
                    true => Line::TooLong { head: &self.line, tail: &self.tail, limit: self.limit },
                    false => Line::Whole(&self.line),
                };
            }
        }
    }
}

/// Keeps the two ends of a line of which `part` comes next.
fn keep_ends(head: &mut Vec<u8>, tail: &mut Vec<u8>, part: &[u8]) {
    let room = ENDS.saturating_sub(head.len());
    head.extend_from_slice(&part[..part.len().min(room)]);
    if head.len() > ENDS {
        // What is cut off here may be all that is kept of the end.
        tail.extend_from_slice(&head[head.len() - ENDS..]);
        head.truncate(ENDS);
        head.shrink_to_fit();
    }
    tail.extend_from_slice(&part[part.len().saturating_sub(ENDS)..]);
    tail.drain(..tail.len().saturating_sub(ENDS));
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn lines(input: &[u8], limit: usize) -> Vec<String> {
        let mut lines = Lines::with_limit(input, limit);
        let mut found = Vec::new();
        loop {
            let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
            match lines.next_line().await {
                Line::Whole(line) => found.push(text(line)),
                Line::TooLong { head, tail, .. } => {
                    found.push(format!("{}…{}", text(head), text(tail)))
                }
                Line::Endless { limit, .. } => {
                    found.push(format!("more than {limit}"));
                    return found;
                }
                Line::End => return found,
            }
        }
    }

    #[tokio::test]
    async fn lines_are_read_and_long_ones_are_not_kept() {
        assert_eq!(lines(b"{}\n\n  {}\r\n[]\ncut", 100).await, ["{}", "", "  {}\r", "[]"]);
        let long = [b"a".repeat(600), b"b".repeat(600), b"\n{}\n".to_vec()].concat();
        let found = lines(&long, 1000).await;
        assert_eq!(found, [format!("{}…{}", "a".repeat(512), "b".repeat(512)), "{}".to_owned()]);
    }

    #[tokio::test]
    async fn a_line_without_end_ends_the_stream() {
        assert_eq!(lines(&vec![b'{'; 100_000], 1000).await, ["more than 1000"]);
        let watch = StdoutWatch::default();
        watch.note_endless(1000);
        assert!(watch.complaint().unwrap().contains("more than 1000 bytes"));
    }

    #[test]
    fn garbage_is_noticed_and_a_flood_of_it_ends_the_stream() {
        let watch = StdoutWatch::default();
        assert!(watch.note_garbage(b"[INFO] ready> {}"));
        assert!(watch.complaint().unwrap().contains("\"[INFO] ready> {}\""));
        let mut lines = 1;
        while watch.note_garbage(b"y") {
            lines += 1;
        }
        assert_eq!(lines, MAX_GARBAGE_BEFORE_HANDSHAKE);
        watch.set_handshake_done();
        assert!(watch.note_garbage(b"y"));
    }
}

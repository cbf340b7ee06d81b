//! Reads a child's standard output line by line.
//!
//! Some programs print banners among the messages, and broken ones write without end. The watch
//! counts lines that are not JSON-RPC, so that the error of a failed handshake can name them. A
//! line that is longer than any message may be is not kept, and an endless line ends the stream.

use std::sync::Arc;

use fleet_wire::shorten;
use parking_lot::Mutex;
use tokio::io::{AsyncBufReadExt, AsyncRead, BufReader};

/// The longest line that is read, in bytes.
pub(crate) const MAX_LINE: usize = 16 * 1024 * 1024;
/// How many times longer a line may be before it counts as endless. A line that is merely too long
/// is not kept, and fails only the call that it answers.
const PATIENCE: usize = 4;
/// The bytes that are kept of each end of a line that is too long, to tell which call it answers.
const ENDS: usize = 512;
/// The most lines of garbage that are tolerated before the handshake is finished.
const MAX_GARBAGE_BEFORE_HANDSHAKE: u64 = 100;
/// The longest part of a line that is shown, in bytes.
const SHOWN: usize = 120;
/// The capacity that is kept for the next line, in bytes.
const KEPT: usize = 256 * 1024;

/// What is wrong with a child's standard output. Clones share the state.
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
    /// Notes that the handshake is finished. From now on, garbage does not end the stream.
    pub fn set_handshake_done(&self) {
        self.lock().handshake_done = true;
    }

    /// Returns why the stream was ended, if it was.
    pub fn broken(&self) -> Option<String> {
        self.lock().broken.clone()
    }

    /// Returns what is wrong with the output, if anything.
    pub fn complaint(&self) -> Option<String> {
        let seen = self.lock();
        if let Some(broken) = &seen.broken {
            return Some(broken.clone());
        }
        (seen.garbage_lines > 0).then(|| {
            format!(
                "it wrote {} line(s) to standard output that are not JSON-RPC; the first is {:?}",
                seen.garbage_lines, seen.first_garbage
            )
        })
    }

    /// Notes a line that is not JSON-RPC. Returns whether to read on.
    pub(super) fn note_garbage(&self, line: &[u8]) -> bool {
        let mut seen = self.lock();
        seen.garbage_lines += 1;
        if seen.garbage_lines == 1 {
            let line = line.trim_ascii();
            // A few bytes more tell whether the text is cut.
            let start = String::from_utf8_lossy(&line[..line.len().min(SHOWN + 4)]);
            seen.first_garbage = shorten(&start, SHOWN).trim().to_owned();
        }
        seen.handshake_done || seen.garbage_lines <= MAX_GARBAGE_BEFORE_HANDSHAKE
    }

    /// Notes an endless line.
    pub(super) fn note_endless(&self, limit: usize) {
        self.lock().broken =
            Some(format!("it wrote a line of more than {limit} bytes to standard output"));
    }

    fn lock(&self) -> parking_lot::MutexGuard<'_, Seen> {
        self.seen.lock()
    }
}

/// The next part of standard output.
pub(super) enum Line<'a> {
    /// A line without its line feed.
    Whole(&'a [u8]),
    /// The ends of a line that is longer than `limit`.
    TooLong { head: &'a [u8], tail: &'a [u8], limit: usize },
    /// The beginning of a line so much longer than `limit` that it counts as endless.
    Endless { head: &'a [u8], limit: usize },
    /// The end of the output.
    End,
}

/// Reads lines, keeping no more of a line than the longest message.
pub(super) struct Lines<R> {
    reader: BufReader<R>,
    limit: usize,
    /// The present line, or its beginning if it is too long.
    line: Vec<u8>,
    /// The end of a line that is too long.
    tail: Vec<u8>,
    length: usize,
    /// Whether the line has been returned, so that the next one begins.
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

    /// Reads the next line. Cancel safe: a partial line is kept.
    pub(super) async fn next_line(&mut self) -> Line<'_> {
        if std::mem::take(&mut self.is_returned) {
            self.line.clear();
            // Release the memory of a large line.
            self.line.shrink_to(KEPT);
            self.tail.clear();
            self.length = 0;
        }

        loop {
            let bytes = match self.reader.fill_buf().await {
                Ok(bytes) if !bytes.is_empty() => bytes,
                // A last line without a line feed was cut off.
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

/// Keeps the two ends of a line that `part` continues.
fn keep_ends(head: &mut Vec<u8>, tail: &mut Vec<u8>, part: &[u8]) {
    let room = ENDS.saturating_sub(head.len());
    head.extend_from_slice(&part[..part.len().min(room)]);
    if head.len() > ENDS {
        // The part that is cut off here may become the end.
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
    use crate::secrets::Secrets;

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
    async fn long_lines_are_not_kept() {
        assert_eq!(lines(b"{}\n\n  {}\r\n[]\ncut", 100).await, ["{}", "", "  {}\r", "[]"]);
        let long = [b"a".repeat(600), b"b".repeat(600), b"\n{}\n".to_vec()].concat();
        let found = lines(&long, 1000).await;
        assert_eq!(found, [format!("{}…{}", "a".repeat(512), "b".repeat(512)), "{}".to_owned()]);
    }

    #[tokio::test]
    async fn an_endless_line_ends_the_stream() {
        assert_eq!(lines(&vec![b'{'; 100_000], 1000).await, ["more than 1000"]);
        let watch = StdoutWatch::default();
        watch.note_endless(1000);
        assert!(watch.complaint().unwrap().contains("more than 1000 bytes"));
    }

    /// The complaint goes into an error in which secrets are hidden afterwards.
    #[test]
    fn a_secret_that_is_cut_in_a_complaint_is_found() {
        let variable = ("KEY".to_owned(), "correct horse battery staple".to_owned());
        let secrets = Secrets::new([variable.clone()].into());
        for before in 0..SHOWN {
            let watch = StdoutWatch::default();
            let line = format!("{}{}\n", "é".repeat(before / 2), variable.1);
            watch.note_garbage(format!("{line}{line}{line}").as_bytes());
            let complaint = watch.complaint().unwrap();
            let shown = secrets.hide(&complaint);
            assert!(!shown.contains("corr"), "{before}: {shown}");
        }
    }

    #[test]
    fn garbage_is_noted_and_too_much_of_it_ends_the_stream() {
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

//! What a child writes on its standard output, watched while it is read.
//!
//! Programs print banners where MCP must stand, and broken ones write without end. The guard counts lines that can't
//! be JSON-RPC, so that a failed handshake can say so, and ends the stream at a line that is longer than any message
//! may be: the reader behind it buffers whole lines.

use std::{
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
};

use tokio::io::{AsyncRead, ReadBuf};

/// The longest line that a child may write.
pub const MAX_LINE: usize = 16 * 1024 * 1024;
/// How many lines of garbage are suffered before the handshake is done.
const MAX_GARBAGE_BEFORE_HANDSHAKE: u64 = 100;
const SHOWN: usize = 120;

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
    pub fn handshake_done(&self) {
        self.lock().handshake_done = true;
    }

    /// Why the stream was ended, where it was.
    pub fn broken(&self) -> Option<String> {
        self.lock().broken.clone()
    }

    /// What is to be said about the output, where something is.
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

    fn lock(&self) -> std::sync::MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A reader that watches the lines going through it.
pub struct StdoutGuard<R> {
    inner: R,
    watch: StdoutWatch,
    max_line: usize,
    line_length: usize,
    /// The first bytes of the current line.
    head: Vec<u8>,
    ended: bool,
}

impl<R> StdoutGuard<R> {
    /// Guards a reader.
    pub fn new(inner: R, watch: StdoutWatch) -> Self {
        Self::with_max_line(inner, watch, MAX_LINE)
    }

    fn with_max_line(inner: R, watch: StdoutWatch, max_line: usize) -> Self {
        Self { inner, watch, max_line, line_length: 0, head: Vec::new(), ended: false }
    }

    /// Whether the stream may go on after these bytes.
    fn inspect(&mut self, bytes: &[u8]) -> bool {
        let mut rest = bytes;
        while !rest.is_empty() {
            let end = rest.iter().position(|byte| *byte == b'\n');
            let part = &rest[..end.unwrap_or(rest.len())];
            self.line_length += part.len();
            let room = SHOWN.saturating_sub(self.head.len());
            self.head.extend(&part[..part.len().min(room)]);
            if self.line_length > self.max_line {
                let limit = self.max_line;
                self.watch.lock().broken =
                    Some(format!("it wrote a line of more than {limit} bytes on standard output"));
                return false;
            }
            let Some(end) = end else { break };
            if !self.end_of_line() {
                return false;
            }
            rest = &rest[end + 1..];
        }
        true
    }

    fn end_of_line(&mut self) -> bool {
        let head = std::mem::take(&mut self.head);
        self.line_length = 0;
        let text = head.trim_ascii_start();
        let text = text.strip_prefix(b"\xef\xbb\xbf").unwrap_or(text);
        if matches!(text.first(), None | Some(b'{' | b'[')) {
            return true;
        }
        let mut seen = self.watch.lock();
        seen.garbage_lines += 1;
        if seen.garbage_lines == 1 {
            seen.first_garbage = String::from_utf8_lossy(text).trim_end().to_owned();
        }
        seen.handshake_done || seen.garbage_lines <= MAX_GARBAGE_BEFORE_HANDSHAKE
    }
}

impl<R: AsyncRead + Unpin> AsyncRead for StdoutGuard<R> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        if self.ended {
            return Poll::Ready(Ok(()));
        }
        let before = buffer.filled().len();
        std::task::ready!(Pin::new(&mut self.inner).poll_read(context, buffer))?;
        let this = &mut *self;
        if !this.inspect(&buffer.filled()[before..]) {
            this.ended = true;
            buffer.set_filled(before);
        }
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncReadExt;

    use super::*;

    async fn read(input: &[u8], max_line: usize) -> (usize, Option<String>) {
        let watch = StdoutWatch::default();
        let mut guard = StdoutGuard::with_max_line(input, watch.clone(), max_line);
        let mut out = Vec::new();
        guard.read_to_end(&mut out).await.unwrap();
        (out.len(), watch.complaint())
    }

    #[tokio::test]
    async fn json_passes_and_garbage_is_noticed() {
        assert_eq!(read(b"{\"a\":1}\n\n  {}\r\n[]\n", 100).await, (18, None));
        let (length, complaint) = read(b"Server started\n{}\n", 100).await;
        assert_eq!(length, 18);
        assert!(complaint.unwrap().contains("\"Server started\""));
    }

    #[tokio::test]
    async fn a_line_without_end_ends_the_stream() {
        let (length, complaint) = read(&[b'{'; 5000], 1000).await;
        assert!(length <= 1000, "{length}");
        assert!(complaint.unwrap().contains("more than 1000 bytes"));
    }

    #[tokio::test]
    async fn a_flood_of_garbage_ends_the_stream() {
        let flood = b"y\n".repeat(100_000);
        let (length, complaint) = read(&flood, 1000).await;
        assert!(length < flood.len());
        assert!(complaint.unwrap().contains("101 line(s)"));
    }
}

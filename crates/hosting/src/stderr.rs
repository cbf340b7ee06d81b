//! What a child writes on its standard error: kept bounded for people who ask why it died, and
//! logged.

use std::{collections::VecDeque, fmt, sync::Arc};

use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncReadExt};

use super::secrets::Secrets;

/// How much is kept.
pub(crate) const KEPT: usize = 64 * 1024;
/// How much of one line is logged.
const LOGGED_LINE: usize = 4 * 1024;

/// The last [`KEPT`] bytes of a child's standard error. Clones share it. What it shows holds no
/// secret of the server's.
#[derive(Clone, Default)]
pub struct StderrTail {
    bytes: Arc<Mutex<VecDeque<u8>>>,
    secrets: Secrets,
}

impl fmt::Debug for StderrTail {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StderrTail").finish_non_exhaustive()
    }
}

impl StderrTail {
    /// One that hides these.
    pub fn hiding(secrets: Secrets) -> Self {
        Self { secrets, ..Self::default() }
    }

    /// Adds bytes, and forgets the oldest where there are too many.
    pub fn push(&self, chunk: &[u8]) {
        let mut bytes = self.bytes.lock();
        bytes.extend(&chunk[chunk.len().saturating_sub(KEPT)..]);
        let excess = bytes.len().saturating_sub(KEPT);
        bytes.drain(..excess);
    }

    /// At most the last `max` bytes as text.
    pub fn text(&self, max: usize) -> String {
        let bytes = self.bytes.lock();
        // Where bytes were forgotten, the first ones may be the rest of a secret.
        let cut = if bytes.len() < KEPT { 0 } else { self.secrets.longest().saturating_sub(1) };
        let tail: Vec<u8> = bytes.iter().skip(cut).copied().collect();
        drop(bytes);

        let text = self.secrets.hide(String::from_utf8_lossy(&tail));
        let start = text.len().saturating_sub(max);
        let start =
            (start..=text.len()).find(|at| text.is_char_boundary(*at)).unwrap_or(text.len());
        text[start..].trim_end().to_owned()
    }

    /// Reads until the end of the stream, keeping the tail and logging line by line.
    pub async fn follow(self, server: String, mut stream: impl AsyncRead + Unpin) {
        let mut chunk = vec![0; 8 * 1024];
        let mut line = Vec::new();
        // An error of a pipe means the same as its end.
        while let Ok(read @ 1..) = stream.read(&mut chunk).await {
            self.push(&chunk[..read]);
            for byte in &chunk[..read] {
                match byte {
                    b'\n' => self.log_line(&server, &mut line),
                    byte if line.len() < LOGGED_LINE => line.push(*byte),
                    _ => {}
                }
            }
        }
        self.log_line(&server, &mut line);
    }

    fn log_line(&self, server: &str, line: &mut Vec<u8>) {
        if !line.is_empty() {
            let text = self.secrets.hide(String::from_utf8_lossy(line));
            tracing::debug!(server, stderr = %text, "hosted server wrote");
            line.clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_tail_is_kept() {
        let tail = StderrTail::default();
        tail.push(&vec![b'a'; KEPT]);
        tail.push(b"the end\n");
        assert_eq!(tail.text(7 + 1), "the end");
        assert_eq!(tail.text(usize::MAX).len(), KEPT - 1);
        tail.push(&vec![b'b'; 3 * KEPT]);
        assert_eq!(tail.text(usize::MAX), "b".repeat(KEPT));
    }

    #[test]
    fn a_secret_is_hidden_also_where_it_was_cut() {
        let tail =
            StderrTail::hiding(Secrets::new([("KEY".to_owned(), "hunter2".to_owned())].into()));
        tail.push(b"key hunter2 is bad");
        assert_eq!(tail.text(100), "key ${KEY} is bad");
        assert_eq!(tail.text(10), "EY} is bad");
        tail.push(&vec![b'x'; KEPT - 18 + 7]);
        assert!(!tail.text(KEPT).contains("ter2"));
    }

    #[tokio::test]
    async fn a_stream_is_followed_to_its_end() {
        let tail = StderrTail::default();
        tail.clone().follow("s".to_owned(), &b"one\ntwo"[..]).await;
        assert_eq!(tail.text(100), "one\ntwo");
    }
}

//! A child's standard error: logged, and its end kept to show why the child failed.

use std::{collections::VecDeque, fmt, sync::Arc};

use fleet_wire::shorten;
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncReadExt};

use super::secrets::Secrets;

/// The bytes that are kept.
pub(crate) const KEPT: usize = 64 * 1024;
/// The longest part of a line that is logged, in bytes.
const LOGGED_LINE: usize = 4 * 1024;

/// The last [`KEPT`] bytes of a child's standard error. Secrets are hidden in what it shows. Clones
/// share the state.
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
    /// Creates an empty tail that hides these secrets.
    pub fn hiding(secrets: Secrets) -> Self {
        Self { secrets, ..Self::default() }
    }

    /// Adds bytes, and drops the oldest if there are too many.
    pub fn push(&self, chunk: &[u8]) {
        let mut bytes = self.bytes.lock();
        bytes.extend(&chunk[chunk.len().saturating_sub(KEPT)..]);
        let excess = bytes.len().saturating_sub(KEPT);
        bytes.drain(..excess);
    }

    /// Returns at most the last `max` bytes as text.
    pub fn text(&self, max: usize) -> String {
        let bytes = self.bytes.lock();
        // If bytes were dropped, the first ones may be the rest of a secret.
        let cut = if bytes.len() < KEPT { 0 } else { self.secrets.longest().saturating_sub(1) };
        let tail: Vec<u8> = bytes.iter().skip(cut).copied().collect();
        drop(bytes);

        let text = self.secrets.hide(String::from_utf8_lossy(&tail));
        let start = text.len().saturating_sub(max);
        let start =
            (start..=text.len()).find(|at| text.is_char_boundary(*at)).unwrap_or(text.len());
        text[start..].trim_end().to_owned()
    }

    /// Reads a stream to its end, keeping its tail and logging its lines.
    pub async fn follow(self, server: String, mut stream: impl AsyncRead + Unpin) {
        let mut chunk = vec![0; 8 * 1024];
        let mut line = Vec::new();
        // An error of the pipe means the same as its end.
        while let Ok(read @ 1..) = stream.read(&mut chunk).await {
            self.push(&chunk[..read]);
            for byte in &chunk[..read] {
                match byte {
                    b'\n' => self.log_line(&server, &mut line),
                    // A few bytes more tell whether the text is cut.
                    byte if line.len() < LOGGED_LINE + 4 => line.push(*byte),
                    _ => {}
                }
            }
        }
        self.log_line(&server, &mut line);
    }

    fn log_line(&self, server: &str, line: &mut Vec<u8>) {
        if !line.is_empty() {
            let text = self.loggable(line);
            tracing::debug!(server, stderr = %text, "hosted server wrote to standard error");
            line.clear();
        }
    }

    /// Returns the text of a line of which a few bytes more than are logged may have been kept.
    fn loggable(&self, line: &[u8]) -> String {
        let text = String::from_utf8_lossy(line);
        self.secrets.hide(shorten(&text, LOGGED_LINE)).into_owned()
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
    fn secrets_are_hidden_even_if_they_were_cut() {
        let tail =
            StderrTail::hiding(Secrets::new([("KEY".to_owned(), "hunter2".to_owned())].into()));
        tail.push(b"key hunter2 is bad");
        assert_eq!(tail.text(100), "key ${KEY} is bad");
        assert_eq!(tail.text(10), "EY} is bad");
        tail.push(&vec![b'x'; KEPT - 18 + 7]);
        assert!(!tail.text(KEPT).contains("ter2"));
    }

    #[test]
    fn a_secret_that_is_cut_in_the_log_is_hidden() {
        let secrets = Secrets::new([("KEY".to_owned(), "hunter2-battery".to_owned())].into());
        let tail = StderrTail::hiding(secrets);
        for before in LOGGED_LINE - 15..LOGGED_LINE - 3 {
            let line = format!("{}hunter2-battery and more", "x".repeat(before));
            let logged = tail.loggable(&line.as_bytes()[..LOGGED_LINE + 4]);
            assert!(!logged.contains("hunt"), "{before}: {}", &logged[before..]);
        }
    }

    #[tokio::test]
    async fn a_stream_is_read_to_its_end() {
        let tail = StderrTail::default();
        tail.clone().follow("s".to_owned(), &b"one\ntwo"[..]).await;
        assert_eq!(tail.text(100), "one\ntwo");
    }
}

//! The transport to a child, over its standard input and output: rmcp writes, and this module reads
//! lines.

use std::collections::VecDeque;

use rmcp::{
    RoleClient,
    service::{RxJsonRpcMessage, TxJsonRpcMessage},
    transport::{Transport, async_rw::AsyncRwTransport},
};
use tokio::{
    io::{AsyncRead, AsyncWrite, Empty},
    time::{Instant, timeout_at},
};

use super::{
    inbound::Inbound,
    multiline::{LineRole, MultilineReader},
    secrets::Secrets,
    stdout::{Line, Lines, StdoutWatch},
};

/// The transport to a child.
pub(super) struct StdioTransport<R, W: AsyncWrite> {
    writer: AsyncRwTransport<RoleClient, Empty, W>,
    lines: Lines<R>,
    watch: StdoutWatch,
    inbound: Inbound,
    /// The message that spans several lines, if there is one.
    multiline: MultilineReader,
    /// Messages that were read but not passed on yet.
    ready: VecDeque<RxJsonRpcMessage<RoleClient>>,
    is_over: bool,
}

impl<R, W> StdioTransport<R, W>
where
    R: AsyncRead + Send + Unpin,
    W: AsyncWrite + Send + Unpin + 'static,
{
    /// The log does not show the values of `secrets`.
    pub(super) fn new(stdout: R, stdin: W, watch: StdoutWatch, secrets: Secrets) -> Self {
        Self {
            writer: AsyncRwTransport::new_client(tokio::io::empty(), stdin),
            lines: Lines::new(stdout),
            watch,
            inbound: Inbound::new(secrets),
            multiline: MultilineReader::default(),
            ready: VecDeque::new(),
            is_over: false,
        }
    }
}

impl<R, W> Transport<RoleClient> for StdioTransport<R, W>
where
    R: AsyncRead + Send + Unpin + 'static,
    W: AsyncWrite + Send + Unpin + 'static,
{
    type Error = std::io::Error;

    fn send(
        &mut self,
        item: TxJsonRpcMessage<RoleClient>,
    ) -> impl Future<Output = Result<(), Self::Error>> + Send + 'static {
        self.inbound.note_sent(&item);
        self.writer.send(item)
    }

    // rmcp drops the future whenever it sends something, so this must be cancel safe: a partial
    // line stays in `lines`, and messages that were read in `ready`.
    async fn receive(&mut self) -> Option<RxJsonRpcMessage<RoleClient>> {
        loop {
            if let Some(message) = self.ready.pop_front() {
                return Some(message);
            }
            if self.is_over {
                return None;
            }

            let next = self.lines.next_line();
            let line = match self.inbound.release_at() {
                // While lines come without a pause, the timeout would never end.
                Some(release_at) if release_at <= Instant::now() => None,
                Some(release_at) => timeout_at(release_at, next).await.ok(),
                None => Some(next.await),
            };
            let Some(line) = line else {
                self.ready.extend(self.inbound.release_due(Instant::now()));
                continue;
            };
            let mut reading = Reading {
                inbound: &mut self.inbound,
                watch: &self.watch,
                ready: &mut self.ready,
                now: Instant::now(),
            };
            self.is_over = !reading.take_line(line, &mut self.multiline);
        }
    }

    fn close(&mut self) -> impl Future<Output = Result<(), Self::Error>> + Send {
        self.writer.close()
    }
}

/// Turns what the child writes into messages.
struct Reading<'a> {
    inbound: &'a mut Inbound,
    watch: &'a StdoutWatch,
    ready: &'a mut VecDeque<RxJsonRpcMessage<RoleClient>>,
    now: Instant,
}

impl Reading<'_> {
    /// Takes a line of the child. Returns whether to read on.
    fn take_line(&mut self, line: Line<'_>, multiline: &mut MultilineReader) -> bool {
        match line {
            Line::Whole(line) => match multiline.add_line(line) {
                LineRole::Held => true,
                LineRole::Whole(message) => self.read_text(&message),
                LineRole::Alone { abandoned } => {
                    abandoned.is_none_or(|text| self.read_text(&text)) && self.read_text(line)
                }
            },
            Line::TooLong { head, tail, limit } => {
                let passed = self.inbound.end_too_long(head, tail, limit, self.now);
                self.pass_on(passed, head)
            }
            Line::Endless { head, limit } => {
                let passed = self.inbound.end_too_long(head, &[], limit, self.now);
                self.ready.extend(passed.unwrap_or_default());
                self.ready.extend(self.inbound.release_all());
                self.watch.note_endless(limit);
                false
            }
            Line::End => {
                self.ready.extend(self.inbound.release_all());
                false
            }
        }
    }

    fn read_text(&mut self, text: &[u8]) -> bool {
        if text.trim_ascii().is_empty() {
            return true;
        }
        let passed = self.inbound.read(text, self.now);
        self.pass_on(passed, text)
    }

    /// Passes messages on. A text without messages is garbage. Returns whether to read on.
    fn pass_on(
        &mut self,
        messages: Option<Vec<RxJsonRpcMessage<RoleClient>>>,
        text: &[u8],
    ) -> bool {
        match messages {
            Some(messages) => {
                self.ready.extend(messages);
                true
            }
            None => self.watch.note_garbage(text),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use rmcp::model::{
        CallToolRequest, CallToolRequestParams, ClientJsonRpcMessage, ClientRequest,
        JsonRpcMessage, NumberOrString,
    };
    use tokio::io::{AsyncWriteExt, DuplexStream};

    use super::*;
    use crate::held::HOLD;

    /// Returns a transport over which request 7 was sent, and the other end of its standard output.
    async fn calling() -> (DuplexStream, StdioTransport<DuplexStream, tokio::io::Sink>) {
        let (child, stdout) = tokio::io::duplex(1024);
        let watch = StdoutWatch::default();
        watch.set_handshake_done();
        let mut transport =
            StdioTransport::new(stdout, tokio::io::sink(), watch, Secrets::default());
        let call = CallToolRequest::new(CallToolRequestParams::new("t"));
        let call = ClientRequest::CallToolRequest(call);
        let call = ClientJsonRpcMessage::request(call, NumberOrString::Number(7));
        transport.send(call).await.unwrap();
        (child, transport)
    }

    /// An unreadable answer ends its call even if nothing follows or the output ends, and an answer
    /// that its server prints behind something else ends it, too.
    #[tokio::test]
    async fn held_answers_are_passed_on_in_time() {
        let unreadable = "{'jsonrpc': '2.0', 'id': 7, 'result': {}}\n\n";
        let glued = "INFO called {\"jsonrpc\":\"2.0\",\"id\":7,\"result\":{}}\nINFO done\n";
        for (lines, is_readable) in [(unreadable, false), (glued, true)] {
            for is_closed in [false, true] {
                let (mut child, mut transport) = calling().await;
                child.write_all(lines.as_bytes()).await.unwrap();
                let _open = (!is_closed).then_some(child);
                let begun = Instant::now();
                let passed = transport.receive().await.unwrap();
                match passed {
                    JsonRpcMessage::Response(_) => assert!(is_readable),
                    JsonRpcMessage::Error(_) => assert!(!is_readable),
                    other => panic!("{other:?}"),
                }
                let elapsed = begun.elapsed();
                assert_eq!(elapsed >= HOLD, !is_closed, "{lines}: {elapsed:?}");
                assert!(elapsed < HOLD + HOLD / 2, "{lines}: {elapsed:?}");
            }
        }
    }

    /// A child that never stops writing does not delay the held answers.
    #[tokio::test]
    async fn held_answers_are_passed_on_during_a_flood() {
        let (mut child, mut transport) = calling().await;
        let flood = tokio::spawn(async move {
            let glued = "INFO called {\"jsonrpc\":\"2.0\",\"id\":7,\"result\":{}}\n";
            child.write_all(glued.as_bytes()).await.unwrap();
            while child.write_all(b"\nnoise\n").await.is_ok() {}
        });
        let passed = tokio::time::timeout(Duration::from_secs(10), transport.receive()).await;
        assert!(matches!(passed, Ok(Some(JsonRpcMessage::Response(_)))), "{passed:?}");
        drop(transport);
        flood.await.unwrap();
    }
}

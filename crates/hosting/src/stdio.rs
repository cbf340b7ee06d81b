//! The transport to a child, over its standard input and output: rmcp writes, and this module reads
//! lines.

use std::{collections::VecDeque, time::Duration};

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

/// How long an unreadable answer is held for the next line, which may be the answer that it quotes.
const HOLD: Duration = Duration::from_secs(1);

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
    /// When the held answers are passed on.
    release_at: Option<Instant>,
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
            release_at: None,
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
            let line = match self.release_at {
                Some(release_at) => timeout_at(release_at, next).await.ok(),
                None => Some(next.await),
            };
            let Some(line) = line else {
                self.release_at = None;
                self.ready.extend(self.inbound.release());
                continue;
            };
            let mut reading = Reading {
                inbound: &mut self.inbound,
                watch: &self.watch,
                ready: &mut self.ready,
                release_at: &mut self.release_at,
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
    release_at: &'a mut Option<Instant>,
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
                let passed = self.inbound.end_too_long(head, tail, limit);
                self.pass_on(passed, head)
            }
            Line::Endless { head, limit } => {
                self.ready.extend(self.inbound.end_too_long(head, &[], limit).unwrap_or_default());
                self.ready.extend(self.inbound.release());
                self.watch.note_endless(limit);
                false
            }
            Line::End => {
                self.ready.extend(self.inbound.release());
                false
            }
        }
    }

    fn read_text(&mut self, text: &[u8]) -> bool {
        if text.trim_ascii().is_empty() {
            return true;
        }
        let passed = self.inbound.read(text);
        // The answers that were held before have been passed on.
        *self.release_at = self.inbound.holds_answers().then(|| Instant::now() + HOLD);
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
    use rmcp::model::{
        CallToolRequest, CallToolRequestParams, ClientJsonRpcMessage, ClientRequest,
        JsonRpcMessage, NumberOrString,
    };
    use tokio::io::AsyncWriteExt;

    use super::*;

    /// An unreadable answer ends its call even if nothing follows or the output ends.
    #[tokio::test]
    async fn held_answers_are_passed_on_in_time() {
        for is_closed in [false, true] {
            let (mut child, stdout) = tokio::io::duplex(1024);
            let watch = StdoutWatch::default();
            let mut transport =
                StdioTransport::new(stdout, tokio::io::sink(), watch, Secrets::default());
            let call = CallToolRequest::new(CallToolRequestParams::new("t"));
            let call = ClientRequest::CallToolRequest(call);
            let call = ClientJsonRpcMessage::request(call, NumberOrString::Number(7));
            transport.send(call).await.unwrap();

            let line = b"{'jsonrpc': '2.0', 'id': 7, 'result': {}}\n\n";
            child.write_all(line).await.unwrap();
            let _open = (!is_closed).then_some(child);
            let begun = Instant::now();
            let passed = transport.receive().await.unwrap();
            assert!(matches!(passed, JsonRpcMessage::Error(_)), "{passed:?}");
            assert_eq!(begun.elapsed() >= HOLD, !is_closed, "{:?}", begun.elapsed());
        }
    }
}

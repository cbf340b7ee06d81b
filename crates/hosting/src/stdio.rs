//! The transport to a child: rmcp writes, and lines are read here.

use std::collections::VecDeque;

use rmcp::{
    RoleClient,
    service::{RxJsonRpcMessage, TxJsonRpcMessage},
    transport::{Transport, async_rw::AsyncRwTransport},
};
use tokio::io::{AsyncRead, AsyncWrite, Empty};

use super::{
    inbound::Inbound,
    spread::{Spread, Step},
    stdout::{Line, Lines, StdoutWatch},
};

/// The transport to a child, over its standard input and output.
pub(super) struct StdioTransport<R, W: AsyncWrite> {
    writer: AsyncRwTransport<RoleClient, Empty, W>,
    lines: Lines<R>,
    watch: StdoutWatch,
    inbound: Inbound,
    /// The message that is being printed over several lines.
    spread: Spread,
    /// Messages that were read and not passed on yet.
    ready: VecDeque<RxJsonRpcMessage<RoleClient>>,
    is_over: bool,
}

impl<R, W> StdioTransport<R, W>
where
    R: AsyncRead + Send + Unpin,
    W: AsyncWrite + Send + Unpin + 'static,
{
    pub(super) fn new(stdout: R, stdin: W, watch: StdoutWatch) -> Self {
        Self {
            writer: AsyncRwTransport::new_client(tokio::io::empty(), stdin),
            lines: Lines::new(stdout),
            watch,
            inbound: Inbound::default(),
            spread: Spread::default(),
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
        self.inbound.sent(&item);
        self.writer.send(item)
    }

    // rmcp drops the future whenever something is to be sent, so nothing may be lost between two
    // calls: a line that has begun is kept in `lines`, and messages that were read are in `ready`.
    async fn receive(&mut self) -> Option<RxJsonRpcMessage<RoleClient>> {
        loop {
            if let Some(message) = self.ready.pop_front() {
                return Some(message);
            }
            if self.is_over {
                return None;
            }

            let line = self.lines.next().await;
            let mut reading =
                Reading { inbound: &mut self.inbound, watch: &self.watch, ready: &mut self.ready };
            self.is_over = !reading.take_in(line, &mut self.spread);
        }
    }

    fn close(&mut self) -> impl Future<Output = Result<(), Self::Error>> + Send {
        self.writer.close()
    }
}

/// What becomes of what the child writes.
struct Reading<'a> {
    inbound: &'a mut Inbound,
    watch: &'a StdoutWatch,
    ready: &'a mut VecDeque<RxJsonRpcMessage<RoleClient>>,
}

impl Reading<'_> {
    /// Takes in what the child wrote. Whether it may go on.
    fn take_in(&mut self, line: Line<'_>, spread: &mut Spread) -> bool {
        match line {
            Line::Whole(line) => match spread.take(line) {
                Step::Held => true,
                Step::Whole(message) => self.read(&message),
                Step::Alone { abandoned } => {
                    abandoned.is_none_or(|text| self.read(&text)) && self.read(line)
                }
            },
            Line::TooLong { head, tail, limit } => {
                let passed = self.inbound.too_long(head, tail, limit);
                self.pass_on(passed, head)
            }
            Line::Endless { head, limit } => {
                self.ready.extend(self.inbound.too_long(head, &[], limit).unwrap_or_default());
                self.watch.saw_endless(limit);
                false
            }
            Line::End => false,
        }
    }

    fn read(&mut self, text: &[u8]) -> bool {
        if text.trim_ascii().is_empty() {
            return true;
        }
        let passed = self.inbound.read(text);
        self.pass_on(passed, text)
    }

    /// Passes messages on; a text without any is garbage.
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
            None => self.watch.saw_garbage(text),
        }
    }
}

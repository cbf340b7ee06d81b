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
    stdout::{Line, Lines, StdoutWatch},
};

/// The transport to a child, over its standard input and output.
pub(super) struct StdioTransport<R, W: AsyncWrite> {
    writer: AsyncRwTransport<RoleClient, Empty, W>,
    lines: Lines<R>,
    watch: StdoutWatch,
    inbound: Inbound,
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
            self.is_over = !take_in(line, &mut self.inbound, &self.watch, &mut self.ready);
        }
    }

    fn close(&mut self) -> impl Future<Output = Result<(), Self::Error>> + Send {
        self.writer.close()
    }
}

/// Takes in what the child wrote. Whether it may go on.
fn take_in(
    line: Line<'_>,
    inbound: &mut Inbound,
    watch: &StdoutWatch,
    ready: &mut VecDeque<RxJsonRpcMessage<RoleClient>>,
) -> bool {
    match line {
        Line::Whole(line) if line.trim_ascii().is_empty() => true,
        Line::Whole(line) => match inbound.read(line) {
            Some(messages) => {
                ready.extend(messages);
                true
            }
            None => watch.saw_garbage(line),
        },
        Line::TooLong { head, tail, limit } => match inbound.too_long(head, tail, limit) {
            Some(messages) => {
                ready.extend(messages);
                true
            }
            None => watch.saw_garbage(head),
        },
        Line::Endless { head, limit } => {
            ready.extend(inbound.too_long(head, &[], limit).unwrap_or_default());
            watch.saw_endless(limit);
            false
        }
        Line::End => false,
    }
}

//! A request body that records whether it was taken.
//!
//! Whether a failed call may be sent elsewhere depends on one fact: may the server have seen the
//! request? The HTTP stack asks for the body only once it has a connection to write it to. Before
//! that, nothing has been sent, and a server that never received the body cannot have run anything.
//! The kind of error alone does not tell: a deadline may strike in any phase, and a connection may
//! break between being established and being used.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Frame, SizeHint};

/// Whether a request's body has been handed to a connection. Clones share the answer.
#[derive(Debug, Clone, Default)]
pub(crate) struct Sent(Arc<AtomicBool>);

impl Sent {
    /// Returns whether the server may have seen the request.
    pub(crate) fn get(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }

    /// Starts a new request, of which nothing has been sent.
    pub(crate) fn reset(&self) {
        self.0.store(false, Ordering::Release);
    }
}

/// A request body that records in `sent` when it is taken.
pub(crate) struct TrackedBody {
    data: Option<Bytes>,
    sent: Sent,
}

impl TrackedBody {
    pub(crate) fn new(data: Bytes, sent: Sent) -> Self {
        Self { data: Some(data), sent }
    }
}

impl http_body::Body for TrackedBody {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        self.sent.0.store(true, Ordering::Release);
        Poll::Ready(self.data.take().map(|data| Ok(Frame::data(data))))
    }

    fn is_end_stream(&self) -> bool {
        self.data.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.data.as_ref().map_or(0, |data| data.len() as u64))
    }
}

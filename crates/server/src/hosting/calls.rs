//! The calls that a hosted server is busy with, so that it is not ended under them.

use std::sync::Arc;

use tokio::sync::watch;

/// The calls of one hosted server, over all its restarts.
#[derive(Debug, Default)]
pub(crate) struct Calls {
    in_flight: watch::Sender<usize>,
}

/// One call under way; over when dropped.
#[derive(Debug)]
pub(crate) struct Ticket {
    calls: Arc<Calls>,
}

impl Calls {
    /// A call begins.
    ///
    /// Asked for before the connection is: whoever wants to end a server for want of calls looks at their number under
    /// the same lock under which it takes the connection away.
    pub(crate) fn begin(self: &Arc<Self>) -> Ticket {
        self.in_flight.send_modify(|calls| *calls += 1);
        Ticket { calls: self.clone() }
    }

    /// How many calls are under way.
    pub(super) fn in_flight(&self) -> usize {
        *self.in_flight.borrow()
    }

    /// Waits until no call is under way.
    pub(super) async fn none(&self) {
        // The sender is ours, so it can't be gone.
        _ = self.in_flight.subscribe().wait_for(|calls| *calls == 0).await;
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.calls.in_flight.send_modify(|calls| *calls -= 1);
    }
}

//! How far the writes have come that end a record. Pure.

use tokio::task::AbortHandle;

use crate::report::Settlement;

/// The end of a record, or the record it goes on as, on its way to Kafka.
pub(super) enum WriteState {
    /// The engine has not asked for it yet.
    Due,
    /// The producer has it, and answers the loop.
    HandedOver,
    /// A task writes it, and answers the loop.
    Task(AbortHandle),
    /// A write was not acknowledged, and this is left to write; `None` if it is to be built anew.
    /// The broker may have the record all the same, so the very same bytes are written again: that
    /// makes both the same end.
    Unacknowledged(Option<Box<Settlement>>),
}

impl WriteState {
    /// The task that writes, if any.
    pub(super) fn task(&self) -> Option<&AbortHandle> {
        match self {
            Self::Task(task) => Some(task),
            Self::Due | Self::HandedOver | Self::Unacknowledged(_) => None,
        }
    }
}

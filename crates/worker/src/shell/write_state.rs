//! How far the writes have come that end a record. Pure.

use std::sync::Arc;

use fleet_kafka::producer::Outgoing;
use tokio::task::AbortHandle;

use crate::report::Settlement;

/// The end of a record, or the record it goes on as, on its way to Kafka.
pub(super) enum WriteState {
    /// The engine has not asked for it yet.
    Due,
    /// The producer has it, and answers the loop.
    HandedOver,
    /// The producer has this terminal event, which is all there is to write, and answers the loop.
    Enqueued(Arc<Outgoing>),
    /// A task writes it, and answers the loop.
    Task(AbortHandle),
    /// A write was not acknowledged, and this is left to write; `None` if it is to be built anew.
    /// The broker may have the record all the same, so the very same bytes are written again: that
    /// makes both the same end.
    Unacknowledged(Option<Box<Settlement>>),
    /// The broker has it.
    Acknowledged,
}

impl WriteState {
    /// The task that writes, if any.
    pub(super) fn task(&self) -> Option<&AbortHandle> {
        match self {
            Self::Task(task) => Some(task),
            Self::Due
            | Self::HandedOver
            | Self::Enqueued(_)
            | Self::Unacknowledged(_)
            | Self::Acknowledged => None,
        }
    }

    /// The terminal event that the broker may have or may still get, if nothing else is to be
    /// written.
    pub(super) fn into_unconfirmed_event(self) -> Option<Arc<Outgoing>> {
        match self {
            Self::Enqueued(event) => Some(event),
            Self::Unacknowledged(Some(rest)) if rest.is_event_only() => Some(Arc::new(rest.event)),
            Self::Due
            | Self::HandedOver
            | Self::Task(_)
            | Self::Unacknowledged(_)
            | Self::Acknowledged => None,
        }
    }
}

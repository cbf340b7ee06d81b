//! Waking the poll thread, from the loop that has an order for it and from librdkafka that has
//! something to be polled.

use std::{sync::OnceLock, thread::Thread};

/// Ends the park of one thread. Where it comes before the park, that ends at once, so none is lost.
#[derive(Debug, Default)]
pub(super) struct Wakeup {
    thread: OnceLock<Thread>,
}

impl Wakeup {
    /// The calling thread is the one to be woken. Before this, nobody waits.
    pub(super) fn wakes_this_thread(&self) {
        self.thread.get_or_init(std::thread::current);
    }

    pub(super) fn wake(&self) {
        if let Some(thread) = self.thread.get() {
            thread.unpark();
        }
    }
}

//! Waking the poll thread, both when the engine has an order and when librdkafka has something to
//! poll.

use std::{sync::OnceLock, thread::Thread};

/// Unparks one thread. A wakeup before the thread parks is not lost: the park then returns at once.
#[derive(Debug, Default)]
pub(super) struct Wakeup {
    thread: OnceLock<Thread>,
}

impl Wakeup {
    /// Makes the calling thread the one to wake. Wakeups before this call have no effect.
    pub(super) fn register_current_thread(&self) {
        self.thread.get_or_init(std::thread::current);
    }

    pub(super) fn wake(&self) {
        if let Some(thread) = self.thread.get() {
            thread.unpark();
        }
    }
}

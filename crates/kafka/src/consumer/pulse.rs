//! Whether the poll thread turns. What happens to the group is heard only while it does.

use std::{
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    time::{Duration, Instant},
};

/// The pulse of the poll thread.
#[derive(Debug)]
pub(super) struct Pulse {
    begin: Instant,
    /// Milliseconds from the beginning to the last beat.
    last: AtomicU64,
    /// The thread waits for the engine, which must not wait for the thread then.
    excused: AtomicBool,
}

impl Pulse {
    pub(super) fn new() -> Self {
        Self { begin: Instant::now(), last: AtomicU64::new(0), excused: AtomicBool::new(false) }
    }

    /// The thread turns.
    pub(super) fn beat(&self) {
        let now = u64::try_from(self.begin.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.last.store(now, Ordering::Relaxed);
    }

    /// Runs `wait`, during which silence means nothing.
    pub(super) fn excused<T>(&self, wait: impl FnOnce() -> T) -> T {
        self.excused.store(true, Ordering::Relaxed);
        let result = wait();
        self.beat();
        self.excused.store(false, Ordering::Relaxed);
        result
    }

    /// How long ago the last beat was.
    pub(super) fn silence(&self) -> Duration {
        if self.excused.load(Ordering::Relaxed) {
            return Duration::ZERO;
        }
        let last = Duration::from_millis(self.last.load(Ordering::Relaxed));
        self.begin.elapsed().saturating_sub(last)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn silence_grows_until_the_next_beat_and_is_excused_while_the_thread_waits_for_us() {
        let mut pulse = Pulse::new();
        pulse.begin -= Duration::from_secs(10);
        assert!(pulse.silence() >= Duration::from_secs(10));
        assert_eq!(pulse.excused(|| pulse.silence()), Duration::ZERO);
        assert!(pulse.silence() < Duration::from_secs(5), "the end of a wait is a beat");
        pulse.begin -= Duration::from_secs(10);
        assert!(pulse.silence() >= Duration::from_secs(10));
        pulse.beat();
        assert!(pulse.silence() < Duration::from_secs(5));
    }
}

//! The repeat memory: the calls that are running, and the results that are kept.
//!
//! Nothing here waits or reads a clock. [`Memory::begin`] tells a call what it has to do, and the
//! end of a run is recorded with [`Memory::record_success`] or [`Memory::record_failure`]. `V` is a
//! result, `W` the handle with which a repeat waits for a running call.

use std::{
    collections::{HashMap, VecDeque},
    time::{Duration, Instant},
};

use super::key::Key;

/// The cost of keeping a result, in addition to its size. Without it, any number of empty results
/// would fit.
pub(super) const OVERHEAD: u64 = 256;

/// A result larger than the budget divided by this is not kept, because it would displace too many
/// others.
const LARGEST_PART: u64 = 8;

/// What a call has to do.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Begin<V, W> {
    /// Run, and record how the run ended.
    Run,
    /// Wait for an equal call that is running.
    Wait(W),
    /// Return this result.
    Answer(V),
}

struct Kept<V> {
    value: V,
    cost: u64,
    until: Instant,
}

/// The running calls and the kept results.
pub(super) struct Memory<V, W> {
    window: Duration,
    max_bytes: u64,
    running: HashMap<Key, W>,
    kept: HashMap<Key, Kept<V>>,
    /// The keys of `kept`, oldest first. All results are kept equally long, so the first key
    /// expires first.
    order: VecDeque<Key>,
    bytes: u64,
}

impl<V: Clone, W: Clone> Memory<V, W> {
    /// Creates a memory that keeps results for `window`, up to `max_bytes` of them.
    pub(super) fn new(window: Duration, max_bytes: u64) -> Self {
        let (running, kept, order) = (HashMap::new(), HashMap::new(), VecDeque::new());
        Self { window, max_bytes, running, kept, order, bytes: 0 }
    }

    /// Decides what the call with this key has to do. If it has to run, equal calls wait with a
    /// clone of what `waiter` returns.
    pub(super) fn begin(
        &mut self,
        key: Key,
        now: Instant,
        waiter: impl FnOnce() -> W,
    ) -> Begin<V, W> {
        self.forget_expired(now);

        if let Some(kept) = self.kept.get(&key) {
            return Begin::Answer(kept.value.clone());
        }
        if let Some(waiter) = self.running.get(&key) {
            return Begin::Wait(waiter.clone());
        }
        self.running.insert(key, waiter());
        Begin::Run
    }

    /// Records that the running call with this key succeeded with a result of `size` bytes.
    pub(super) fn record_success(&mut self, key: Key, value: V, size: u64, now: Instant) {
        self.forget_expired(now);
        // Only the call that was told to run can end the run, and nobody else could store a result
        // meanwhile.
        if self.running.remove(&key).is_none() {
            return;
        }

        let cost = size.saturating_add(OVERHEAD);
        // If the end of the window is not a valid time, keep nothing.
        let Some(until) = now.checked_add(self.window) else { return };
        if cost > self.max_bytes / LARGEST_PART {
            return;
        }

        while self.bytes + cost > self.max_bytes {
            self.forget_oldest();
        }

        self.bytes += cost;
        self.order.push_back(key);
        self.kept.insert(key, Kept { value, cost, until });
    }

    /// Records that the running call with this key failed or was abandoned. Nothing is kept.
    pub(super) fn record_failure(&mut self, key: Key) {
        self.running.remove(&key);
    }

    /// The bytes that kept results take.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    fn forget_expired(&mut self, now: Instant) {
        while let Some(kept) = self.order.front().and_then(|key| self.kept.get(key))
            && kept.until <= now
        {
            self.forget_oldest();
        }
    }

    fn forget_oldest(&mut self) {
        let oldest = self.order.pop_front().and_then(|key| self.kept.remove(&key));
        self.bytes -= oldest.map_or(0, |kept| kept.cost);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const WINDOW: Duration = Duration::from_secs(10);
    const BUDGET: u64 = 16 * OVERHEAD;

    fn key(number: u8) -> Key {
        Key::from_bytes([number; 32])
    }

    fn memory() -> Memory<u32, ()> {
        Memory::new(WINDOW, BUDGET)
    }

    fn keep(memory: &mut Memory<u32, ()>, number: u8, value: u32, size: u64, now: Instant) {
        assert_eq!(memory.begin(key(number), now, || ()), Begin::Run);
        memory.record_success(key(number), value, size, now);
    }

    #[test]
    fn a_success_is_remembered_for_the_window() {
        let (mut memory, start) = (memory(), Instant::now());
        keep(&mut memory, 1, 7, 0, start);
        let last = start + WINDOW - Duration::from_nanos(1);
        assert_eq!(memory.begin(key(1), last, || ()), Begin::Answer(7));
        assert_eq!(memory.begin(key(2), last, || ()), Begin::Run, "another call is not answered");
        assert_eq!(memory.begin(key(1), start + WINDOW, || ()), Begin::Run);
        assert_eq!(memory.bytes(), 0);
    }

    #[test]
    fn a_failure_is_not_remembered() {
        let (mut memory, now) = (memory(), Instant::now());
        assert_eq!(memory.begin(key(1), now, || ()), Begin::Run);
        assert_eq!(memory.begin(key(1), now, || ()), Begin::Wait(()), "one at a time");
        memory.record_failure(key(1));
        assert_eq!(memory.begin(key(1), now, || ()), Begin::Run);
    }

    #[test]
    fn the_oldest_results_make_room_and_too_large_ones_are_not_kept() {
        let (mut memory, now) = (memory(), Instant::now());
        let largest = BUDGET / LARGEST_PART - OVERHEAD;
        for number in 0..9 {
            keep(&mut memory, number, 0, largest, now);
        }
        assert_eq!(memory.bytes(), BUDGET);
        keep(&mut memory, 9, 0, largest + 1, now);
        assert_eq!(memory.begin(key(9), now, || ()), Begin::Run, "too large");
        assert_eq!(memory.begin(key(1), now, || ()), Begin::Answer(0));
        assert_eq!(memory.begin(key(0), now, || ()), Begin::Run, "the oldest");
    }

    #[derive(Debug, Clone)]
    enum Step {
        Begin(u8),
        Succeed(u8, u64),
        Fail(u8),
        Wait(u64),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            4 => (0..6u8).prop_map(Step::Begin),
            3 => (0..6u8, 0..2 * OVERHEAD).prop_map(|(key, size)| Step::Succeed(key, size)),
            1 => (0..6u8).prop_map(Step::Fail),
            1 => (0..6u64).prop_map(Step::Wait),
        ];
        proptest::collection::vec(step, 0..80)
    }

    proptest! {
        /// Compares the memory with a plain list of successes: an answer is always the newest
        /// success of its key within the window, the budget holds, and no result is forgotten while
        /// there is room for it.
        #[test]
        fn the_memory_behaves_like_a_plain_list(steps in steps()) {
            let mut memory: Memory<u32, u8> = Memory::new(WINDOW, BUDGET);
            let mut now = Instant::now();
            let mut list: Vec<(u8, u32, u64, Instant)> = Vec::new();
            let mut running = std::collections::BTreeSet::new();
            for (value, step) in (0u32..).zip(steps) {
                list.retain(|(.., at)| now < *at + WINDOW);
                match step {
                    Step::Begin(number) => {
                        let known = list.iter().find(|entry| entry.0 == number).map(|entry| entry.1);
                        let expected = match known {
                            Some(value) => Begin::Answer(value),
                            None if running.contains(&number) => Begin::Wait(number),
                            None => Begin::Run,
                        };
                        prop_assert_eq!(memory.begin(key(number), now, || number), expected);
                        if known.is_none() {
                            running.insert(number);
                        }
                    }
                    Step::Succeed(number, size) => {
                        memory.record_success(key(number), value, size, now);
                        let cost = size + OVERHEAD;
                        if running.remove(&number) && cost <= BUDGET / LARGEST_PART {
                            while list.iter().map(|entry| entry.2).sum::<u64>() + cost > BUDGET {
                                list.remove(0);
                            }
                            list.push((number, value, cost, now));
                        }
                    }
                    Step::Fail(number) => {
                        memory.record_failure(key(number));
                        running.remove(&number);
                    }
                    Step::Wait(seconds) => now += Duration::from_secs(seconds),
                }
                prop_assert!(memory.bytes() <= BUDGET);
                prop_assert_eq!(memory.order.len(), memory.kept.len());
            }
        }
    }
}

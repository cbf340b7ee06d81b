//! What is remembered: which calls run, and which results are kept for how long.
//!
//! Nothing here waits or reads a clock. A call asks with [`Memory::begin`] what it should do; one
//! that runs says with [`Memory::record_success`] or [`Memory::record_failure`] how it ended. `V` is a result,
//! `W` what somebody who waits for a running call holds on to.

use std::{
    collections::{HashMap, VecDeque},
    time::{Duration, Instant},
};

use super::key::Key;

/// What keeping a result costs beside the result itself. Without it, very many empty results would
/// count as nothing.
pub(super) const OVERHEAD: u64 = 256;

/// A result above this part of the whole budget is not kept: it would drive out too much else.
const LARGEST_PART: u64 = 8;

/// What a call should do.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Begin<V, W> {
    /// Run, and say how it ended.
    Run,
    /// Wait: the same call runs already.
    Wait(W),
    /// Take this result.
    Answer(V),
}

struct Kept<V> {
    value: V,
    cost: u64,
    until: Instant,
}

/// The calls that run and the results that are kept.
pub(super) struct Memory<V, W> {
    window: Duration,
    max_bytes: u64,
    running: HashMap<Key, W>,
    kept: HashMap<Key, Kept<V>>,
    /// The keys of `kept`, oldest first. All are kept for the same time, so the first expires
    /// first.
    order: VecDeque<Key>,
    bytes: u64,
}

impl<V: Clone, W: Clone> Memory<V, W> {
    /// A memory that keeps results for `window`, and `max_bytes` of them at most.
    pub(super) fn new(window: Duration, max_bytes: u64) -> Self {
        let (running, kept, order) = (HashMap::new(), HashMap::new(), VecDeque::new());
        Self { window, max_bytes, running, kept, order, bytes: 0 }
    }

    /// What the call of this key should do. Where it should run, others wait with what `waiter`
    /// makes.
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

    /// The running call of this key succeeded with a result of `size` bytes.
    pub(super) fn record_success(&mut self, key: Key, value: V, size: u64, now: Instant) {
        self.forget_expired(now);
        // Only who was told to run can end a run; and while it ran, nobody else could leave a
        // result.
        if self.running.remove(&key).is_none() {
            return;
        }
        let cost = size.saturating_add(OVERHEAD);
        // A window that no clock reaches is as good as none.
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

    /// The running call of this key ended without success, or nobody knows how. Nothing is
    /// remembered.
    pub(super) fn record_failure(&mut self, key: Key) {
        self.running.remove(&key);
    }

    /// How many bytes the kept results take.
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
    fn a_failure_is_not() {
        let (mut memory, now) = (memory(), Instant::now());
        assert_eq!(memory.begin(key(1), now, || ()), Begin::Run);
        assert_eq!(memory.begin(key(1), now, || ()), Begin::Wait(()), "one at a time");
        memory.record_failure(key(1));
        assert_eq!(memory.begin(key(1), now, || ()), Begin::Run);
    }

    #[test]
    fn the_oldest_make_room_and_the_largest_are_not_kept() {
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
        /// Against a list in which every success is written down: an answer is always the newest
        /// success of its key and within the window, the budget holds, and nothing is forgotten for
        /// which there was room.
        #[test]
        fn it_does_what_a_list_would(steps in steps()) {
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

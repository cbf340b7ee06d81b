//! Which records this worker has settled of late, for the case that one comes again because its commit was lost. Pure.

use std::{
    collections::{HashSet, VecDeque},
    hash::{DefaultHasher, Hash as _, Hasher as _},
    time::{Duration, Instant},
};

use fleet_engine::Partition;
use fleet_job::time::Timestamp;

/// How many records are remembered: some MiB at most.
const MOST: usize = 65_536;
/// How long one is remembered. A partition that went away with uncommitted ends is back by then, or another worker's.
const WINDOW: Duration = Duration::from_secs(600);

/// A record that was settled. Offsets begin anew when a topic is made again; id and time tell those records apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Settled {
    partition: Partition,
    offset: i64,
    content: u64,
}

impl Settled {
    pub(super) fn new(partition: Partition, offset: i64, job_id: &str, timestamp: Option<Timestamp>) -> Self {
        let mut hasher = DefaultHasher::new();
        (job_id, timestamp).hash(&mut hasher);
        Self { partition, offset, content: hasher.finish() }
    }
}

/// The records settled within the window.
#[derive(Debug, Default)]
pub(super) struct Window {
    known: HashSet<Settled>,
    order: VecDeque<(Instant, Settled)>,
}

impl Window {
    pub(super) fn add(&mut self, now: Instant, settled: Settled) {
        self.expire(now);
        if self.known.insert(settled) {
            self.order.push_back((now, settled));
        }
    }

    pub(super) fn contains(&mut self, now: Instant, settled: &Settled) -> bool {
        self.expire(now);
        self.known.contains(settled)
    }

    fn expire(&mut self, now: Instant) {
        while let Some((at, settled)) = self.order.front()
            && (self.order.len() > MOST || now.duration_since(*at) > WINDOW)
        {
            self.known.remove(settled);
            self.order.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const P: Partition = Partition { topic: 0, number: 0 };

    #[test]
    fn a_record_is_known_for_a_while() {
        let (mut window, now) = (Window::default(), Instant::now());
        let settled = Settled::new(P, 7, "job", None);
        assert!(!window.contains(now, &settled));
        window.add(now, settled);
        assert!(window.contains(now + WINDOW, &settled));
        assert!(!window.contains(now, &Settled::new(P, 7, "another", None)), "the topic was made again");
        assert!(!window.contains(now, &Settled::new(P, 8, "job", None)));
        assert!(!window.contains(now + WINDOW + Duration::from_secs(1), &settled));
    }

    #[test]
    fn memory_is_bounded() {
        let (mut window, now) = (Window::default(), Instant::now());
        let all = MOST as i64 + 10;
        (0..all).for_each(|offset| window.add(now, Settled::new(P, offset, "job", None)));
        assert!(window.order.len() <= MOST + 1 && window.known.len() == window.order.len());
        assert!(window.contains(now, &Settled::new(P, all - 1, "job", None)));
        assert!(!window.contains(now, &Settled::new(P, 0, "job", None)));
    }
}

//! Since when settled jobs have waited for the commit that says so. Pure.

use std::{collections::HashMap, time::Instant};

use fleet_group::Partition;

/// What waits in one partition.
#[derive(Debug, Default)]
struct Waiting {
    /// What the commit that is under way covers, or the next one will.
    since: Option<Instant>,
    /// What was settled after the commit under way was sent.
    later: Option<Instant>,
    under_way: bool,
}

/// The settled jobs of all partitions that no acknowledged commit covers.
#[derive(Debug, Default)]
pub(super) struct Uncommitted(HashMap<Partition, Waiting>);

impl Uncommitted {
    pub(super) fn note_settled(&mut self, partition: Partition, now: Instant) {
        let waiting = self.0.entry(partition).or_default();
        let slot = if waiting.under_way { &mut waiting.later } else { &mut waiting.since };
        slot.get_or_insert(now);
    }

    pub(super) fn note_sent(&mut self, partition: Partition) {
        let waiting = self.0.entry(partition).or_default();
        // A second one covers what came after the first.
        waiting.since = waiting.since.or(waiting.later.take());
        waiting.under_way = true;
    }

    pub(super) fn note_answered(&mut self, partition: Partition, ok: bool) {
        let Some(waiting) = self.0.get_mut(&partition) else { return };
        waiting.under_way = false;
        let later = waiting.later.take();
        waiting.since = if ok { later } else { waiting.since.or(later) };
    }

    pub(super) fn forget_partitions(&mut self, partitions: &[Partition]) {
        self.0.retain(|partition, _| !partitions.contains(partition));
    }

    /// Since when the oldest one has waited.
    pub(super) fn oldest_since(&self) -> Option<Instant> {
        self.0.values().filter_map(|waiting| waiting.since).min()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const P: Partition = Partition { topic: 0, number: 0 };
    const Q: Partition = Partition { topic: 0, number: 1 };

    #[test]
    fn the_oldest_waits_until_a_commit_that_covers_it_is_acknowledged() {
        let (mut uncommitted, now) = (Uncommitted::default(), Instant::now());
        let at = |seconds| now + Duration::from_secs(seconds);
        assert_eq!(uncommitted.oldest_since(), None);
        uncommitted.note_settled(P, at(1));
        uncommitted.note_settled(P, at(2));
        uncommitted.note_sent(P);
        uncommitted.note_settled(P, at(3));
        uncommitted.note_settled(Q, at(4));
        assert_eq!(uncommitted.oldest_since(), Some(at(1)));
        uncommitted.note_answered(P, false);
        assert_eq!(uncommitted.oldest_since(), Some(at(1)), "it was refused");
        uncommitted.note_sent(P);
        uncommitted.note_settled(P, at(5));
        uncommitted.note_answered(P, true);
        assert_eq!(
            uncommitted.oldest_since(),
            Some(at(4)),
            "what came later in P is younger than what waits in Q"
        );
        uncommitted.forget_partitions(&[Q]);
        assert_eq!(uncommitted.oldest_since(), Some(at(5)));
        uncommitted.note_sent(P);
        uncommitted.note_answered(P, true);
        assert_eq!(uncommitted.oldest_since(), None);
    }
}

//! How long settled jobs have waited for a commit that covers them. Pure.

use std::{collections::HashMap, time::Instant};

use fleet_group::Partition;

/// The settled jobs of one partition that no acknowledged commit covers.
#[derive(Debug, Default)]
struct Backlog {
    /// When the oldest job was settled that is covered by the commit under way, or by the next one.
    since: Option<Instant>,
    /// When the first job was settled after the commit under way was sent.
    later: Option<Instant>,
    is_committing: bool,
}

/// The settled jobs of all partitions that no acknowledged commit covers.
#[derive(Debug, Default)]
pub(super) struct Uncommitted(HashMap<Partition, Backlog>);

impl Uncommitted {
    pub(super) fn note_settled(&mut self, partition: Partition, now: Instant) {
        let backlog = self.0.entry(partition).or_default();
        let slot = if backlog.is_committing { &mut backlog.later } else { &mut backlog.since };
        slot.get_or_insert(now);
    }

    pub(super) fn note_sent(&mut self, partition: Partition) {
        let backlog = self.0.entry(partition).or_default();
        // A second commit covers what was settled after the first.
        backlog.since = backlog.since.or(backlog.later.take());
        backlog.is_committing = true;
    }

    pub(super) fn note_answered(&mut self, partition: Partition, ok: bool) {
        let Some(backlog) = self.0.get_mut(&partition) else { return };
        backlog.is_committing = false;
        let later = backlog.later.take();
        backlog.since = if ok { later } else { backlog.since.or(later) };
    }

    pub(super) fn forget_partitions(&mut self, partitions: &[Partition]) {
        self.0.retain(|partition, _| !partitions.contains(partition));
    }

    /// When the oldest job that waits was settled.
    pub(super) fn oldest_since(&self) -> Option<Instant> {
        self.0.values().filter_map(|backlog| backlog.since).min()
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

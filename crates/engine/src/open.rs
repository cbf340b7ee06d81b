//! The open records of a partition: each by its offset, and all of them as runs of neighbours.
//!
//! Every event looks records up several times, and every commit describes what is open between the
//! frontier and the last record that was started. A hash map serves the look-ups; the runs and the
//! list of spent attempts serve the commits, so that a commit costs as much as it says, however
//! many jobs wait.

use std::collections::{BTreeMap, VecDeque};

use crate::{
    hash::FastMap,
    slot::{Slot, Wait},
};

/// From here on an attempt count needs an escape in the dense encoding.
pub(crate) const LARGE_ATTEMPTS: u32 = 14;

/// Records that are not settled.
#[derive(Debug, Default)]
pub(crate) struct OpenRecords {
    slots: FastMap<i64, Slot>,
    /// Maximal runs of neighbouring offsets, as `(first, one past the last)`, ascending. Jobs
    /// settle within the window of the metadata, near the front, so splitting a run moves few
    /// others.
    runs: VecDeque<(i64, i64)>,
    /// The attempts of the jobs that have spent any.
    spent: BTreeMap<i64, u32>,
    /// How many of those attempt counts need an escape.
    escapes: usize,
}

impl OpenRecords {
    /// Adds the record at `offset`, which lies beyond all others.
    pub(crate) fn insert(&mut self, offset: i64, slot: Slot) {
        match self.runs.back_mut() {
            Some((_, end)) if *end == offset => *end += 1,
            _ => self.runs.push_back((offset, offset + 1)),
        }
        if slot.attempts() > 0 {
            self.note_spent(offset, slot.attempts());
        }

        self.slots.insert(offset, slot);
    }

    /// Takes the record at `offset` out.
    pub(crate) fn remove(&mut self, offset: i64) -> Option<Slot> {
        let slot = self.slots.remove(&offset)?;

        let index = self.runs.partition_point(|(_, end)| *end <= offset);
        if let Some(run) = self.runs.get_mut(index) {
            let (first, end) = *run;
            // A run of one disappears, either end shortens a run, and the middle splits it.
            match (first == offset, end == offset + 1) {
                (true, true) => {
                    self.runs.remove(index);
                }
                (true, false) => run.0 += 1,
                (false, true) => run.1 -= 1,
                (false, false) => {
                    run.0 = offset + 1;
                    self.runs.insert(index, (first, offset));
                }
            }
        }

        if slot.attempts() > 0
            && self.spent.remove(&offset).is_some_and(|attempts| attempts >= LARGE_ATTEMPTS)
        {
            self.escapes -= 1;
        }

        Some(slot)
    }

    /// The job at `offset` has spent one more attempt.
    pub(crate) fn spend_attempt(&mut self, offset: i64) {
        if let Some(slot) = self.slots.get_mut(&offset) {
            slot.spend_attempt();
            let attempts = slot.attempts();
            self.note_spent(offset, attempts);
        }
    }

    fn note_spent(&mut self, offset: i64, attempts: u32) {
        let before = self.spent.insert(offset, attempts).unwrap_or_default();
        self.escapes += usize::from(attempts >= LARGE_ATTEMPTS && before < LARGE_ATTEMPTS);
    }

    pub(crate) fn get(&self, offset: i64) -> Option<&Slot> {
        self.slots.get(&offset)
    }

    /// The record at `offset`. Its attempts change through [`OpenRecords::spend_attempt`] only.
    pub(crate) fn get_mut(&mut self, offset: i64) -> Option<&mut Slot> {
        self.slots.get_mut(&offset)
    }

    /// All records, in no order.
    pub(crate) fn slots(&self) -> impl Iterator<Item = &Slot> {
        self.slots.values()
    }

    /// All records with their offsets, in no order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (i64, &Slot)> {
        self.slots.iter().map(|(offset, slot)| (*offset, slot))
    }

    /// All offsets, ascending.
    pub(crate) fn offsets(&self) -> impl Iterator<Item = i64> {
        self.runs.iter().flat_map(|(first, end)| *first..*end)
    }

    /// The first offset.
    pub(crate) fn first(&self) -> Option<i64> {
        self.runs.front().map(|(first, _)| *first)
    }

    /// Runs of neighbouring offsets, as `(first, one past the last)`, ascending.
    pub(crate) fn runs(&self) -> &VecDeque<(i64, i64)> {
        &self.runs
    }

    /// The attempts of the jobs that have spent any, ascending by offset.
    pub(crate) fn spent(&self) -> &BTreeMap<i64, u32> {
        &self.spent
    }

    /// How many attempt counts need an escape in the dense encoding.
    pub(crate) fn escapes(&self) -> usize {
        self.escapes
    }

    /// Whether a job has spent an attempt that no commit has made durable.
    pub(crate) fn awaits_commit(&self) -> bool {
        let mut spent = self.spent.keys().filter_map(|offset| self.slots.get(offset));
        spent.any(|slot| !slot.is_durable())
    }

    /// Sets how many attempts are durable of each job that has spent some which are not. Returns
    /// the offsets of the jobs that were waiting for that, ascending.
    pub(crate) fn confirm_attempts(&mut self, durable: impl Fn(i64, &Slot) -> u32) -> Vec<i64> {
        let mut released = Vec::new();

        for offset in self.spent.keys() {
            let Some(slot) = self.slots.get_mut(offset).filter(|slot| !slot.is_durable()) else {
                continue;
            };
            slot.confirm_attempts(durable(*offset, slot));
            if slot.wait() == Some(Wait::Commit) && slot.is_durable() {
                released.push(*offset);
            }
        }

        released
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::types::Terminal;

    proptest! {
        /// Runs and attempts agree with the records, whatever is added, spent and taken out.
        #[test]
        fn runs_and_attempts_are_those_of_the_records(
            moves in prop::collection::vec((0u8..4, 0usize..64, 0u32..20), 1..200)
        ) {
            let mut open = OpenRecords::default();
            let mut jobs: BTreeMap<i64, u32> = BTreeMap::new();
            let mut next = 0;
            for (kind, which, attempts) in moves {
                let known = jobs.keys().copied().nth(which % jobs.len().max(1));
                match (kind, known) {
                    (0, _) | (_, None) => {
                        next += i64::from(attempts / 8);
                        open.insert(next, Slot::of_end(Terminal::Rejected, None, 0, attempts));
                        jobs.insert(next, attempts);
                        next += 1;
                    }
                    (1, Some(offset)) => {
                        open.spend_attempt(offset);
                        *jobs.entry(offset).or_default() += 1;
                    }
                    (_, Some(offset)) => {
                        let attempts = open.remove(offset).map(|slot| slot.attempts());
                        prop_assert_eq!(attempts, jobs.remove(&offset));
                    }
                }
                let mut runs: Vec<(i64, i64)> = Vec::new();
                for offset in jobs.keys() {
                    match runs.last_mut() {
                        Some((_, end)) if *end == *offset => *end += 1,
                        _ => runs.push((*offset, *offset + 1)),
                    }
                }
                prop_assert_eq!(open.runs(), &runs);
                prop_assert_eq!(open.offsets().collect::<Vec<_>>(), jobs.keys().copied().collect::<Vec<_>>());
                prop_assert_eq!(open.slots().count(), jobs.len());
                let spent: BTreeMap<_, _> = jobs.iter().map(|(at, n)| (*at, *n)).filter(|(_, n)| *n > 0).collect();
                prop_assert_eq!(open.spent(), &spent);
                prop_assert_eq!(open.escapes(), spent.values().filter(|n| **n >= LARGE_ATTEMPTS).count());
            }
        }
    }
}

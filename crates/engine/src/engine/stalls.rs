//! Which partitions are not read on until something that is unavailable is back (I7).

use std::time::Duration;

use fleet_group::Partition;
use fleet_job::time::Timestamp;

use super::{Engine, backpressure::Memory, holding::missing_need};
use crate::{partition::PartitionState, slot::Slot, sums::Load};

/// How often to look for stalled partitions while something is unavailable. A look goes through all
/// jobs in memory.
const REVIEW: Duration = Duration::from_secs(1);

impl Engine {
    /// Finds out which partitions are stalled, and lets their commits say so.
    pub(super) fn review_stalls(&mut self, now: Timestamp) {
        let is_anything_away = !self.breaker.allows_start() || self.holds.has_waiting();
        let due = match self.stalls_due {
            None if is_anything_away => now.plus(REVIEW),
            None => return,
            Some(due) => due,
        };
        self.stalls_due = Some(due);
        if due > now {
            return;
        }

        let stalled = self.stalled_partitions();
        for partition in self.mark_stalled(&stalled) {
            self.schedule_commit(now, partition, self.config.commit_interval);
        }

        let reviews_again = is_anything_away || !stalled.is_empty();
        self.stalls_due = reviews_again.then(|| now.plus(REVIEW));
    }

    /// Marks these partitions as stalled and all others as not. Returns those that have changed.
    fn mark_stalled(&mut self, stalled: &[Partition]) -> Vec<Partition> {
        let changed = self.partitions.iter_mut().filter_map(|(partition, state)| {
            let is_stalled = stalled.contains(&partition);
            let has_changed = std::mem::replace(&mut state.is_stalled, is_stalled) != is_stalled;
            state.dirty |= has_changed;
            has_changed.then_some(partition)
        });

        changed.collect()
    }

    /// The paused partitions that stay paused even if every running job ends: their waiting jobs
    /// alone exceed what a partition, or this worker, may hold before it is resumed.
    fn stalled_partitions(&self) -> Vec<Partition> {
        let stuck = self
            .partitions
            .iter()
            .map(|(partition, state)| (partition, state, self.stuck_jobs(state)));
        let stuck: Vec<_> = stuck.filter(|(_, _, stuck)| stuck.records > 0).collect();

        let all: Load = stuck.iter().map(|(_, _, stuck)| *stuck).sum();
        let stays = match self.memory {
            Memory::Full if self.exceeds(3, all) => Memory::Full,
            Memory::Full | Memory::Tight if self.exceeds(2, all) => Memory::Tight,
            _ => Memory::Free,
        };
        let allowance = self.allowance(stays).map(Load::half);

        let is_stalled = |(_, state, stuck): &(Partition, &PartitionState, Load)| {
            state.paused && allowance.is_some_and(|allowance| stuck.exceeds(allowance))
        };
        stuck.into_iter().filter(is_stalled).map(|(partition, ..)| partition).collect()
    }

    /// The jobs of a partition that wait for something that is away, or behind such a job in their
    /// key.
    fn stuck_jobs(&self, state: &PartitionState) -> Load {
        let allows_start = self.breaker.allows_start();
        // A scout waits, too, until it is answered.
        let waits = |slot: &Slot| slot.is_scouting() || missing_need(slot, allows_start).is_some();
        let head_of_key = |slot: &Slot| {
            let lane = slot.lane().filter(|_| slot.is_behind_others())?;
            state.slot(self.keys.head(lane)?)
        };
        let is_stuck = |slot: &&Slot| waits(slot) || head_of_key(slot).is_some_and(waits);

        let load = |slot: &Slot| Load { records: 1, bytes: slot.bytes() };
        state.open().slots().filter(is_stuck).map(load).sum()
    }
}

//! Which partitions are not read on before something that is unavailable is back (I7).

use std::time::Duration;

use fleet_group::Partition;
use fleet_job::time::Timestamp;

use super::{Engine, holding::awaited};
use crate::{
    partition::PartitionState,
    slot::{Phase, Slot},
};

/// How often to look, while something is unavailable. That costs as much as there are jobs.
const REVIEW: Duration = Duration::from_secs(1);

/// What is held in memory by jobs that can't go on.
#[derive(Debug, Clone, Copy, Default)]
struct Stuck {
    jobs: usize,
    bytes: usize,
}

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

        let stalled = self.stalled();
        let is_any_stalled = !stalled.is_empty();
        let changed: Vec<_> = self
            .partitions
            .iter_mut()
            .filter_map(|(partition, state)| {
                let is_stalled = stalled.contains(partition);
                let is_new = std::mem::replace(&mut state.is_stalled, is_stalled) != is_stalled;
                state.dirty |= is_new;
                is_new.then_some(*partition)
            })
            .collect();
        for partition in changed {
            self.schedule_commit(now, partition, self.config.commit_interval);
        }
        self.stalls_due = (is_anything_away || is_any_stalled).then(|| now.plus(REVIEW));
    }

    /// The paused partitions that stay paused even when every running job ends: their waiting jobs
    /// alone exceed what a partition, or this worker, may hold before it is resumed.
    fn stalled(&self) -> Vec<Partition> {
        let stuck =
            self.partitions.iter().map(|(partition, state)| (*partition, state, self.stuck(state)));
        let stuck: Vec<_> = stuck.filter(|(_, _, stuck)| stuck.jobs > 0).collect();
        let jobs: usize = stuck.iter().map(|(_, _, stuck)| stuck.jobs).sum();
        let bytes: usize = stuck.iter().map(|(_, _, stuck)| stuck.bytes).sum();
        let fills_memory = self.full
            && (jobs > self.config.max_buffered / 2 || bytes > self.config.max_buffered_bytes / 2);

        let share = self.share();
        let is_stalled = |(_, state, stuck): &(Partition, &PartitionState, Stuck)| {
            state.paused && (fills_memory || stuck.jobs > share / 2)
        };
        stuck.into_iter().filter(is_stalled).map(|(partition, ..)| partition).collect()
    }

    /// What waits in a partition for something that is away, or stands behind that in its key.
    fn stuck(&self, state: &PartitionState) -> Stuck {
        let allows_start = self.breaker.allows_start();
        // A scout waits, too, until it is answered.
        let scouts = |slot: &Slot| slot.scouts && slot.phase == Phase::Running;
        let waits = |slot: &Slot| scouts(slot) || awaited(slot, allows_start).is_some();
        let head = |slot: &Slot| {
            let lane = slot.lane.filter(|_| slot.phase == Phase::Queued)?;
            state.open.get(self.keys.head(lane)?)
        };
        let is_stuck = |slot: &&Slot| waits(slot) || head(slot).is_some_and(waits);
        state.open.slots().filter(is_stuck).fold(Stuck::default(), |sum, slot| Stuck {
            jobs: sum.jobs + 1,
            bytes: sum.bytes + slot.bytes,
        })
    }
}

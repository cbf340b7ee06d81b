//! Partitions come and go.

use fleet_group::Partition;

use super::Engine;
use crate::{
    partition::PartitionState,
    slot::{Slot, State},
    types::{Command, Token},
};

impl Engine {
    pub(super) fn assign(&mut self, partition: Partition, state: PartitionState) {
        self.remove(&[partition]);
        self.partitions.assign(partition, state);
        // The shares of the others have become smaller.
        self.update_pauses();
    }

    /// Starts nothing more of `partitions`, and lets what runs get to its end.
    pub(super) fn drain(&mut self, partitions: &[Partition]) {
        for partition in partitions {
            if let Some(state) = self.partitions.get_mut(*partition) {
                state.draining = true;
            }
        }
    }

    /// Lets go of everything that is held for `partitions`. What is shared with other partitions is
    /// looked through once for all that leave.
    pub(super) fn remove(&mut self, partitions: &[Partition]) {
        let before = self.partitions.len();
        partitions.iter().for_each(|partition| self.remove_one(*partition));
        if self.partitions.len() == before {
            return;
        }

        let left = &self.partitions;
        self.ready.retain(|token| left.contains(token.partition));
        self.timers.retain(|token| left.contains(token.partition));
        self.holds.retain(|token| left.contains(token.partition));
        self.update_pauses();
    }

    fn remove_one(&mut self, partition: Partition) {
        let Some(state) = self.partitions.remove(partition) else { return };

        for slot in state.open().slots() {
            if let State::Running { job, .. } = slot.state() {
                self.ready.ended(&job.spec.limits);
            }
        }

        let generation = state.generation;
        let tokens = state.open().offsets().map(|offset| Token { partition, offset, generation });
        self.out.extend(tokens.map(Command::Forget));

        if let Some(due) = state.commit_due {
            self.commits.remove(&(due, partition));
        }
        state.open().slots().filter_map(Slot::lane).for_each(|lane| self.keys.forget(lane));
    }
}

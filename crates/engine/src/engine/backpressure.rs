//! How much is held in memory, and which partitions are fetched.
//!
//! One half of memory is common: a partition is read on while there is room in it, whatever the
//! partition holds, because the job of a tenant must be seen to get its turn (I8), even if thousands
//! of jobs of another one are before it in its partition. The other half is shared out equally, and
//! what a partition holds up to its share comes from there. So the partitions that have taken the
//! common half, perhaps for as long as a server is away, leave all others what is theirs (I7), and
//! together they do not hold more than all of it.
//!
//! Jobs can grow while they run, and records are as large as they are, so that memory can be full
//! all the same. Then partitions keep to half of their shares.

use fleet_group::Partition;

use super::Engine;
use crate::{
    slot::{Slot, State},
    sums::Load,
    types::{Command, Terminal, Token},
};

/// How many records of the delayed topic are read ahead of their time. They come in the order of
/// their times, so more of them would only fill memory that jobs need.
const RELAYS_AHEAD: usize = 2;

/// How full memory is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Memory {
    /// Every partition is read on.
    Free,
    /// The common half is taken, or more than half of everything still is since: partitions keep to
    /// their shares.
    Tight,
    /// Beyond one of its limits, or not yet down to three quarters of it since: partitions keep to
    /// half of their shares.
    Full,
}

impl Engine {
    /// Each partition's part of the half of memory that is shared out.
    fn share(&self) -> Load {
        let partitions = self.partitions.len().max(1);
        let most = self.config.most_buffered();
        Load {
            records: (most.records / 2 / partitions).max(2),
            bytes: (most.bytes / 2 / partitions).max(2),
        }
    }

    /// How much a partition may hold, if there is a limit to it.
    pub(super) fn allowance(&self, memory: Memory) -> Option<Load> {
        match memory {
            Memory::Free => None,
            Memory::Tight => Some(self.share()),
            Memory::Full => Some(self.share().half()),
        }
    }

    /// How full memory is now.
    fn measure_memory(&self) -> Memory {
        let held = self.partitions.sums().busy();

        match self.memory {
            _ if self.exceeds(4, held) => Memory::Full,
            Memory::Full if self.exceeds(3, held) => Memory::Full,
            _ if !self.exceeds(2, held) => Memory::Free,
            Memory::Free if !self.is_common_half_taken() => Memory::Free,
            _ => Memory::Tight,
        }
    }

    /// Whether this exceeds so many quarters of one of memory's limits.
    pub(super) fn exceeds(&self, quarters: usize, held: Load) -> bool {
        let most = self.config.most_buffered();
        let exceeds =
            |value: usize, max: usize| value.saturating_mul(4) > max.saturating_mul(quarters);
        exceeds(held.records, most.records) || exceeds(held.bytes, most.bytes)
    }

    /// Whether what partitions hold beyond their shares comes to half of memory. Looks through all
    /// partitions.
    fn is_common_half_taken(&self) -> bool {
        let share = self.share();
        let beyond = self.partitions.iter().map(|(_, state)| state.sums().busy().beyond(share));
        beyond.sum::<Load>().reaches(self.config.most_buffered().half())
    }

    /// A job that runs or has run holds more than its record, or less than before. A record that
    /// waits to be relayed does neither.
    pub(super) fn resize_job(&mut self, token: Token, bytes: usize) {
        let is_relay =
            |slot: &Slot| matches!(slot.state(), State::Ending { end: Terminal::Relayed, .. });
        if self.slot(token).is_none_or(is_relay) {
            return;
        }

        self.transition(token, |slot| slot.resize(bytes));
        self.update_pause(token.partition);
    }

    /// Pauses and resumes after a change in `partition`. Between the two limits nothing changes,
    /// because every pause throws away what librdkafka has fetched ahead.
    pub(super) fn update_pause(&mut self, partition: Partition) {
        if self.measure_memory() != self.memory {
            self.update_pauses();
        } else {
            self.apply_pause(partition, self.allowance(self.memory));
        }
    }

    /// Pauses and resumes all partitions, after their number has changed or memory has become full
    /// or free.
    pub(super) fn update_pauses(&mut self) {
        self.memory = self.measure_memory();

        let allowance = self.allowance(self.memory);
        let partitions: Vec<_> = self.partitions.iter().map(|(partition, _)| partition).collect();
        partitions.into_iter().for_each(|partition| self.apply_pause(partition, allowance));
    }

    fn apply_pause(&mut self, partition: Partition, allowance: Option<Load>) {
        let Some(state) = self.partitions.get_mut(partition) else { return };
        let sums = state.sums();

        // An allowance always has room for one record. If all partitions are paused, librdkafka
        // takes up to a second to notice that one is resumed, because it notices only when a fetch
        // is answered.
        let is_reached = |allowance: Load| sums.held().reaches(allowance);
        let is_half_full = |allowance: Load| sums.held().exceeds(allowance.half());
        let pauses = allowance.is_some_and(is_reached)
            || sums.relays >= RELAYS_AHEAD
            || (state.paused && (allowance.is_some_and(is_half_full) || sums.relays > 0));
        if pauses == state.paused {
            return;
        }

        state.paused = pauses;
        let generation = state.generation;
        self.out.push_back(match pauses {
            true => Command::Pause(partition, generation),
            false => Command::Resume(partition, generation),
        });
    }
}

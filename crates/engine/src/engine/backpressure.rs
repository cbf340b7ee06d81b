//! How much is held in memory, and which partitions are fetched.
//!
//! While memory is at most half full, every partition is read on, whatever it holds: the job of a
//! tenant must be seen to get its turn (I8), even if thousands of jobs of another one are before it
//! in its partition. In the other half, each partition keeps to its share, so that one with slow
//! jobs does not take the memory of all. If memory is full, nothing is read but partitions that
//! hold nothing, until a quarter is free: what fills the first half may stay for long.

use fleet_group::Partition;

use super::Engine;
use crate::{
    slot::{Slot, State},
    types::{Command, Config, Terminal, Token},
};

/// How many records of the delayed topic are read ahead of their time. They come in the order of
/// their times, so more of them would only fill memory that jobs need.
const RELAYS_AHEAD: usize = 2;

/// How full memory is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Memory {
    /// Every partition is read on.
    Free,
    /// At least half full, or not yet down to a quarter since: partitions keep to their shares.
    Tight,
    /// At one of its limits, or not yet down to three quarters of it since: no partition that
    /// holds anything is read on.
    Full,
}

impl Engine {
    /// How many open records one partition may hold while memory is tight.
    pub(super) fn share(&self) -> usize {
        (self.config.max_buffered / self.partitions.len().max(1)).max(2)
    }

    /// Records in memory, and their bytes, without those that only wait to be relayed. Few of these
    /// are read ahead, and what they wait for is no reason to stop everything else.
    fn busy(&self) -> (usize, usize) {
        let sums = self.partitions.sums();
        (sums.open - sums.relays, sums.bytes - sums.relay_bytes)
    }

    /// How full memory is now.
    fn measure_memory(&self) -> Memory {
        let (records, bytes) = self.busy();
        let reaches = |quarters| self.exceeds(quarters, records + 1, bytes.saturating_add(1));
        let exceeds = |quarters| self.exceeds(quarters, records, bytes);

        match self.memory {
            _ if reaches(4) => Memory::Full,
            Memory::Full if exceeds(3) => Memory::Full,
            _ if reaches(2) => Memory::Tight,
            Memory::Full | Memory::Tight if exceeds(1) => Memory::Tight,
            _ => Memory::Free,
        }
    }

    /// Whether this exceeds so many quarters of one of memory's limits.
    pub(super) fn exceeds(&self, quarters: usize, records: usize, bytes: usize) -> bool {
        let Config { max_buffered, max_buffered_bytes, .. } = self.config;
        let exceeds =
            |value: usize, max: usize| value.saturating_mul(4) > max.saturating_mul(quarters);
        exceeds(records, max_buffered) || exceeds(bytes, max_buffered_bytes)
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
            let share = self.share();
            self.apply_pause(partition, share);
        }
    }

    /// Pauses and resumes all partitions, after their number has changed or memory has become full
    /// or free.
    pub(super) fn update_pauses(&mut self) {
        self.memory = self.measure_memory();

        let share = self.share();
        let partitions: Vec<_> = self.partitions.iter().map(|(partition, _)| partition).collect();
        partitions.into_iter().for_each(|partition| self.apply_pause(partition, share));
    }

    pub(super) fn apply_pause(&mut self, partition: Partition, share: usize) {
        let (is_full, is_tight) = (self.memory == Memory::Full, self.memory != Memory::Free);
        let Some(state) = self.partitions.get_mut(partition) else { return };
        let sums = state.sums();

        // A partition that holds nothing is not what fills memory; its first record pauses it. If
        // all partitions are paused, librdkafka takes up to a second to notice that one is resumed,
        // because it notices only when a fetch is answered.
        let pauses = (is_full && sums.open > 0)
            || (is_tight && sums.open >= share)
            || sums.relays >= RELAYS_AHEAD
            || (state.paused && ((is_tight && sums.open > share / 2) || sums.relays > 0));
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

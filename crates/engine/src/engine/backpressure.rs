//! How much is held in memory, and which partitions are fetched.

use fleet_group::Partition;

use super::Engine;
use crate::{
    slot::{Slot, State},
    types::{Command, Config, Terminal, Token},
};

/// How many records of the delayed topic are read ahead of their time. They come in the order of
/// their times, so more of them would only fill memory that jobs need.
const RELAYS_AHEAD: usize = 2;

impl Engine {
    /// How many open records one partition may hold, so that a slow one does not take the memory of
    /// all.
    pub(super) fn share(&self) -> usize {
        (self.config.max_buffered / self.partitions.len().max(1)).max(2)
    }

    /// Records in memory, and their bytes, without those that only wait to be relayed. Few of these
    /// are read ahead, and what they wait for is no reason to stop everything else.
    fn busy(&self) -> (usize, usize) {
        let sums = self.partitions.sums();
        (sums.open - sums.relays, sums.bytes - sums.relay_bytes)
    }

    /// Whether memory is at most half full, so that fetching may resume.
    fn has_memory_again(&self) -> bool {
        let Config { max_buffered, max_buffered_bytes, .. } = self.config;
        let (records, bytes) = self.busy();

        records <= max_buffered / 2 && bytes <= max_buffered_bytes / 2
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
        let Config { max_buffered, max_buffered_bytes, .. } = self.config;
        let (records, bytes) = self.busy();
        let is_over = records >= max_buffered || bytes >= max_buffered_bytes;

        if (is_over && !self.is_full) || (self.is_full && self.has_memory_again()) {
            self.is_full = is_over;
            self.update_pauses();
        } else {
            let share = self.share();
            self.apply_pause(partition, share);
        }
    }

    /// Pauses and resumes all partitions, after their number has changed or memory has become full
    /// or free.
    pub(super) fn update_pauses(&mut self) {
        if self.is_full && self.has_memory_again() {
            self.is_full = false;
        }

        let share = self.share();
        let partitions: Vec<_> = self.partitions.iter().map(|(partition, _)| partition).collect();
        partitions.into_iter().for_each(|partition| self.apply_pause(partition, share));
    }

    pub(super) fn apply_pause(&mut self, partition: Partition, share: usize) {
        let is_full = self.is_full;
        let Some(state) = self.partitions.get_mut(partition) else { return };
        let sums = state.sums();

        // A partition that holds nothing is not what fills memory; its first record pauses it. If
        // all partitions are paused, librdkafka takes up to a second to notice that one is resumed,
        // because it notices only when a fetch is answered.
        let pauses = (is_full && sums.open > 0)
            || sums.open >= share
            || sums.relays >= RELAYS_AHEAD
            || (state.paused && (sums.open > share / 2 || sums.relays > 0));
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

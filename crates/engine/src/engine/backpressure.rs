//! How much is held in memory, and which partitions are fetched.

use fleet_group::Partition;

use super::Engine;
use crate::types::{Command, Config, Terminal, Token, faulty};

/// So many records that wait to be passed on are read ahead. They come in the order of their times,
/// so more of them would only fill memory that jobs need.
const RELAYS_AHEAD: usize = 2;

impl Engine {
    /// How many open jobs one partition may hold, so that a slow one does not take the memory of
    /// all.
    pub(super) fn share(&self) -> usize {
        (self.config.max_buffered / self.partitions.len().max(1)).max(2)
    }

    /// Jobs in memory, and their bytes, without those that only wait to be passed on. Few of these
    /// are read ahead, and what they wait for is no reason to stop everything else.
    fn busy(&self) -> (usize, usize) {
        (self.buffered - self.relays, self.buffered_bytes - self.relay_bytes)
    }

    /// Pauses and resumes after a change in `partition`. Between the two limits nothing changes,
    /// because every pause throws away what librdkafka has fetched ahead.
    pub(super) fn update_pause(&mut self, partition: Partition) {
        let Config { max_buffered, max_buffered_bytes, .. } = self.config;
        let (jobs, bytes) = self.busy();
        let over = jobs >= max_buffered || bytes >= max_buffered_bytes;
        let under = jobs <= max_buffered / 2 && bytes <= max_buffered_bytes / 2;
        if (over && !self.full) || (under && self.full) {
            self.full = over;
            self.update_pauses();
        } else {
            let share = self.share();
            self.apply_pause(partition, share);
        }
    }

    /// A job that runs or has run holds more than its record, or less than before. A job that waits
    /// to be passed on does neither.
    pub(super) fn holds(&mut self, token: Token, bytes: usize) {
        let Some(slot) = self.slot(token).filter(|slot| slot.early != Some(Terminal::Relayed))
        else {
            return;
        };
        let before = std::mem::replace(&mut slot.bytes, bytes);
        self.buffered_bytes = self.buffered_bytes - before + bytes;
        if let Some(state) = self.partitions.get_mut(&token.partition) {
            state.buffered_bytes = state.buffered_bytes - before + bytes;
        }
        self.update_pause(token.partition);
    }

    pub(super) fn update_pauses(&mut self) {
        let (jobs, bytes) = self.busy();
        if self.full
            && jobs <= self.config.max_buffered / 2
            && bytes <= self.config.max_buffered_bytes / 2
        {
            self.full = false;
        }
        let share = self.share();
        let partitions: Vec<_> = self.partitions.keys().copied().collect();
        partitions.into_iter().for_each(|partition| self.apply_pause(partition, share));
    }

    pub(super) fn apply_pause(&mut self, partition: Partition, share: usize) {
        let full = self.full;
        let Some(state) = self.partitions.get_mut(&partition) else { return };
        let open = state.open.len();
        let relays = state.waiting_relays;
        // A partition that holds nothing is not what fills memory; its first record pauses it.
        // Where all partitions are paused, librdkafka takes up to a second to notice that one is
        // not any more, and it notices with every fetch.
        let pause = (full && open > 0)
            || open >= share
            || relays >= RELAYS_AHEAD
            || (state.paused && (open > share / 2 || relays > 0));
        if pause != state.paused && !(state.paused && faulty!(self.config, NeverResumes)) {
            state.paused = pause;
            let generation = state.generation;
            let command = match pause {
                true => Command::Pause(partition, generation),
                false => Command::Resume(partition, generation),
            };
            self.out.push_back(command);
        }
    }
}

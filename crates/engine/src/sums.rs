//! Sums over the states of records.
//!
//! What a record adds to them follows from its slot alone ([`Sums::of`]), and they change in one
//! place: [`PartitionState::transition`](crate::partition::PartitionState::transition) for a
//! partition, [`Partitions`](crate::partitions::Partitions) for all of them.

use std::{
    iter::Sum,
    ops::{AddAssign, SubAssign},
};

use crate::{
    slot::{Slot, State, Step},
    types::Terminal,
};

/// What records take up in memory.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Load {
    pub(crate) records: usize,
    pub(crate) bytes: usize,
}

impl Load {
    pub(crate) fn half(self) -> Self {
        Self { records: self.records / 2, bytes: self.bytes / 2 }
    }

    /// What is more than `share`.
    pub(crate) fn beyond(self, share: Self) -> Self {
        Self {
            records: self.records.saturating_sub(share.records),
            bytes: self.bytes.saturating_sub(share.bytes),
        }
    }

    /// Whether it is as much as `limit` in records, or in bytes.
    pub(crate) fn reaches(self, limit: Self) -> bool {
        self.records >= limit.records || self.bytes >= limit.bytes
    }

    /// Whether it is more than `limit` in records, or in bytes.
    pub(crate) fn exceeds(self, limit: Self) -> bool {
        self.records > limit.records || self.bytes > limit.bytes
    }
}

impl Sum for Load {
    fn sum<I: Iterator<Item = Self>>(loads: I) -> Self {
        loads.fold(Self::default(), |sum, load| Self {
            records: sum.records + load.records,
            bytes: sum.bytes + load.bytes,
        })
    }
}

/// What the records of a partition, or of all partitions, come to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Sums {
    /// Records that are not settled.
    pub(crate) open: usize,
    /// The bytes that they hold.
    pub(crate) bytes: usize,
    /// Jobs with an attempt under way.
    pub(crate) running: usize,
    /// Records whose end is being written, or waits to be written again.
    pub(crate) writing: usize,
    /// Those of them that do not go on as another record.
    pub(crate) writing_final: usize,
    /// Records to be relayed whose time has not come.
    pub(crate) relays: usize,
    /// The bytes that they hold.
    pub(crate) relay_bytes: usize,
}

impl Sums {
    /// What one record adds.
    pub(crate) fn of(slot: &Slot) -> Self {
        let one = Self { open: 1, bytes: slot.bytes(), ..Self::default() };

        match *slot.state() {
            State::Running { .. } => Self { running: 1, ..one },
            State::Ending { end, step: Step::Settling(_) | Step::Unwritten(_), .. } => {
                Self { writing: 1, writing_final: usize::from(end.is_final()), ..one }
            }
            State::Ending { end: Terminal::Relayed, step: Step::Time, .. } => {
                Self { relays: 1, relay_bytes: slot.bytes(), ..one }
            }
            State::Waiting { .. } | State::Ending { .. } => one,
        }
    }

    /// What all records take up.
    pub(crate) fn held(&self) -> Load {
        Load { records: self.open, bytes: self.bytes }
    }

    /// The same without records that only wait to be relayed. Few of these are read ahead, and what
    /// they wait for is no reason to stop everything else.
    pub(crate) fn busy(&self) -> Load {
        Load { records: self.open - self.relays, bytes: self.bytes - self.relay_bytes }
    }

    /// Records that run or are being written: they can settle in any order without asking again.
    pub(crate) fn active(&self) -> usize {
        self.running + self.writing
    }

    /// The sums after a record has changed from what it added before to what it adds now.
    pub(crate) fn change(&mut self, change: Change) {
        *self += change.after;
        *self -= change.before;
    }
}

/// What a record added to the sums before and after a transition; nothing while it is not there.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Change {
    pub(crate) before: Sums,
    pub(crate) after: Sums,
}

impl AddAssign for Sums {
    fn add_assign(&mut self, other: Self) {
        self.open += other.open;
        self.bytes += other.bytes;
        self.running += other.running;
        self.writing += other.writing;
        self.writing_final += other.writing_final;
        self.relays += other.relays;
        self.relay_bytes += other.relay_bytes;
    }
}

impl SubAssign for Sums {
    fn sub_assign(&mut self, other: Self) {
        self.open -= other.open;
        self.bytes -= other.bytes;
        self.running -= other.running;
        self.writing -= other.writing;
        self.writing_final -= other.writing_final;
        self.relays -= other.relays;
        self.relay_bytes -= other.relay_bytes;
    }
}

//! All assigned partitions, and the sums over them.

use fleet_group::Partition;

use crate::{
    hash::FastMap,
    partition::PartitionState,
    slot::Slot,
    sums::Sums,
    types::{Limits, Token},
};

/// All assigned partitions.
#[derive(Debug, Default)]
pub(crate) struct Partitions {
    assigned: FastMap<Partition, PartitionState>,
    /// Over all records of all of them.
    sums: Sums,
}

/// How a transition has changed the number of jobs that run under some limits.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Occupancy {
    Same,
    Started(Limits),
    Ended(Limits),
}

impl Partitions {
    pub(crate) fn sums(&self) -> Sums {
        self.sums
    }

    pub(crate) fn len(&self) -> usize {
        self.assigned.len()
    }

    pub(crate) fn contains(&self, partition: Partition) -> bool {
        self.assigned.contains_key(&partition)
    }

    pub(crate) fn get(&self, partition: Partition) -> Option<&PartitionState> {
        self.assigned.get(&partition)
    }

    pub(crate) fn get_mut(&mut self, partition: Partition) -> Option<&mut PartitionState> {
        self.assigned.get_mut(&partition)
    }

    /// All partitions, in no order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (Partition, &PartitionState)> {
        self.assigned.iter().map(|(partition, state)| (*partition, state))
    }

    /// All partitions, in no order.
    pub(crate) fn iter_mut(&mut self) -> impl Iterator<Item = (Partition, &mut PartitionState)> {
        self.assigned.iter_mut().map(|(partition, state)| (*partition, state))
    }

    /// The token of the record at `offset`; `None` unless the partition is assigned.
    pub(crate) fn token(&self, partition: Partition, offset: i64) -> Option<Token> {
        let generation = self.get(partition)?.generation;
        Some(Token { partition, offset, generation })
    }

    /// The record of `token`. Tokens of an earlier assignment are fenced off.
    pub(crate) fn slot(&self, token: Token) -> Option<&Slot> {
        let state = self.get(token.partition)?;
        state.slot(token.offset).filter(|_| state.generation == token.generation)
    }

    /// Adds a partition without records.
    pub(crate) fn assign(&mut self, partition: Partition, state: PartitionState) {
        debug_assert_eq!(state.sums(), Sums::default());
        self.assigned.insert(partition, state);
    }

    /// Takes a partition away with all its records.
    pub(crate) fn remove(&mut self, partition: Partition) -> Option<PartitionState> {
        let state = self.assigned.remove(&partition)?;
        self.sums -= state.sums();
        Some(state)
    }

    /// Adds a record, which lies beyond all others of its partition.
    pub(crate) fn insert(&mut self, token: Token, slot: Slot) {
        if let Some(state) = self.assigned.get_mut(&token.partition) {
            self.sums.change(state.insert(token.offset, slot));
        }
    }

    /// Takes a settled record out.
    pub(crate) fn settle(&mut self, token: Token) -> Option<Slot> {
        let (slot, change) = self.assigned.get_mut(&token.partition)?.settle(token.offset)?;
        self.sums.change(change);
        Some(slot)
    }

    /// Changes the record of `token`, and all sums with it.
    pub(crate) fn transition(
        &mut self,
        token: Token,
        change: impl FnOnce(&mut Slot),
    ) -> Option<Occupancy> {
        let state = self.assigned.get_mut(&token.partition)?;
        if state.generation != token.generation {
            return None;
        }

        let (slot, change) = state.transition(token.offset, change)?;
        self.sums.change(change);

        let limits = || slot.job().map(|job| job.spec.limits).unwrap_or_default();
        Some(match (change.before.running, change.after.running) {
            (0, 1) => Occupancy::Started(limits()),
            (1, 0) => Occupancy::Ended(limits()),
            _ => Occupancy::Same,
        })
    }
}

//! The limits: how many jobs run under each, and which queues wait for a place there.

use std::collections::BTreeSet;

use super::QueueId;
use crate::{
    hash::{FastMap, Seed},
    types::{Limit, Limits},
};

/// A queue's place among those that wait: the number that it drew when it began to wait.
pub(super) type Ticket = u64;

/// The jobs under each limit.
#[derive(Debug, Default)]
pub(super) struct Groups {
    groups: FastMap<u64, Group>,
    tickets: Ticket,
}

#[derive(Debug, Default)]
struct Group {
    running: u32,
    /// Free places that are reserved for the queues that were called.
    kept: u32,
    aside: BTreeSet<(Ticket, QueueId)>,
}

impl Groups {
    pub(super) fn new(seed: Seed) -> Self {
        Self { groups: FastMap::with_hasher(seed), tickets: 0 }
    }

    /// A limit among these that has no place for a queue, which may have been called for one.
    pub(super) fn full(&self, limits: &Limits, called: Option<u64>) -> Option<u64> {
        let taken = |group| {
            let taken = self.groups.get(&group).map_or(0, |group| group.running + group.kept);
            taken - u32::from(called == Some(group) && taken > 0)
        };
        let mut limits = limits.iter().flatten();
        limits.find(|limit| taken(limit.group) >= limit.max).map(|limit| limit.group)
    }

    /// A ticket behind all others.
    pub(super) fn draw_ticket(&mut self) -> Ticket {
        self.tickets += 1;
        self.tickets
    }

    /// The queue waits for a place.
    pub(super) fn set_aside(&mut self, group: u64, ticket: Ticket, id: QueueId) {
        self.groups.entry(group).or_default().aside.insert((ticket, id));
    }

    /// The queue no longer waits.
    pub(super) fn forget_aside(&mut self, group: u64, ticket: Ticket, id: QueueId) {
        if let Some(waits) = self.groups.get_mut(&group) {
            waits.aside.remove(&(ticket, id));
        }
        self.forget_unused(group);
    }

    /// Takes out the queue that has waited longest for a limit, if the limit has a place that is
    /// not reserved.
    pub(super) fn next_aside(&mut self, limit: &Limit) -> Option<(Ticket, QueueId)> {
        let group = self.groups.get_mut(&limit.group)?;
        let has_place = group.running + group.kept < limit.max;
        if has_place { group.aside.pop_first() } else { None }
    }

    /// Reserves a place for a queue.
    pub(super) fn keep_place(&mut self, group: u64) {
        self.groups.entry(group).or_default().kept += 1;
    }

    /// Gives a reserved place up, because it is taken or no longer needed.
    pub(super) fn release_place(&mut self, group: u64) {
        if let Some(kept) = self.groups.get_mut(&group) {
            kept.kept = kept.kept.saturating_sub(1);
        }
    }

    pub(super) fn started(&mut self, limits: &Limits) {
        for limit in limits.iter().flatten() {
            self.groups.entry(limit.group).or_default().running += 1;
        }
    }

    pub(super) fn ended(&mut self, limits: &Limits) {
        for limit in limits.iter().flatten() {
            if let Some(group) = self.groups.get_mut(&limit.group) {
                group.running = group.running.saturating_sub(1);
            }
        }
    }

    /// Producers name tenants, so a group that nothing needs must not stay.
    pub(super) fn forget_unused(&mut self, group: u64) {
        let is_unused =
            |group: &Group| group.running == 0 && group.kept == 0 && group.aside.is_empty();
        if self.groups.get(&group).is_some_and(is_unused) {
            self.groups.remove(&group);
        }
    }

    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        self.groups.is_empty()
    }
}

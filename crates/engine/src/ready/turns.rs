//! Whose turn it is: the tenants that have something in the race, in a ring, and in rounds.

use std::collections::{HashSet, VecDeque};

use crate::hash::{FastMap, Seed};

/// The tenants in the race, each once, and those that have left it before their turn came.
#[derive(Debug, Default)]
pub(super) struct Turns {
    /// The first one has its turn; a tenant that enters the race goes to the end.
    ring: VecDeque<u64>,
    /// How many of them, from the first one on, still have a turn in this round.
    left: usize,
    /// How many jobs the first one may still start in its turn; 0 if its turn has not begun.
    credit: u32,
    /// How many jobs each tenant has started in this round.
    started: FastMap<u64, u32>,
    /// The tenants in the ring that have left the race. They leave the ring when their turn comes.
    absent: HashSet<u64, Seed>,
    /// Whether the last start was an early one.
    was_early: bool,
}

impl Turns {
    pub(super) fn new(seed: Seed) -> Self {
        Self {
            started: FastMap::with_hasher(seed),
            absent: HashSet::with_hasher(seed),
            ..Self::default()
        }
    }

    /// The tenant that has its turn. It may have left the race.
    pub(super) fn current(&self) -> Option<u64> {
        self.ring.front().copied()
    }

    /// The tenant enters the race, and has its turn in the next round. If it is still in the ring,
    /// it keeps its place.
    pub(super) fn join(&mut self, tenant: u64) {
        if !self.absent.remove(&tenant) {
            self.ring.push_back(tenant);
            self.begin_round();
        }
    }

    /// The tenant leaves the race.
    pub(super) fn retire(&mut self, tenant: u64) {
        self.absent.insert(tenant);
    }

    /// The current tenant, which has left the race, leaves the ring, and what is left of its credit
    /// is forgotten.
    pub(super) fn leave(&mut self) {
        if let Some(tenant) = self.ring.pop_front() {
            self.absent.remove(&tenant);
        }
        self.end_turn();
    }

    /// All tenants that have left the race leave the ring.
    pub(super) fn forget_absent(&mut self) {
        let current = self.current();
        let is_present = |tenant: &u64| !self.absent.contains(tenant);

        self.left = self.ring.iter().take(self.left).filter(|tenant| is_present(tenant)).count();
        self.ring.retain(is_present);
        self.absent.clear();
        if self.current() != current {
            self.credit = 0;
        }
        self.begin_round();
    }

    /// Begins the turn of the current tenant, unless it has begun. Returns `false` if
    /// the tenant has used up its turn of this round by early starts.
    pub(super) fn begin(&mut self, weight: u32) -> bool {
        if self.credit > 0 {
            return true;
        }

        let started = self.current().and_then(|tenant| self.started.get(&tenant).copied());
        self.credit = weight.max(1).saturating_sub(started.unwrap_or_default());
        if self.credit == 0 {
            self.pass_turn();
        }
        self.credit > 0
    }

    /// Whether the last start was an early one, so that it is the turn of the ring.
    pub(super) fn was_early(&self) -> bool {
        self.was_early
    }

    /// Whether a tenant may start a job before its turn comes: early or not, it starts no more jobs
    /// in a round than it weighs.
    pub(super) fn may_be_early(&self, tenant: u64, weight: u32) -> bool {
        self.started.get(&tenant).is_none_or(|starts| *starts < weight.max(1))
    }

    /// A job of the tenant has started, in its turn or early.
    pub(super) fn charge(&mut self, tenant: u64, is_early: bool) {
        self.was_early = is_early;
        *self.started.entry(tenant).or_default() += 1;

        if self.credit > 0 && self.current() == Some(tenant) {
            self.credit -= 1;
            if self.credit == 0 {
                self.pass_turn();
            }
        }
    }

    /// The current tenant has its next turn in the next round.
    fn pass_turn(&mut self) {
        self.ring.rotate_left(1);
        self.end_turn();
    }

    fn end_turn(&mut self) {
        self.credit = 0;
        self.left = self.left.saturating_sub(1);
        self.begin_round();
    }

    /// Begins the next round if all have had their turns.
    fn begin_round(&mut self) {
        if self.left == 0 {
            self.left = self.ring.len();
            self.started.clear();
        }
    }
}

/// What the deliberate faults of the simulation do to the turns.
#[cfg(test)]
impl Turns {
    /// Extends the turn of the current tenant.
    pub(super) fn prolong(&mut self) {
        self.credit = self.credit.saturating_add(u32::from(self.credit > 0));
    }

    /// It is this tenant's turn next, if the tenant is in the race.
    pub(super) fn favour(&mut self, tenant: u64) {
        if let Some(at) = self.ring.iter().position(|other| *other == tenant).filter(|at| *at > 0) {
            self.ring.remove(at);
            self.ring.push_front(tenant);
            self.left = self.left.max(1);
            self.credit = 0;
            self.started.remove(&tenant);
        }
    }

    /// The tenants in the ring.
    pub(super) fn all(&self) -> impl Iterator<Item = u64> {
        self.ring.iter().copied()
    }
}

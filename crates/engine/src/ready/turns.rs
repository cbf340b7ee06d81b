//! Whose turn it is: the tenants that have something in the race, in a ring.

use std::collections::VecDeque;

/// The tenants in the race, each once.
#[derive(Debug, Default)]
pub(super) struct Turns {
    /// The first one has its turn; a tenant that enters the race goes to the end.
    ring: VecDeque<u64>,
    /// How many jobs the first one may still start in its turn; 0 if its turn has not begun.
    credit: u32,
}

impl Turns {
    /// The tenant that has its turn.
    pub(super) fn current(&self) -> Option<u64> {
        self.ring.front().copied()
    }

    /// The tenant enters the race.
    pub(super) fn join(&mut self, tenant: u64) {
        self.ring.push_back(tenant);
    }

    /// The tenant that has its turn leaves the race, and what is left of its credit is forgotten.
    pub(super) fn leave(&mut self) {
        self.ring.pop_front();
        self.credit = 0;
    }

    /// Begins the turn of the current tenant, unless it has begun.
    pub(super) fn begin(&mut self, weight: u32) {
        if self.credit == 0 {
            self.credit = weight.max(1);
        }
    }

    /// A job of the current tenant has started. If no turn has begun, that job was the last of a
    /// tenant that has left, and there is nothing to charge.
    pub(super) fn charge(&mut self) {
        if self.credit == 0 {
            return;
        }

        self.credit -= 1;
        if self.credit == 0 {
            self.ring.rotate_left(1);
        }
    }
}

/// What the deliberate faults of the simulation do to the turns.
#[cfg(test)]
impl Turns {
    /// The turn of the current tenant goes on.
    pub(super) fn prolong(&mut self) {
        self.credit = self.credit.saturating_add(u32::from(self.credit > 0));
    }

    /// It is this tenant's turn next, if the tenant is in the race.
    pub(super) fn favour(&mut self, tenant: u64) {
        if let Some(at) = self.ring.iter().position(|other| *other == tenant).filter(|at| *at > 0) {
            self.ring.remove(at);
            self.ring.push_front(tenant);
            self.credit = 0;
        }
    }

    /// The tenants in the race.
    pub(super) fn all(&self) -> impl Iterator<Item = u64> {
        self.ring.iter().copied()
    }
}

//! The promises that the engine checks while it works.

use super::Engine;
use crate::{
    invariant::Invariant,
    types::{Command, Token},
};

impl Engine {
    /// How often each promise has been checked so far, whether it was kept or not. Each violation
    /// is reported by [`Command::Violation`].
    pub fn checks(&self) -> impl Iterator<Item = (Invariant, u64)> {
        self.checks.iter()
    }

    /// Counts that a promise was checked, and reports it if it was broken.
    pub(super) fn check(&mut self, invariant: Invariant, token: Token, is_kept: bool) {
        self.checks.count(invariant);
        if !is_kept {
            self.out.push_back(Command::Violation(invariant, token));
        }
    }
}

//! What the registry, or this process, wants to be hosted. Pure.

use std::{collections::BTreeMap, sync::Arc};

use fleet_job::mcp_servers::ServerEntry;

/// The most names that are followed. Policy bounds how many servers run; this bounds the memory
/// that others can make us use.
pub(super) const MAX_NAMES: usize = 1000;

/// What the registry wants.
#[derive(Default)]
pub(super) struct Wanted {
    pub(super) by_name: BTreeMap<String, Wish>,
    /// The number of the last wish. Wishes are identified by numbers.
    changes: u64,
}

/// What the registry wants for one name.
pub(super) struct Wish {
    pub(super) number: u64,
    pub(super) goal: Goal,
    /// Held during an attempt to meet the wish.
    pub(super) gate: Arc<tokio::sync::Mutex<()>>,
    /// Whether this process wants it, rather than the registry.
    pub(super) is_own: bool,
    /// Whether there was an attempt to meet the wish.
    pub(super) tried: bool,
    /// Why the wish is not met.
    pub(super) problem: Option<String>,
}

/// What should be hosted under a name.
#[derive(Clone)]
pub(super) enum Goal {
    /// A server with this configuration.
    Hosted(ServerEntry),
    /// The record is unreadable, so nothing changes.
    Unreadable,
    /// Nothing.
    Gone,
}

impl Wanted {
    /// Notes a new wish. Returns its number; `None` if there are too many names.
    pub(super) fn put_wish(
        &mut self,
        name: String,
        goal: Goal,
        problem: Option<String>,
    ) -> Option<u64> {
        let old = self.by_name.get(&name);
        if old.is_none() && self.by_name.len() >= MAX_NAMES {
            return None;
        }

        self.changes += 1;
        let gate = old.map(|wish| wish.gate.clone()).unwrap_or_default();
        let tried = matches!(goal, Goal::Unreadable);
        let number = self.changes;
        self.by_name.insert(name, Wish { number, goal, gate, is_own: false, tried, problem });
        Some(number)
    }

    /// Notes that this process wants a server. Returns the wish's number; `None` if there is a wish
    /// of this name already, or there are too many names.
    pub(super) fn put_own_wish(&mut self, name: &str, entry: &ServerEntry) -> Option<u64> {
        if self.wants(name) {
            return None;
        }
        let number = self.put_wish(name.to_owned(), Goal::Hosted(entry.clone()), None)?;
        self.current_wish(name, number).into_iter().for_each(|wish| wish.is_own = true);
        Some(number)
    }

    /// Forgets what this process wants under a name. A task that meets the wish ends.
    pub(super) fn forget_own(&mut self, name: &str) {
        if self.has_own(name) {
            self.by_name.remove(name);
        }
    }

    /// Returns whether the last readable record of a name wants a server.
    pub(super) fn has_readable(&self, name: &str) -> bool {
        self.by_name.get(name).is_some_and(|wish| matches!(wish.goal, Goal::Hosted(_)))
    }

    /// Returns the wish of a name if it still is this one.
    pub(super) fn current_wish(&mut self, name: &str, number: u64) -> Option<&mut Wish> {
        self.by_name.get_mut(name).filter(|wish| wish.number == number)
    }

    /// Returns the wish of a name if it wants anything.
    pub(super) fn wish(&self, name: &str) -> Option<&Wish> {
        self.by_name.get(name).filter(|wish| !matches!(wish.goal, Goal::Gone))
    }

    pub(super) fn wants(&self, name: &str) -> bool {
        self.wish(name).is_some()
    }

    pub(super) fn has_own(&self, name: &str) -> bool {
        self.wish(name).is_some_and(|wish| wish.is_own)
    }
}

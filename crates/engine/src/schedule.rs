//! What waits for which time.

use std::collections::BTreeSet;

use fleet_job::time::Timestamp;

use crate::types::Token;

/// Why a job is looked at when a time comes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Alarm {
    /// Its `notBefore` or its backoff is over.
    Eligible,
    /// Its terminal record is to be written again.
    Rewrite,
    /// Its deadline has passed.
    Deadline,
    /// It has waited in memory for something that is away for as long as it may.
    Relay,
}

/// Times and what is due at them.
#[derive(Debug, Default)]
pub(crate) struct Timers {
    set: BTreeSet<(Timestamp, Token, Alarm)>,
}

impl Timers {
    pub(crate) fn set(&mut self, at: Timestamp, token: Token, alarm: Alarm) {
        self.set.insert((at, token, alarm));
    }

    /// Takes the first alarm that is due at `now`.
    pub(crate) fn pop_due(&mut self, now: Timestamp) -> Option<(Token, Alarm)> {
        let (at, ..) = self.set.first()?;
        if *at > now {
            return None;
        }
        self.set.pop_first().map(|(_, token, alarm)| (token, alarm))
    }

    pub(crate) fn next(&self) -> Option<Timestamp> {
        self.set.first().map(|(at, ..)| *at)
    }

    pub(crate) fn clear(&mut self, at: Timestamp, token: Token, alarm: Alarm) {
        self.set.remove(&(at, token, alarm));
    }

    pub(crate) fn retain(&mut self, keep: impl Fn(&Token) -> bool) {
        self.set.retain(|(_, token, _)| keep(token));
    }
}

//! The alarms of jobs: when to look at which job again, and why.

use std::collections::BTreeSet;

use fleet_job::time::Timestamp;

use crate::types::Token;

/// Why to look at a record when its time comes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Alarm {
    /// Its `notBefore` or its backoff is over.
    Eligible,
    /// Its terminal record is to be written again.
    Rewrite,
    /// Its deadline has passed.
    Deadline,
    /// It has waited in memory for something that is away, and may do so no longer.
    Relay,
}

/// All alarms that are set, by their time.
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

    /// The time of the first alarm.
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

//! What starts next, and what waits for which time. Entries are not searched for when a job changes its mind: each is
//! checked against its job when it comes up, and dropped when it is stale.

use std::{
    cmp::Reverse,
    collections::{BTreeSet, BinaryHeap},
};

use fleet_job::time::Timestamp;

use crate::types::Token;

/// Jobs that may start, the most urgent first and among equals the oldest first.
#[derive(Debug, Default)]
pub(crate) struct Ready {
    heap: BinaryHeap<(u8, Reverse<u64>, Reverse<Token>)>,
    arrivals: u64,
}

impl Ready {
    pub(crate) fn push(&mut self, priority: u8, token: Token) {
        self.arrivals += 1;
        self.heap.push((priority, Reverse(self.arrivals), Reverse(token)));
    }

    /// Puts a job back to the front of its priority: it was started and the server was not there.
    pub(crate) fn push_front(&mut self, priority: u8, token: Token) {
        self.heap.push((priority, Reverse(0), Reverse(token)));
    }

    pub(crate) fn pop(&mut self) -> Option<Token> {
        self.heap.pop().map(|(_, _, Reverse(token))| token)
    }

    /// How many entries there are, stale ones included.
    pub(crate) fn len(&self) -> usize {
        self.heap.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.heap.is_empty()
    }

    pub(crate) fn retain(&mut self, keep: impl Fn(&Token) -> bool) {
        self.heap.retain(|(_, _, Reverse(token))| keep(token));
    }
}

/// Why a job is looked at when a time comes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Alarm {
    /// Its `notBefore` or its backoff is over.
    Eligible,
    /// Its terminal record is to be written again.
    Rewrite,
    /// Its deadline has passed.
    Deadline,
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

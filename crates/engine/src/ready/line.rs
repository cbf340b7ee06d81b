//! The jobs of one queue, in the order in which they start.

use std::{
    cmp::Reverse,
    collections::{BinaryHeap, VecDeque},
};

use crate::types::Token;

/// The rank of a job among those of its tenant: the most urgent first, and the oldest first among
/// equals.
pub(super) type Rank = (Reverse<u8>, u64);

/// The jobs of a queue. Jobs of one priority arrive in the order of their ranks, so each priority
/// is a plain queue; only jobs that are put back are ordered by their tokens.
#[derive(Debug, Default)]
pub(super) struct Line {
    /// The most urgent first; there are rarely more than two or three levels.
    levels: Vec<Level>,
}

#[derive(Debug)]
struct Level {
    priority: Reverse<u8>,
    again: BinaryHeap<Reverse<Token>>,
    jobs: VecDeque<(u64, Token)>,
}

impl Line {
    /// Arrival 0 is for jobs that are put back; others must arrive in ascending order.
    pub(super) fn push(&mut self, (priority, arrival): Rank, token: Token) {
        let at = self.levels.partition_point(|level| level.priority < priority);
        if self.levels.get(at).is_none_or(|level| level.priority != priority) {
            let level = Level { priority, again: BinaryHeap::new(), jobs: VecDeque::new() };
            self.levels.insert(at, level);
        }
        match arrival {
            0 => self.levels[at].again.push(Reverse(token)),
            _ => self.levels[at].jobs.push_back((arrival, token)),
        }
    }

    pub(super) fn pop(&mut self) -> Option<Token> {
        let level = self.levels.iter_mut().find(|level| !level.is_empty())?;
        match level.again.pop() {
            Some(Reverse(token)) => Some(token),
            None => level.jobs.pop_front().map(|(_, token)| token),
        }
    }

    /// The rank of the job that starts next.
    pub(super) fn head(&self) -> Option<Rank> {
        let level = self.levels.iter().find(|level| !level.is_empty())?;
        let arrival = if level.again.is_empty() { level.jobs.front()?.0 } else { 0 };
        Some((level.priority, arrival))
    }

    pub(super) fn len(&self) -> usize {
        self.levels.iter().map(|level| level.again.len() + level.jobs.len()).sum()
    }

    pub(super) fn retain(&mut self, keep: impl Fn(&Token) -> bool) {
        for level in &mut self.levels {
            level.again.retain(|Reverse(token)| keep(token));
            level.jobs.retain(|(_, token)| keep(token));
        }
    }
}

impl Level {
    fn is_empty(&self) -> bool {
        self.again.is_empty() && self.jobs.is_empty()
    }
}

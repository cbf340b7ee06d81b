//! What starts next: the most urgent job whose limits leave room.
//!
//! There is one queue of jobs for each combination of limits, and a queue whose limit is reached is
//! set aside as a whole. So neither a start nor an end ever looks at the jobs behind a full limit
//! one by one.
//!
//! Invariant: while a limit has room and queues are set aside for it, one of its queues is in the
//! race. A queue that leaves the race, because it is empty or set aside for its other limit,
//! therefore wakes the next queue of every limit that has room.
//!
//! When a job stops waiting for its start, its entry stays. Each entry is checked against its job
//! when its turn comes, and dropped if it is stale.

use std::{
    cmp::Reverse,
    collections::{BTreeSet, BinaryHeap, VecDeque},
};

use crate::{
    hash::{FastMap, Seed},
    types::{Limit, Limits, Token},
};

/// The groups whose limits apply to the jobs of a queue.
type Class = [Option<u64>; 2];
/// The rank of a job in the race: the most urgent first, and the oldest first among equals.
type Rank = (Reverse<u8>, u64);

/// Jobs that may start.
#[derive(Debug, Default)]
pub(crate) struct Ready {
    queues: FastMap<Class, Queue>,
    /// The queues that may have a job to start, by the rank of their head.
    race: BTreeSet<(Rank, Class)>,
    groups: FastMap<u64, Group>,
    entries: usize,
    arrivals: u64,
}

#[derive(Debug)]
struct Queue {
    line: Line,
    limits: Limits,
    standing: Standing,
}

/// The jobs of a queue. Jobs of one priority arrive in the order of their ranks, so each priority
/// is a plain queue; only jobs that are put back are ordered by their tokens.
#[derive(Debug, Default)]
struct Line {
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
    fn push(&mut self, (priority, arrival): Rank, token: Token) {
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

    fn pop(&mut self) -> Option<Token> {
        let level = self.levels.iter_mut().find(|level| !level.is_empty())?;
        match level.again.pop() {
            Some(Reverse(token)) => Some(token),
            None => level.jobs.pop_front().map(|(_, token)| token),
        }
    }

    /// The rank of the job that starts next.
    fn head(&self) -> Option<Rank> {
        let level = self.levels.iter().find(|level| !level.is_empty())?;
        let arrival = if level.again.is_empty() { level.jobs.front()?.0 } else { 0 };
        Some((level.priority, arrival))
    }

    fn len(&self) -> usize {
        self.levels.iter().map(|level| level.again.len() + level.jobs.len()).sum()
    }

    fn retain(&mut self, keep: impl Fn(&Token) -> bool) {
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

/// What a queue is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Standing {
    /// It is in the race, under this rank.
    Racing(Rank),
    /// It is set aside until a job of a limit ends.
    SetAside,
    /// It is empty. Only the queue of the jobs without limits is kept like that: it is soon needed
    /// again.
    Idle,
}

/// The jobs under one limit.
#[derive(Debug, Default)]
struct Group {
    running: u32,
    aside: VecDeque<Class>,
}

fn class_of(limits: &Limits) -> Class {
    limits.map(|limit| limit.map(|limit| limit.group))
}

impl Ready {
    /// The seed keeps producers, who name tenants, from guessing which of them share a bucket.
    pub(crate) fn new(seed: u64) -> Self {
        let seed = Seed::new(seed);
        Self {
            queues: FastMap::with_hasher(seed),
            groups: FastMap::with_hasher(seed),
            ..Self::default()
        }
    }

    /// Puts a job behind the others of its priority.
    pub(crate) fn push(&mut self, priority: u8, limits: Limits, token: Token) {
        self.arrivals += 1;
        self.insert((Reverse(priority), self.arrivals), limits, token);
    }

    /// Puts a job before the others of its priority, because it was started before and could not
    /// make its call, or because it is a scout.
    pub(crate) fn push_front(&mut self, priority: u8, limits: Limits, token: Token) {
        self.insert((Reverse(priority), 0), limits, token);
    }

    fn insert(&mut self, rank: Rank, limits: Limits, token: Token) {
        self.entries += 1;
        let class = class_of(&limits);

        match self.queues.get_mut(&class) {
            Some(queue) => {
                queue.line.push(rank, token);
                match queue.standing {
                    Standing::Racing(before) if rank < before => {
                        self.race.remove(&(before, class));
                    }
                    Standing::Idle => {}
                    Standing::Racing(_) | Standing::SetAside => return,
                }
                queue.standing = Standing::Racing(rank);
                self.race.insert((rank, class));
            }
            None => {
                let mut line = Line::default();
                line.push(rank, token);
                self.queues.insert(class, Queue { line, limits, standing: Standing::Racing(rank) });
                self.race.insert((rank, class));
            }
        }
    }

    /// Takes out the job that starts next. Unless it is stale, the caller has to start it or to
    /// push it again.
    pub(crate) fn pop(&mut self) -> Option<Token> {
        loop {
            let (_, class) = self.race.first().copied()?;
            let Some(queue) = self.queues.get_mut(&class) else {
                self.race.pop_first();
                continue;
            };
            if let Some(full) = self.groups.full(&queue.limits) {
                self.race.pop_first();
                queue.standing = Standing::SetAside;
                let limits = queue.limits;
                self.groups.entry(full).or_default().aside.push_back(class);
                self.wake(&limits);
                continue;
            }

            let token = queue.line.pop();
            self.entries -= usize::from(token.is_some());
            let head = queue.line.head();
            self.race.pop_first();
            match head {
                Some(rank) => {
                    queue.standing = Standing::Racing(rank);
                    self.race.insert((rank, class));
                }
                None => self.drop_queue(class),
            }
            if token.is_some() {
                return token;
            }
        }
    }

    fn drop_queue(&mut self, class: Class) {
        if class == [None; 2] {
            if let Some(queue) = self.queues.get_mut(&class) {
                queue.standing = Standing::Idle;
            }
        } else if let Some(queue) = self.queues.remove(&class) {
            self.wake(&queue.limits);
        }
    }

    /// Brings back into the race one queue of every limit that has room.
    fn wake(&mut self, limits: &Limits) {
        for limit in limits.iter().flatten() {
            while let Some(class) = self.groups.next_aside(limit) {
                let Some(queue) = self.queues.get_mut(&class) else { continue };
                let Some(rank) = queue.line.head() else {
                    self.queues.remove(&class);
                    continue;
                };
                queue.standing = Standing::Racing(rank);
                self.race.insert((rank, class));
                break;
            }
            // Producers name tenants, so a group that nothing needs must not stay.
            if self
                .groups
                .get(&limit.group)
                .is_some_and(|group| group.running == 0 && group.aside.is_empty())
            {
                self.groups.remove(&limit.group);
            }
        }
    }

    /// A job under `limits` has started.
    pub(crate) fn started(&mut self, limits: &Limits) {
        for limit in limits.iter().flatten() {
            self.groups.entry(limit.group).or_default().running += 1;
        }
    }

    /// A job that had started has ended.
    pub(crate) fn ended(&mut self, limits: &Limits) {
        for limit in limits.iter().flatten() {
            if let Some(group) = self.groups.get_mut(&limit.group) {
                group.running = group.running.saturating_sub(1);
            }
        }
        self.wake(limits);
    }

    /// The number of entries, stale ones included.
    pub(crate) fn len(&self) -> usize {
        self.entries
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.entries == 0
    }

    pub(crate) fn retain(&mut self, keep: impl Fn(&Token) -> bool) {
        for queue in self.queues.values_mut() {
            queue.line.retain(&keep);
        }
        self.entries = self.queues.values().map(|queue| queue.line.len()).sum();
    }
}

trait Groups {
    /// A group among these whose limit is reached.
    fn full(&self, limits: &Limits) -> Option<u64>;
    /// The next queue that was set aside for a limit, if the limit has room.
    fn next_aside(&mut self, limit: &Limit) -> Option<Class>;
}

impl Groups for FastMap<u64, Group> {
    fn full(&self, limits: &Limits) -> Option<u64> {
        let mut limits = limits.iter().flatten();
        let running = |group| self.get(&group).map_or(0, |group| group.running);
        limits.find(|limit| running(limit.group) >= limit.max).map(|limit| limit.group)
    }

    fn next_aside(&mut self, limit: &Limit) -> Option<Class> {
        self.get_mut(&limit.group).filter(|group| group.running < limit.max)?.aside.pop_front()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use fleet_group::Partition;
    use proptest::prelude::*;

    use super::*;

    fn token(offset: i64) -> Token {
        Token { partition: Partition { topic: 0, number: 0 }, offset, generation: 0 }
    }

    fn limit(group: u64, max: u32) -> Option<Limit> {
        Some(Limit { group, max })
    }

    fn offsets(ready: &mut Ready) -> Vec<i64> {
        std::iter::from_fn(|| ready.pop()).map(|token| token.offset).collect()
    }

    #[test]
    fn the_most_urgent_and_then_the_oldest_goes_first() {
        let mut ready = Ready::default();
        for (offset, priority) in [(1, 5), (2, 9), (3, 5), (4, 0)] {
            ready.push(priority, [None; 2], token(offset));
        }
        ready.push_front(5, [None; 2], token(9));
        assert_eq!(offsets(&mut ready), [2, 9, 1, 3, 4]);
        assert!(ready.is_empty());
    }

    #[test]
    fn a_full_limit_lets_others_pass() {
        let mut ready = Ready::default();
        let slow = [limit(1, 1), None];
        for offset in [1, 2, 3] {
            ready.push(5, slow, token(offset));
        }
        ready.push(5, [None; 2], token(4));
        assert_eq!(ready.pop(), Some(token(1)));
        ready.started(&slow);
        assert_eq!(offsets(&mut ready), [4]);
        ready.ended(&slow);
        assert_eq!(ready.pop(), Some(token(2)));
    }

    #[test]
    fn a_stale_entry_does_not_swallow_the_turn_of_another_queue() {
        let mut ready = Ready::default();
        let (one, two) = ([limit(1, 1), limit(10, 9)], [limit(1, 1), limit(20, 9)]);
        ready.push(5, one, token(0));
        assert_eq!(ready.pop(), Some(token(0)));
        ready.started(&one);
        ready.push(5, one, token(1));
        ready.push(5, two, token(2));
        assert_eq!(ready.pop(), None);
        ready.ended(&one);
        // The first is stale: its owner does not start it. The second must come up all the same.
        assert_eq!(offsets(&mut ready), [1, 2]);
        assert!(ready.groups.is_empty() && ready.queues.is_empty(), "{ready:?}");
    }

    proptest! {
        /// Whatever starts, ends and is dropped: nothing runs over a limit, and nothing is left
        /// that could run.
        #[test]
        fn limits_hold_and_nobody_is_forgotten(moves in prop::collection::vec((0u8..5, 0u64..3, 0u64..3, 0u8..3), 1..120)) {
            let mut ready = Ready::default();
            let mut running: Vec<(Limits, i64)> = Vec::new();
            let mut waiting: HashMap<i64, Limits> = HashMap::new();
            let mut next = 0;
            for (kind, tool, tenant, priority) in moves {
                match kind {
                    0..=2 => {
                        let limits = [limit(tool, 1 + tool as u32), limit(100 + tenant, 2)];
                        ready.push(priority, limits, token(next));
                        waiting.insert(next, limits);
                        next += 1;
                    }
                    3 if !running.is_empty() => {
                        let (limits, _) = running.swap_remove(usize::from(priority) % running.len());
                        ready.ended(&limits);
                    }
                    _ => {
                        let keep = i64::from(priority);
                        ready.retain(|token| token.offset % 7 != keep);
                        waiting.retain(|offset, _| offset % 7 != keep);
                    }
                }
                while let Some(token) = ready.pop() {
                    let limits = waiting.remove(&token.offset).unwrap();
                    // Some turn out to be stale.
                    if token.offset % 5 != 4 {
                        ready.started(&limits);
                        running.push((limits, token.offset));
                    }
                }
                let count = |group| running.iter().filter(|(limits, _)| class_of(limits).contains(&Some(group))).count() as u32;
                let room = |limits: &Limits| limits.iter().flatten().all(|limit| count(limit.group) < limit.max);
                for limit in running.iter().flat_map(|(limits, _)| limits.iter().flatten()) {
                    prop_assert!(count(limit.group) <= limit.max);
                }
                prop_assert!(!waiting.values().any(room), "{:?} could start", waiting);
                prop_assert_eq!(ready.len(), waiting.len());
            }
        }
    }
}

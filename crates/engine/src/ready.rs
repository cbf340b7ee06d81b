//! What starts next: tenants take turns, and each starts its most urgent job whose limits leave
//! room.
//!
//! **Fair share (I8).** Tenants take turns by deficit round robin, counted in starts: in its turn a
//! tenant may start as many jobs as its weight says. A job costs one start whatever it is, so a
//! tenant that still has a job to start uses its whole turn up, and no deficit is ever carried
//! over. A tenant that has nothing to start leaves the ring; what is left of its turn is forgotten,
//! and it comes back at the end. A *round* ends when all that were in the ring when it began have
//! had their turns. So a tenant that has a job to start is passed over by what is left of this
//! round and by one more. Whatever is popped and does not start (it is stale, has to wait for room
//! in the metadata, or needs something that is away) is charged to nobody. Jobs without a tenant
//! are one tenant. Priority, scouts and jobs that are put back have their precedence inside their
//! tenant.
//!
//! **Limits.** There is one queue of jobs for each combination of a tenant and limits, and a queue
//! whose limit is reached is set aside as a whole. So neither a start nor an end ever looks at the
//! jobs behind a full limit one by one. The *race* has the queues that may have a job to start;
//! the tenants in the ring are those that have a queue in the race.
//!
//! **Turns at a limit.** A queue that is set aside draws a ticket, and keeps it until one of its
//! jobs starts. When a limit has a place, the queue with the lowest ticket re-enters the race. If
//! it is then the head of its tenant, it is *called*: the place is kept for it, so that queues
//! which come later are set aside, and its tenant may start the job early, so that the place is not
//! idle until its turn comes. A tenant starts no more jobs in a round than it weighs, early or not,
//! and after each early start it is the turn of the ring, however many tenants are called.
//!
//! Invariant: while queues are set aside for a limit that has room for so many more jobs, as many
//! of its queues are called. A queue that ceases to be the head (because it is empty or set aside
//! for its other limit, or because its tenant has something more urgent) therefore gives its place
//! up and wakes the next queues of every limit that has room. A queue that is woken before it is
//! the head stays in the race until it is the head and its limit is reached again, so waking costs
//! no more than the changes of heads that have made it necessary, however many tenants there are.
//!
//! When a job stops waiting for its start, its entry stays. Each entry is checked against its job
//! when its turn comes, and dropped if it is stale. Everything here is bounded by the entries.

mod groups;
mod line;
#[cfg(test)]
mod tests;
mod turns;

use std::{cmp::Reverse, collections::BTreeSet};

use crate::{
    hash::{FastMap, Seed},
    types::{JobSpec, Limits, Token},
};
use groups::{Groups, Ticket};
use line::{Line, Rank};
use turns::Turns;

/// The groups whose limits apply to the jobs of a queue.
type Class = [Option<u64>; 2];
/// A tenant, and the limits of some of its jobs.
type QueueId = (u64, Class);

/// The rank before all others.
const FIRST: Rank = (Reverse(u8::MAX), 0);
/// The queue of jobs without tenant and limits. It is kept while it is empty, because it is soon
/// needed again.
const PLAIN: QueueId = (0, [None; 2]);

/// Jobs that may start.
#[derive(Debug, Default)]
pub(crate) struct Ready {
    queues: FastMap<QueueId, Queue>,
    /// The queues that may have a job to start, by tenant, and then by the rank of their head.
    race: BTreeSet<(u64, Rank, Class)>,
    /// The tenants that have a queue in the race.
    turns: Turns,
    groups: Groups,
    /// The queues that may go early because they were called.
    calls: BTreeSet<(Ticket, QueueId)>,
    /// What was popped last, until it is known whether it has started.
    popped: Option<Popped>,
    entries: usize,
    arrivals: u64,
}

#[derive(Debug)]
struct Queue {
    line: Line,
    limits: Limits,
    /// The weight of its tenant.
    weight: u32,
    standing: Standing,
    /// Since when it has waited for a place under one of its limits.
    ticket: Option<Ticket>,
    /// The limit under which a place is kept for it.
    called: Option<u64>,
}

/// What a queue is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Standing {
    /// It is in the race, under this rank.
    Racing(Rank),
    /// It is set aside until a job of this limit ends.
    SetAside(u64, Ticket),
    /// It is empty, and kept ([`PLAIN`]).
    Idle,
}

/// An entry that was taken out of a queue.
#[derive(Debug, Clone, Copy)]
struct Popped {
    from: QueueId,
    limits: Limits,
    is_early: bool,
}

fn id_of(spec: &JobSpec) -> QueueId {
    (spec.tenant.number, spec.limits.map(|limit| limit.map(|limit| limit.group)))
}

impl Ready {
    /// The seed keeps producers, who name tenants, from guessing which of them share a bucket.
    pub(crate) fn new(seed: u64) -> Self {
        let seed = Seed::new(seed);
        Self {
            queues: FastMap::with_hasher(seed),
            turns: Turns::new(seed),
            groups: Groups::new(seed),
            ..Self::default()
        }
    }

    /// Puts a job behind the others of its tenant and priority.
    pub(crate) fn push(&mut self, spec: &JobSpec, token: Token) {
        self.arrivals += 1;
        self.insert((Reverse(spec.priority), self.arrivals), spec, token);
    }

    /// Puts a job before the others of its tenant and priority, because it was started before and
    /// could not make its call, or because it is a scout.
    pub(crate) fn push_front(&mut self, spec: &JobSpec, token: Token) {
        self.insert((Reverse(spec.priority), 0), spec, token);
    }

    fn insert(&mut self, rank: Rank, spec: &JobSpec, token: Token) {
        self.entries += 1;
        let id = id_of(spec);
        let queue = self.queues.entry(id).or_insert_with(|| Queue {
            line: Line::default(),
            limits: spec.limits,
            weight: spec.tenant.weight,
            standing: Standing::Idle,
            ticket: None,
            called: None,
        });
        queue.line.push(rank, token);

        let before = match queue.standing {
            Standing::Racing(before) if rank < before => Some(before),
            Standing::Idle => None,
            Standing::Racing(_) | Standing::SetAside(..) => return,
        };
        let displaced = self.change_rank(id, before, Some(rank));
        if let Some(displaced) = displaced {
            self.wake(displaced);
        }
    }

    /// Takes out the job that starts next. Unless it is stale, the caller has to start it or to
    /// push it again.
    pub(crate) fn pop(&mut self) -> Option<Token> {
        // The last one has not started, and what it could have taken is for the next.
        if let Some(popped) = self.popped.take() {
            self.wake(popped.limits);
        }

        loop {
            let call = self.next_call();
            let is_early = call.is_some();
            let tenant = call.or_else(|| self.turns.current())?;
            let Some((rank, class)) = self.head_of(tenant) else {
                self.turns.leave();
                continue;
            };
            let id = (tenant, class);
            let queue = self.queues.get_mut(&id)?;

            if let Some(full) = self.groups.full(&queue.limits, queue.called) {
                self.set_aside(id, rank, full);
                continue;
            }
            if !is_early && !self.turns.begin(queue.weight) {
                continue;
            }

            self.popped = Some(Popped { from: id, limits: queue.limits, is_early });
            let token = queue.line.pop();
            let head = queue.line.head();
            self.entries -= usize::from(token.is_some());
            self.change_rank(id, Some(rank), head);
            if head.is_none() {
                self.drop_queue(id);
            }
            return token;
        }
    }

    /// The tenant that may start a job early because a place is kept for it. A queue whose tenant
    /// may not keeps its place until its tenant has its turn.
    fn next_call(&mut self) -> Option<u64> {
        while let Some((ticket, id)) = self.calls.first().copied() {
            let (tenant, _) = id;
            if self.turns.was_early() {
                return None;
            }
            let weight = self.queues.get(&id).map_or(0, |queue| queue.weight);
            if self.turns.may_be_early(tenant, weight) {
                return Some(tenant);
            }
            self.calls.remove(&(ticket, id));
        }
        None
    }

    /// The queue waits until a job of this limit ends, which is reached.
    fn set_aside(&mut self, id: QueueId, rank: Rank, full: u64) {
        let limits = self.change_rank(id, Some(rank), None);
        if let Some(queue) = self.queues.get_mut(&id) {
            let ticket = *queue.ticket.get_or_insert_with(|| self.groups.draw_ticket());
            queue.standing = Standing::SetAside(full, ticket);
            self.groups.set_aside(full, ticket, id);
        }

        if let Some(limits) = limits {
            self.wake(limits);
        }
    }

    /// The queue is the head of its tenant, and a place under this limit is free for it.
    fn call(&mut self, group: u64, ticket: Ticket, id: QueueId) {
        if let Some(queue) = self.queues.get_mut(&id) {
            queue.called = Some(group);
            self.groups.keep_place(group);
            self.calls.insert((ticket, id));
        }
    }

    /// The queue needs no place that is kept for it, because it has taken one, or is no longer the
    /// head of its tenant.
    fn end_call(&mut self, id: QueueId) {
        let Some(queue) = self.queues.get_mut(&id) else { return };

        if let Some(group) = queue.called.take() {
            self.groups.release_place(group);
            self.calls.remove(&(queue.ticket.unwrap_or_default(), id));
        }
    }

    fn drop_queue(&mut self, id: QueueId) {
        if id != PLAIN {
            self.queues.remove(&id);
        } else if let Some(queue) = self.queues.get_mut(&id) {
            queue.standing = Standing::Idle;
        }
    }

    /// The queue of a tenant that has its next job, and the rank of that job.
    fn head_of(&self, tenant: u64) -> Option<(Rank, Class)> {
        let (of, rank, class) = *self.race.range((tenant, FIRST, [None; 2])..).next()?;
        (of == tenant).then_some((rank, class))
    }

    /// A queue enters the race, leaves it, or has another rank there. Returns the limits of the
    /// queue that was the head of its tenant and no longer is, if that has changed.
    fn change_rank(
        &mut self,
        id: QueueId,
        before: Option<Rank>,
        after: Option<Rank>,
    ) -> Option<Limits> {
        let (tenant, class) = id;
        let old_head = self.head_of(tenant);

        if let Some(rank) = before {
            self.race.remove(&(tenant, rank, class));
        }
        if let Some(rank) = after {
            self.race.insert((tenant, rank, class));
            if let Some(queue) = self.queues.get_mut(&id) {
                queue.standing = Standing::Racing(rank);
            }
        }

        let new_head = self.head_of(tenant);
        match (old_head, new_head) {
            (None, Some(_)) => self.turns.join(tenant),
            (Some(_), None) => self.turns.retire(tenant),
            _ => {}
        }

        let (_, old) = old_head.filter(|(_, old)| new_head.is_none_or(|(_, new)| new != *old))?;
        self.end_call((tenant, old));
        self.queues.get(&(tenant, old)).map(|queue| queue.limits)
    }

    /// A queue under these limits is no longer the head of its tenant, or a job under them has
    /// ended: brings the queues that have waited longest for limits that have room back into the
    /// race, until every place is kept for a queue.
    fn wake(&mut self, limits: Limits) {
        if limits == [None; 2] {
            return;
        }

        let mut todo = vec![limits];
        while let Some(limits) = todo.pop() {
            for limit in limits.iter().flatten() {
                while let Some((ticket, id)) = self.groups.next_aside(limit) {
                    let head = self.queues.get(&id).and_then(|queue| queue.line.head());
                    let Some(rank) = head else { continue };
                    todo.extend(self.change_rank(id, None, Some(rank)));
                    if self.head_of(id.0) == Some((rank, id.1)) {
                        self.call(limit.group, ticket, id);
                    }
                }
                self.groups.forget_unused(limit.group);
            }
        }
    }

    /// A job under `limits` has started, the one that was popped last.
    pub(crate) fn started(&mut self, limits: &Limits) {
        self.groups.started(limits);

        let Some(popped) = self.popped.take() else { return };
        self.turns.charge(popped.from.0, popped.is_early);
        self.end_call(popped.from);
        if let Some(queue) = self.queues.get_mut(&popped.from) {
            queue.ticket = None;
        }
        self.wake(popped.limits);
    }

    /// A job that had started has ended.
    pub(crate) fn ended(&mut self, limits: &Limits) {
        self.groups.ended(limits);
        self.wake(*limits);
    }

    /// The number of entries, stale ones included.
    pub(crate) fn len(&self) -> usize {
        self.entries
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.entries == 0
    }

    /// Drops all other entries, and the queues that are empty then.
    pub(crate) fn retain(&mut self, keep: impl Fn(&Token) -> bool) {
        for queue in self.queues.values_mut() {
            queue.line.retain(&keep);
        }
        self.entries = self.queues.values().map(|queue| queue.line.len()).sum();

        let has_changed = |queue: &Queue| match queue.standing {
            Standing::Racing(rank) => queue.line.head() != Some(rank),
            Standing::SetAside(..) => queue.line.head().is_none(),
            Standing::Idle => false,
        };
        let changed = self.queues.iter().filter(|(_, queue)| has_changed(queue));
        let mut changed: Vec<_> = changed.map(|(id, _)| *id).collect();
        changed.sort_unstable();
        let freed: Vec<_> = changed.into_iter().filter_map(|id| self.review(id)).collect();

        self.turns.forget_absent();
        freed.into_iter().for_each(|limits| self.wake(limits));
    }

    /// The queue has lost entries. Returns the limits of the queue that is no longer the head of
    /// its tenant, if that has changed.
    fn review(&mut self, id: QueueId) -> Option<Limits> {
        let queue = self.queues.get(&id)?;
        let head = queue.line.head();

        let freed = match queue.standing {
            Standing::Racing(rank) => self.change_rank(id, Some(rank), head),
            Standing::SetAside(group, ticket) => {
                self.groups.forget_aside(group, ticket, id);
                None
            }
            Standing::Idle => None,
        };
        if head.is_none() {
            self.drop_queue(id);
        }
        freed
    }
}

/// What the deliberate faults of the simulation do.
#[cfg(test)]
impl Ready {
    /// The turn that has begun does not end.
    pub(crate) fn prolong_turn(&mut self) {
        self.turns.prolong();
    }

    /// It is this tenant's turn next.
    pub(crate) fn favour(&mut self, tenant: u64) {
        self.turns.favour(tenant);
    }

    /// The tenant whose next job is the most urgent of all, and the oldest among equals.
    pub(crate) fn most_urgent(&self) -> Option<u64> {
        let heads = self.turns.all().filter_map(|of| self.head_of(of).map(|(rank, _)| (rank, of)));
        heads.min().map(|(_, tenant)| tenant)
    }

    /// The tenants of the queues that are set aside.
    pub(crate) fn set_aside_tenants(&self) -> Vec<u64> {
        let aside = self
            .queues
            .iter()
            .filter(|(_, queue)| matches!(queue.standing, Standing::SetAside(..)));
        let mut tenants: Vec<_> = aside.map(|((tenant, _), _)| *tenant).collect();
        tenants.sort_unstable();
        tenants
    }
}

//! The state machine itself: one match over the inputs, and the life of a job.

mod attempts;
mod backpressure;
mod commits;
mod holding;
mod jobs;
mod stalls;

use std::collections::{BTreeSet, VecDeque};

use fleet_group::{FinalCommit, Partition};
use fleet_job::time::Timestamp;
use fleet_retry::Random;

use crate::{
    breaker::{Breaker, BreakerState},
    hash::FastMap,
    holds::Holds,
    keys::Keys,
    partition::PartitionState,
    ready::Ready,
    schedule::Timers,
    slot::Phase,
    types::{Command, Config, Input, Need, Token, faulty},
};

/// Delivery for one worker. See the crate's documentation for how it is driven.
#[derive(Debug)]
pub struct Engine {
    config: Config,
    partitions: FastMap<Partition, PartitionState>,
    keys: Keys,
    ready: Ready,
    timers: Timers,
    /// Partitions that have something to commit, by the time it is due.
    commits: BTreeSet<(Timestamp, Partition)>,
    breaker: Breaker,
    holds: Holds,
    random: Random,
    out: VecDeque<Command>,
    in_flight: usize,
    /// Jobs whose end is being written or waits to be written again.
    unwritten: usize,
    buffered: usize,
    buffered_bytes: usize,
    /// Those of them that wait to be passed on, which says nothing about how busy this worker is.
    relays: usize,
    relay_bytes: usize,
    /// All partitions are paused because memory is full.
    full: bool,
    /// When to look again at which partitions are stalled.
    stalls_due: Option<Timestamp>,
}

/// What the engine holds, for metrics and people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Status {
    /// Attempts under way.
    pub in_flight: usize,
    /// Jobs in memory that are not settled.
    pub buffered: usize,
    /// Those of them that wait for their time: `notBefore`, or the next attempt.
    pub parked: usize,
    /// The bytes that they hold.
    pub buffered_bytes: usize,
    /// Whether the server is there.
    pub breaker: BreakerState,
    /// What is away while the server answers.
    pub holds: Vec<HoldStatus>,
    /// Assigned partitions, in order.
    pub partitions: Vec<PartitionStatus>,
}

/// What the engine knows of something that is away while the server answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HoldStatus {
    /// What.
    pub need: Need,
    /// Since when.
    pub since: Timestamp,
    /// Jobs that wait for it and for nothing else.
    pub waiting: usize,
}

/// What the engine knows of a partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PartitionStatus {
    /// Which.
    pub partition: Partition,
    /// The last offset that the broker has taken.
    pub committed: Option<i64>,
    /// The offset that may be committed.
    pub frontier: Option<i64>,
    /// Jobs that are not settled.
    pub open: usize,
    /// Those of them that wait for something that is away, without what waits behind them.
    pub held: usize,
    /// Whether fetching is paused.
    pub paused: bool,
    /// Whether it stays paused until something that is unavailable is back: the jobs that wait for
    /// it, and those behind them in their keys, fill the partition's share of memory.
    pub is_stalled: bool,
}

impl Engine {
    /// An engine without partitions.
    pub fn new(config: Config) -> Self {
        Self {
            partitions: FastMap::default(),
            keys: Keys::new(config.seed),
            ready: Ready::new(config.seed),
            timers: Timers::default(),
            commits: BTreeSet::new(),
            breaker: Breaker::new(config.probe),
            holds: Holds::new(config.probe),
            random: Random::new(config.seed),
            out: VecDeque::new(),
            in_flight: 0,
            unwritten: 0,
            buffered: 0,
            buffered_bytes: 0,
            relays: 0,
            relay_bytes: 0,
            full: false,
            stalls_due: None,
            config,
        }
    }

    /// The next thing to do, if any. Call until it returns `None`.
    pub fn poll(&mut self) -> Option<Command> {
        self.out.pop_front()
    }

    /// When [`Input::Tick`] is due, if nothing else happens before.
    pub fn next_wakeup(&self) -> Option<Timestamp> {
        let commit = self.commits.first().map(|(at, _)| *at);
        let due =
            [self.timers.next(), self.breaker.next(), self.holds.next(), self.stalls_due, commit];
        due.into_iter().flatten().min()
    }

    /// The token of the record at `offset`, by which the engine will speak of it; `None` when the
    /// partition is not ours.
    pub fn token(&self, partition: Partition, offset: i64) -> Option<Token> {
        let generation = self.partitions.get(&partition)?.generation;
        Some(Token { partition, offset, generation })
    }

    /// Whether nothing of `partitions` is under way or being written any more.
    pub fn is_drained(&self, partitions: &[Partition]) -> bool {
        partitions
            .iter()
            .all(|partition| self.partitions.get(partition).is_none_or(|state| state.active == 0))
    }

    /// Takes `partitions` away and returns what to commit for them before they go. Whatever still
    /// runs is fenced off: its outcome will be ignored.
    pub fn release(&mut self, partitions: &[Partition]) -> Vec<FinalCommit> {
        let mut commits = Vec::new();
        for partition in partitions {
            if let Some(state) = self.partitions.get_mut(partition)
                && (state.dirty || state.is_stalled || state.in_commit.is_some())
                && let Some(commit) = state.last_commit(*partition)
            {
                commits.push(commit);
            }
        }
        self.remove(partitions);
        commits
    }

    /// Takes in what happened at `now`, and does what follows from it.
    pub fn handle(&mut self, now: Timestamp, input: Input<'_>) {
        match input {
            Input::Assigned { partition, generation, log, progress } => {
                self.assigned(partition, PartitionState::new(generation, log, progress));
            }
            Input::Record { partition, offset, bytes, admission } => {
                self.record(now, partition, offset, bytes, admission);
            }
            Input::Holds(token, bytes) => self.holds(token, bytes),
            Input::End(partition, offset) => self.end_of_log(now, partition, offset),
            Input::Finished(token, attempt) => self.finished(now, token, attempt),
            Input::Written(token) => self.written(now, token),
            Input::NotDeferred(token) => self.not_deferred(now, token),
            Input::WriteFailed(token) => self.write_failed(now, token),
            Input::Committed { partition, generation, ok } => {
                self.committed(now, partition, generation, ok)
            }
            Input::Cancel(token) => self.cancel(token),
            Input::Probed(ok) => self.breaker.probed(ok, now, &mut self.random),
            Input::Draining(partitions) => {
                for partition in partitions {
                    if let Some(state) = self.partitions.get_mut(partition) {
                        state.draining = true;
                    }
                }
            }
            Input::Lost(partitions) => self.remove(partitions),
            Input::ContactRegained => self.recall_starts(now),
            Input::Tick => {}
        }
        self.advance(now);
    }

    /// Whether the server is there.
    pub fn breaker(&self) -> BreakerState {
        self.breaker.state()
    }

    /// What the engine holds.
    pub fn status(&self) -> Status {
        let mut partitions: Vec<_> = self
            .partitions
            .iter()
            .map(|(partition, state)| PartitionStatus {
                partition: *partition,
                committed: state.committed,
                frontier: state.frontier(),
                open: state.open.len(),
                held: state
                    .open
                    .slots()
                    .filter(|slot| matches!(slot.phase, Phase::Held(_)))
                    .count(),
                paused: state.paused,
                is_stalled: state.is_stalled,
            })
            .collect();
        partitions.sort_unstable_by_key(|status| status.partition);
        let open = self.partitions.values().flat_map(|state| state.open.slots());
        Status {
            in_flight: self.in_flight,
            buffered: self.buffered,
            parked: open.filter(|slot| slot.spec.is_some() && slot.is_parked()).count(),
            buffered_bytes: self.buffered_bytes,
            breaker: self.breaker.state(),
            holds: self
                .holds
                .all()
                .map(|(need, since, waiting)| HoldStatus { need, since, waiting })
                .collect(),
            partitions,
        }
    }

    // --- Partitions come and go -----------------------------------------------------------------

    fn assigned(&mut self, partition: Partition, state: PartitionState) {
        self.remove(&[partition]);
        self.partitions.insert(partition, state);
        if self.full {
            let share = self.share();
            self.apply_pause(partition, share);
        }
    }

    /// Lets go of all that is held for `partitions`. What concerns the others too is looked through
    /// once for all.
    fn remove(&mut self, partitions: &[Partition]) {
        let before = self.partitions.len();
        partitions.iter().for_each(|partition| self.remove_one(*partition));
        if self.partitions.len() == before {
            return;
        }
        let left = &self.partitions;
        self.ready.retain(|token| left.contains_key(&token.partition));
        self.timers.retain(|token| left.contains_key(&token.partition));
        self.holds.retain(|token| left.contains_key(&token.partition));
        self.update_pauses();
    }

    fn remove_one(&mut self, partition: Partition) {
        let Some(state) = self.partitions.remove(&partition) else { return };
        for slot in state.open.slots().filter(|slot| slot.phase == Phase::Running) {
            self.in_flight -= 1;
            if let Some(spec) = slot.spec {
                self.ready.ended(&spec.limits);
            }
        }
        self.unwritten -= state
            .open
            .slots()
            .filter(
                |slot| matches!(slot.phase, Phase::Settling(end) | Phase::Unwritten(end) if end.is_final()),
            )
            .count();
        self.relays -= state.waiting_relays;
        self.relay_bytes -= state.waiting_relay_bytes;
        self.buffered -= state.open.len();
        self.buffered_bytes -= state.buffered_bytes;
        let generation = state.generation;
        self.out.extend(
            state
                .open
                .offsets()
                .map(|offset| Command::Forget(Token { partition, offset, generation })),
        );
        if let Some(due) = state.commit_due {
            self.commits.remove(&(due, partition));
        }
        state.open.slots().filter_map(|slot| slot.lane).for_each(|lane| self.keys.forget(lane));
    }

    // --- Time -----------------------------------------------------------------------------------

    fn advance(&mut self, now: Timestamp) {
        while let Some((token, alarm)) = self.timers.pop_due(now) {
            self.alarm(now, token, alarm);
        }
        if self.breaker.tick(now) && !faulty!(self.config, NeverProbes) {
            self.out.push_back(Command::Probe);
        }
        self.send_scouts(now);
        if !self.ready.is_empty() {
            self.start_ready(now);
            // A scout can turn out to be kept by something else; then it is another one's turn.
            while self.send_scouts(now) {
                self.start_ready(now);
            }
            self.drop_stale();
        }
        self.review_stalls(now);
        while let Some((_, partition)) = self.commits.first().copied().filter(|(at, _)| *at <= now)
        {
            self.commits.pop_first();
            self.commit(now, partition);
        }
    }

    /// Jobs that expire while they wait leave an entry behind; while nothing starts, those would
    /// pile up.
    fn drop_stale(&mut self) {
        if self.ready.len() > 2 * self.buffered + 1024 {
            let partitions = &self.partitions;
            self.ready.retain(|token| {
                partitions.get(&token.partition).is_some_and(|state| {
                    state.generation == token.generation
                        && state
                            .open
                            .get(token.offset)
                            .is_some_and(|slot| slot.phase == Phase::Ready)
                })
            });
        }
    }
}

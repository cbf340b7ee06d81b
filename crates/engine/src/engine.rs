//! The state machine itself: one match over the inputs, and the life of a job.

mod backpressure;
mod commits;

use std::{
    collections::{BTreeSet, HashMap, VecDeque},
    time::Duration,
};

use fleet_job::{outcome::FailureClass, time::Timestamp};

use crate::{
    backoff::Random,
    breaker::{Breaker, BreakerState},
    keys::{self, Keys},
    partition::{Delivery, PartitionState, Phase, Slot},
    progress::Progress,
    schedule::{Alarm, Ready, Timers},
    types::{
        Admission, Attempt, Command, Config, FinalCommit, Input, JobSpec, Partition, Terminal, Token, faulty,
    },
};

/// The longest that a server's `Retry-After` is believed.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(3600);

/// Delivery for one worker. See the crate's documentation for how it is driven.
#[derive(Debug)]
pub struct Engine {
    config: Config,
    partitions: HashMap<Partition, PartitionState>,
    keys: Keys,
    ready: Ready,
    timers: Timers,
    /// Partitions that have something to commit, by the time it is due.
    commits: BTreeSet<(Timestamp, Partition)>,
    breaker: Breaker,
    random: Random,
    out: VecDeque<Command>,
    in_flight: usize,
    /// Jobs whose end is being written or waits to be written again.
    unwritten: usize,
    buffered: usize,
    buffered_bytes: usize,
    /// All partitions are paused because memory is full.
    full: bool,
}

/// What the engine holds, for metrics and people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Status {
    /// Attempts under way.
    pub in_flight: usize,
    /// Jobs in memory that are not settled.
    pub buffered: usize,
    /// The bytes that they hold.
    pub buffered_bytes: usize,
    /// Whether the server is there.
    pub breaker: BreakerState,
    /// Assigned partitions, in order.
    pub partitions: Vec<PartitionStatus>,
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
    /// Whether fetching is paused.
    pub paused: bool,
}

impl Engine {
    /// An engine without partitions.
    pub fn new(config: Config) -> Self {
        Self {
            partitions: HashMap::new(),
            keys: Keys::default(),
            ready: Ready::default(),
            timers: Timers::default(),
            commits: BTreeSet::new(),
            breaker: Breaker::new(config.probe),
            random: Random::new(config.seed),
            out: VecDeque::new(),
            in_flight: 0,
            unwritten: 0,
            buffered: 0,
            buffered_bytes: 0,
            full: false,
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
        [self.timers.next(), self.breaker.next(), commit].into_iter().flatten().min()
    }

    /// The token of the record at `offset`, by which the engine will speak of it; `None` when the partition is not ours.
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

    /// Takes `partitions` away and returns what to commit for them before they go. Whatever still runs is fenced off:
    /// its outcome will be ignored.
    pub fn release(&mut self, partitions: &[Partition]) -> Vec<FinalCommit> {
        let mut commits = Vec::new();
        for partition in partitions {
            if let Some(state) = self.partitions.get_mut(partition)
                && (state.dirty || state.in_commit.is_some())
                && let Some(commit) = state.last_commit(*partition)
            {
                commits.push(commit);
            }
            self.remove(*partition);
        }
        commits
    }

    /// Takes in what happened at `now`, and does what follows from it.
    pub fn handle(&mut self, now: Timestamp, input: Input<'_>) {
        match input {
            Input::Assigned { partition, generation, committed } => {
                self.assigned(partition, generation, committed);
            }
            Input::Record { partition, offset, bytes, admission } => {
                self.record(now, partition, offset, bytes, admission);
            }
            Input::Finished(token, attempt) => self.finished(now, token, attempt),
            Input::Written(token) => self.written(now, token),
            Input::WriteFailed(token) => self.write_failed(now, token),
            Input::Committed { partition, generation, ok } => self.committed(now, partition, generation, ok),
            Input::Probed(ok) => self.breaker.probed(ok, now, &mut self.random),
            Input::Draining(partitions) => {
                for partition in partitions {
                    if let Some(state) = self.partitions.get_mut(partition) {
                        state.draining = true;
                    }
                }
            }
            Input::Lost(partitions) => partitions.iter().for_each(|partition| self.remove(*partition)),
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
                paused: state.paused,
            })
            .collect();
        partitions.sort_unstable_by_key(|status| status.partition);
        Status {
            in_flight: self.in_flight,
            buffered: self.buffered,
            buffered_bytes: self.buffered_bytes,
            breaker: self.breaker.state(),
            partitions,
        }
    }

    // --- Partitions come and go -------------------------------------------------------------------------------------

    fn assigned(&mut self, partition: Partition, generation: u64, committed: Option<(i64, &str)>) {
        self.remove(partition);
        let restored = match committed {
            // Metadata that can't be read costs repeats; refusing the partition would cost the jobs.
            Some((offset, metadata)) => {
                Progress::decode(offset, metadata).unwrap_or_else(|_| Progress::none(offset))
            }
            None => Progress::default(),
        };
        let state = PartitionState::new(generation, committed.map(|(offset, _)| offset), restored);
        self.partitions.insert(partition, state);
        if self.full {
            self.update_pauses();
        }
    }

    fn remove(&mut self, partition: Partition) {
        let Some(state) = self.partitions.remove(&partition) else { return };
        self.in_flight -= state.open.values().filter(|slot| slot.phase == Phase::Running).count();
        self.unwritten -= state
            .open
            .values()
            .filter(|slot| matches!(slot.phase, Phase::Settling(_) | Phase::Unwritten(_)))
            .count();
        self.buffered -= state.open.len();
        self.buffered_bytes -= state.buffered_bytes;
        let generation = state.generation;
        self.out.extend(
            state.open.keys().map(|offset| Command::Forget(Token { partition, offset: *offset, generation })),
        );
        if let Some(due) = state.commit_due {
            self.commits.remove(&(due, partition));
        }
        self.keys.drop_partition(partition);
        self.ready.retain(|token| token.partition != partition);
        self.timers.retain(|token| token.partition != partition);
        self.update_pauses();
    }

    // --- The life of a job ------------------------------------------------------------------------------------------

    fn record(
        &mut self,
        now: Timestamp,
        partition: Partition,
        offset: i64,
        bytes: usize,
        admission: Admission,
    ) {
        let Some(state) = self.partitions.get_mut(&partition) else { return };
        let token = Token { partition, offset, generation: state.generation };
        // What comes while the partition leaves is its next owner's.
        if state.draining {
            self.out.push_back(Command::Forget(token));
            return;
        }
        let attempts = match state.deliver(offset) {
            Delivery::New(_) if faulty!(self.config, AttemptsForgotten) => 0,
            Delivery::New(attempts) => attempts,
            Delivery::Reset => {
                self.out.push_back(Command::LogReset(partition));
                0
            }
            Delivery::Repeat => {
                if !state.open.contains_key(&offset) {
                    self.out.push_back(Command::Forget(token));
                }
                return;
            }
            Delivery::Done => {
                self.out.push_back(Command::Forget(token));
                self.schedule_commit(now, partition, self.config.commit_interval);
                return;
            }
        };
        if faulty!(self.config, KnowledgeNotHandedOn) {
            state.forget_restored();
        }
        let spec = match admission {
            Admission::Job(spec) => Some(spec),
            Admission::Reject => None,
        };
        let slot = Slot { spec, bytes, phase: Phase::Queued, attempts, durable: attempts, rewrites: 0 };
        state.insert(offset, slot);
        self.buffered += 1;
        self.buffered_bytes += bytes;
        match spec {
            None => self.reject(token),
            Some(spec) => {
                // Also a job that will not start again holds its place, until its end is written down.
                let lane = keys::lane(self.config.ordering, partition, &spec);
                let first =
                    lane.is_none_or(|lane| self.keys.join(lane, offset)) || faulty!(self.config, KeysIgnored);
                if attempts >= spec.max_attempts {
                    self.conclude(token, Terminal::Failed, attempts);
                } else {
                    if let Some(deadline) = spec.deadline.filter(|_| !faulty!(self.config, DeadlineIgnored)) {
                        self.timers.set(deadline, token, Alarm::Deadline);
                    }
                    if first {
                        self.unblocked(now, token);
                    }
                }
            }
        }
        self.update_pause(partition);
    }

    /// Reports what is no job at once, unless even that would outgrow the metadata.
    fn reject(&mut self, token: Token) {
        if faulty!(self.config, RejectsDropped) {
            return;
        }
        let Some(state) = self.partitions.get_mut(&token.partition) else { return };
        if state.has_room(token.offset) {
            self.conclude(token, Terminal::Rejected, 0);
        } else {
            state.gate(token.offset);
            self.set_phase(token, Phase::Ready);
        }
    }

    fn set_phase(&mut self, token: Token, phase: Phase) {
        if let Some(slot) = self.slot(token) {
            slot.phase = phase;
        }
    }

    fn slot(&mut self, token: Token) -> Option<&mut Slot> {
        let unfenced = faulty!(self.config, NoFence);
        self.partitions
            .get_mut(&token.partition)
            .filter(|state| unfenced || state.generation == token.generation)?
            .open
            .get_mut(&token.offset)
    }

    /// Nothing of its key is before it any more: the job may start when its time has come.
    fn unblocked(&mut self, now: Timestamp, token: Token) {
        let waits = |slot: &&mut Slot| matches!(slot.phase, Phase::Queued | Phase::Delayed);
        let Some(slot) = self.slot(token).filter(waits) else { return };
        let Some(spec) = slot.spec else { return };
        match spec.not_before.filter(|at| *at > now) {
            Some(at) => {
                slot.phase = Phase::Delayed;
                self.timers.set(at, token, Alarm::Eligible);
            }
            None => {
                slot.phase = Phase::Ready;
                self.ready.push(spec.priority, token);
            }
        }
    }

    /// How many jobs may wait for their end to be written before nothing more is started: when Kafka takes no records,
    /// running ahead would only pile up results in memory and calls to repeat.
    fn max_unwritten(&self) -> usize {
        self.config.max_in_flight.saturating_mul(4).saturating_add(64)
    }

    fn start_ready(&mut self, now: Timestamp) {
        while self.in_flight < self.config.max_in_flight
            && self.unwritten < self.max_unwritten()
            && self.breaker.allows_start()
        {
            let Some(token) = self.ready.pop() else { return };
            let Some(state) = self.partitions.get_mut(&token.partition) else { continue };
            if state.draining || state.generation != token.generation {
                continue;
            }
            let room = state.has_room(token.offset);
            let Some(slot) = state.open.get_mut(&token.offset).filter(|slot| slot.phase == Phase::Ready)
            else {
                continue;
            };
            let Some(spec) = slot.spec else { continue };
            let attempt = slot.attempts + 1;
            if !room {
                state.gate(token.offset);
                continue;
            }
            slot.phase = Phase::Running;
            state.start(token.offset);
            self.in_flight += 1;
            self.breaker.started(now);
            self.out.push_back(Command::Start(token, attempt));
            let lane = keys::lane(self.config.ordering, token.partition, &spec);
            if lane.is_some_and(|lane| !self.keys.is_head(lane, token.offset)) {
                self.out.push_back(Command::Violation("I5", token));
            }
            if attempt > spec.max_attempts {
                self.out.push_back(Command::Violation("I6", token));
            }
        }
    }

    fn finished(&mut self, now: Timestamp, token: Token, attempt: Attempt) {
        let Some(slot) = self.slot(token).filter(|slot| slot.phase == Phase::Running) else { return };
        let Some(spec) = slot.spec else { return };
        let spent = slot.attempts + 1;
        // Between attempts a job is not active; `conclude` counts it again when it has come to its end.
        slot.phase = Phase::Queued;
        self.in_flight -= 1;
        if let Some(state) = self.partitions.get_mut(&token.partition) {
            state.active -= 1;
        }
        match attempt {
            Attempt::Succeeded => {
                self.breaker.reached();
                self.conclude(token, Terminal::Succeeded, spent);
                if faulty!(self.config, NextBeforeWritten) {
                    self.leave_lane(now, token, &spec);
                }
            }
            Attempt::Failed(FailureClass::Unavailable, wish)
                if !faulty!(self.config, OutageSpendsAttempts) =>
            {
                self.breaker.unavailable(now, wish, &mut self.random);
                self.set_phase(token, Phase::Ready);
                self.ready.push_front(spec.priority, token);
                // The deadline may have passed while the job was running and could not expire.
                if let Some(deadline) = spec.deadline {
                    self.timers.set(deadline, token, Alarm::Deadline);
                }
            }
            Attempt::Failed(class, wish) => {
                self.breaker.reached();
                if let Some(state) = self.partitions.get_mut(&token.partition) {
                    state.spend(token.offset);
                }
                let wish = wish.unwrap_or_default().min(MAX_RETRY_AFTER);
                let at = now.plus(self.config.retry.jittered(spent, &mut self.random).max(wish));
                if class == FailureClass::Permanent || spent >= spec.max_attempts {
                    self.conclude(token, Terminal::Failed, spent);
                } else if spec.deadline.is_some_and(|deadline| at > deadline) {
                    self.conclude(token, Terminal::Expired, spent);
                } else {
                    self.retry_at(now, token, spent, at);
                }
            }
        }
    }

    fn retry_at(&mut self, now: Timestamp, token: Token, spent: u32, at: Timestamp) {
        if faulty!(self.config, SlotLeak) {
            self.in_flight += 1;
        }
        self.set_phase(token, Phase::Delayed);
        self.timers.set(at, token, Alarm::Eligible);
        self.out.push_back(Command::Retrying(token, spent, at));
        // The attempt must be durable before the next one starts (I6).
        self.schedule_commit(now, token.partition, self.config.urgent_commit_interval);
    }

    /// The job has come to its end: all that is left is to write that down.
    fn conclude(&mut self, token: Token, terminal: Terminal, attempts: u32) {
        let Some(slot) = self.slot(token) else { return };
        slot.phase = Phase::Settling(terminal);
        let deadline = slot.spec.and_then(|spec| spec.deadline);
        if let Some(deadline) = deadline {
            self.timers.clear(deadline, token, Alarm::Deadline);
        }
        if let Some(state) = self.partitions.get_mut(&token.partition) {
            state.active += 1;
        }
        self.unwritten += 1;
        self.out.push_back(Command::Settle(token, terminal, attempts));
    }

    fn write_failed(&mut self, now: Timestamp, token: Token) {
        let Some(slot) = self.slot(token) else { return };
        let Phase::Settling(terminal) = slot.phase else { return };
        slot.phase = Phase::Unwritten(terminal);
        slot.rewrites = slot.rewrites.saturating_add(1);
        let rewrites = slot.rewrites;
        let at = now.plus(self.config.rewrite.spread(rewrites, &mut self.random));
        self.timers.set(at, token, Alarm::Rewrite);
    }

    fn written(&mut self, now: Timestamp, token: Token) {
        let Some(slot) = self.slot(token) else { return };
        if !matches!(slot.phase, Phase::Settling(_)) {
            return;
        }
        let Some(state) = self.partitions.get_mut(&token.partition) else { return };
        state.active -= 1;
        let Some(slot) = state.settle(token.offset) else { return };
        self.unwritten -= 1;
        self.buffered -= 1;
        self.buffered_bytes -= slot.bytes;
        self.out.push_back(Command::Forget(token));
        if let Some(spec) = slot.spec {
            self.leave_lane(now, token, &spec);
        }
        self.ungate(token.partition);
        self.schedule_commit(now, token.partition, self.config.commit_interval);
        self.update_pause(token.partition);
    }

    /// Gives up the job's place in its key; the next one may start.
    fn leave_lane(&mut self, now: Timestamp, token: Token, spec: &JobSpec) {
        let lane = keys::lane(self.config.ordering, token.partition, spec);
        if let Some(next) = lane.and_then(|lane| self.keys.leave(lane, token.offset)) {
            self.unblocked(now, Token { offset: next, ..token });
        }
    }

    fn ungate(&mut self, partition: Partition) {
        while let Some(state) = self.partitions.get_mut(&partition) {
            let generation = state.generation;
            let Some(offset) = state.ungate() else { return };
            let token = Token { partition, offset, generation };
            match state.open.get(&offset).filter(|slot| slot.phase == Phase::Ready).map(|slot| slot.spec) {
                Some(Some(spec)) => self.ready.push(spec.priority, token),
                Some(None) => self.conclude(token, Terminal::Rejected, 0),
                None => {}
            }
        }
    }

    // --- Time -------------------------------------------------------------------------------------------------------

    fn advance(&mut self, now: Timestamp) {
        while let Some((token, alarm)) = self.timers.pop_due(now) {
            self.alarm(now, token, alarm);
        }
        if self.breaker.tick(now) && !faulty!(self.config, NeverProbes) {
            self.out.push_back(Command::Probe);
        }
        if !self.ready.is_empty() {
            self.start_ready(now);
            self.drop_stale();
        }
        while let Some((_, partition)) = self.commits.first().copied().filter(|(at, _)| *at <= now) {
            self.commits.pop_first();
            self.commit(now, partition);
        }
    }

    /// Jobs that expire while they wait leave an entry behind; while nothing starts, those would pile up.
    fn drop_stale(&mut self) {
        if self.ready.len() > 2 * self.buffered + 1024 {
            let partitions = &self.partitions;
            self.ready.retain(|token| {
                partitions.get(&token.partition).is_some_and(|state| {
                    state.generation == token.generation
                        && state.open.get(&token.offset).is_some_and(|slot| slot.phase == Phase::Ready)
                })
            });
        }
    }

    fn alarm(&mut self, now: Timestamp, token: Token, alarm: Alarm) {
        let draining = self.partitions.get(&token.partition).is_none_or(|state| state.draining);
        let waits_for_commit = !faulty!(self.config, RetryBeforeDurable);
        let Some(slot) = self.slot(token) else { return };
        let (phase, attempts) = (slot.phase, slot.attempts);
        match (alarm, phase) {
            (Alarm::Rewrite, Phase::Unwritten(terminal)) => {
                slot.phase = Phase::Settling(terminal);
                let attempts = attempts + u32::from(terminal == Terminal::Succeeded);
                self.out.push_back(Command::Settle(token, terminal, attempts));
            }
            (Alarm::Eligible, Phase::Delayed) if waits_for_commit && slot.attempts > slot.durable => {
                slot.phase = Phase::AwaitsCommit;
                self.schedule_commit(now, token.partition, self.config.urgent_commit_interval);
            }
            (Alarm::Eligible, Phase::Delayed) => self.unblocked(now, token),
            (Alarm::Deadline, Phase::Queued | Phase::Delayed | Phase::AwaitsCommit | Phase::Ready)
                if !draining =>
            {
                self.conclude(token, Terminal::Expired, attempts)
            }
            _ => {}
        }
    }
}

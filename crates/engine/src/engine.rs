//! The state machine itself: its methods, and the match over the inputs.

mod assignment;
mod attempts;
mod backpressure;
mod checks;
mod commits;
mod endings;
mod holding;
mod jobs;
#[cfg(test)]
mod mutants;
mod stalls;
mod status;

use std::collections::{BTreeSet, VecDeque};

use fleet_group::{FinalCommit, Partition};
use fleet_job::time::Timestamp;
use fleet_retry::Random;

use backpressure::Memory;

use crate::{
    breaker::{Breaker, BreakerState},
    holds::Holds,
    invariant::Checks,
    keys::Keys,
    partition::PartitionState,
    partitions::{Occupancy, Partitions},
    ready::Ready,
    schedule::Timers,
    slot::{Slot, Wait},
    types::{Command, Config, Input, Need, Token},
};

#[cfg(test)]
pub(crate) use mutants::Mutant;
pub use status::{HoldStatus, PartitionStatus, Status};

/// Delivery for one worker: a state machine that does no IO.
///
/// The engine is driven by its caller, the *shell*, which owns the consumer, the producer, the
/// calls and the clock. The engine has these kinds of methods:
///
/// - [`handle`](Self::handle) tells the engine what has happened. It is the only method that takes
///   the time, and together with [`release`](Self::release) the only one that changes the state of
///   jobs.
/// - [`poll`](Self::poll) returns what the shell has to do next. Commands are never repeated: a
///   command that the shell drops is lost, and its job waits for ever.
/// - [`next_wakeup`](Self::next_wakeup) says when the engine has to be called again if nothing
///   happens before.
/// - [`is_drained`](Self::is_drained) and [`release`](Self::release) give partitions back.
/// - [`token`](Self::token), [`breaker`](Self::breaker), [`status`](Self::status),
///   [`held_jobs`](Self::held_jobs) and [`checks`](Self::checks) only look. Those that cost more
///   than a look-up say so.
///
/// # Order of calls
///
/// After each call of `handle` or `release`, the shell:
///
/// 1. calls `poll` until it returns `None`, and carries the commands out in that order;
/// 2. calls `next_wakeup`, and sets its timer to that time, or clears it;
/// 3. waits for the timer, for something to happen, or for both, and calls `handle`: with
///    [`Input::Tick`] if only time has passed.
///
/// The shell may leave commands in the engine, for example while it has no contact with the
/// consumer group. Before it polls again, it then feeds [`Input::ContactRegained`], which takes
/// back the attempts whose start is no longer up to date.
///
/// Within a partition, records come in ascending order of their offsets, after the
/// [`Input::Assigned`] of that partition. Each of these commands is answered once: `Start` by
/// [`Input::Finished`]; `Settle` by [`Input::Written`], [`Input::WriteFailed`] or
/// [`Input::NotDeferred`]; `Commit` by [`Input::Committed`]; `Probe` by [`Input::Probed`]. `Abort`
/// has no answer of its own: the call that it cancels still ends with `Finished`. `Forget` ends the
/// engine's interest in a job: no answer about it is needed any more, and one that comes is
/// ignored. So is every answer with the generation of an earlier assignment.
///
/// To give partitions back, the shell feeds [`Input::Draining`], waits until
/// [`is_drained`](Self::is_drained) or until its patience ends, calls [`release`](Self::release),
/// and commits synchronously what that returns. Partitions that were lost without notice go by
/// [`Input::Lost`]; nothing is committed for them.
///
/// # Time
///
/// The `now` of a call must not be before that of an earlier call. Any call of `handle` or
/// `release` may move the next wake-up in both directions: a record with a date, a failed attempt,
/// a commit that becomes due, an outage or its end. `poll` and the methods that only look never
/// move it. A call that comes late does no harm but the delay; a call that comes early does
/// nothing.
///
/// # Example
///
/// ```
/// use fleet_engine::{Admission, Attempt, Command, Config, Engine, Input, JobSpec};
/// use fleet_group::{Partition, log::LogName};
/// use fleet_job::time::Timestamp;
///
/// let now = Timestamp::default();
/// let partition = Partition { topic: 0, number: 0 };
/// let mut engine = Engine::new(Config::default());
///
/// let log = LogName::UNKNOWN;
/// engine.handle(now, Input::Assigned { partition, generation: 1, log, progress: None });
///
/// let admission = Admission::Job(JobSpec::new(3));
/// engine.handle(now, Input::Record { partition, offset: 0, bytes: 100, admission });
/// let Some(Command::Start(token, 1)) = engine.poll() else { panic!("the job starts") };
///
/// engine.handle(now, Input::Finished(token, Attempt::Succeeded));
/// assert!(matches!(engine.poll(), Some(Command::Settle(..))));
///
/// engine.handle(now, Input::Written(token));
/// assert_eq!(engine.poll(), Some(Command::Forget(token)));
/// let Some(Command::Commit(commit)) = engine.poll() else { panic!("the offset is committed") };
/// assert_eq!(commit.offset, 1);
/// ```
#[derive(Debug)]
pub struct Engine {
    config: Config,
    partitions: Partitions,
    keys: Keys,
    ready: Ready,
    timers: Timers,
    /// Partitions that have something to commit, by the time at which the commit is due.
    commits: BTreeSet<(Timestamp, Partition)>,
    breaker: Breaker,
    holds: Holds,
    random: Random,
    out: VecDeque<Command>,
    /// How full memory is.
    memory: Memory,
    /// When to look again for stalled partitions.
    stalls_due: Option<Timestamp>,
    checks: Checks,
}

impl Engine {
    /// An engine without partitions.
    #[must_use]
    pub fn new(config: Config) -> Self {
        Self {
            partitions: Partitions::default(),
            keys: Keys::new(config.seed),
            ready: Ready::new(config.seed),
            timers: Timers::default(),
            commits: BTreeSet::new(),
            breaker: Breaker::new(config.probe),
            holds: Holds::new(config.probe),
            random: Random::new(config.seed),
            out: VecDeque::new(),
            memory: Memory::Free,
            stalls_due: None,
            checks: Checks::default(),
            config,
        }
    }

    /// Takes in what happened at `now`, and decides what follows.
    ///
    /// Afterwards the shell has to [`poll`](Self::poll) until nothing is left, and to ask for the
    /// [next wake-up](Self::next_wakeup), which any input may have moved.
    pub fn handle(&mut self, now: Timestamp, input: Input<'_>) {
        match input {
            Input::Assigned { partition, generation, log, progress } => {
                self.assign(partition, PartitionState::new(generation, log, progress));
            }
            Input::Record { partition, offset, bytes, admission } => {
                self.take_record(now, partition, offset, bytes, admission);
            }
            Input::Holds(token, bytes) => self.resize_job(token, bytes),
            Input::End(partition, offset) => self.reach_end_of_log(now, partition, offset),
            Input::Finished(token, attempt) => self.finish_attempt(now, token, attempt),
            Input::Written(token) => self.settle(now, token),
            Input::NotDeferred(token) => self.keep_undeferred(now, token),
            Input::WriteFailed(token) => self.schedule_rewrite(now, token),
            Input::Committed { partition, generation, ok } => {
                self.take_commit_answer(now, partition, generation, ok);
            }
            Input::Cancel(token) => self.cancel(token),
            Input::Probed(ok) => self.breaker.probed(ok, now, &mut self.random),
            Input::Draining(partitions) => self.drain(partitions),
            Input::Lost(partitions) => self.remove(partitions),
            Input::Resumed(pause) => self.lift_hold(Need::Paused(pause)),
            Input::ContactRegained => self.recall_starts(now),
            Input::Tick => {}
        }

        self.advance(now);
    }

    /// The next thing to do. Call it after every [`handle`](Self::handle) and
    /// [`release`](Self::release) until it returns `None`.
    #[must_use = "a command that is dropped is not repeated"]
    pub fn poll(&mut self) -> Option<Command> {
        self.out.pop_front()
    }

    /// When [`Input::Tick`] is due if nothing else happens before; `None` if the engine waits for
    /// nothing but events.
    ///
    /// Any call of [`handle`](Self::handle) or [`release`](Self::release) may change the answer.
    #[must_use = "the engine relies on being called at this time"]
    pub fn next_wakeup(&self) -> Option<Timestamp> {
        let commit = self.commits.first().map(|(at, _)| *at);
        let due =
            [self.timers.next(), self.breaker.next(), self.holds.next(), self.stalls_due, commit];

        due.into_iter().flatten().min()
    }

    /// Whether nothing of `partitions` runs or is being written any more, so that they can be
    /// [released](Self::release) without a repeat.
    #[must_use]
    pub fn is_drained(&self, partitions: &[Partition]) -> bool {
        let is_idle = |state: &PartitionState| state.sums().active() == 0;
        partitions.iter().all(|partition| self.partitions.get(*partition).is_none_or(is_idle))
    }

    /// Takes `partitions` away and returns what to commit for them before they go.
    ///
    /// Whatever still runs is fenced off: its outcome will be ignored. The commands that follow
    /// tell the shell to forget the jobs of these partitions.
    #[must_use = "what is not committed is done again by the next owner"]
    pub fn release(&mut self, partitions: &[Partition]) -> Vec<FinalCommit> {
        let mut commits = Vec::new();
        for partition in partitions {
            if let Some(state) = self.partitions.get_mut(*partition)
                && state.needs_last_commit()
                && let Some(commit) = state.last_commit(*partition)
            {
                commits.push(commit);
            }
        }

        self.remove(partitions);
        commits
    }

    /// The token of the record at `offset`, by which commands and inputs refer to it; `None` if the
    /// partition is not assigned.
    #[must_use]
    pub fn token(&self, partition: Partition, offset: i64) -> Option<Token> {
        self.partitions.token(partition, offset)
    }

    /// Whether the server is available.
    #[must_use]
    pub fn breaker(&self) -> BreakerState {
        self.breaker.state()
    }

    // --- What every part of the engine uses -----------------------------------------------------

    /// Changes a record. Every change of a record's state goes through here, so that all sums over
    /// states, and the number of jobs that run under each limit, follow from the states. Does
    /// nothing if the record is not open, or belongs to an earlier assignment.
    fn transition(&mut self, token: Token, change: impl FnOnce(&mut Slot)) {
        match self.partitions.transition(token, change) {
            Some(Occupancy::Started(limits)) => self.ready.started(&limits),
            Some(Occupancy::Ended(limits)) => self.ready.ended(&limits),
            Some(Occupancy::Same) | None => {}
        }
    }

    fn slot(&self, token: Token) -> Option<&Slot> {
        self.partitions.slot(token)
    }

    /// Whether nothing of the record's key comes before it.
    fn is_first_of_key(&self, token: Token) -> bool {
        let lane = self.slot(token).and_then(Slot::lane);
        lane.is_none_or(|lane| self.keys.is_head(lane, token.offset))
    }

    /// Does everything that is due at `now`.
    fn advance(&mut self, now: Timestamp) {
        while let Some((token, alarm)) = self.timers.pop_due(now) {
            self.handle_alarm(now, token, alarm);
        }

        if self.breaker.tick(now) {
            self.out.push_back(Command::Probe);
        }

        self.send_scouts(now);
        if !self.ready.is_empty() {
            self.start_ready(now);
            // Something else may keep a scout from starting; then the next one has its turn.
            while self.send_scouts(now) {
                self.start_ready(now);
            }
            self.drop_stale();
        }

        self.review_stalls(now);
        self.send_due_commits(now);
    }

    /// Drops the queue entries of jobs that do not wait for their start any more. Jobs that expire
    /// leave one behind, and while nothing starts, these entries would pile up.
    fn drop_stale(&mut self) {
        if self.ready.len() <= 2 * self.partitions.sums().open + 1024 {
            return;
        }

        let partitions = &self.partitions;
        self.ready.retain(|token| {
            partitions.slot(*token).is_some_and(|slot| slot.wait() == Some(Wait::Start))
        });
    }
}

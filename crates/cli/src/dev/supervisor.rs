//! Decides when the processes of `dev` are started and stopped: a state machine without IO or
//! clock.
//!
//! [`Supervisor::handle`] takes an input, [`Supervisor::poll`] returns the orders to carry out
//! until there are none, and [`Supervisor::next_wakeup`] says when to call `handle` with
//! [`Input::Tick`] if nothing else happens first. Times are measured from any fixed moment.
//!
//! Three rules always hold:
//!
//! - A role has at most one process. A process is dead once it has exited; its successor does not
//!   start earlier.
//! - A slow process is not dead. A process is stopped only if it has not responded for [`SILENCE`]
//!   and to [`PROBES`] probes in a row. A loaded machine can take a minute for what an idle one
//!   does in a millisecond, and on a suspended machine much time passes between two probes.
//! - A role starts once all roles of the tiers before it are ready: the broker, then the server,
//!   then the workers.

use std::{collections::VecDeque, time::Duration};

use fleet_retry::{Backoff, Random};

/// How long a process may be silent.
pub(super) const SILENCE: Duration = Duration::from_secs(120);
/// How many probes in a row it may leave unanswered in that time.
pub(super) const PROBES: u32 = 6;
/// The delays before a role is restarted. They grow with every death.
pub(super) const RESTARTS: Backoff =
    Backoff { base: Duration::from_millis(500), max: Duration::from_secs(30) };
/// After this time in service, a process counts as healthy, and its next death as the first. Delays
/// are meant for processes that die soon after each start; a process that worked is restarted at
/// once.
pub(super) const WELL: Duration = Duration::from_secs(20);
/// How long a process may take to stop. Longer than a worker's drain.
pub(super) const STOP: Duration = Duration::from_secs(40);

/// A process, as an index into the roles, which are sorted by tier.
pub(super) type Role = usize;

/// An input to the supervisor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Input {
    /// The process of a role serves for the first time.
    Ready(Role),
    /// The process has responded to a probe.
    Answered(Role),
    /// The process has not responded to a probe.
    Silent(Role),
    /// The process has exited, or could not be started.
    Exited(Role),
    /// Time has passed.
    Tick,
    /// Everything should stop.
    Stop,
}

/// An order from the supervisor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Order {
    /// Start the process of a role.
    Start(Role),
    /// Ask the process to stop.
    Terminate(Role),
    /// Kill the process.
    Kill(Role),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// There is no process. It is started at this time or later.
    Waiting { at: Duration },
    /// The process runs and should keep running.
    Running { ready_since: Option<Duration>, silence: Option<Silence> },
    /// The process was asked to stop.
    Ending { kill_at: Duration },
    /// The process was killed and has not exited yet.
    Killed,
    /// The process has exited and will not be restarted.
    Stopped,
}

/// Consecutive probes without a response.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Silence {
    since: Duration,
    probes: u32,
}

#[derive(Debug)]
struct Supervised {
    tier: usize,
    state: State,
    /// The number of deaths in a row.
    deaths: u32,
}

/// Supervises the processes of a fleet.
#[derive(Debug)]
pub(super) struct Supervisor {
    roles: Vec<Supervised>,
    is_stopping: bool,
    random: Random,
    orders: VecDeque<Order>,
}

impl Supervisor {
    /// Creates a supervisor with one role per tier in `tiers`, which are in ascending order. `seed`
    /// determines the jitter of delays.
    pub(super) fn new(tiers: impl IntoIterator<Item = usize>, seed: u64) -> Self {
        let waiting = State::Waiting { at: Duration::ZERO };
        let roles =
            tiers.into_iter().map(|tier| Supervised { tier, state: waiting, deaths: 0 }).collect();
        let mut supervisor =
            Self { roles, is_stopping: false, random: Random::new(seed), orders: VecDeque::new() };

        supervisor.decide(Duration::ZERO);
        supervisor
    }

    /// Processes an input at time `now`. Inputs about a role without a process are ignored.
    pub(super) fn handle(&mut self, now: Duration, input: Input) {
        match input {
            Input::Ready(role) => self.ready(now, role),
            Input::Answered(role) => self.answered(role),
            Input::Silent(role) => self.silent(now, role),
            Input::Exited(role) => self.exited(now, role),
            Input::Tick => {}
            Input::Stop => self.stop(),
        }
        self.decide(now);
    }

    /// Returns the next order.
    #[must_use]
    pub(super) fn poll(&mut self) -> Option<Order> {
        self.orders.pop_front()
    }

    /// Returns the latest time at which the passing of time alone changes something.
    #[must_use]
    pub(super) fn next_wakeup(&self) -> Option<Duration> {
        let wakeups = self.roles.iter().filter_map(|role| match role.state {
            State::Waiting { at } if self.may_start(role.tier) => Some(at),
            State::Ending { kill_at } => Some(kill_at),
            _ => None,
        });
        wakeups.min()
    }

    /// Returns whether every process has been stopped.
    pub(super) fn is_stopped(&self) -> bool {
        self.roles.iter().all(|role| role.state == State::Stopped)
    }

    /// Returns when the next process of a dead role starts, provided that everything before it is
    /// ready.
    pub(super) fn restarts_at(&self, role: Role) -> Option<Duration> {
        match self.roles.get(role)?.state {
            State::Waiting { at } => Some(at),
            _ => None,
        }
    }

    fn ready(&mut self, now: Duration, role: Role) {
        if let Some(State::Running { ready_since, .. }) = self.state(role) {
            ready_since.get_or_insert(now);
        }
        self.answered(role);
    }

    fn answered(&mut self, role: Role) {
        if let Some(State::Running { silence, .. }) = self.state(role) {
            *silence = None;
        }
    }

    fn silent(&mut self, now: Duration, role: Role) {
        let Some(State::Running { silence, .. }) = self.state(role) else { return };
        let silence = silence.get_or_insert(Silence { since: now, probes: 0 });
        silence.probes += 1;

        if silence.probes >= PROBES && now.saturating_sub(silence.since) >= SILENCE {
            self.terminate(now, role);
        }
    }

    fn terminate(&mut self, now: Duration, role: Role) {
        if let Some(state) = self.state(role) {
            *state = State::Ending { kill_at: now + STOP };
            self.orders.push_back(Order::Terminate(role));
        }
    }

    fn exited(&mut self, now: Duration, role: Role) {
        let is_stopping = self.is_stopping;
        let Some(supervised) = self.roles.get_mut(role) else { return };

        let lived = match supervised.state {
            State::Running { ready_since: Some(since), .. } => now.saturating_sub(since),
            State::Running { ready_since: None, .. } => Duration::ZERO,
            State::Ending { .. } | State::Killed => Duration::ZERO,
            State::Waiting { .. } | State::Stopped => return,
        };

        if is_stopping {
            supervised.state = State::Stopped;
            return;
        }

        supervised.deaths = if lived >= WELL { 1 } else { supervised.deaths.saturating_add(1) };
        let deaths = supervised.deaths;
        let at = now + RESTARTS.spread(deaths, &mut self.random);
        if let Some(supervised) = self.roles.get_mut(role) {
            supervised.state = State::Waiting { at };
        }
    }

    fn stop(&mut self) {
        self.is_stopping = true;
        for role in &mut self.roles {
            if matches!(role.state, State::Waiting { .. }) {
                role.state = State::Stopped;
            }
        }
    }

    fn state(&mut self, role: Role) -> Option<&mut State> {
        self.roles.get_mut(role).map(|role| &mut role.state)
    }

    /// Returns whether all tiers before this one are ready.
    fn may_start(&self, tier: usize) -> bool {
        let before = self.roles.iter().filter(|role| role.tier < tier);
        let is_ready =
            |role: &Supervised| matches!(role.state, State::Running { ready_since: Some(_), .. });
        before.into_iter().all(is_ready)
    }

    /// Returns whether everything after this tier has stopped.
    fn may_end(&self, tier: usize) -> bool {
        let after = self.roles.iter().filter(|role| role.tier > tier);
        after.into_iter().all(|role| role.state == State::Stopped)
    }

    /// Issues the orders that are due.
    fn decide(&mut self, now: Duration) {
        for role in 0..self.roles.len() {
            let Supervised { tier, state, .. } = self.roles[role];
            match state {
                State::Waiting { at } if now >= at && self.may_start(tier) => {
                    self.roles[role].state = State::Running { ready_since: None, silence: None };
                    self.orders.push_back(Order::Start(role));
                }
                State::Running { .. } if self.is_stopping && self.may_end(tier) => {
                    self.terminate(now, role);
                }
                State::Ending { kill_at } if now >= kill_at => {
                    self.roles[role].state = State::Killed;
                    self.orders.push_back(Order::Kill(role));
                }
                _ => {}
            }
        }
    }
}

#[cfg(test)]
#[path = "supervisor_tests.rs"]
mod tests;

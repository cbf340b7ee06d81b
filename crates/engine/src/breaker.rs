//! Waiting for a server that is unavailable (I7).
//!
//! An outage is not a job's fault, so jobs wait and spend nothing. Probes, which cost nobody
//! anything, find out when the server is back. A server can answer probes and still refuse calls,
//! with a 403 for example, so one trial job goes first.

use std::time::Duration;

use fleet_job::time::Timestamp;
use fleet_retry::{Backoff, Random};

/// A trial that has not been turned away for this long counts as accepted: refusals come at once,
/// and work takes time.
const TRIAL: Duration = Duration::from_secs(1);

/// Whether jobs may start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BreakerState {
    /// The server answers.
    Closed,
    /// The server does not answer; the next probe is due at this time.
    Open(Timestamp),
    /// A probe is under way.
    Probing,
    /// The server answers again. One job may start; if it is still running at the given time, all
    /// jobs may start.
    Trial(Option<Timestamp>),
}

/// The breaker of one worker.
#[derive(Debug)]
pub(crate) struct Breaker {
    state: BreakerState,
    /// How many times in a row the server was found unavailable.
    failures: u32,
    backoff: Backoff,
}

impl Breaker {
    pub(crate) fn new(backoff: Backoff) -> Self {
        Self { state: BreakerState::Closed, failures: 0, backoff }
    }

    pub(crate) fn state(&self) -> BreakerState {
        self.state
    }

    /// Whether one more job may start now.
    pub(crate) fn allows_start(&self) -> bool {
        match self.state {
            BreakerState::Closed | BreakerState::Trial(None) => true,
            BreakerState::Trial(Some(_)) | BreakerState::Open(_) | BreakerState::Probing => false,
        }
    }

    /// A job has started. In a trial it is the one that goes first.
    pub(crate) fn started(&mut self, now: Timestamp) {
        if self.state == BreakerState::Trial(None) {
            self.state = BreakerState::Trial(Some(now.plus(TRIAL)));
        }
    }

    /// A job that was started made no call after all. If it was the trial, another one may start.
    pub(crate) fn withdrawn(&mut self) {
        if let BreakerState::Trial(Some(_)) = self.state {
            self.state = BreakerState::Trial(None);
        }
    }

    /// A call found no server. Calls that were under way when the breaker opened are no news.
    pub(crate) fn unavailable(
        &mut self,
        now: Timestamp,
        wish: Option<Duration>,
        random: &mut Random,
    ) {
        if matches!(self.state, BreakerState::Closed | BreakerState::Trial(_)) {
            self.open(now, wish, random);
        }
    }

    /// A call reached the server, whatever its outcome.
    pub(crate) fn reached(&mut self) {
        if matches!(self.state, BreakerState::Closed | BreakerState::Trial(_)) {
            self.state = BreakerState::Closed;
            self.failures = 0;
        }
    }

    /// A probe has ended.
    pub(crate) fn probed(&mut self, ok: bool, now: Timestamp, random: &mut Random) {
        if self.state != BreakerState::Probing {
            return;
        }

        if ok {
            self.state = BreakerState::Trial(None);
        } else {
            self.open(now, None, random);
        }
    }

    fn open(&mut self, now: Timestamp, wish: Option<Duration>, random: &mut Random) {
        self.failures = self.failures.saturating_add(1);
        let delay = self.backoff.spread(self.failures, random);
        let wish = wish.unwrap_or_default().min(self.backoff.max);

        self.state = BreakerState::Open(now.plus(delay.max(wish)));
    }

    /// Does what is due at `now`; `true` if a probe has to be sent.
    pub(crate) fn tick(&mut self, now: Timestamp) -> bool {
        match self.state {
            BreakerState::Open(at) if now >= at => {
                self.state = BreakerState::Probing;
                true
            }
            BreakerState::Trial(Some(until)) if now >= until => {
                self.reached();
                false
            }
            _ => false,
        }
    }

    /// When `tick` has something to do.
    pub(crate) fn next(&self) -> Option<Timestamp> {
        match self.state {
            BreakerState::Open(at) | BreakerState::Trial(Some(at)) => Some(at),
            BreakerState::Closed | BreakerState::Probing | BreakerState::Trial(None) => None,
        }
    }
}

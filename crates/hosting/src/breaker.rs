//! The breaker, which stops calls to a server that does not answer.
//!
//! Only the transport counts: connections that are refused or lost, and silence. A server that
//! answers with an error is there and works, however many of its answers are errors. After several
//! failures in a row the breaker opens and calls fail at once, which is kinder to callers than the
//! same failure after a timeout, and to the server too. After a while, longer each time, one call
//! is let through as a probe. Pure: time and randomness are passed in.

use std::time::{Duration, Instant};

use fleet_policy::limits::BreakerLimits;
use fleet_retry::Backoff;

/// How long a probe keeps other calls from going through. Refused connections fail at once, and a
/// probe that takes longer may simply be at work.
const TRIAL: Duration = Duration::from_secs(1);

/// The breaker of one server.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Breaker {
    state: State,
    /// Counts the changes of state. Findings of calls from before the last change are outdated.
    generation: u64,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum State {
    /// Calls go through. `failures` calls in a row have failed.
    Closed { failures: u32 },
    /// No call goes through before `until`. `round` counts how often in a row the breaker has
    /// opened.
    Open { round: u32, until: Instant },
    /// A probe is running. Another one may go through at `next`.
    Probing { round: u32, next: Instant },
}

/// A call that was let through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Pass {
    generation: u64,
}

/// What a call found out about the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Finding {
    /// The server answered, whatever the answer was.
    Alive,
    /// The server can't be reached, the connection was lost, or no answer came.
    Lost,
    /// The call was given up or never sent.
    Nothing,
}

/// A change of state that a finding caused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum BreakerChange {
    /// The breaker is open for this long.
    Opened(Duration),
    /// The breaker is closed.
    Closed,
}

/// The state of a breaker, for people.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum BreakerStanding {
    /// Calls go through. This many in a row have failed.
    Closed(u32),
    /// Calls fail at once for this long.
    Open(Duration),
    /// The next call is a probe, or one is running.
    Probing,
}

impl Default for Breaker {
    fn default() -> Self {
        Self { state: State::Closed { failures: 0 }, generation: 0 }
    }
}

impl Breaker {
    /// Returns how long a call must wait; `None` if it may go through.
    pub(super) fn wait(&self, now: Instant) -> Option<Duration> {
        let until = match self.state {
            State::Closed { .. } => return None,
            State::Open { until, .. } => until,
            State::Probing { next, .. } => next,
        };
        Some(until.saturating_duration_since(now)).filter(|wait| !wait.is_zero())
    }

    /// Lets a call through.
    ///
    /// # Errors
    ///
    /// Returns how long the call must wait if it may not go through now.
    pub(super) fn admit(&mut self, now: Instant) -> Result<Pass, Duration> {
        if let Some(wait) = self.wait(now) {
            return Err(wait);
        }
        match self.state {
            State::Closed { .. } => {}
            State::Open { round, .. } => self.enter(State::Probing { round, next: now + TRIAL }),
            // Keep the generation, since the earlier probe may still find the server alive.
            State::Probing { round, .. } => {
                self.state = State::Probing { round, next: now + TRIAL }
            }
        }
        Ok(Pass { generation: self.generation })
    }

    /// Records what a call found out. `chance`, from 0 to 1, adds jitter to waits, so that replicas
    /// don't all probe at once.
    pub(super) fn settle(
        &mut self,
        pass: Pass,
        finding: Finding,
        limits: &BreakerLimits,
        now: Instant,
        chance: f64,
    ) -> Option<BreakerChange> {
        if pass.generation != self.generation {
            return None;
        }

        match (self.state, finding) {
            (State::Closed { .. }, Finding::Alive) => {
                self.state = State::Closed { failures: 0 };
                None
            }
            (State::Closed { failures }, Finding::Lost) => {
                let failures = failures.saturating_add(1);
                if limits.failures > 0 && failures >= limits.failures {
                    return Some(self.open(1, limits, now, chance));
                }
                self.state = State::Closed { failures };
                None
            }
            (State::Probing { .. }, Finding::Alive) => {
                self.enter(State::Closed { failures: 0 });
                Some(BreakerChange::Closed)
            }
            (State::Probing { round, .. }, Finding::Lost) => {
                Some(self.open(round.saturating_add(1), limits, now, chance))
            }
            (State::Probing { round, .. }, Finding::Nothing) => {
                self.state = State::Probing { round, next: now };
                None
            }
            // No call is let through while it is open, so none has a pass of this generation.
            (State::Closed { .. }, Finding::Nothing) | (State::Open { .. }, _) => None,
        }
    }

    /// Forgets everything, because the server has been replaced.
    pub(super) fn reset(&mut self) {
        self.enter(State::Closed { failures: 0 });
    }

    /// Returns the state, for people.
    pub(super) fn standing(&self, now: Instant) -> BreakerStanding {
        match (self.state, self.wait(now)) {
            (State::Closed { failures }, _) => BreakerStanding::Closed(failures),
            (State::Open { .. }, Some(wait)) => BreakerStanding::Open(wait),
            (State::Open { .. } | State::Probing { .. }, _) => BreakerStanding::Probing,
        }
    }

    fn open(
        &mut self,
        round: u32,
        limits: &BreakerLimits,
        now: Instant,
        chance: f64,
    ) -> BreakerChange {
        let backoff = Backoff { base: limits.first_wait, max: limits.longest_wait };
        // From half of the wait to all of it.
        let wait = backoff.ceiling(round).mul_f64(0.5 + chance.clamp(0.0, 1.0) / 2.0);
        self.enter(State::Open { round, until: now + wait });
        BreakerChange::Opened(wait)
    }

    fn enter(&mut self, state: State) {
        self.state = state;
        self.generation += 1;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const LIMITS: BreakerLimits = BreakerLimits {
        failures: 3,
        first_wait: Duration::from_secs(1),
        longest_wait: Duration::from_secs(8),
    };

    /// Makes one call.
    fn call(breaker: &mut Breaker, finding: Finding, now: Instant) -> Option<BreakerChange> {
        let pass = breaker.admit(now).expect("a call may go");
        breaker.settle(pass, finding, &LIMITS, now, 1.0)
    }

    #[test]
    fn failures_in_a_row_open_it_longer_and_longer() {
        let mut breaker = Breaker::default();
        let mut now = Instant::now();
        for finding in
            [Finding::Lost, Finding::Lost, Finding::Alive, Finding::Lost, Finding::Nothing]
        {
            assert_eq!(call(&mut breaker, finding, now), None);
        }
        assert_eq!(breaker.standing(now), BreakerStanding::Closed(1));
        call(&mut breaker, Finding::Lost, now);
        for seconds in [1, 2, 4, 8, 8] {
            let wait = Duration::from_secs(seconds);
            assert_eq!(call(&mut breaker, Finding::Lost, now), Some(BreakerChange::Opened(wait)));
            assert_eq!(breaker.admit(now), Err(wait));
            assert_eq!(breaker.standing(now), BreakerStanding::Open(wait));
            now += wait;
        }
        assert_eq!(breaker.standing(now), BreakerStanding::Probing);
        assert_eq!(call(&mut breaker, Finding::Alive, now), Some(BreakerChange::Closed));
        // The next wait is the shortest again.
        call(&mut breaker, Finding::Lost, now);
        call(&mut breaker, Finding::Lost, now);
        assert_eq!(
            call(&mut breaker, Finding::Lost, now),
            Some(BreakerChange::Opened(LIMITS.first_wait))
        );
    }

    #[test]
    fn there_is_one_probe_at_a_time_unless_it_takes_long() {
        let mut breaker = Breaker::default();
        let mut now = Instant::now();
        let late = breaker.admit(now).unwrap();
        for _ in 0..3 {
            call(&mut breaker, Finding::Lost, now);
        }
        // The finding of an earlier call is outdated.
        assert_eq!(breaker.settle(late, Finding::Alive, &LIMITS, now, 1.0), None);
        now += LIMITS.first_wait;
        let probe = breaker.admit(now).unwrap();
        assert_eq!(breaker.admit(now), Err(TRIAL));
        // The probe was given up, so another one may go.
        breaker.settle(probe, Finding::Nothing, &LIMITS, now, 1.0);
        let probe = breaker.admit(now).unwrap();
        now += TRIAL;
        let second = breaker.admit(now).unwrap();
        assert_eq!(
            breaker.settle(second, Finding::Alive, &LIMITS, now, 1.0),
            Some(BreakerChange::Closed)
        );
        assert_eq!(breaker.settle(probe, Finding::Lost, &LIMITS, now, 1.0), None);
        assert_eq!(breaker.standing(now), BreakerStanding::Closed(0));
    }

    #[test]
    fn the_breaker_can_be_disabled() {
        let mut breaker = Breaker::default();
        let now = Instant::now();
        let off = BreakerLimits { failures: 0, ..LIMITS };
        for _ in 0..100 {
            let pass = breaker.admit(now).unwrap();
            assert_eq!(breaker.settle(pass, Finding::Lost, &off, now, 0.0), None);
        }
    }

    fn finding() -> impl Strategy<Value = Finding> {
        prop_oneof![Just(Finding::Alive), Just(Finding::Lost), Just(Finding::Nothing)]
    }

    proptest! {
        #[test]
        fn a_server_that_is_back_is_found_within_the_longest_wait(
            steps in prop::collection::vec((finding(), 0_u64..3000, 0.0..1.0_f64, any::<bool>()), 0..60),
        ) {
            let mut breaker = Breaker::default();
            let mut now = Instant::now();
            let mut out = Vec::new();
            for (finding, millis, chance, hold) in steps {
                now += Duration::from_millis(millis);
                if let Ok(pass) = breaker.admit(now) {
                    out.push((pass, finding));
                }
                if !hold && let Some((pass, finding)) = out.pop() {
                    breaker.settle(pass, finding, &LIMITS, now, chance);
                }
                prop_assert!(breaker.wait(now).is_none_or(|wait| wait <= LIMITS.longest_wait));
            }
            // Whatever happened: once the wait is over a call goes, and its success closes the
            // breaker.
            now += breaker.wait(now).unwrap_or_default();
            let pass = breaker.admit(now).expect("the wait is over");
            breaker.settle(pass, Finding::Alive, &LIMITS, now, 0.5);
            prop_assert_eq!(breaker.standing(now), BreakerStanding::Closed(0));
        }

        #[test]
        fn answers_never_open_it(findings in prop::collection::vec(finding(), 0..200)) {
            let mut breaker = Breaker::default();
            let now = Instant::now();
            let mut in_a_row = 0;
            for finding in findings {
                let change = match breaker.admit(now) {
                    Ok(pass) => breaker.settle(pass, finding, &LIMITS, now, 0.0),
                    Err(_) => break,
                };
                match finding {
                    Finding::Alive => in_a_row = 0,
                    Finding::Lost => in_a_row += 1,
                    Finding::Nothing => {}
                }
                prop_assert_eq!(change.is_some(), in_a_row == LIMITS.failures);
            }
        }
    }
}

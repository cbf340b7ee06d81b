//! The generic cell rate algorithm: a token bucket whose state is one point in time.
//!
//! The state is the time at which the bucket is full again. A cost moves it forward by what the
//! rate takes to refill that cost; it may never be further away than a whole bucket takes. At most
//! `burst + rate × t` passes in any span of time `t`.

use std::{num::NonZeroU64, time::Duration};

/// How much may pass: so much per span of time, and so much at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    count: NonZeroU64,
    per: Duration,
    burst: NonZeroU64,
}

impl Rate {
    /// A rate of `count` per `per`, of which `burst` may come at once. `None` if `per` is zero.
    pub fn new(count: NonZeroU64, per: Duration, burst: NonZeroU64) -> Option<Self> {
        (!per.is_zero()).then_some(Self { count, per, burst })
    }

    /// How long it takes until a bucket that is empty is full.
    pub fn refill(&self) -> Duration {
        self.time_of(self.burst.get())
    }

    /// How much may come at once.
    pub fn burst(&self) -> u64 {
        self.burst.get()
    }

    /// How long the rate takes for so much, rounded up.
    fn time_of(&self, cost: u64) -> Duration {
        let nanos = (u128::from(cost) * self.per.as_nanos()).div_ceil(u128::from(self.count.get()));
        Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
    }

    /// Lets `cost` pass, or says how long to wait. `full_at` is the state: when the bucket is full
    /// again; the answer is the next state. A cost above `burst` counts as `burst`, since it could
    /// never pass otherwise.
    pub(super) fn pass(
        &self,
        full_at: Duration,
        cost: u64,
        now: Duration,
    ) -> Result<Duration, Duration> {
        let cost = self.time_of(cost.min(self.burst.get()));
        let next = full_at.max(now).saturating_add(cost);
        let latest = now.saturating_add(self.refill());

        match next.checked_sub(latest) {
            Some(wait) if !wait.is_zero() => Err(wait),
            _ => Ok(next),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn rate(count: u64, millis: u64, burst: u64) -> Rate {
        let some = |number| NonZeroU64::new(number).unwrap();
        Rate::new(some(count), Duration::from_millis(millis), some(burst)).unwrap()
    }

    #[test]
    fn a_burst_passes_and_then_the_rate() {
        let rate = rate(10, 1000, 3);
        let mut state = Duration::ZERO;
        let mut check = |cost, now, expected: Result<(), u64>| {
            let passed = rate.pass(state, cost, Duration::from_millis(now));
            assert_eq!(
                passed.map(|_| ()).map_err(|wait| wait.as_millis() as u64),
                expected,
                "at {now}"
            );
            if let Ok(next) = passed {
                state = next;
            }
        };

        for _ in 0..3 {
            check(1, 0, Ok(()));
        }
        check(1, 0, Err(100));
        check(1, 99, Err(1));
        check(1, 100, Ok(()));
        check(2, 200, Err(100));
        // More than a burst passes when the bucket is full, as a burst.
        check(100, 400, Ok(()));
        check(1, 400, Err(100));
    }

    proptest! {
        #[test]
        fn never_more_than_burst_and_rate(
            count in 1_u64..1000,
            millis in 1_u64..10_000,
            burst in 1_u64..100,
            calls in proptest::collection::vec((0_u64..2_000_000_000, 0_u64..200), 1..80),
        ) {
            let rate = rate(count, millis, burst);
            let (mut now, mut state) = (Duration::ZERO, Duration::ZERO);
            let mut passed = Vec::new();

            for (step, cost) in calls {
                now += Duration::from_nanos(step);
                match rate.pass(state, cost, now) {
                    Ok(next) => {
                        state = next;
                        passed.push((now, cost.min(burst)));
                    }
                    Err(wait) => {
                        prop_assert!(rate.pass(state, cost, now + wait).is_ok(), "the wait is too short");
                    }
                }
            }

            for first in 0..passed.len() {
                let mut sum = 0;
                for (at, cost) in &passed[first..] {
                    sum += u128::from(*cost);
                    let span = (*at - passed[first].0).as_nanos();
                    let most = u128::from(burst) * u128::from(millis) * 1_000_000 + u128::from(count) * span;
                    prop_assert!(sum * u128::from(millis) * 1_000_000 <= most);
                }
            }
        }
    }
}

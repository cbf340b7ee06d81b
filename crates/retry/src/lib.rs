//! Exponential backoff with jitter, and the seeded generator behind the jitter. Pure: the caller
//! chooses the seed and does the sleeping.
//!
//! Jitter matters when many processes lose the same broker or server at once: without jitter, they
//! all return in the same millisecond.

use std::time::Duration;

/// Exponential backoff: the ceiling of a delay is `base · 2ⁿ`, capped at `max`, and the delay is
/// random below it. Full jitter spreads a herd of retries best (AWS Architecture Blog, "Exponential
/// Backoff And Jitter").
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Backoff {
    /// The ceiling of the first delay.
    pub base: Duration,
    /// The ceiling of all delays.
    pub max: Duration,
}

impl Backoff {
    /// The ceiling of the delay after this many failures in a row (at least 1).
    #[must_use]
    pub fn ceiling(&self, failures: u32) -> Duration {
        let doublings = failures.saturating_sub(1).min(31);
        self.base.saturating_mul(1 << doublings).min(self.max)
    }

    /// A random delay between zero and the ceiling, after this many failures in a row.
    #[must_use]
    pub fn jittered(&self, failures: u32, random: &mut Random) -> Duration {
        random.up_to(self.ceiling(failures))
    }

    /// A random delay between half the ceiling and the ceiling, for attempts that must neither
    /// coincide nor come too soon.
    #[must_use]
    pub fn spread(&self, failures: u32, random: &mut Random) -> Duration {
        let half = self.ceiling(failures) / 2;
        half + random.up_to(half)
    }
}

/// SplitMix64 (Steele, Lea, Flood 2014): small, seedable, and good enough for jitter.
#[derive(Debug, Clone)]
pub struct Random(u64);

impl Random {
    /// A generator whose numbers follow from `seed`.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);

        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// A random duration from zero to `limit`, in whole milliseconds.
    pub fn up_to(&mut self, limit: Duration) -> Duration {
        let ms = u64::try_from(limit.as_millis()).unwrap_or(u64::MAX - 1);
        Duration::from_millis(self.next() % (ms + 1))
    }
}

/// The pauses of something that is tried until it succeeds.
#[derive(Debug, Clone)]
pub struct Retry {
    backoff: Backoff,
    failures: u32,
    random: Random,
}

impl Retry {
    /// Pauses by `backoff`, with jitter from `seed`.
    #[must_use]
    pub fn new(backoff: Backoff, seed: u64) -> Self {
        Self { backoff, failures: 0, random: Random::new(seed) }
    }

    /// Counts one more failure in a row, and returns the pause after it.
    #[must_use]
    pub fn failed(&mut self) -> Duration {
        self.failures = self.failures.saturating_add(1);
        self.backoff.spread(self.failures, &mut self.random)
    }

    /// Starts counting anew after an attempt that has succeeded.
    pub fn succeeded(&mut self) {
        self.failures = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_double_up_to_the_cap_and_never_overflow() {
        let backoff = Backoff { base: Duration::from_millis(100), max: Duration::from_secs(5) };
        let ceilings = [1, 2, 3, 6, 7, 100, u32::MAX].map(|n| backoff.ceiling(n).as_millis());
        assert_eq!(ceilings, [100, 200, 400, 3200, 5000, 5000, 5000]);
        assert_eq!(backoff.ceiling(0), backoff.base);
    }

    #[test]
    fn jitter_stays_inside_and_moves() {
        let backoff = Backoff { base: Duration::from_millis(1000), max: Duration::from_secs(5) };
        let mut random = Random::new(7);
        let delays: std::collections::BTreeSet<_> =
            (0..100).map(|_| backoff.jittered(1, &mut random)).collect();
        assert!(delays.len() > 50 && delays.iter().all(|delay| *delay <= backoff.base));
        assert!((0..100).all(|_| backoff.spread(1, &mut random) >= backoff.base / 2));
    }

    #[test]
    fn pauses_grow_until_something_succeeds() {
        let backoff = Backoff { base: Duration::from_millis(100), max: Duration::from_secs(1) };
        let mut retry = Retry::new(backoff, 7);

        let check = |pause: Duration, ceiling: u64| {
            let ceiling = Duration::from_millis(ceiling);
            assert!((ceiling / 2..=ceiling).contains(&pause), "{pause:?} is not up to {ceiling:?}");
        };
        for ceiling in [100, 200, 400, 800, 1000, 1000] {
            check(retry.failed(), ceiling);
        }
        retry.succeeded();
        check(retry.failed(), 100);
    }
}

//! Delays that grow, with full jitter, and the small generator behind the jitter.

use std::time::Duration;

/// Exponential backoff with full jitter: the delay is random between zero and `base · 2ⁿ`, capped at `max`. Full jitter
/// spreads a herd of retries best (AWS Architecture Blog, "Exponential Backoff And Jitter").
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Backoff {
    /// The upper end of the first delay.
    pub base: Duration,
    /// The upper end of every delay.
    pub max: Duration,
}

impl Backoff {
    /// The upper end of the delay after `failures` failures in a row (at least 1).
    pub fn ceiling(&self, failures: u32) -> Duration {
        let doublings = failures.saturating_sub(1).min(31);
        self.base.saturating_mul(1 << doublings).min(self.max)
    }

    /// A random delay after `failures` failures in a row.
    pub(crate) fn jittered(&self, failures: u32, random: &mut Random) -> Duration {
        random.up_to(self.ceiling(failures))
    }

    /// A random delay in the upper half: for probes, which should neither herd nor hammer.
    pub(crate) fn spread(&self, failures: u32, random: &mut Random) -> Duration {
        let half = self.ceiling(failures) / 2;
        half + random.up_to(half)
    }
}

/// SplitMix64 (Steele, Lea, Flood 2014): small, seedable, and good enough for jitter.
#[derive(Debug, Clone)]
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    pub(crate) fn up_to(&mut self, limit: Duration) -> Duration {
        let ms = u64::try_from(limit.as_millis()).unwrap_or(u64::MAX - 1);
        Duration::from_millis(self.next() % (ms + 1))
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
}

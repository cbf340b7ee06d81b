//! A rate for each of many keys, in bounded memory.

use std::{collections::HashMap, mem, time::Duration};

use super::{LimitKey, gcra::Rate};

/// When to try again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RetryAfter(pub Duration);

/// Applies one rate to each key.
///
/// A key that has not been used for as long as a bucket takes to fill is full again, and need not
/// be remembered. So there are two halves, which change places once in that time: what nobody has
/// used in the meantime is forgotten with the old half, and nothing is ever searched through.
///
/// Keys beyond the bound share one bucket. Whoever makes up keys can thus slow down other new ones,
/// and neither use up memory nor get more than one bucket's worth.
#[derive(Debug)]
pub struct Limiter {
    rate: Rate,
    max_keys: usize,
    /// When each key's bucket is full again.
    young: HashMap<LimitKey, Duration>,
    old: HashMap<LimitKey, Duration>,
    /// When the halves changed places.
    turned_at: Duration,
    /// The bucket of the keys beyond the bound.
    shared: Duration,
}

impl Limiter {
    /// A limiter that remembers at most `max_keys` keys.
    pub fn new(rate: Rate, max_keys: usize) -> Self {
        Self {
            rate,
            max_keys,
            young: HashMap::new(),
            old: HashMap::new(),
            turned_at: Duration::ZERO,
            shared: Duration::ZERO,
        }
    }

    /// The rate of each key.
    pub fn rate(&self) -> Rate {
        self.rate
    }

    /// Lets `cost` pass for a key. A cost above the burst counts as the burst.
    ///
    /// # Errors
    ///
    /// Returns when it may pass.
    pub fn check(&mut self, key: LimitKey, cost: u64, now: Duration) -> Result<(), RetryAfter> {
        let (state, has_own) = self.find(key, now);
        let next = self.rate.pass(state, cost, now).map_err(RetryAfter)?;

        if has_own {
            self.old.remove(&key);
            self.young.insert(key, next);
        } else {
            self.shared = next;
        }
        Ok(())
    }

    /// How long `cost` has to wait for a key; `None` if it may pass. Uses nothing up.
    pub fn wait(&mut self, key: LimitKey, cost: u64, now: Duration) -> Option<Duration> {
        let (state, _) = self.find(key, now);
        self.rate.pass(state, cost, now).err()
    }

    /// The state of a key, and whether the key has or can have a bucket of its own.
    fn find(&mut self, key: LimitKey, now: Duration) -> (Duration, bool) {
        self.turn(now);
        match self.young.get(&key).or_else(|| self.old.get(&key)) {
            Some(state) => (*state, true),
            None if self.keys() < self.max_keys => (Duration::ZERO, true),
            None => (self.shared, false),
        }
    }

    /// How many keys are remembered.
    pub fn keys(&self) -> usize {
        self.young.len() + self.old.len()
    }

    /// Forgets the keys that are full again.
    fn turn(&mut self, now: Duration) {
        let Some(passed) = now.checked_sub(self.turned_at) else {
            return;
        };
        if passed < self.rate.refill() {
            return;
        }

        self.old = mem::take(&mut self.young);
        self.turned_at = now;
        if passed >= self.rate.refill().saturating_mul(2) {
            self.old.clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU64;

    use proptest::prelude::*;

    use super::*;

    fn limiter(count: u64, burst: u64, max_keys: usize) -> Limiter {
        let some = |number| NonZeroU64::new(number).unwrap();
        let rate = Rate::new(some(count), Duration::from_secs(1), some(burst)).unwrap();
        Limiter::new(rate, max_keys)
    }

    fn key(number: u64) -> LimitKey {
        LimitKey::new(&[&number.to_be_bytes()])
    }

    #[test]
    fn each_key_has_its_own_rate() {
        let mut limiter = limiter(1, 2, 10);
        let now = Duration::from_secs(100);
        for number in 0..2 {
            assert_eq!(limiter.check(key(number), 2, now), Ok(()));
            let wait = RetryAfter(Duration::from_secs(1));
            assert_eq!(limiter.check(key(number), 1, now), Err(wait));
        }
    }

    #[test]
    fn made_up_keys_take_no_memory_and_one_bucket() {
        let mut limiter = limiter(1, 2, 100);
        let now = Duration::from_secs(100);
        let passed = (0..10_000).filter(|number| limiter.check(key(*number), 1, now).is_ok());
        assert_eq!(passed.count(), 102);
        assert_eq!(limiter.keys(), 100);

        // Those who were there before keep their own bucket, and room comes back.
        assert_eq!(limiter.check(key(0), 1, now), Ok(()));
        let later = now + Duration::from_secs(4);
        assert_eq!(limiter.check(key(20_000), 2, later), Ok(()));
        assert!(limiter.keys() <= 2);
    }

    proptest! {
        /// Forgetting keys must not show, as long as there is room for all of them.
        #[test]
        fn forgetting_does_not_show(
            calls in proptest::collection::vec((0_u64..5, 0_u64..3, 0_u64..900), 1..200),
        ) {
            let mut limiter = limiter(3, 4, 100);
            let mut states = HashMap::new();
            let mut now = Duration::from_secs(1);

            for (number, cost, step) in calls {
                now += Duration::from_millis(step);
                let state = states.entry(number).or_insert(Duration::ZERO);
                let expected = limiter.rate.pass(*state, cost, now);
                if let Ok(next) = expected {
                    *state = next;
                }
                prop_assert_eq!(limiter.wait(key(number), cost, now), expected.err());
                prop_assert_eq!(limiter.check(key(number), cost, now).is_ok(), expected.is_ok());
            }
        }
    }
}

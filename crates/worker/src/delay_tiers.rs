//! Where a job waits that has to wait too long for memory. Pure.
//!
//! All records of one partition of the delayed topic wait equally long, so they come up in the
//! order in which they were written and none stands behind one that is due later. A partition's
//! length of waiting is six times that of the one before; a job takes the longest one that it does
//! not oversleep in, and when it comes up it waits once more, or goes back to the jobs topic if the
//! rest fits into memory.

use std::time::Duration;

use fleet_job::time::Timestamp;

/// How much longer the next partition waits.
const FACTOR: u32 = 6;
/// More partitions than this would be for longer waits than anybody has time for.
const MOST: i32 = 12;

/// The partitions of the delayed topic, as one fleet uses them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Tiers {
    partitions: i32,
    max_park: Duration,
}

/// What is next for a job that waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NextStop {
    /// It waits in this partition of the delayed topic, and is looked at again then.
    Wait(i32, Timestamp),
    /// It goes (back) to the jobs topic; the rest of the time it waits in memory.
    Return,
}

impl Tiers {
    /// Tiers over so many partitions, for a fleet whose workers keep what waits up to `max_park` in
    /// memory.
    pub(crate) fn new(partitions: i32, max_park: Duration) -> Self {
        Self { partitions: partitions.max(1), max_park }
    }

    /// How long records wait in this partition of the delayed topic.
    pub(crate) fn wait_in(&self, partition: i32) -> Duration {
        (0..partition.clamp(0, MOST)).fold(self.max_park / 2, |wait, _| wait.saturating_mul(FACTOR))
    }

    /// What is next, at `now`, for a job that is due at `until`.
    pub(crate) fn next_stop(&self, now: Timestamp, until: Timestamp) -> NextStop {
        let left = until.since(now);
        if left <= self.max_park {
            return NextStop::Return;
        }
        // The first one is shorter than `max_park`, so it always fits.
        let fits = |tier: &i32| self.wait_in(*tier) <= left;
        let tier = (1..self.partitions.min(MOST)).take_while(fits).last().unwrap_or(0);
        NextStop::Wait(tier, now.plus(self.wait_in(tier)))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_millis(seconds * 1000).unwrap()
    }

    #[test]
    fn a_job_takes_the_longest_wait_that_it_does_not_oversleep_in() {
        let tiers = Tiers::new(6, MINUTE);
        assert_eq!(tiers.next_stop(at(0), at(60)), NextStop::Return);
        assert_eq!(tiers.next_stop(at(0), at(61)), NextStop::Wait(0, at(30)));
        assert_eq!(tiers.next_stop(at(0), at(180)), NextStop::Wait(1, at(180)));
        assert_eq!(tiers.next_stop(at(0), at(7 * 86_400)), NextStop::Wait(5, at(30 * 7776)));
        assert_eq!(Tiers::new(1, MINUTE).next_stop(at(0), at(86_400)), NextStop::Wait(0, at(30)));
        assert_eq!(tiers.next_stop(at(100), at(0)), NextStop::Return);
    }

    proptest! {
        /// It arrives in time, after few waits.
        #[test]
        fn nobody_oversleeps(until in 0i64..10_000_000, partitions in 1i32..8) {
            let tiers = Tiers::new(partitions, MINUTE);
            let (mut now, mut waits) = (at(0), 0);
            while let NextStop::Wait(partition, look_at) = tiers.next_stop(now, at(until)) {
                prop_assert!((0..partitions).contains(&partition));
                prop_assert!(now < look_at && look_at <= at(until));
                now = look_at;
                waits += 1;
            }
            prop_assert!(partitions < 6 || waits < 80, "{waits} waits");
        }
    }
}

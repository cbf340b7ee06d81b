//! Where a job waits if its delay is too long for memory. Pure.
//!
//! All records in one partition of the delayed topic wait equally long, so they are due in the
//! order in which they were written, and no record stands behind one that is due later. Each
//! partition waits six times as long as the one before. A job takes the longest wait that does not
//! exceed its delay. When that wait is over, the job waits again, or returns to the jobs topic if
//! the rest of its delay fits into memory.

use std::time::Duration;

use fleet_job::time::Timestamp;

/// How many times longer each partition waits than the one before.
const FACTOR: u32 = 6;
/// How many partitions are used. More would wait longer than anybody needs.
const MAX_TIERS: i32 = 12;

/// The partitions of the delayed topic, and how long their records wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Tiers {
    partitions: i32,
    max_park: Duration,
}

/// Where a waiting job goes next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NextStop {
    /// To this partition of the delayed topic, until this time.
    Wait(i32, Timestamp),
    /// To the jobs topic; it waits in memory for the rest of its delay.
    Return,
}

impl Tiers {
    /// Tiers for a delayed topic with this number of partitions, and workers that park jobs in
    /// memory for up to `max_park`.
    pub(crate) fn new(partitions: i32, max_park: Duration) -> Self {
        Self { partitions: partitions.max(1), max_park }
    }

    /// How long records wait in a partition of the delayed topic.
    pub(crate) fn wait_in(&self, partition: i32) -> Duration {
        (0..partition.clamp(0, MAX_TIERS))
            .fold(self.max_park / 2, |wait, _| wait.saturating_mul(FACTOR))
    }

    /// Where a job that is due at `until` goes at `now`.
    pub(crate) fn next_stop(&self, now: Timestamp, until: Timestamp) -> NextStop {
        let left = until.since(now);
        if left <= self.max_park {
            return NextStop::Return;
        }

        // The first wait is shorter than `max_park`, so it always fits.
        let fits = |tier: &i32| self.wait_in(*tier) <= left;
        let tier = (1..self.partitions.min(MAX_TIERS)).take_while(fits).last().unwrap_or(0);
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

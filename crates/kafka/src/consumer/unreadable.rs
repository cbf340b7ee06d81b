//! Partitions that cannot be read, because the broker's answer cannot be decoded or because the
//! broker refuses to give one.
//!
//! librdkafka keeps retrying such a partition and reads the others. It reports each failure, but
//! rdkafka 0.39 does not pass on the partition. The statistics reveal it: the partition has more to
//! read and is not paused, but its offset does not advance while failures are reported.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use fleet_group::Partition;
use rdkafka::{error::RDKafkaErrorCode as Code, statistics};

/// Errors that keep a partition from being read until an operator fixes the cause.
const CAUSES: [Code; 9] = [
    Code::BadCompression,
    Code::BadMessage,
    Code::NotImplemented,
    Code::InvalidMessage,
    Code::InvalidMessageSize,
    Code::MessageSizeTooLarge,
    Code::UnsupportedCompressionType,
    Code::KafkaStorageError,
    Code::Unknown,
];

/// Detects partitions that cannot be read.
#[derive(Debug, Default)]
pub(super) struct Unreadable {
    /// The last failure since the last statistics.
    met: Option<Code>,
    paused: BTreeSet<Partition>,
    /// The next offset of each partition in the last statistics.
    before: HashMap<Partition, i64>,
    /// The partitions that cannot be read, with their next offsets.
    known: BTreeMap<Partition, i64>,
}

/// The partitions that cannot be read at present.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stuck {
    /// The partitions, each with the offset that cannot be read.
    pub partitions: Vec<(Partition, i64)>,
    /// librdkafka's error.
    pub why: String,
}

impl Unreadable {
    /// Returns whether this error keeps a partition from being read.
    pub(super) fn is_cause(code: Code) -> bool {
        CAUSES.contains(&code)
    }

    /// Records an error. Returns `false` if it is not one that keeps a partition from being read.
    pub(super) fn note_failure(&mut self, code: Code) -> bool {
        let is_cause = Self::is_cause(code);
        if is_cause {
            self.met = Some(code);
        }
        is_cause
    }

    /// Records that fetching the partition was paused or resumed.
    pub(super) fn set_paused(&mut self, partition: Partition, is_paused: bool) {
        match is_paused {
            true => self.paused.insert(partition),
            false => self.paused.remove(&partition),
        };
        self.before.remove(&partition);
    }

    /// Compares the statistics of our partitions with the last ones. Returns all unreadable
    /// partitions if they have changed.
    pub(super) fn compare_samples<'s>(
        &mut self,
        samples: impl Iterator<Item = (Partition, &'s statistics::Partition)>,
    ) -> Option<Stuck> {
        let met = self.met.take();
        let (mut before, mut known) = (HashMap::new(), BTreeMap::new());
        for (partition, sample) in samples {
            let next = sample.next_offset;
            before.insert(partition, next);
            // The end of a partition that was never read is unknown.
            let has_more = sample.ls_offset < 0 || next < sample.ls_offset;
            let stands = self.before.get(&partition) == Some(&next) && sample.fetchq_cnt == 0;
            let is_suspect = met.is_some() || self.known.get(&partition) == Some(&next);

            if is_suspect && stands && has_more && !self.paused.contains(&partition) {
                known.insert(partition, next);
            }
        }

        self.before = before;

        if known == self.known {
            return None;
        }

        self.known = known.clone();
        let why = met.map_or_else(String::new, |code| code.to_string());
        Some(Stuck { partitions: known.into_iter().collect(), why })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BAD: Partition = Partition { topic: 0, number: 0 };
    const GOOD: Partition = Partition { topic: 0, number: 1 };
    const PAUSED: Partition = Partition { topic: 0, number: 2 };

    fn sample(next_offset: i64, ls_offset: i64) -> statistics::Partition {
        statistics::Partition { next_offset, ls_offset, ..statistics::Partition::default() }
    }

    #[test]
    fn only_the_partition_that_does_not_advance_is_unreadable() {
        let mut unreadable = Unreadable::default();
        unreadable.set_paused(PAUSED, true);

        let look = |unreadable: &mut Unreadable, bad: i64, good: i64| {
            let samples = [(BAD, sample(bad, 9)), (GOOD, sample(good, 9)), (PAUSED, sample(3, 9))];
            let stuck = unreadable
                .compare_samples(samples.iter().map(|(partition, sample)| (*partition, sample)));
            stuck.map(|stuck| stuck.partitions)
        };

        assert!(!unreadable.note_failure(Code::BrokerTransportFailure));
        assert_eq!(look(&mut unreadable, 5, 0), None);
        assert_eq!(look(&mut unreadable, 5, 0), None, "no failure was reported");

        assert!(unreadable.note_failure(Code::BadCompression));
        assert_eq!(look(&mut unreadable, 5, 4), Some(vec![(BAD, 5)]));
        assert_eq!(look(&mut unreadable, 5, 9), None, "already known; the other one is at its end");

        assert!(unreadable.note_failure(Code::BadCompression));
        assert_eq!(look(&mut unreadable, 5, 9), None);
        assert_eq!(look(&mut unreadable, 6, 9), Some(Vec::new()), "readable again");
    }
}

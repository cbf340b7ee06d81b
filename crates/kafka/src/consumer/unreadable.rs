//! Partitions that can't be read on: the broker's answer can't be decoded, or it refuses to give
//! one.
//!
//! librdkafka keeps retrying such a partition and continues with the others. It reports each
//! failure, but rdkafka 0.39 does not pass on of which partition. That shows in the statistics:
//! while failures come, it is a partition that has more to read, and is not paused, and does not
//! move.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use fleet_group::Partition;
use rdkafka::{error::RDKafkaErrorCode as Code, statistics};

/// What keeps a partition from being read on until somebody mends it.
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

/// What is known of such partitions.
#[derive(Debug, Default)]
pub(super) struct Unreadable {
    /// The failure that was met last since the last sample.
    met: Option<Code>,
    paused: BTreeSet<Partition>,
    /// The next offset of each partition at the last sample.
    before: HashMap<Partition, i64>,
    /// The partitions that can't be read on, and where they stand.
    known: BTreeMap<Partition, i64>,
}

/// The partitions that can't be read on now, with the offset of each.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stuck {
    /// Which, and where they stand.
    pub partitions: Vec<(Partition, i64)>,
    /// What librdkafka says of it.
    pub why: String,
}

impl Unreadable {
    /// Whether an error is of this kind.
    pub(super) fn is_cause(code: Code) -> bool {
        CAUSES.contains(&code)
    }

    /// Takes note of an error; `false` if it is not of this kind.
    pub(super) fn met(&mut self, code: Code) -> bool {
        let is_cause = Self::is_cause(code);
        if is_cause {
            self.met = Some(code);
        }
        is_cause
    }

    /// The partition is read, or is not to be read for a while.
    pub(super) fn set_paused(&mut self, partition: Partition, is_paused: bool) {
        match is_paused {
            true => self.paused.insert(partition),
            false => self.paused.remove(&partition),
        };
        self.before.remove(&partition);
    }

    /// Compares the partitions that are ours with the last sample. Which can't be read on, if that
    /// has changed.
    pub(super) fn sampled<'s>(
        &mut self,
        samples: impl Iterator<Item = (Partition, &'s statistics::Partition)>,
    ) -> Option<Stuck> {
        let met = self.met.take();
        let (mut before, mut known) = (HashMap::new(), BTreeMap::new());
        for (partition, sample) in samples {
            let next = sample.next_offset;
            before.insert(partition, next);
            // Of a partition that was never read the end is not known.
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
    fn the_partition_that_stands_is_the_one() {
        let mut unreadable = Unreadable::default();
        unreadable.set_paused(PAUSED, true);
        let look = |unreadable: &mut Unreadable, bad: i64, good: i64| {
            let samples = [(BAD, sample(bad, 9)), (GOOD, sample(good, 9)), (PAUSED, sample(3, 9))];
            let stuck =
                unreadable.sampled(samples.iter().map(|(partition, sample)| (*partition, sample)));
            stuck.map(|stuck| stuck.partitions)
        };
        assert!(!unreadable.met(Code::BrokerTransportFailure));
        assert_eq!(look(&mut unreadable, 5, 0), None);
        assert_eq!(look(&mut unreadable, 5, 0), None, "nothing has failed");

        assert!(unreadable.met(Code::BadCompression));
        assert_eq!(look(&mut unreadable, 5, 4), Some(vec![(BAD, 5)]));
        assert_eq!(look(&mut unreadable, 5, 9), None, "known, and the other one is at its end");
        assert!(unreadable.met(Code::BadCompression));
        assert_eq!(look(&mut unreadable, 5, 9), None);
        assert_eq!(look(&mut unreadable, 6, 9), Some(Vec::new()), "readable again");
    }
}

//! Where logs end that have been read to their end.
//!
//! A log can end in offsets that are never delivered: transaction markers, and records that were
//! compacted or have expired. librdkafka tells when a partition has been read to its end, but
//! rdkafka 0.39 does not pass on the offset. The statistics have it, but not whether everything
//! below was delivered: what waits in librdkafka's queue is dropped, to be fetched again, whenever
//! fetching is paused, as it is in every rebalance. So an end that the statistics tell of is only
//! believed when it is reached once more after reading was set back to the position: what was told
//! of an end before that is dropped as well, and the log's end does not go back.

use std::{collections::HashMap, sync::atomic::Ordering, time::Duration};

use fleet_group::Partition;
use rdkafka::{
    Offset, Statistics, TopicPartitionList,
    consumer::{BaseConsumer, Consumer as _},
};

use super::{Event, context::Context};

/// How long setting back the reading of partitions may take. It is no request to a broker.
const SEEK_TIMEOUT: Duration = Duration::from_secs(1);

/// How far the ends of the partitions are known.
#[derive(Debug, Default)]
pub(super) struct Ends(HashMap<Partition, Known>);

#[derive(Debug, Default)]
struct Known {
    /// The next offset to read; `None` for the first one that there is.
    position: Option<i64>,
    /// The log was read to its end, wherever that was then.
    is_read: bool,
    /// All that there is below this has been read.
    end: i64,
    /// The same will be true of this when the end is reached once more.
    next_end: Option<i64>,
    /// An end to be made sure of.
    seen: Option<i64>,
}

impl Ends {
    /// An assignment of the partition begins at this position.
    pub(super) fn begin(&mut self, partition: Partition, position: Option<i64>) {
        self.0.insert(partition, Known { position, ..Known::default() });
    }

    /// Nobody can say where an assignment of the partition begins, so its end is not known before a
    /// record was read.
    pub(super) fn forget(&mut self, partition: Partition) {
        self.0.remove(&partition);
    }

    /// The record at this offset was read.
    pub(super) fn read(&mut self, partition: Partition, offset: i64) {
        self.0.entry(partition).or_default().position = Some(offset + 1);
    }

    /// Everything that there was of the partition has been read. The end that this makes certain,
    /// if any.
    fn reached(&mut self, partition: Partition) -> Option<i64> {
        let known = self.0.get_mut(&partition)?;
        known.is_read = true;
        known.end = known.next_end.take()?;
        Some(known.end)
    }

    /// Nothing is read for a while, so that the end says nothing about the position.
    pub(super) fn paused(&mut self, partition: Partition) {
        if let Some(known) = self.0.get_mut(&partition) {
            known.is_read = false;
        }
    }

    /// librdkafka says that the log ends here, and has so many records waiting. Whether the end has
    /// to be made sure of, because it lies beyond the position.
    fn sampled(&mut self, partition: Partition, end: i64, waiting: i64) -> bool {
        // What lies between may be waiting, and would be fetched again.
        if waiting > 0 {
            return false;
        }
        let Some(known) = self.0.get_mut(&partition).filter(|known| known.is_read) else {
            return false;
        };
        let is_news = end > known.end.max(known.position.unwrap_or_default());
        if is_news {
            known.seen = Some(end);
        }
        is_news
    }

    /// The partitions whose ends are to be made sure of, and their positions.
    fn doubtful(&self) -> Vec<(Partition, Option<i64>)> {
        let doubtful = self.0.iter().filter(|(_, known)| known.seen.is_some());
        doubtful.map(|(partition, known)| (*partition, known.position)).collect()
    }

    /// The partition is read from its position again, or can't be.
    fn set_back(&mut self, partition: Partition, is_set_back: bool) {
        if let Some(known) = self.0.get_mut(&partition) {
            known.next_end = known.seen.take().filter(|_| is_set_back);
        }
    }
}

impl Context {
    /// The log of the topic's partition of this number was read to its end.
    pub(super) fn reached_end(&self, number: i32) {
        let Some(partition) = self.partition(&self.topic, number) else { return };
        let end = self.known_ends().reached(partition);
        if let Some(end) = end {
            self.passed(partition, end);
            self.emit(Event::End(partition, end));
        }
    }

    /// Takes note of the ends that the statistics tell of.
    pub(super) fn sample_ends(&self, statistics: &Statistics) {
        let Some(topic) = statistics.topics.get(&self.topic) else { return };
        for sample in topic.partitions.values() {
            let partition = self.partition(&self.topic, sample.partition);
            if partition.is_some_and(|partition| {
                self.known_ends().sampled(partition, sample.eof_offset, sample.fetchq_cnt)
            }) {
                self.has_doubtful_end.store(true, Ordering::Relaxed);
            }
        }
    }

    /// On the poll thread: reads what there is from the position to the end once more, where the
    /// end is not certain.
    pub(super) fn make_sure_of_ends(&self, consumer: &BaseConsumer<Self>) {
        if !self.has_doubtful_end.swap(false, Ordering::Relaxed) {
            return;
        }
        let mut list = TopicPartitionList::new();
        let doubtful = self.known_ends().doubtful();
        for (partition, position) in &doubtful {
            let offset = position.map_or(Offset::Beginning, Offset::Offset);
            // Positions are not negative, which is all that librdkafka could object to.
            if let Err(error) = list.add_partition_offset(&self.topic, partition.number, offset) {
                tracing::error!(%error, ?partition, "an impossible position");
            }
        }

        let found = consumer.seek_partitions(list, SEEK_TIMEOUT);
        for (partition, _) in doubtful {
            let found = found
                .as_ref()
                .ok()
                .and_then(|list| list.find_partition(&self.topic, partition.number));
            let is_set_back = found.is_some_and(|element| element.error().is_ok());
            self.known_ends().set_back(partition, is_set_back);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const P: Partition = Partition { topic: 0, number: 3 };

    /// Reading is set back wherever an end is doubtful.
    fn set_back(ends: &mut Ends) {
        for (partition, _) in ends.doubtful() {
            ends.set_back(partition, true);
        }
    }

    #[test]
    fn an_end_is_certain_when_it_is_reached_once_more() {
        let mut ends = Ends::default();
        ends.begin(P, Some(5));
        assert!(!ends.sampled(P, 10, 0), "of an earlier assignment, perhaps");
        assert_eq!(ends.reached(P), None);
        ends.read(P, 7);
        assert!(!ends.sampled(P, 8, 0), "the record is the end");
        assert!(!ends.sampled(P, -1001, 0), "no end");
        assert!(!ends.sampled(P, 10, 2), "records may wait");
        ends.paused(P);
        assert!(!ends.sampled(P, 10, 0), "nothing is read");
        assert_eq!(ends.reached(P), None);

        assert!(ends.sampled(P, 10, 0));
        assert_eq!(ends.reached(P), None, "an end that was told before reading was set back");
        assert_eq!(ends.doubtful(), [(P, Some(8))]);
        set_back(&mut ends);
        assert_eq!(ends.doubtful(), []);
        // Another record was there after all.
        ends.read(P, 8);
        assert_eq!(ends.reached(P), Some(10));
        assert_eq!(ends.reached(P), None, "known");
        assert!(!ends.sampled(P, 10, 0), "known");
    }

    /// Or reading would be set back to the first record that there is, and every job that is kept
    /// would run again.
    #[test]
    fn an_unknown_position_makes_no_end_doubtful() {
        let mut ends = Ends::default();
        ends.begin(P, None);
        ends.forget(P);
        ends.reached(P);
        assert!(!ends.sampled(P, 10, 0));
        assert_eq!(ends.doubtful(), []);
        ends.read(P, 10);
        ends.reached(P);
        assert!(ends.sampled(P, 12, 0));
        assert_eq!(ends.doubtful(), [(P, Some(11))]);
    }

    #[test]
    fn an_end_that_could_not_be_made_sure_of_is_looked_at_again() {
        let mut ends = Ends::default();
        ends.begin(P, None);
        ends.reached(P);
        assert!(ends.sampled(P, 10, 0));
        assert_eq!(ends.doubtful(), [(P, None)]);
        ends.set_back(P, false);
        assert_eq!(ends.reached(P), None);
        assert!(ends.sampled(P, 10, 0));
        set_back(&mut ends);
        ends.begin(P, Some(0));
        assert_eq!(ends.reached(P), None, "of an earlier assignment");
    }
}

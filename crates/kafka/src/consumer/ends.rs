//! Finding the end of a log when its last offsets hold no records.
//!
//! A log can end in offsets that are never delivered: transaction markers, and records that were
//! compacted or have expired. librdkafka reports that a partition was read to its end, but rdkafka
//! 0.39 does not pass on the offset. The statistics have the offset, but do not tell whether
//! everything below it was delivered: whenever fetching is paused, as in every rebalance,
//! librdkafka drops what waits in its queue and fetches it again later. So an end in the statistics
//! counts only once it is verified: the reader seeks back to its position and reaches the end
//! again. The seek discards earlier end reports, and the end of a log never decreases.

use std::{collections::HashMap, sync::atomic::Ordering, time::Duration};

use fleet_group::Partition;
use rdkafka::{
    Offset, Statistics, TopicPartitionList,
    consumer::{BaseConsumer, Consumer as _},
};

use super::{Event, context::Context};

/// The timeout for seeking, which sends no request to a broker.
const SEEK_TIMEOUT: Duration = Duration::from_secs(1);

/// What is known of the ends of the partitions.
#[derive(Debug, Default)]
pub(super) struct Ends(HashMap<Partition, Known>);

#[derive(Debug, Default)]
struct Known {
    /// The next offset to read; `None` stands for the first one of the log.
    position: Option<i64>,
    /// Whether the log was read to its end, wherever the end was at that time.
    is_read: bool,
    /// Everything below this offset has been read.
    end: i64,
    /// Becomes `end` when the end of the log is reached again.
    next_end: Option<i64>,
    /// An end from the statistics that has to be verified.
    seen: Option<i64>,
}

impl Ends {
    /// Starts an assignment of the partition at this position.
    pub(super) fn begin_assignment(&mut self, partition: Partition, position: Option<i64>) {
        self.0.insert(partition, Known { position, ..Known::default() });
    }

    /// Marks the position of an assignment as unknown. No end is verified until a record has been
    /// read.
    pub(super) fn forget(&mut self, partition: Partition) {
        self.0.remove(&partition);
    }

    /// Records that the record at this offset was read.
    pub(super) fn note_read(&mut self, partition: Partition, offset: i64) {
        self.0.entry(partition).or_default().position = Some(offset + 1);
    }

    /// Records that the partition was read to its end. Returns the end that this verifies, if any.
    fn note_end(&mut self, partition: Partition) -> Option<i64> {
        let known = self.0.get_mut(&partition)?;
        known.is_read = true;
        known.end = known.next_end.take()?;
        Some(known.end)
    }

    /// Records that fetching is paused, so that ends say nothing about the position.
    pub(super) fn note_paused(&mut self, partition: Partition) {
        if let Some(known) = self.0.get_mut(&partition) {
            known.is_read = false;
        }
    }

    /// Takes the end of the log and the number of queued records from the statistics. Returns
    /// whether the end has to be verified, because it lies beyond the position.
    fn note_sample(&mut self, partition: Partition, end: i64, waiting: i64) -> bool {
        // Queued records may account for the gap; a seek would fetch them again.
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

    /// Returns the partitions whose ends have to be verified, with their positions.
    fn unverified(&self) -> Vec<(Partition, Option<i64>)> {
        let doubtful = self.0.iter().filter(|(_, known)| known.seen.is_some());
        doubtful.map(|(partition, known)| (*partition, known.position)).collect()
    }

    /// Records whether the seek back to the partition's position succeeded.
    fn note_seek(&mut self, partition: Partition, is_set_back: bool) {
        if let Some(known) = self.0.get_mut(&partition) {
            known.next_end = known.seen.take().filter(|_| is_set_back);
        }
    }
}

impl Context {
    /// Handles librdkafka's report that a partition was read to its end.
    pub(super) fn handle_end(&self, number: i32) {
        let Some(partition) = self.partition(&self.topic, number) else { return };

        let end = self.known_ends().note_end(partition);
        if let Some(end) = end {
            self.mark_read_up_to(partition, end);
            self.emit(Event::End(partition, end));
        }
    }

    /// Records the ends that the statistics show.
    pub(super) fn sample_ends(&self, statistics: &Statistics) {
        let Some(topic) = statistics.topics.get(&self.topic) else { return };
        for sample in topic.partitions.values() {
            let partition = self.partition(&self.topic, sample.partition);
            if partition.is_some_and(|partition| {
                self.known_ends().note_sample(partition, sample.eof_offset, sample.fetchq_cnt)
            }) {
                self.has_unverified_end.store(true, Ordering::Relaxed);
            }
        }
    }

    /// On the poll thread: seeks back to the position of each partition with an unverified end, so
    /// that the end is reached again.
    pub(super) fn verify_ends(&self, consumer: &BaseConsumer<Self>) {
        if !self.has_unverified_end.swap(false, Ordering::Relaxed) {
            return;
        }

        let mut list = TopicPartitionList::new();
        let doubtful = self.known_ends().unverified();

        for (partition, position) in &doubtful {
            let offset = position.map_or(Offset::Beginning, Offset::Offset);
            // librdkafka rejects only negative offsets, and positions never are.
            if let Err(error) = list.add_partition_offset(&self.topic, partition.number, offset) {
                tracing::error!(%error, ?partition, "invalid position; the end of the partition stays unverified");
            }
        }

        let found = consumer.seek_partitions(list, SEEK_TIMEOUT);
        for (partition, _) in doubtful {
            let found = found
                .as_ref()
                .ok()
                .and_then(|list| list.find_partition(&self.topic, partition.number));
            let is_set_back = found.is_some_and(|element| element.error().is_ok());
            self.known_ends().note_seek(partition, is_set_back);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const P: Partition = Partition { topic: 0, number: 3 };

    /// Pretends that the seek succeeded for every unverified end.
    fn seek_all(ends: &mut Ends) {
        for (partition, _) in ends.unverified() {
            ends.note_seek(partition, true);
        }
    }

    #[test]
    fn an_end_counts_once_it_is_reached_again_after_a_seek() {
        let mut ends = Ends::default();
        ends.begin_assignment(P, Some(5));
        assert!(!ends.note_sample(P, 10, 0), "may belong to an earlier assignment");
        assert_eq!(ends.note_end(P), None);
        ends.note_read(P, 7);
        assert!(!ends.note_sample(P, 8, 0), "the last record read is the end");
        assert!(!ends.note_sample(P, -1001, 0), "the end is unknown");
        assert!(!ends.note_sample(P, 10, 2), "records may be queued");
        ends.note_paused(P);
        assert!(!ends.note_sample(P, 10, 0), "fetching is paused");
        assert_eq!(ends.note_end(P), None);

        assert!(ends.note_sample(P, 10, 0));
        assert_eq!(ends.note_end(P), None, "reported before the seek");
        assert_eq!(ends.unverified(), [(P, Some(8))]);
        seek_all(&mut ends);
        assert_eq!(ends.unverified(), []);
        // There was another record after all.
        ends.note_read(P, 8);
        assert_eq!(ends.note_end(P), Some(10));
        assert_eq!(ends.note_end(P), None, "already known");
        assert!(!ends.note_sample(P, 10, 0), "already known");
    }

    /// A seek would go to the first record of the log, and every job in it would run again.
    #[test]
    fn an_end_is_not_verified_while_the_position_is_unknown() {
        let mut ends = Ends::default();
        ends.begin_assignment(P, None);
        ends.forget(P);
        ends.note_end(P);
        assert!(!ends.note_sample(P, 10, 0));
        assert_eq!(ends.unverified(), []);

        ends.note_read(P, 10);
        ends.note_end(P);
        assert!(ends.note_sample(P, 12, 0));
        assert_eq!(ends.unverified(), [(P, Some(11))]);
    }

    #[test]
    fn an_end_whose_seek_failed_is_verified_later() {
        let mut ends = Ends::default();
        ends.begin_assignment(P, None);
        ends.note_end(P);
        assert!(ends.note_sample(P, 10, 0));
        assert_eq!(ends.unverified(), [(P, None)]);

        ends.note_seek(P, false);
        assert_eq!(ends.note_end(P), None);

        assert!(ends.note_sample(P, 10, 0));
        seek_all(&mut ends);
        ends.begin_assignment(P, Some(0));
        assert_eq!(ends.note_end(P), None, "belongs to an earlier assignment");
    }
}

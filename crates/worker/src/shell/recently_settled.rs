//! The records that this worker has settled recently. If a commit is lost, they are read again and
//! must not be run again. Pure.

use std::{
    collections::{HashMap, VecDeque},
    hash::{DefaultHasher, Hash as _, Hasher as _},
    sync::Arc,
    time::{Duration, Instant},
};

use fleet_group::{Partition, log::LogName};
use fleet_job::{
    delayed::Delayed,
    record::{Header, RawRecord},
    time::Timestamp,
};
use fleet_kafka::producer::Outgoing;
use foldhash::fast::RandomState;

/// How many records are remembered.
const MAX_RECORDS: usize = 65_536;
/// How many bytes of memory the remembered events may take.
const MAX_BYTES: usize = 8 << 20;
/// How long a record is remembered. By then, a partition that left with uncommitted ends is back or
/// belongs to another worker.
const WINDOW: Duration = Duration::from_secs(600);

/// Identifies a record. Offsets start again when a topic is deleted and made again, so the name of
/// the log is part of the identity. If the broker has no topic ids, job id and timestamp tell such
/// records apart.
///
/// A record that came back from the delayed topic is identified by the record that it continues,
/// because it can stand in the log twice: a producer whose acknowledgement was lost writes it again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct RecordIdentity {
    log: LogName,
    partition: Partition,
    offset: i64,
    content: u64,
}

impl RecordIdentity {
    pub(super) fn new(
        log: LogName,
        partition: Partition,
        offset: i64,
        job_id: &str,
        timestamp: Option<Timestamp>,
    ) -> Self {
        let mut hasher = DefaultHasher::new();
        (job_id, timestamp).hash(&mut hasher);
        Self { log, partition, offset, content: hasher.finish() }
    }

    /// Identifies a job's `record` that came back with `header`, and all its copies; `None` if the
    /// header does not say which record it continues.
    pub(super) fn of_returned(
        log: LogName,
        partition: Partition,
        record: &RawRecord,
        header: &Delayed,
    ) -> Option<Self> {
        let offset = header.continues?;
        let first = (&header.topic_id, header.partition, header.offset, header.timestamp);
        let mut hasher = DefaultHasher::new();
        // Copies are alike to the byte. A record that only claims to be one must not take a job's
        // place.
        ("returned", first, &record.key, &record.value).hash(&mut hasher);
        Some(Self { log, partition, offset, content: hasher.finish() })
    }
}

/// Records settled within the last [`WINDOW`], with their terminal events. A record that was passed
/// on has no event.
#[derive(Debug, Default)]
pub(super) struct RecentlySettled {
    known: HashMap<RecordIdentity, Option<Arc<Outgoing>>, RandomState>,
    order: VecDeque<(Instant, RecordIdentity)>,
    bytes: usize,
}

impl RecentlySettled {
    pub(super) fn remember(
        &mut self,
        now: Instant,
        settled: RecordIdentity,
        event: Option<Arc<Outgoing>>,
    ) {
        self.bytes += memory_size(event.as_deref());
        match self.known.insert(settled, event) {
            // It was read and run again, because it had been forgotten or could not be known.
            Some(before) => self.bytes -= memory_size(before.as_deref()),
            None => self.order.push_back((now, settled)),
        }
        self.forget_old(now);
    }

    /// The terminal event of a record or of its copy, if one of them is remembered.
    pub(super) fn recall(
        &mut self,
        now: Instant,
        settled: &RecordIdentity,
    ) -> Option<Option<Arc<Outgoing>>> {
        self.forget_old(now);
        self.known.get(settled).cloned()
    }

    /// Forgets the records of partitions whose log was replaced.
    pub(super) fn forget_partitions(&mut self, partitions: &[Partition]) {
        let is_gone = |settled: &RecordIdentity| partitions.contains(&settled.partition);
        for (_, event) in self.known.extract_if(|settled, _| is_gone(settled)) {
            self.bytes -= memory_size(event.as_deref());
        }
        self.order.retain(|(_, settled)| !is_gone(settled));
    }

    fn forget_old(&mut self, now: Instant) {
        while let Some((at, settled)) = self.order.front()
            && (self.order.len() > MAX_RECORDS
                || self.bytes > MAX_BYTES
                || now.duration_since(*at) > WINDOW)
        {
            let event = self.known.remove(settled).flatten();
            self.bytes -= memory_size(event.as_deref());
            self.order.pop_front();
        }
    }
}

/// How many bytes an event takes in memory.
fn memory_size(event: Option<&Outgoing>) -> usize {
    let Some(Outgoing { topic, key, value, headers, .. }) = event else { return 0 };
    let capacity = |bytes: &Option<Vec<u8>>| bytes.as_ref().map_or(0, Vec::capacity);
    let headers =
        headers.iter().map(|(name, value)| size_of::<Header>() + name.capacity() + capacity(value));
    size_of::<Outgoing>()
        + topic.capacity()
        + capacity(key)
        + capacity(value)
        + headers.sum::<usize>()
}

#[cfg(test)]
mod tests {
    use fleet_job::record::Position;

    use super::*;

    const P: Partition = Partition { topic: 0, number: 0 };
    const LOG: LogName = LogName { cluster: 1, topic: 2 };

    fn event(bytes: usize) -> Option<Arc<Outgoing>> {
        Some(Arc::new(Outgoing { value: Some(vec![0; bytes]), ..Outgoing::default() }))
    }

    #[test]
    fn a_record_is_known_for_a_while_with_its_end() {
        let (mut window, now) = (RecentlySettled::default(), Instant::now());
        let settled = RecordIdentity::new(LOG, P, 7, "job", None);
        assert!(window.recall(now, &settled).is_none());

        window.remember(now, settled, event(3));
        let end = window.recall(now + WINDOW, &settled).unwrap().unwrap();
        assert_eq!(end.value.as_ref().unwrap().len(), 3);

        let remade = LogName { topic: 3, ..LOG };
        for (other, why) in [
            (RecordIdentity::new(LOG, P, 7, "another", None), "made again, without ids"),
            (RecordIdentity::new(remade, P, 7, "job", None), "made again"),
            (RecordIdentity::new(LOG, P, 8, "job", None), "another record"),
        ] {
            assert!(window.recall(now, &other).is_none(), "{why}");
        }

        let later = now + WINDOW + Duration::from_secs(1);
        assert!(window.recall(later, &settled).is_none());
        assert_eq!(window.bytes, 0);
    }

    /// The header of a job that comes back for the record at `continues`.
    fn header(continues: Option<i64>) -> Delayed {
        Delayed {
            group: "workers".to_owned(),
            topic: "jobs".to_owned(),
            topic_id: None,
            partition: 0,
            offset: 5,
            continues,
            timestamp: None,
            until: Timestamp::MIN,
            look_at: Timestamp::MIN,
            attempts: 0,
            first_error: None,
            waiting: None,
        }
    }

    fn record(value: &str) -> RawRecord {
        RawRecord {
            position: Position { topic: "jobs".to_owned(), partition: 0, offset: 0 },
            timestamp: None,
            key: None,
            value: Some(value.into()),
            headers: Vec::new(),
        }
    }

    #[test]
    fn copies_of_a_returned_record_are_the_same_and_nothing_else_is() {
        let returned = |continues, value: &str| {
            RecordIdentity::of_returned(LOG, P, &record(value), &header(continues))
        };

        let it = returned(Some(5), "a job");
        assert_eq!(it, returned(Some(5), "a job"));
        assert_ne!(it, returned(Some(20), "a job"), "the next return of the job");
        assert_ne!(it, returned(Some(5), "another job"), "a record that claims to be a copy");
        assert_ne!(it, Some(RecordIdentity::new(LOG, P, 5, "job", None)), "the deferred record");
        assert_eq!(returned(None, "a job"), None);
    }

    #[test]
    fn what_was_settled_in_a_log_that_is_gone_is_forgotten() {
        let (mut window, now, q) =
            (RecentlySettled::default(), Instant::now(), Partition { topic: 0, number: 1 });
        let [gone, kept] =
            [P, q].map(|partition| RecordIdentity::new(LOG, partition, 7, "job", None));
        window.remember(now, gone, event(3));
        window.remember(now, kept, None);

        window.forget_partitions(&[P]);
        assert!(window.recall(now, &gone).is_none() && window.recall(now, &kept).is_some());
        assert_eq!(window.order.len(), 1);
    }

    #[test]
    fn memory_is_bounded() {
        let (mut window, now) = (RecentlySettled::default(), Instant::now());

        let all = MAX_RECORDS as i64 + 10;
        (0..all).for_each(|offset| {
            window.remember(now, RecordIdentity::new(LOG, P, offset, "job", None), None)
        });

        assert!(window.order.len() <= MAX_RECORDS && window.known.len() == window.order.len());
        let mut is_known = |offset| {
            let settled = RecordIdentity::new(LOG, P, offset, "job", None);
            window.recall(now, &settled).is_some()
        };
        assert!(is_known(all - 1) && !is_known(0));

        for offset in 0..4 {
            window.remember(
                now,
                RecordIdentity::new(LOG, P, offset, "large", None),
                event(MAX_BYTES / 2 - size_of::<Outgoing>()),
            );
        }

        assert!(window.bytes <= MAX_BYTES, "{}", window.bytes);
        assert_eq!(window.known.len(), 2, "the newest two have room");

        window.remember(now, RecordIdentity::new(LOG, P, 3, "large", None), event(1));
        assert_eq!(
            (window.known.len(), window.bytes),
            (2, MAX_BYTES / 2 + size_of::<Outgoing>() + 1)
        );
    }
}

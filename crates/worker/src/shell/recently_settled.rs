//! The records that this worker has settled recently. If a commit is lost, they are read again and
//! must not be run again. Pure.

use std::{
    collections::{HashMap, VecDeque},
    hash::{DefaultHasher, Hash as _, Hasher as _},
    sync::Arc,
    time::{Duration, Instant},
};

use fleet_group::{Partition, log::LogName};
use fleet_job::{delayed::Delayed, record::Header, time::Timestamp};
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

    /// Identifies a job's record that came back with `header`, and all its copies; `None` if the
    /// header does not say which record it continues.
    pub(super) fn of_returned(
        log: LogName,
        partition: Partition,
        job_id: &str,
        header: &Delayed,
    ) -> Option<Self> {
        let offset = header.continues?;
        let first = (&header.topic_id, header.partition, header.offset, header.timestamp);
        let mut hasher = DefaultHasher::new();
        ("returned", job_id, first).hash(&mut hasher);
        Some(Self { log, partition, offset, content: hasher.finish() })
    }
}

/// What is remembered of a settled record.
#[derive(Debug, Clone)]
struct Settled {
    /// Its offset, which tells it from its copies.
    offset: i64,
    /// Its terminal event; `None` if it was passed on.
    end: Option<Arc<Outgoing>>,
}

/// How a record has been settled here before.
#[derive(Debug, Clone)]
pub(super) enum Recalled {
    /// By this terminal event.
    Ended(Arc<Outgoing>),
    /// It was passed on.
    PassedOn,
    /// It is the copy of a record that was settled.
    Copy,
}

/// Records settled within the last [`WINDOW`].
#[derive(Debug, Default)]
pub(super) struct RecentlySettled {
    known: HashMap<RecordIdentity, Settled, RandomState>,
    order: VecDeque<(Instant, RecordIdentity)>,
    bytes: usize,
}

impl RecentlySettled {
    /// Remembers the record at `offset`, with its terminal event if it was not passed on.
    pub(super) fn remember(
        &mut self,
        now: Instant,
        settled: RecordIdentity,
        offset: i64,
        end: Option<Arc<Outgoing>>,
    ) {
        self.bytes += memory_size(end.as_deref());
        match self.known.insert(settled, Settled { offset, end }) {
            // It was read and run again, because it had been forgotten or could not be known.
            Some(before) => self.bytes -= memory_size(before.end.as_deref()),
            None => self.order.push_back((now, settled)),
        }
        self.forget_old(now);
    }

    /// How the record at `offset` was settled, if it is remembered.
    pub(super) fn recall(
        &mut self,
        now: Instant,
        settled: &RecordIdentity,
        offset: i64,
    ) -> Option<Recalled> {
        self.forget_old(now);

        let known = self.known.get(settled)?;
        Some(match &known.end {
            _ if known.offset != offset => Recalled::Copy,
            Some(end) => Recalled::Ended(end.clone()),
            None => Recalled::PassedOn,
        })
    }

    /// Forgets the records of partitions whose log was replaced.
    pub(super) fn forget_partitions(&mut self, partitions: &[Partition]) {
        let is_gone = |settled: &RecordIdentity| partitions.contains(&settled.partition);
        for (_, known) in self.known.extract_if(|settled, _| is_gone(settled)) {
            self.bytes -= memory_size(known.end.as_deref());
        }
        self.order.retain(|(_, settled)| !is_gone(settled));
    }

    fn forget_old(&mut self, now: Instant) {
        while let Some((at, settled)) = self.order.front()
            && (self.order.len() > MAX_RECORDS
                || self.bytes > MAX_BYTES
                || now.duration_since(*at) > WINDOW)
        {
            let known = self.known.remove(settled);
            self.bytes -= memory_size(known.and_then(|known| known.end).as_deref());
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
        assert!(window.recall(now, &settled, 7).is_none());

        window.remember(now, settled, 7, event(3));
        let Some(Recalled::Ended(end)) = window.recall(now + WINDOW, &settled, 7) else {
            panic!("its end is not known")
        };
        assert_eq!(end.value.as_ref().unwrap().len(), 3);

        let remade = LogName { topic: 3, ..LOG };
        for (other, why) in [
            (RecordIdentity::new(LOG, P, 7, "another", None), "made again, without ids"),
            (RecordIdentity::new(remade, P, 7, "job", None), "made again"),
            (RecordIdentity::new(LOG, P, 8, "job", None), "another record"),
        ] {
            assert!(window.recall(now, &other, 7).is_none(), "{why}");
        }

        let later = now + WINDOW + Duration::from_secs(1);
        assert!(window.recall(later, &settled, 7).is_none());
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

    #[test]
    fn a_copy_is_told_from_the_record_and_from_the_next_return_of_its_job() {
        let (mut window, now) = (RecentlySettled::default(), Instant::now());
        let returned = |continues| {
            RecordIdentity::of_returned(LOG, P, "job", &header(Some(continues))).unwrap()
        };
        window.remember(now, returned(5), 20, event(3));
        window.remember(now, returned(20), 30, None);

        assert!(matches!(window.recall(now, &returned(5), 20), Some(Recalled::Ended(_))));
        assert!(matches!(window.recall(now, &returned(5), 21), Some(Recalled::Copy)));
        assert!(matches!(window.recall(now, &returned(20), 30), Some(Recalled::PassedOn)));
        assert!(matches!(window.recall(now, &returned(20), 31), Some(Recalled::Copy)));
        assert!(window.recall(now, &returned(30), 40).is_none());

        let first = RecordIdentity::new(LOG, P, 5, "job", None);
        assert_ne!(first, returned(5), "the record that was deferred is none of its returns");
        assert_eq!(RecordIdentity::of_returned(LOG, P, "job", &header(None)), None);
    }

    #[test]
    fn what_was_settled_in_a_log_that_is_gone_is_forgotten() {
        let (mut window, now, q) =
            (RecentlySettled::default(), Instant::now(), Partition { topic: 0, number: 1 });
        let [gone, kept] =
            [P, q].map(|partition| RecordIdentity::new(LOG, partition, 7, "job", None));
        window.remember(now, gone, 7, event(3));
        window.remember(now, kept, 7, None);

        window.forget_partitions(&[P]);
        assert!(window.recall(now, &gone, 7).is_none() && window.recall(now, &kept, 7).is_some());
        assert_eq!(window.order.len(), 1);
    }

    #[test]
    fn memory_is_bounded() {
        let (mut window, now) = (RecentlySettled::default(), Instant::now());

        let all = MAX_RECORDS as i64 + 10;
        (0..all).for_each(|offset| {
            window.remember(now, RecordIdentity::new(LOG, P, offset, "job", None), offset, None)
        });

        assert!(window.order.len() <= MAX_RECORDS && window.known.len() == window.order.len());
        let mut is_known = |offset| {
            let settled = RecordIdentity::new(LOG, P, offset, "job", None);
            window.recall(now, &settled, offset).is_some()
        };
        assert!(is_known(all - 1) && !is_known(0));

        for offset in 0..4 {
            window.remember(
                now,
                RecordIdentity::new(LOG, P, offset, "large", None),
                offset,
                event(MAX_BYTES / 2 - size_of::<Outgoing>()),
            );
        }

        assert!(window.bytes <= MAX_BYTES, "{}", window.bytes);
        assert_eq!(window.known.len(), 2, "the newest two have room");

        window.remember(now, RecordIdentity::new(LOG, P, 3, "large", None), 3, event(1));
        assert_eq!(
            (window.known.len(), window.bytes),
            (2, MAX_BYTES / 2 + size_of::<Outgoing>() + 1)
        );
    }
}

//! The consumer's context: the state that the member's threads share, and librdkafka's callbacks
//! for statistics and errors. `rebalance` has the callbacks for rebalances.

use std::{
    collections::{HashMap, HashSet},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use fleet_group::Partition;
use parking_lot::{Mutex, MutexGuard};
use rdkafka::{
    ClientContext, Statistics, TopicPartitionList,
    client::OAuthToken,
    config::RDKafkaLogLevel,
    error::{KafkaError as Native, RDKafkaErrorCode},
    statistics,
};

use super::{
    Event, Reach, ends::Ends, identity::LogIdentity, member::Channel, membership::Membership,
    unreadable::Unreadable, wakeup::Wakeup,
};
use crate::quiet_context::FailureLog;

/// How often the engine is told what it knows already.
const TOLD_AGAIN: Duration = Duration::from_secs(10);

pub(super) struct Context {
    pub(super) channel: Channel,
    pub(super) membership: Arc<Membership>,
    /// Wakes the poll thread.
    pub(super) wakeup: Arc<Wakeup>,
    /// Set by every callback. A poll that ran only callbacks returns nothing, as an empty one does.
    pub(super) called_back: AtomicBool,
    /// Set once the member is leaving the group; rebalances are ignored from then on.
    pub(super) closing: AtomicBool,
    /// The topic that this member follows.
    pub(super) topic: String,
    /// The index of that topic, which its partitions carry.
    number: u16,
    pub(super) drain: Duration,
    /// What has been logged of librdkafka's failures.
    failures: FailureLog,
    /// The log that currently has the topic's name.
    identity: Mutex<LogIdentity>,
    /// Set when the topic may have been deleted and created again.
    pub(super) recreated: AtomicBool,
    /// Set if the topic did not exist when a broker was last asked for its id.
    is_missing: AtomicBool,
    /// Set whenever a record is read; the watch thread clears it.
    pub(super) has_read: AtomicBool,
    /// The last offset read of each partition under its current assignment.
    last_read: Mutex<HashMap<Partition, i64>>,
    /// The known ends of the partitions.
    ends: Mutex<Ends>,
    /// Set when one of those ends has to be verified.
    pub(super) has_unverified_end: AtomicBool,
    /// The partitions that cannot be read.
    unreadable: Mutex<Unreadable>,
    /// What the engine was told of the last statistics.
    told: Mutex<Told>,
    /// The partitions that had no committed offset when they were assigned.
    without_commit: Mutex<HashSet<Partition>>,
    /// The number of assignments so far.
    generations: AtomicU64,
    /// Held during commits, so that no commit overtakes another and none follows a partition's last
    /// one.
    committing: Mutex<()>,
}

/// What the engine was told of the last statistics, so that an idle worker is not woken to hear the
/// same again.
#[derive(Debug, Default)]
struct Told {
    lag: Vec<(Partition, i64)>,
    /// `None` if everything has to be told.
    reach: Option<(Reach, Instant)>,
}

impl Told {
    /// Returns whether the engine has to be told: something has changed, something is out of reach
    /// (the engine counts for how long), or the last time is long ago.
    fn is_news(&mut self, lag: &[(Partition, i64)], reach: Reach, now: Instant) -> bool {
        let is_known = self.reach.is_some_and(|(told, at)| {
            told == reach && reach.broker && reach.group && now.duration_since(at) < TOLD_AGAIN
        });
        if is_known && self.lag == lag {
            return false;
        }

        self.lag = lag.to_vec();
        self.reach = Some((reach, now));
        true
    }
}

impl Context {
    pub(super) fn new(
        channel: Channel,
        membership: Arc<Membership>,
        wakeup: Arc<Wakeup>,
        number: u16,
        topic: String,
        drain: Duration,
    ) -> Self {
        Self {
            channel,
            membership,
            wakeup,
            called_back: AtomicBool::new(false),
            closing: AtomicBool::new(false),
            topic,
            number,
            drain,
            failures: FailureLog::default(),
            identity: Mutex::default(),
            recreated: AtomicBool::new(false),
            is_missing: AtomicBool::new(false),
            has_read: AtomicBool::new(false),
            last_read: Mutex::default(),
            ends: Mutex::default(),
            has_unverified_end: AtomicBool::new(false),
            unreadable: Mutex::default(),
            told: Mutex::default(),
            without_commit: Mutex::default(),
            generations: AtomicU64::new(0),
            committing: Mutex::default(),
        }
    }

    pub(super) fn emit(&self, event: Event) {
        // The receiver is dropped only when the worker ends.
        if self.channel.sender.send(event).is_err() {
            tracing::debug!("dropped an event of the poll thread: its receiver is gone");
        }
    }

    /// Waits for the commit under way, if any, and prevents others from starting.
    pub(super) fn lock_commits(&self) -> MutexGuard<'_, ()> {
        self.committing.lock()
    }

    /// Begins a new assignment of a partition and returns its generation.
    pub(super) fn begin_assignment(
        &self,
        partition: Partition,
        committed: Option<(i64, String)>,
    ) -> u64 {
        let generation = self.generations.fetch_add(1, Ordering::Relaxed) + 1;

        self.known_ends()
            .begin_assignment(partition, committed.as_ref().map(|(offset, _)| *offset));
        let has_commit = committed.is_some();
        self.membership.take_ownership(partition, generation, self.identity().name(), committed);

        let mut without_commit = self.without_commit();
        match has_commit {
            true => without_commit.remove(&partition),
            false => without_commit.insert(partition),
        };
        drop(without_commit);

        self.last_read().remove(&partition);
        self.unreadable().set_paused(partition, false);
        self.tell_all_again();

        generation
    }

    /// Makes the next statistics news for the engine, whatever they say.
    pub(super) fn tell_all_again(&self) {
        *self.told.lock() = Told::default();
    }

    pub(super) fn identity(&self) -> LogIdentity {
        self.identity.lock().clone()
    }

    pub(super) fn set_identity(&self, log: LogIdentity) {
        *self.identity.lock() = log;
    }

    /// Returns whether the topic did not exist when a broker was last asked for its id.
    pub(super) fn is_topic_missing(&self) -> bool {
        self.is_missing.load(Ordering::Relaxed)
    }

    /// Records whether the topic exists, and reports a change.
    pub(super) fn note_topic(&self, exists: bool) {
        if self.is_missing.swap(!exists, Ordering::Relaxed) == exists {
            self.emit(Event::Topic(self.number, exists));
        }
    }

    fn without_commit(&self) -> MutexGuard<'_, HashSet<Partition>> {
        self.without_commit.lock()
    }

    fn last_read(&self) -> MutexGuard<'_, HashMap<Partition, i64>> {
        self.last_read.lock()
    }

    pub(super) fn known_ends(&self) -> MutexGuard<'_, Ends> {
        self.ends.lock()
    }

    pub(super) fn unreadable(&self) -> MutexGuard<'_, Unreadable> {
        self.unreadable.lock()
    }

    /// Reports which of this member's partitions cannot be read, if that has changed.
    fn report_unreadable(&self, statistics: &Statistics) {
        let Some(topic) = statistics.topics.get(&self.topic) else { return };

        let owned = self.membership.all_owned();
        let samples = topic.partitions.values().filter_map(|sample| {
            let partition = self.partition(&self.topic, sample.partition)?;
            owned.contains(&partition).then_some((partition, sample))
        });

        let stuck = self.unreadable().compare_samples(samples);
        if let Some(stuck) = stuck {
            self.emit(Event::Unreadable(self.number, stuck));
        }
    }

    /// Returns whether nothing of a partition has been read under its current assignment.
    pub(super) fn is_unread(&self, partition: Partition) -> bool {
        !self.last_read().contains_key(&partition)
    }

    /// Records that an offset was read. Returns the offset read before it, unless that one is
    /// lower.
    pub(super) fn note_read_offset(&self, partition: Partition, offset: i64) -> Option<i64> {
        self.last_read().insert(partition, offset).filter(|last| *last >= offset)
    }

    /// Records that nothing below `end` is left to read. A later record below `end` shows that the
    /// log was truncated.
    pub(super) fn mark_read_up_to(&self, partition: Partition, end: i64) {
        let mut read = self.last_read();
        let last = read.entry(partition).or_insert(end - 1);
        *last = (*last).max(end - 1);
    }

    /// Returns the partition with this number, if this member follows `topic`.
    pub(super) fn partition(&self, topic: &str, number: i32) -> Option<Partition> {
        (topic == self.topic).then_some(Partition { topic: self.number, number })
    }

    pub(super) fn partitions_in(&self, list: &TopicPartitionList) -> Vec<Partition> {
        list.elements()
            .iter()
            .filter_map(|element| self.partition(element.topic(), element.partition()))
            .collect()
    }

    pub(super) fn partition_list(
        &self,
        partitions: impl IntoIterator<Item = Partition>,
    ) -> TopicPartitionList {
        let mut list = TopicPartitionList::new();
        for partition in partitions {
            list.add_partition(&self.topic, partition.number);
        }
        list
    }
}

impl ClientContext for Context {
    /// A line of the log is an event of its own in the queue that is polled.
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        self.called_back.store(true, Ordering::Relaxed);
        self.failures.log_line(level, facility, message);
    }

    fn stats(&self, statistics: Statistics) {
        self.called_back.store(true, Ordering::Relaxed);
        self.membership.note_statistics(&statistics);

        let lag = statistics.topics.values().flat_map(|topic| {
            topic.partitions.values().filter_map(|stats| {
                let partition = self.partition(&topic.topic, stats.partition)?;
                let is_without_commit = self.without_commit().contains(&partition);
                Some((partition, lag(stats, is_without_commit)?))
            })
        });
        let mut lag: Vec<_> = lag.collect();
        lag.sort_unstable();

        self.sample_ends(&statistics);
        self.report_unreadable(&statistics);

        let group = statistics
            .cgrp
            .is_some_and(|group| group.state == "up" && group.join_state == "steady");
        let broker = statistics.brokers.values().any(|broker| broker.state == "UP");
        let reach = Reach { broker, group };

        if self.told.lock().is_news(&lag, reach, Instant::now()) {
            if !lag.is_empty() {
                self.emit(Event::Lag(lag));
            }
            self.emit(Event::Reach(self.number, reach));
        }
    }

    fn error(&self, error: Native, reason: &str) {
        self.called_back.store(true, Ordering::Relaxed);
        match error.rdkafka_error_code() {
            Some(RDKafkaErrorCode::PartitionEOF) => {}
            // Repeats endlessly; reported once per partition by `report_unreadable`.
            Some(code) if Unreadable::is_cause(code) => {
                tracing::debug!(%error, reason, "Kafka error")
            }
            _ => self.failures.log_error(&error, reason),
        }
    }

    fn generate_oauth_token(
        &self,
        _: Option<&str>,
    ) -> Result<OAuthToken, Box<dyn std::error::Error>> {
        Err("only sasl.oauthbearer.method=oidc is supported; set it together with sasl.oauthbearer.token.endpoint.url".into())
    }
}

/// Returns how far the group lags behind the end of a partition, if that is known. librdkafka does
/// not report the lag of a partition without a commit, where all records are still to be read.
fn lag(stats: &statistics::Partition, is_without_commit: bool) -> Option<i64> {
    if stats.consumer_lag >= 0 {
        return Some(stats.consumer_lag);
    }
    let lag = stats.hi_offset - stats.lo_offset;
    let is_known =
        is_without_commit && stats.committed_offset < 0 && stats.lo_offset >= 0 && lag >= 0;
    is_known.then_some(lag)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_engine_knows_is_not_told_again_at_once() {
        let (mut told, begin) = (Told::default(), Instant::now());
        let good = Reach { broker: true, group: true };
        let bad = Reach { broker: false, group: true };
        let mut is_news = |lag: i64, reach, ms| {
            let lag = [(Partition { topic: 0, number: 3 }, lag)];
            told.is_news(&lag, reach, begin + Duration::from_millis(ms))
        };

        assert!(is_news(0, good, 0));
        assert!(!is_news(0, good, 1_000));
        assert!(is_news(7, good, 2_000) && !is_news(7, good, 3_000));
        // The engine counts how long something is out of reach.
        assert!(is_news(7, bad, 4_000) && is_news(7, bad, 5_000) && is_news(7, good, 6_000));
        assert!(!is_news(7, good, 15_999) && is_news(7, good, 16_000));
    }

    #[test]
    fn all_records_of_a_partition_without_a_commit_are_lag() {
        let check = |committed_offset,
                     (lo_offset, hi_offset),
                     consumer_lag,
                     is_without_commit,
                     expected| {
            let stats = statistics::Partition {
                committed_offset,
                lo_offset,
                hi_offset,
                consumer_lag,
                ..statistics::Partition::default()
            };
            assert_eq!(lag(&stats, is_without_commit), expected, "{stats:?}");
        };
        const UNKNOWN: i64 = -1001;
        check(7, (0, 10), 3, false, Some(3));
        check(7, (0, 10), 3, true, Some(3));
        check(UNKNOWN, (2, 10), -1, true, Some(8));
        // Either the committed offset or the ends have not been fetched yet.
        check(UNKNOWN, (2, 10), -1, false, None);
        check(UNKNOWN, (UNKNOWN, 10), -1, true, None);
        check(UNKNOWN, (0, UNKNOWN), -1, true, None);
        // The reported end is older than the commit.
        check(12, (0, 10), -1, true, None);
    }
}

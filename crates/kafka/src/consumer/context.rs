//! The consumer's context: librdkafka's callbacks for rebalances, statistics and errors, which run
//! on the poll thread, and the state that the member's threads share.

use std::{
    collections::{HashMap, HashSet},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
        mpsc,
    },
    thread,
    time::{Duration, Instant},
};

use fleet_group::{FinalCommit, Partition};
use parking_lot::{Mutex, MutexGuard};
use rdkafka::{
    ClientContext, Offset, Statistics, TopicPartitionList,
    client::OAuthToken,
    consumer::{BaseConsumer, CommitMode, Consumer as _, ConsumerContext, Rebalance},
    error::{KafkaError as Native, KafkaResult, RDKafkaErrorCode},
    statistics,
};

use super::{
    Assigned, Event, REPLY_MARGIN, Reach,
    ends::Ends,
    identity::{Commits, LogIdentity},
    member::Channel,
    membership::Membership,
    unreadable::Unreadable,
    wakeup::Wakeup,
};

/// How long a broker may take to return the committed offsets.
const COMMITTED_TIMEOUT: Duration = Duration::from_secs(10);
/// How often the committed offsets are requested before the assignment goes on without them.
/// Nothing is fetched in the meantime.
const COMMITTED_TRIES: usize = 9;
/// How often the last commit of a partition is tried, and the pause between two tries: while a
/// group rebalances, the coordinator briefly refuses commits.
pub(super) const LAST_COMMIT_TRIES: usize = 25;
pub(super) const LAST_COMMIT_PAUSE: Duration = Duration::from_millis(200);

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
    /// The log that currently has the topic's name.
    identity: Mutex<LogIdentity>,
    /// Set when the topic may have been deleted and created again.
    pub(super) remade: AtomicBool,
    /// Set if the topic did not exist when a broker was last asked for its id.
    is_missing: AtomicBool,
    /// Set whenever a record is read; the watch thread clears it.
    pub(super) has_read: AtomicBool,
    /// The last offset read of each partition under its current assignment.
    last_read: Mutex<HashMap<Partition, i64>>,
    /// The known ends of the partitions.
    ends: Mutex<Ends>,
    /// Set when one of those ends has to be verified.
    pub(super) has_doubtful_end: AtomicBool,
    /// The partitions that cannot be read.
    unreadable: Mutex<Unreadable>,
    /// The partitions that had no committed offset when they were assigned.
    without_commit: Mutex<HashSet<Partition>>,
    /// The number of assignments so far.
    generations: AtomicU64,
    /// Held during commits, so that no commit overtakes another and none follows a partition's last
    /// one.
    committing: Mutex<()>,
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
            identity: Mutex::default(),
            remade: AtomicBool::new(false),
            is_missing: AtomicBool::new(false),
            has_read: AtomicBool::new(false),
            last_read: Mutex::default(),
            ends: Mutex::default(),
            has_doubtful_end: AtomicBool::new(false),
            unreadable: Mutex::default(),
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
    pub(super) fn alone(&self) -> MutexGuard<'_, ()> {
        self.committing.lock()
    }

    /// Begins a new assignment of a partition and returns its generation.
    pub(super) fn own(&self, partition: Partition, committed: Option<(i64, String)>) -> u64 {
        let generation = self.generations.fetch_add(1, Ordering::Relaxed) + 1;

        self.known_ends().begin(partition, committed.as_ref().map(|(offset, _)| *offset));
        let has_commit = committed.is_some();
        self.membership.own(partition, generation, self.identity().name(), committed);

        let mut without_commit = self.without_commit();
        match has_commit {
            true => without_commit.remove(&partition),
            false => without_commit.insert(partition),
        };
        drop(without_commit);

        self.last_read().remove(&partition);
        self.unreadable().set_paused(partition, false);

        generation
    }

    pub(super) fn identity(&self) -> LogIdentity {
        self.identity.lock().clone()
    }

    pub(super) fn identify(&self, log: LogIdentity) {
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
    fn tell_unreadable(&self, statistics: &Statistics) {
        let Some(topic) = statistics.topics.get(&self.topic) else { return };

        let owned = self.membership.all_owned();
        let samples = topic.partitions.values().filter_map(|sample| {
            let partition = self.partition(&self.topic, sample.partition)?;
            owned.contains(&partition).then_some((partition, sample))
        });

        let stuck = self.unreadable().sampled(samples);
        if let Some(stuck) = stuck {
            self.emit(Event::Unreadable(self.number, stuck));
        }
    }

    /// Returns whether nothing of a partition has been read under its current assignment.
    pub(super) fn is_at_start(&self, partition: Partition) -> bool {
        !self.last_read().contains_key(&partition)
    }

    /// Records that an offset was read. Returns the offset read before it, unless that one is
    /// lower.
    pub(super) fn went_back(&self, partition: Partition, offset: i64) -> Option<i64> {
        self.last_read().insert(partition, offset).filter(|last| *last >= offset)
    }

    /// Records that nothing below `end` is left to read. A later record below `end` shows that the
    /// log was truncated.
    pub(super) fn passed(&self, partition: Partition, end: i64) {
        let mut read = self.last_read();
        let last = read.entry(partition).or_insert(end - 1);
        *last = (*last).max(end - 1);
    }

    /// Returns the partition with this number, if this member follows `topic`.
    pub(super) fn partition(&self, topic: &str, number: i32) -> Option<Partition> {
        (topic == self.topic).then_some(Partition { topic: self.number, number })
    }

    fn partitions(&self, list: &TopicPartitionList) -> Vec<Partition> {
        list.elements()
            .iter()
            .filter_map(|element| self.partition(element.topic(), element.partition()))
            .collect()
    }

    pub(super) fn positions(
        &self,
        partitions: impl IntoIterator<Item = Partition>,
    ) -> TopicPartitionList {
        let mut list = TopicPartitionList::new();
        for partition in partitions {
            list.add_partition(&self.topic, partition.number);
        }
        list
    }

    fn list<'a>(&self, commits: impl IntoIterator<Item = &'a FinalCommit>) -> TopicPartitionList {
        let mut list = TopicPartitionList::new();
        for commit in commits {
            let mut element = list.add_partition(&self.topic, commit.partition.number);
            // librdkafka rejects only negative offsets, and ours never are.
            if let Err(error) = element.set_offset(Offset::Offset(commit.offset)) {
                tracing::error!(%error, offset = commit.offset, "invalid offset in a commit; leaving the offset out");
            }
            if !commit.metadata.is_empty() {
                element.set_metadata(&commit.metadata);
            }
        }
        list
    }

    /// Commits all these partitions in one request. Returns an error if one of them fails.
    pub(super) fn commit_together(
        &self,
        consumer: &BaseConsumer<Self>,
        commits: &[FinalCommit],
    ) -> KafkaResult<()> {
        let sent = self.membership.now();

        match consumer.commit(&self.list(commits), CommitMode::Sync) {
            Ok(()) => {
                self.membership.accepted(sent, commits);
                Ok(())
            }
            Err(error) => {
                self.membership.refused(error.rdkafka_error_code());
                Err(error)
            }
        }
    }

    /// Repeats a commit that is already in place, which the coordinator accepts from members only.
    pub(super) fn prove(&self, consumer: &BaseConsumer<Self>) -> KafkaResult<()> {
        match self.membership.standing() {
            Some(standing) => self.commit_alone(consumer, &standing),
            None => Ok(()),
        }
    }

    /// Proves the membership if there was a gap in contact, after which nothing new may be
    /// committed without a proof.
    pub(super) fn prove_after_gap(&self, consumer: &BaseConsumer<Self>) -> KafkaResult<()> {
        if self.membership.is_out_of_contact() { self.prove(consumer) } else { Ok(()) }
    }

    /// Commits one partition. If the metadata is too large for the broker, commits the offset
    /// alone: at worst that repeats jobs, and without any commit more of them would repeat.
    pub(super) fn commit_alone(
        &self,
        consumer: &BaseConsumer<Self>,
        commit: &FinalCommit,
    ) -> KafkaResult<()> {
        match self.commit_together(consumer, std::slice::from_ref(commit)) {
            Err(error)
                if error.rdkafka_error_code() == Some(RDKafkaErrorCode::OffsetMetadataTooLarge) =>
            {
                tracing::error!(
                    "the broker's offset.metadata.max.bytes is below 4096; committing the offset alone, so attempts \
                     are not counted across restarts"
                );
                let bare = FinalCommit { metadata: String::new(), ..commit.clone() };
                self.commit_together(consumer, &[bare])
            }
            other => other,
        }
    }

    /// Commits one by one and leaves in `open` the commits that failed.
    pub(super) fn commit_each(
        &self,
        consumer: &BaseConsumer<Self>,
        open: &mut Vec<FinalCommit>,
    ) -> KafkaResult<()> {
        if !open.is_empty() {
            self.prove_after_gap(consumer)?;
        }

        let mut result = Ok(());
        open.retain(|commit| match self.commit_alone(consumer, commit) {
            Ok(()) => false,
            Err(error) => {
                result = Err(error);
                true
            }
        });
        result
    }

    /// Makes the last commit before partitions are given up; no later commit could make up for it.
    fn commit_before_revoke(
        &self,
        consumer: &BaseConsumer<Self>,
        mut open: Vec<FinalCommit>,
    ) -> KafkaResult<()> {
        for attempt in 1.. {
            match self.commit_each(consumer, &mut open) {
                Ok(()) => break,
                Err(error) if attempt >= LAST_COMMIT_TRIES => return Err(error),
                Err(_) => thread::sleep(LAST_COMMIT_PAUSE),
            }
        }
        Ok(())
    }

    fn assigned(&self, consumer: &BaseConsumer<Self>, list: &TopicPartitionList) {
        let partitions = self.partitions(list);
        if partitions.is_empty() {
            return;
        }

        let committed = (1..=COMMITTED_TRIES).find_map(|attempt| {
            match consumer
                .committed_offsets(self.positions(partitions.iter().copied()), COMMITTED_TIMEOUT)
            {
                Ok(committed) => Some(committed),
                Err(error) => {
                    tracing::warn!(%error, attempt, "could not fetch the committed offsets; trying again");
                    None
                }
            }
        });

        if committed.is_none() {
            tracing::error!(
                "going on without commit metadata; settled jobs beyond the frontier may run again"
            );
        }

        let elements = committed.iter().flat_map(TopicPartitionList::elements);
        let commits = elements.filter_map(|element| match element.offset() {
            Offset::Offset(offset) if offset >= 0 => {
                let partition = self.partition(element.topic(), element.partition())?;
                Some((partition, (offset, element.metadata().to_owned())))
            }
            _ => None,
        });
        let commits: Commits = commits.collect();

        let starts = self.starts(consumer, list, &partitions, &commits).into_iter();
        let assigned = starts.map(|(partition, start)| {
            let standing = commits.get(&partition).filter(|_| start.progress.is_some());
            let generation = self.own(partition, standing.cloned());
            // Without an answer, librdkafka still starts at the committed offset, but we do not
            // know that offset, so reading must not be reset to the beginning of the log.

            let is_known = committed.as_ref().is_some_and(|list| {
                let asked = list.elements_for_topic(&self.topic);
                asked.iter().any(|element| {
                    element.partition() == partition.number && element.error().is_ok()
                })
            });

            if !is_known {
                self.known_ends().forget(partition);
            }

            Assigned { partition, generation, log: self.identity(), start }
        });
        self.emit(Event::Assigned(assigned.collect()));
    }

    fn revoked(&self, consumer: &BaseConsumer<Self>, list: &TopicPartitionList) {
        let partitions = self.partitions(list);
        if partitions.is_empty() {
            return;
        }

        if consumer.assignment_lost() {
            self.emit(Event::Lost(partitions.clone()));
            // A commit that starts after this member has joined again would be accepted and
            // overwrite the new owner's.
            let _alone = self.alone();
            self.membership.disown(&partitions);
            return;
        }

        let (reply, commits) = mpsc::sync_channel(1);
        self.emit(Event::Revoking(partitions.clone(), Instant::now() + self.drain, reply));
        // The engine answers by the deadline.
        let commits = self.membership.excused(|| commits.recv_timeout(self.drain + REPLY_MARGIN));

        let _alone = self.alone();
        match commits.map(|commits| self.commit_before_revoke(consumer, commits)) {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                tracing::warn!(%error, "the last commit before giving up partitions failed; jobs may repeat");
            }
            Err(_) => {
                tracing::warn!("no last commit before giving up partitions; jobs may repeat")
            }
        }
        // Discard commits that were ordered earlier but not made yet.
        self.membership.disown(&partitions);
    }
}

impl ClientContext for Context {
    fn stats(&self, statistics: Statistics) {
        self.called_back.store(true, Ordering::Relaxed);
        self.membership.sampled(&statistics);

        let lag = statistics.topics.values().flat_map(|topic| {
            topic.partitions.values().filter_map(|stats| {
                let partition = self.partition(&topic.topic, stats.partition)?;
                let is_without_commit = self.without_commit().contains(&partition);
                Some((partition, lag(stats, is_without_commit)?))
            })
        });
        let lag: Vec<_> = lag.collect();
        if !lag.is_empty() {
            self.emit(Event::Lag(lag));
        }

        self.sample_ends(&statistics);
        self.tell_unreadable(&statistics);

        let group = statistics
            .cgrp
            .is_some_and(|group| group.state == "up" && group.join_state == "steady");
        let broker = statistics.brokers.values().any(|broker| broker.state == "UP");
        self.emit(Event::Reach(self.number, Reach { broker, group }));
    }

    fn error(&self, error: Native, reason: &str) {
        match error.rdkafka_error_code() {
            Some(RDKafkaErrorCode::PartitionEOF) => {}
            // Repeats endlessly; reported once per partition by `report_unreadable`.
            Some(code) if Unreadable::is_cause(code) => {
                tracing::debug!(%error, reason, "Kafka error")
            }
            _ => tracing::warn!(%error, reason, "Kafka error"),
        }
    }

    fn generate_oauth_token(
        &self,
        _: Option<&str>,
    ) -> Result<OAuthToken, Box<dyn std::error::Error>> {
        Err("only sasl.oauthbearer.method=oidc is supported; set it together with sasl.oauthbearer.token.endpoint.url".into())
    }
}

impl ConsumerContext for Context {
    fn pre_rebalance(&self, consumer: &BaseConsumer<Self>, rebalance: &Rebalance<'_>) {
        self.called_back.store(true, Ordering::Relaxed);
        if self.closing.load(Ordering::Relaxed) {
            return;
        }

        match rebalance {
            Rebalance::Assign(list) => {
                self.assigned(consumer, list);
                self.membership.joined();
            }
            Rebalance::Revoke(list) => self.revoked(consumer, list),
            Rebalance::Error(error) => tracing::warn!(%error, "a rebalance failed"),
        }
    }

    fn post_rebalance(&self, consumer: &BaseConsumer<Self>, rebalance: &Rebalance<'_>) {
        // The engine assumes that a new partition is being fetched, even if its previous assignment
        // here left it paused.
        if let Rebalance::Assign(list) = rebalance
            && let Err(error) = consumer.resume(list)
        {
            tracing::warn!(%error, "could not resume newly assigned partitions");
        }
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

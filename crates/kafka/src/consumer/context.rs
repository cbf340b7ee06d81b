//! What librdkafka calls back into, on the poll thread: rebalances, statistics, errors. And how
//! commits are made.

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

/// How long the broker may take to say what is committed.
const COMMITTED_TIMEOUT: Duration = Duration::from_secs(10);
/// How often it is asked before we go on without. Nothing can be fetched meanwhile either.
const COMMITTED_TRIES: usize = 9;
/// How often the last commit of a partition is tried, and how long apart: while a group rebalances,
/// the coordinator refuses commits for a moment.
pub(super) const LAST_COMMIT_TRIES: usize = 25;
pub(super) const LAST_COMMIT_PAUSE: Duration = Duration::from_millis(200);

pub(super) struct Context {
    pub(super) channel: Channel,
    pub(super) membership: Arc<Membership>,
    /// Wakes the poll thread.
    pub(super) wakeup: Arc<Wakeup>,
    /// librdkafka has called back since this was last cleared, which a poll does not say.
    pub(super) called_back: AtomicBool,
    /// The group is being left: nobody is to be asked any more.
    pub(super) closing: AtomicBool,
    /// The topic that this member follows, and the number that its partitions carry.
    pub(super) topic: String,
    number: u16,
    pub(super) drain: Duration,
    /// The log behind the topic's name.
    identity: Mutex<LogIdentity>,
    /// The topic's id has changed.
    pub(super) remade: AtomicBool,
    /// The topic did not exist when a broker was last asked for its id.
    is_missing: AtomicBool,
    /// A record was read since this was last cleared.
    pub(super) has_read: AtomicBool,
    /// The last offset that was read of each partition under its assignment.
    last_read: Mutex<HashMap<Partition, i64>>,
    /// Where the partitions end that were read to their end.
    ends: Mutex<Ends>,
    /// One of those is to be made sure of.
    pub(super) has_doubtful_end: AtomicBool,
    /// Which partitions can't be read on.
    unreadable: Mutex<Unreadable>,
    /// Partitions of which nothing was committed when they were assigned.
    without_commit: Mutex<HashSet<Partition>>,
    /// Assignments so far.
    generations: AtomicU64,
    /// Held while commits are under way, so that none overtakes another, and none of a partition
    /// follows its last one.
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
        // The receiver goes only when the worker ends.
        if self.channel.sender.send(event).is_err() {
            tracing::debug!("nobody listens to the poll thread any more");
        }
    }

    /// Waits for the commit that is under way, if there is one, and keeps others from beginning.
    pub(super) fn alone(&self) -> MutexGuard<'_, ()> {
        self.committing.lock()
    }

    /// Begins an assignment of a partition.
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

    /// Whether the topic did not exist when a broker was last asked for its id.
    pub(super) fn is_topic_missing(&self) -> bool {
        self.is_missing.load(Ordering::Relaxed)
    }

    /// Takes note of whether the topic exists, and tells of a change.
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

    /// Says which of our partitions can't be read on, if that has changed.
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

    /// Nothing of a partition has been read under its assignment.
    pub(super) fn is_at_start(&self, partition: Partition) -> bool {
        !self.last_read().contains_key(&partition)
    }

    /// Takes note of a record that was read. The last offset before it, if this one does not lie
    /// behind that.
    pub(super) fn went_back(&self, partition: Partition, offset: i64) -> Option<i64> {
        self.last_read().insert(partition, offset).filter(|last| *last >= offset)
    }

    /// Takes note that nothing below `end` comes any more. What does come all the same shows that
    /// the log has lost its end.
    pub(super) fn passed(&self, partition: Partition, end: i64) {
        let mut read = self.last_read();
        let last = read.entry(partition).or_insert(end - 1);
        *last = (*last).max(end - 1);
    }

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
            // Offsets are not negative, which is all that librdkafka could object to.
            if let Err(error) = element.set_offset(Offset::Offset(commit.offset)) {
                tracing::error!(%error, offset = commit.offset, "an impossible offset was to be committed");
            }
            if !commit.metadata.is_empty() {
                element.set_metadata(&commit.metadata);
            }
        }
        list
    }

    /// Commits for all these partitions; an error when one of them fails.
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

    /// Repeats a commit that stands, which the coordinator accepts from members only.
    pub(super) fn prove(&self, consumer: &BaseConsumer<Self>) -> KafkaResult<()> {
        match self.membership.standing() {
            Some(standing) => self.commit_alone(consumer, &standing),
            None => Ok(()),
        }
    }

    /// Proves the membership if there was a gap in contact: nothing new is committed before.
    pub(super) fn prove_after_gap(&self, consumer: &BaseConsumer<Self>) -> KafkaResult<()> {
        if self.membership.is_out_of_contact() { self.prove(consumer) } else { Ok(()) }
    }

    /// Commits for one partition; without the metadata where the broker does not take so much of
    /// it. The offset alone costs repeats at worst, and no commit at all would cost more of them.
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
                    "the broker's offset.metadata.max.bytes is below 4096: attempts are not durable"
                );
                let bare = FinalCommit { metadata: String::new(), ..commit.clone() };
                self.commit_together(consumer, &[bare])
            }
            other => other,
        }
    }

    /// Commits one by one, and leaves in `open` what failed.
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

    /// The last commit before partitions are given back: there is no later one to mend it.
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
                    tracing::warn!(%error, attempt, "the broker does not say what is committed");
                    None
                }
            }
        });
        if committed.is_none() {
            tracing::error!(
                "going on without commit metadata: settled jobs beyond the frontier may run again"
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
            // librdkafka begins at the committed offset, which only we don't know: it is not to be
            // set back to the beginning.
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
            // A commit that begins after the group was joined again would be taken, over that of
            // the new owner.
            let _alone = self.alone();
            self.membership.disown(&partitions);
            return;
        }
        let (reply, commits) = mpsc::sync_channel(1);
        self.emit(Event::Revoking(partitions.clone(), Instant::now() + self.drain, reply));
        // The engine keeps the deadline.
        let commits = self.membership.excused(|| commits.recv_timeout(self.drain + REPLY_MARGIN));
        let _alone = self.alone();
        match commits.map(|commits| self.commit_before_revoke(consumer, commits)) {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                tracing::warn!(%error, "the commit before giving partitions back failed: their jobs may repeat");
            }
            Err(_) => {
                tracing::warn!(
                    "partitions are given back without a last commit: their jobs may repeat"
                )
            }
        }
        // Commits that were ordered before this moment may still wait to be made.
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
            // Comes again and again, and is told of once, with its partition.
            Some(code) if Unreadable::is_cause(code) => tracing::debug!(%error, reason, "Kafka"),
            _ => tracing::warn!(%error, reason, "Kafka"),
        }
    }

    fn generate_oauth_token(
        &self,
        _: Option<&str>,
    ) -> Result<OAuthToken, Box<dyn std::error::Error>> {
        Err("set sasl.oauthbearer.method=oidc and its endpoint: tokens from elsewhere are not supported"
            .into())
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
            Rebalance::Error(error) => tracing::warn!(%error, "rebalance"),
        }
    }

    fn post_rebalance(&self, consumer: &BaseConsumer<Self>, rebalance: &Rebalance<'_>) {
        // The engine takes a new partition for one that is fetched, whatever its last owner here
        // had paused.
        if let Rebalance::Assign(list) = rebalance
            && let Err(error) = consumer.resume(list)
        {
            tracing::warn!(%error, "a new partition could not be resumed");
        }
    }
}

/// How far a partition lags behind its end, if that is known. librdkafka does not say it of a
/// partition without a commit: all of its records are ahead of the group.
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
        // The committed offset has not been fetched yet, or the ends have not.
        check(UNKNOWN, (2, 10), -1, false, None);
        check(UNKNOWN, (UNKNOWN, 10), -1, true, None);
        check(UNKNOWN, (0, UNKNOWN), -1, true, None);
        // The end is older than the commit.
        check(12, (0, 10), -1, true, None);
    }
}

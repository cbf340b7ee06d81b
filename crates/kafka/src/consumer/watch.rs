//! Detecting that a topic was deleted and created again while it is being read, and starting the
//! new topic from its beginning.
//!
//! librdkafka continues in the new topic at the offset it had reached in the old one, without any
//! notice. Two signs reveal the change: the topic's id, which a thread requests every few seconds,
//! and offsets that decrease, which happens if the new log is shorter than the old one (or a log
//! has lost its end). The poll thread then does the same as when partitions are revoked and
//! assigned again, except that nothing is committed in between.

use std::{
    io,
    sync::{Arc, atomic::Ordering, mpsc},
    thread,
    time::{Duration, Instant},
};

use fleet_group::{
    Partition,
    log::{Finding, Start},
};
use rdkafka::{
    Offset,
    consumer::{BaseConsumer, Consumer as _},
    error::KafkaResult,
};

use super::{Assigned, Event, REPLY_MARGIN, context::Context, identity::TIMEOUT};
use crate::error::KafkaError;

/// How often the topic's id is requested while records are read. Jobs of a new topic that run
/// before the topic is read from its beginning run twice, so the period is short; a request every
/// few seconds costs the broker next to nothing.
const PERIOD: Duration = Duration::from_secs(3);
/// How many periods pass between two requests while no record is read: no job of a new topic can
/// run during that time, and an idle worker should sleep. A missing topic is requested in every
/// period.
const IDLE_PERIODS: u32 = 5;
/// How often seeking to the beginning of a log is tried, and the pause between two tries.
const SEEK_TRIES: usize = 10;
const SEEK_PAUSE: Duration = Duration::from_millis(300);

/// The thread that requests the topic's id.
#[derive(Debug)]
pub(super) struct WatchThread {
    /// `None` once the thread is to end.
    running: Option<mpsc::Sender<()>>,
    thread: thread::JoinHandle<()>,
}

impl WatchThread {
    /// Starts the thread.
    ///
    /// # Errors
    ///
    /// Returns an error if the operating system cannot create a thread.
    pub(super) fn start(consumer: Arc<BaseConsumer<Context>>) -> io::Result<Self> {
        let (running, inbox) = mpsc::channel();
        let thread = thread::Builder::new()
            .name("kafka-watch".to_owned())
            .spawn(move || watch(&consumer, &inbox))?;

        Ok(Self { running: Some(running), thread })
    }

    /// Ends the thread after the request under way.
    pub(super) fn finish(&mut self) {
        self.running = None;
    }

    /// Returns whether the thread has ended, so that the caller has the consumer to itself.
    pub(super) fn is_finished(&self) -> bool {
        self.thread.is_finished()
    }
}

fn watch(consumer: &BaseConsumer<Context>, inbox: &mpsc::Receiver<()>) {
    let context = consumer.context();
    let mut idle_periods = 0;

    while inbox.recv_timeout(PERIOD) == Err(mpsc::RecvTimeoutError::Timeout) {
        let has_read = context.has_read.swap(false, Ordering::Relaxed);
        let is_due = has_read || context.is_topic_missing();
        idle_periods = if is_due { 0 } else { idle_periods + 1 };

        if u32::is_multiple_of(idle_periods, IDLE_PERIODS) {
            context.check_identity(consumer);
        }
    }
}

impl Context {
    /// Compares the topic's id with the last known one if the member owns partitions of the topic,
    /// and checks whether the topic exists. The poll thread handles a change.
    fn check_identity(&self, consumer: &BaseConsumer<Self>) {
        let (before, now) = (self.identity(), self.fetch_identity(consumer, 1));
        if self.membership.all_owned().is_empty() {
            // The identity is fetched when partitions are assigned.
            return;
        }

        if now.name().is_another_topic(before.name()) {
            self.recreated.store(true, Ordering::Relaxed);
            self.wakeup.wake();
        } else if before.topic.is_none() {
            self.set_identity(now);
        }
    }

    /// On the poll thread: restarts the topic from its beginning if it was created again.
    pub(super) fn restart_if_recreated(
        &self,
        consumer: &BaseConsumer<Self>,
    ) -> Result<(), KafkaError> {
        if !self.recreated.swap(false, Ordering::Relaxed) {
            return Ok(());
        }

        let (before, now) = (self.identity(), self.fetch_identity(consumer, 1));
        if !now.name().is_another_topic(before.name()) {
            return Ok(());
        }

        self.set_identity(now);
        self.restart_partitions(consumer, self.membership.all_owned(), &Finding::Remade)
    }

    /// On the poll thread: handles a record whose offset is not above `last`, the one read before
    /// it. The record will be read again.
    pub(super) fn restart_after_rewind(
        &self,
        consumer: &BaseConsumer<Self>,
        partition: Partition,
        last: i64,
    ) -> Result<(), KafkaError> {
        self.recreated.store(true, Ordering::Relaxed);
        self.restart_if_recreated(consumer)?;
        if self.is_unread(partition) {
            return Ok(());
        }
        // The topic is the same one, or has no id.
        let end = self
            .fetch_bounds(consumer, std::iter::once(partition), Offset::End)
            .get(&partition)
            .copied();

        let finding = Finding::BeyondEnd { committed: last + 1, end: end.unwrap_or_default() };
        self.restart_partitions(consumer, vec![partition], &finding)
    }

    /// Lets running jobs end, commits nothing, and reads the partitions from the beginning of their
    /// logs under a new assignment.
    fn restart_partitions(
        &self,
        consumer: &BaseConsumer<Self>,
        partitions: Vec<Partition>,
        finding: &Finding,
    ) -> Result<(), KafkaError> {
        // Pending commits refer to the old log.
        {
            let _committing = self.lock_commits();
            self.membership.fence(&partitions);
        }

        let (reply, drained) = mpsc::sync_channel(1);
        self.emit(Event::LogReplaced(partitions.clone(), Instant::now() + self.drain, reply));

        if self
            .membership
            .excuse_during(|| drained.recv_timeout(self.drain + REPLY_MARGIN))
            .is_err()
        {
            tracing::warn!(
                "jobs of a replaced log did not end in time; assigning its partitions anew"
            );
        }

        let there = self.retain_existing(consumer, partitions);
        self.seek_to_beginning(consumer, &there, finding).map_err(|source| {
            KafkaError::Request { what: "restarting a replaced log from its beginning", source }
        })?;

        let assigned = there.into_iter().map(|partition| Assigned {
            partition,
            generation: self.begin_assignment(partition, None),
            log: self.identity(),
            start: Start { progress: None, finding: finding.clone(), deleted: 0 },
        });

        self.emit(Event::Assigned(assigned.collect()));
        Ok(())
    }

    /// Returns those of `partitions` that exist. The new topic may have fewer, and the group will
    /// revoke the others.
    fn retain_existing(
        &self,
        consumer: &BaseConsumer<Self>,
        mut partitions: Vec<Partition>,
    ) -> Vec<Partition> {
        let given = partitions.clone();

        partitions.retain(|partition| {
            let metadata = consumer.fetch_metadata(Some(&self.topic), TIMEOUT);
            let Ok(metadata) = metadata else { return true };
            let mut found = metadata.topics().iter().flat_map(|topic| topic.partitions());
            found.any(|found| found.id() == partition.number)
        });

        let left: Vec<_> =
            given.into_iter().filter(|partition| !partitions.contains(partition)).collect();

        self.membership.disown(&left);
        partitions
    }

    /// Seeks to the beginning of the partitions' logs and resumes fetching them.
    fn seek_to_beginning(
        &self,
        consumer: &BaseConsumer<Self>,
        partitions: &[Partition],
        finding: &Finding,
    ) -> KafkaResult<()> {
        let offset = match finding {
            Finding::Remade => Offset::Offset(0),
            _ => Offset::Beginning,
        };

        for attempt in 1.. {
            let mut list = self.partition_list(partitions.iter().copied());
            list.set_all_offsets(offset)?;

            let moved = consumer
                .seek_partitions(list, TIMEOUT)
                .and_then(|list| list.elements().iter().try_for_each(|element| element.error()));
            match moved {
                Ok(()) => break,
                Err(error) if attempt >= SEEK_TRIES => return Err(error),
                Err(_) => thread::sleep(SEEK_PAUSE),
            }
        }
        // The engine assumes that a newly assigned partition is being fetched.
        consumer.resume(&self.partition_list(partitions.iter().copied()))
    }
}

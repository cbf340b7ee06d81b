//! Noticing that a topic was made again while its partitions are being read, and reading it from
//! its beginning.
//!
//! librdkafka goes on reading a new topic where it was in the old one and says nothing about it.
//! Two signs show it: the topic's id, for which a thread asks every few seconds, and offsets that
//! go back, which they do when the new log is shorter than the old one was (or when a log has lost
//! its end). The poll thread then does what it does when partitions are given back and given to us
//! again, only that nothing is committed in between.

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

/// How often the ids of the topics are compared with those that are known while records are read.
/// What is run of a new topic's records before its beginning is read runs twice, so it is not much
/// longer; a request every few seconds is nothing to the broker.
const PERIOD: Duration = Duration::from_secs(3);
/// How many periods may pass without a look while no record is read: none of a new topic can run
/// meanwhile, and a worker that has nothing to do should sleep. A topic that does not exist is
/// looked for in every period.
const IDLE_PERIODS: u32 = 5;
/// How often moving to the beginning of a log is tried, and how long apart.
const SEEK_TRIES: usize = 10;
const SEEK_PAUSE: Duration = Duration::from_millis(300);

/// The thread that asks for the topics' ids.
#[derive(Debug)]
pub(super) struct WatchThread {
    /// `None` when it is to end.
    running: Option<mpsc::Sender<()>>,
    thread: thread::JoinHandle<()>,
}

impl WatchThread {
    /// # Errors
    /// When the system gives no thread.
    pub(super) fn start(consumer: Arc<BaseConsumer<Context>>) -> io::Result<Self> {
        let (running, inbox) = mpsc::channel();
        let thread = thread::Builder::new()
            .name("kafka-watch".to_owned())
            .spawn(move || watch(&consumer, &inbox))?;
        Ok(Self { running: Some(running), thread })
    }

    /// Ends the thread, after the request that is under way.
    pub(super) fn finish(&mut self) {
        self.running = None;
    }

    /// Whether the thread has ended, and has left the consumer to us.
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
            context.look_again(consumer);
        }
    }
}

impl Context {
    /// Compares the topic's id with the one that is known, if partitions of it are ours, and looks
    /// whether the topic exists at all. What follows from a change is for the poll thread to do.
    fn look_again(&self, consumer: &BaseConsumer<Self>) {
        let (before, now) = (self.identity(), self.look_up(consumer, 1));
        if self.membership.all_owned().is_empty() {
            // Which log is read is looked up when partitions are assigned.
            return;
        }
        if now.name().is_another_topic(before.name()) {
            self.remade.store(true, Ordering::Relaxed);
            self.wakeup.wake();
        } else if before.topic.is_none() {
            self.identify(now);
        }
    }

    /// On the poll thread: begins the topic anew if it is known to have been made again.
    pub(super) fn begin_what_was_remade(
        &self,
        consumer: &BaseConsumer<Self>,
    ) -> Result<(), KafkaError> {
        if !self.remade.swap(false, Ordering::Relaxed) {
            return Ok(());
        }
        let (before, now) = (self.identity(), self.look_up(consumer, 1));
        if !now.name().is_another_topic(before.name()) {
            return Ok(());
        }
        self.identify(now);
        self.begin_anew(consumer, self.membership.all_owned(), &Finding::Remade)
    }

    /// On the poll thread: the offsets of a partition have gone back, from `last` to the record
    /// that has just been read. That record is read again.
    pub(super) fn begin_what_went_back(
        &self,
        consumer: &BaseConsumer<Self>,
        partition: Partition,
        last: i64,
    ) -> Result<(), KafkaError> {
        self.remade.store(true, Ordering::Relaxed);
        self.begin_what_was_remade(consumer)?;
        if self.is_at_start(partition) {
            return Ok(());
        }
        // The same topic, or one without an id.
        let end =
            self.ends(consumer, std::iter::once(partition), Offset::End).get(&partition).copied();
        let finding = Finding::BeyondEnd { committed: last + 1, end: end.unwrap_or_default() };
        self.begin_anew(consumer, vec![partition], &finding)
    }

    /// Lets what runs come to its end, commits nothing, and reads the partitions from the beginning
    /// of their logs under a new assignment.
    fn begin_anew(
        &self,
        consumer: &BaseConsumer<Self>,
        partitions: Vec<Partition>,
        finding: &Finding,
    ) -> Result<(), KafkaError> {
        // What is still to be committed is about the old log.
        {
            let _alone = self.alone();
            self.membership.fence(&partitions);
        }
        let (reply, drained) = mpsc::sync_channel(1);
        self.emit(Event::LogReplaced(partitions.clone(), Instant::now() + self.drain, reply));
        if self.membership.excused(|| drained.recv_timeout(self.drain + REPLY_MARGIN)).is_err() {
            tracing::warn!("jobs of a replaced log have not come to their end in time");
        }

        let there = self.there(consumer, partitions);
        self.seek_to_beginning(consumer, &there, finding).map_err(|source| {
            KafkaError::Request { what: "reading a replaced log from its beginning", source }
        })?;
        let assigned = there.into_iter().map(|partition| Assigned {
            partition,
            generation: self.own(partition, None),
            log: self.identity(),
            start: Start { progress: None, finding: finding.clone(), deleted: 0 },
        });
        self.emit(Event::Assigned(assigned.collect()));
        Ok(())
    }

    /// Those of `partitions` that there are. A topic can be made again with fewer; the group takes
    /// the others away.
    fn there(
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
            let mut list = self.positions(partitions.iter().copied());
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
        // The engine takes a new assignment for one that is fetched.
        consumer.resume(&self.positions(partitions.iter().copied()))
    }
}

//! Following topics without a group for as long as a process lives, with one librdkafka client and
//! one thread for all of them.
//!
//! A [`Listener`] decides what happens to the records of a topic, and [`Following`] starts the
//! thread that calls it. The topic is first read to its end by a [`Reader`] with a client of its
//! own, at full speed and without delaying other topics, and from then on by the shared client of
//! the [`Follower`]. A thread that falls too far behind switches back to its own reader. Nothing
//! polls in a loop: the shared thread sleeps in librdkafka until a record arrives, and the thread
//! of a topic sleeps until its mailbox receives a record or is woken.

mod hub;
mod listen;
mod mailbox;

use std::{
    collections::BTreeMap,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use fleet_job::record::RawRecord;
use hub::Hub;
use parking_lot::{Mutex, MutexGuard};

use crate::{
    error::KafkaError,
    reader::{EndQuery, From, ReadPositions, Reader},
    settings::Settings,
};
pub use listen::{FollowGuard, Following, Interrupted, Listener, Opener, Unneeded};
use mailbox::{Mailbox, Received};

/// How long one poll of a reader lasts before the mailbox is checked for a wakeup.
const STEP: Duration = Duration::from_millis(50);

/// Follows topics of one cluster. Clones share the client, which is created for the first topic and
/// connects then.
#[derive(Clone)]
pub struct Follower {
    shared: Arc<Shared>,
}

struct Shared {
    settings: Settings,
    hub: Mutex<Option<Arc<Hub>>>,
    end_query: Mutex<Option<EndQuery>>,
}

impl std::fmt::Debug for Follower {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // The settings may hold credentials.
        f.debug_struct("Follower")
            .field("brokers", &self.shared.settings.brokers)
            .finish_non_exhaustive()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // The values under these locks are only ever replaced as a whole.
    mutex.lock()
}

impl Follower {
    /// Creates a follower for these brokers, which connects when it is first used.
    pub fn new(settings: Settings) -> Self {
        Self {
            shared: Arc::new(Shared {
                settings,
                hub: Mutex::default(),
                end_query: Mutex::default(),
            }),
        }
    }

    /// Returns the settings of the client.
    pub fn settings(&self) -> &Settings {
        &self.shared.settings
    }

    /// Opens `topic` and delivers its records to `mailbox`. A mailbox serves one topic at a time,
    /// and a topic can be followed only once. Blocks the thread.
    ///
    /// # Errors
    ///
    /// Returns the errors of [`Reader::open`].
    fn open(
        &self,
        topic: &str,
        from: From,
        timeout: Duration,
        mailbox: &Mailbox,
    ) -> Result<FollowedTopic, KafkaError> {
        Ok(self.followed(
            Reader::open(self.settings(), topic, from, timeout)?,
            topic,
            timeout,
            mailbox,
        ))
    }

    /// Opens `topic` at these offsets. Partitions without an offset are read from their start.
    /// Blocks the thread.
    ///
    /// # Errors
    ///
    /// Returns the errors of [`Reader::open_at`].
    fn open_at(
        &self,
        topic: &str,
        offsets: &BTreeMap<i32, i64>,
        timeout: Duration,
        mailbox: &Mailbox,
    ) -> Result<FollowedTopic, KafkaError> {
        Ok(self.followed(
            Reader::open_at(self.settings(), topic, offsets, timeout)?,
            topic,
            timeout,
            mailbox,
        ))
    }

    fn followed(
        &self,
        reader: Reader,
        topic: &str,
        timeout: Duration,
        mailbox: &Mailbox,
    ) -> FollowedTopic {
        FollowedTopic {
            follower: self.clone(),
            topic: topic.to_owned(),
            timeout,
            mailbox: mailbox.clone(),
            source: Source::Reading(Box::new(reader)),
        }
    }

    /// Returns the shared client, and creates it if there is none or the last one has failed.
    fn hub(&self) -> Result<Arc<Hub>, KafkaError> {
        let mut hub = lock(&self.shared.hub);
        if let Some(hub) = hub.as_ref().filter(|hub| hub.is_usable()) {
            return Ok(hub.clone());
        }

        let fresh = Hub::start(&self.shared.settings)?;
        *hub = Some(fresh.clone());
        Ok(fresh)
    }

    /// Fetches where a topic ends, over separate connections: on those of the shared client the
    /// answer would wait behind a fetch that the broker holds back.
    fn refresh_end(
        &self,
        topic: &str,
        ends: &mut ReadPositions,
        timeout: Duration,
    ) -> Result<(), KafkaError> {
        let mut end_query = lock(&self.shared.end_query);
        let ready = match end_query.take() {
            Some(ready) => ready,
            None => EndQuery::new(&self.shared.settings)?,
        };

        // A client that has failed is not kept.
        ready.refresh_end(topic, ends, timeout)?;
        *end_query = Some(ready);
        Ok(())
    }
}

/// A followed topic. Dropping it stops following.
#[derive(Debug)]
pub struct FollowedTopic {
    follower: Follower,
    topic: String,
    timeout: Duration,
    mailbox: Mailbox,
    source: Source,
}

/// The source of the records.
#[derive(Debug)]
enum Source {
    /// Reads what was on the topic when it was opened, or what a slow thread has missed.
    Reading(Box<Reader>),
    /// Receives new records through the shared client.
    Following { hub: Arc<Hub>, subscription: u64, ends: ReadPositions },
}

impl FollowedTopic {
    /// Waits for the next record for at most `timeout`. Returns `None` on a timeout or when the
    /// mailbox is woken.
    ///
    /// # Errors
    ///
    /// Returns the errors that librdkafka cannot recover from. The topic has to be opened again
    /// then.
    fn next(&mut self, timeout: Duration) -> Result<Option<RawRecord>, KafkaError> {
        let deadline = Instant::now() + timeout;
        loop {
            self.follow_at_end()?;
            match &mut self.source {
                Source::Reading(reader) => {
                    let left = deadline.saturating_duration_since(Instant::now());
                    if let Some(record) = reader.next(left.min(STEP))? {
                        return Ok(Some(record));
                    }

                    if reader.at_end() || self.mailbox.was_woken() || Instant::now() >= deadline {
                        return Ok(None);
                    }
                }
                Source::Following { ends, .. } => match self.mailbox.receive(deadline) {
                    Received::Record(record) => {
                        ends.reached(record.position.partition, record.position.offset + 1);
                        return Ok(Some(record));
                    }
                    Received::Nothing => return Ok(None),
                    Received::Overflowed => self.read_again()?,
                    Received::Failed(error) => return Err(error),
                },
            }
        }
    }

    /// Switches to the shared client once everything that was there has been read.
    fn follow_at_end(&mut self) -> Result<(), KafkaError> {
        let Source::Reading(reader) = &self.source else { return Ok(()) };
        if !reader.at_end() {
            return Ok(());
        }

        let hub = self.follower.hub()?;
        let ends = reader.ends();
        let subscription = hub.subscribe(&self.topic, &ends.positions(), &self.mailbox)?;
        let following = Source::Following { hub, subscription, ends };
        let reader = std::mem::replace(&mut self.source, following);

        // Closing the reader's client takes a moment, during which nothing would be read.
        thread::spawn(move || drop(reader));
        Ok(())
    }

    /// Switches back to a reader for the records that did not fit into the mailbox.
    fn read_again(&mut self) -> Result<(), KafkaError> {
        let topic = &self.topic;
        tracing::debug!(topic, "too many records are waiting; reading them with a separate client");

        let settings = self.follower.settings();
        let reader = Reader::open_at(settings, topic, &self.positions(), self.timeout)?;
        self.source = Source::Reading(Box::new(reader));
        Ok(())
    }

    /// Returns the next offset to read of each partition.
    pub fn positions(&self) -> BTreeMap<i32, i64> {
        match &self.source {
            Source::Reading(reader) => reader.positions(),
            Source::Following { ends, .. } => ends.positions(),
        }
    }

    /// Returns whether everything has been read that was there when the topic was opened, or at the
    /// last call of [`FollowedTopic::refresh_end`].
    fn at_end(&self) -> bool {
        match &self.source {
            Source::Reading(reader) => reader.at_end(),
            Source::Following { ends, .. } => ends.at_end(),
        }
    }

    /// Fetches where the topic ends now.
    ///
    /// # Errors
    ///
    /// Returns [`KafkaError::Request`].
    fn refresh_end(&mut self, timeout: Duration) -> Result<(), KafkaError> {
        match &mut self.source {
            Source::Reading(reader) => reader.refresh_end(timeout),
            Source::Following { ends, .. } => self.follower.refresh_end(&self.topic, ends, timeout),
        }
    }
}

impl Drop for FollowedTopic {
    fn drop(&mut self) {
        if let Source::Following { hub, subscription, .. } = &self.source {
            hub.unsubscribe(&self.topic, *subscription);
        }
    }
}

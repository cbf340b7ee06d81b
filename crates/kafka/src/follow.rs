//! Following topics for as long as a process lives: one librdkafka client and one thread for all of
//! them.
//!
//! A [`Listener`] says what is done with the records of a topic, and [`Following`] starts the thread
//! that tells it of them. The topic is first read to its end by a [`Reader`] with a client of its
//! own, at full speed and without holding up other topics, and from there on by the shared client
//! of the [`Follower`]. A thread that falls too far behind goes back to a reader of its own. Nothing
//! polls: the shared thread sleeps in librdkafka until a record comes, and the thread of a topic
//! sleeps until its mailbox is filled or woken.

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
    reader::{Asker, Ends, From, Reader},
    settings::Settings,
};
pub use listen::{FollowGuard, Following, Interrupted, Listener, Opener, Unneeded};
use mailbox::{Mailbox, Received};

/// How long a reader is waited for before looking whether the mailbox was woken.
const STEP: Duration = Duration::from_millis(50);

/// Follows topics of one cluster. Clones share the client, which is made for the first topic and
/// connects then.
#[derive(Clone)]
pub struct Follower {
    shared: Arc<Shared>,
}

struct Shared {
    settings: Settings,
    hub: Mutex<Option<Arc<Hub>>>,
    asker: Mutex<Option<Asker>>,
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
    // What is under these locks is replaced as a whole.
    mutex.lock()
}

impl Follower {
    /// A follower for these brokers. Nothing is connected yet.
    pub fn new(settings: Settings) -> Self {
        Self {
            shared: Arc::new(Shared { settings, hub: Mutex::default(), asker: Mutex::default() }),
        }
    }

    /// What the client is configured from.
    pub fn settings(&self) -> &Settings {
        &self.shared.settings
    }

    /// Opens `topic`, whose records will arrive in `mailbox`. A mailbox is for one topic at a time,
    /// and a topic can be followed once. Blocks the thread.
    ///
    /// # Errors
    /// As [`Reader::open`].
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

    /// Opens `topic` at these offsets, and at the start of partitions that have none. Blocks the
    /// thread.
    ///
    /// # Errors
    /// As [`Reader::open_at`].
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

    fn hub(&self) -> Result<Arc<Hub>, KafkaError> {
        let mut hub = lock(&self.shared.hub);
        if let Some(hub) = hub.as_ref().filter(|hub| hub.is_usable()) {
            return Ok(hub.clone());
        }

        let fresh = Hub::start(&self.shared.settings)?;
        *hub = Some(fresh.clone());
        Ok(fresh)
    }

    /// Asks where a topic ends, over connections of its own: on those of the shared client the
    /// answer would wait behind a fetch that the broker holds back.
    fn look_for_end(
        &self,
        topic: &str,
        ends: &mut Ends,
        timeout: Duration,
    ) -> Result<(), KafkaError> {
        let mut asker = lock(&self.shared.asker);
        let ready = match asker.take() {
            Some(ready) => ready,
            None => Asker::new(&self.shared.settings)?,
        };

        // One that has failed is not kept.
        ready.look_for_end(topic, ends, timeout)?;
        *asker = Some(ready);
        Ok(())
    }
}

/// A topic that is followed. Dropping it ends that.
#[derive(Debug)]
pub struct FollowedTopic {
    follower: Follower,
    topic: String,
    timeout: Duration,
    mailbox: Mailbox,
    source: Source,
}

/// Where the records come from.
#[derive(Debug)]
enum Source {
    /// Everything that was there when the topic was opened, or the follower had fallen behind.
    Reading(Box<Reader>),
    /// What comes from now on, through the shared client.
    Following { hub: Arc<Hub>, subscription: u64, ends: Ends },
}

impl FollowedTopic {
    /// The next record, waiting for it at most `timeout`; `None` after that, or when the mailbox
    /// was woken.
    ///
    /// # Errors
    /// [`KafkaError`] for what librdkafka can't mend by itself: the topic has to be opened again.
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

    /// Goes on with the shared client once everything was read that was there.
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
        // Closing a client takes a moment in which nothing would be read.
        thread::spawn(move || drop(reader));
        Ok(())
    }

    /// Reads what came while nobody took it.
    fn read_again(&mut self) -> Result<(), KafkaError> {
        let topic = &self.topic;
        tracing::debug!(topic, "too many records wait: reading them with a client of their own");
        let settings = self.follower.settings();
        let reader = Reader::open_at(settings, topic, &self.positions(), self.timeout)?;
        self.source = Source::Reading(Box::new(reader));
        Ok(())
    }

    /// The offset to read next, by partition.
    pub fn positions(&self) -> BTreeMap<i32, i64> {
        match &self.source {
            Source::Reading(reader) => reader.positions(),
            Source::Following { ends, .. } => ends.positions(),
        }
    }

    /// Whether everything has been read that was there when the topic was opened, or at the last
    /// [`FollowedTopic::look_for_end`].
    fn at_end(&self) -> bool {
        match &self.source {
            Source::Reading(reader) => reader.at_end(),
            Source::Following { ends, .. } => ends.at_end(),
        }
    }

    /// Looks again where the topic ends.
    ///
    /// # Errors
    /// [`KafkaError::Request`].
    fn look_for_end(&mut self, timeout: Duration) -> Result<(), KafkaError> {
        match &mut self.source {
            Source::Reading(reader) => reader.look_for_end(timeout),
            Source::Following { ends, .. } => {
                self.follower.look_for_end(&self.topic, ends, timeout)
            }
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

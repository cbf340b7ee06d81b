//! A compacted topic with one partition, so that all replicas see the same order and the newest
//! record of each key is kept.
//!
//! A thread of its own follows the topic from its beginning. Only callers that ask it to catch up
//! wait for it.

use std::sync::Arc;

use fleet_job::record::RawRecord;
use fleet_kafka::{
    KafkaError,
    admin::{self, TopicSpec},
    follow::{FollowedTopic, Following, Interrupted, Listener, Opener, Unneeded},
    link::Link,
    producer::Outgoing,
};
use fleet_ops::errors::chain;
use futures::{StreamExt, stream::BoxStream};
use tokio::{runtime::Handle, sync::mpsc};
use tokio_stream::wrappers::ReceiverStream;

/// The most changes that wait to be applied.
const QUEUE: usize = 64;

/// A compacted topic that this process writes and follows.
pub(crate) struct CompactedTopic {
    link: Link,
    topic: Arc<str>,
    /// What it holds, for the log.
    what: &'static str,
    following: Following,
}

impl std::fmt::Debug for CompactedTopic {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CompactedTopic").field("topic", &self.topic).finish_non_exhaustive()
    }
}

/// How records become changes.
#[derive(Debug)]
pub(crate) struct Reading<T> {
    /// Reads a record. Anybody may write to the topic, so the record may be invalid.
    pub(crate) read: fn(RawRecord) -> Option<T>,
    /// The change that says how far the topic has been read.
    pub(crate) caught_up: fn(u64) -> T,
}

impl<T> Clone for Reading<T> {
    fn clone(&self) -> Self {
        Self { read: self.read, caught_up: self.caught_up }
    }
}

impl CompactedTopic {
    /// Connects to nothing yet. The topic is created when it is first needed, if it is missing and
    /// the broker allows it.
    pub(crate) fn new(link: Link, topic: &str, what: &'static str) -> Self {
        Self { link, topic: topic.into(), what, following: Following::default() }
    }

    /// Writes a record, or removes it. Resolves once that is stored durably.
    pub(crate) async fn write(&self, key: &str, value: Option<Vec<u8>>) -> Result<(), KafkaError> {
        let (topic, key) = (self.topic.to_string(), Some(key.as_bytes().to_vec()));
        self.link.producer.send(&Outgoing { topic, key, value, ..Outgoing::default() }).await?;
        Ok(())
    }

    /// Returns a stream of all records and then of all changes. There is one stream at a time.
    pub(crate) fn watch<T: Send + 'static>(
        &self,
        reading: Reading<T>,
    ) -> Result<BoxStream<'static, T>, KafkaError> {
        let (changes, receiver) = mpsc::channel(QUEUE);
        let (topic, what) = (self.topic.clone(), self.what);
        let log = CompactedLog { topic, what, changes, reading, runtime: Handle::current() };
        let guard = self.following.start(self.what, self.link.follower.clone(), log)?;
        // The guard lives as long as the stream.
        Ok(ReceiverStream::new(receiver).inspect(move |_| _ = &guard).boxed())
    }

    /// Requests word once everything that the topic holds now has been reported.
    pub(crate) fn catch_up(&self) -> u64 {
        self.following.ask()
    }
}

/// Turns the records of the topic into changes.
struct CompactedLog<T> {
    topic: Arc<str>,
    what: &'static str,
    changes: mpsc::Sender<T>,
    reading: Reading<T>,
    runtime: Handle,
}

impl<T: Send + 'static> Listener for CompactedLog<T> {
    type Error = KafkaError;

    fn open(&mut self, opener: &Opener<'_>) -> Result<FollowedTopic, Interrupted<KafkaError>> {
        match opener.open(&self.topic) {
            Err(KafkaError::NoTopic(_)) => {}
            other => return Ok(other?),
        }

        let topic = TopicSpec {
            name: self.topic.to_string(),
            partitions: 1,
            replication: -1,
            properties: vec![("cleanup.policy", "compact")],
        };
        self.runtime.block_on(admin::create_topics(opener.settings(), &[topic]))?;
        Ok(opener.open(&self.topic)?)
    }

    fn take(
        &mut self,
        records: Vec<RawRecord>,
        _: &FollowedTopic,
    ) -> Result<(), Interrupted<KafkaError>> {
        let changes = records.into_iter().filter_map(self.reading.read);
        changes.into_iter().try_for_each(|change| self.send_change(change))
    }

    fn caught_up(&mut self, number: u64) -> Result<(), Interrupted<KafkaError>> {
        self.send_change((self.reading.caught_up)(number))
    }

    fn failed(&mut self, error: KafkaError) -> Result<(), Unneeded> {
        let (topic, what, error) = (&self.topic, self.what, chain(&error));
        tracing::warn!(%topic, what, error, "could not read a topic; trying again");
        Ok(())
    }
}

impl<T> CompactedLog<T> {
    fn send_change(&self, change: T) -> Result<(), Interrupted<KafkaError>> {
        self.changes.blocking_send(change).map_err(|_| Interrupted::Unneeded)
    }
}

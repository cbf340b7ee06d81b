//! The registry in a compacted topic with one partition, so that all replicas see the same order
//! and the newest record of each name is kept.
//!
//! A thread of its own follows the topic from its beginning. Only callers that ask it to catch up
//! wait for it.

use std::sync::Arc;

use fleet_job::record::RawRecord;
use fleet_kafka::{
    KafkaError,
    admin::{self, TopicSpec},
    follow::{FollowGuard, FollowedTopic, Following, Interrupted, Listener, Opener, Unneeded},
    link::Link,
    producer::Outgoing,
};
use fleet_ops::errors::chain;
use futures::{FutureExt, StreamExt, future::BoxFuture, stream::BoxStream};
use tokio::{runtime::Handle, sync::mpsc};
use tokio_stream::wrappers::ReceiverStream;

use super::{Record, Registry, RegistryChange, RegistryError};

/// The most changes that wait to be applied.
const QUEUE: usize = 64;

/// The registry in Kafka.
pub struct KafkaRegistry {
    link: Link,
    topic: Arc<str>,
    following: Following,
}

impl std::fmt::Debug for KafkaRegistry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("KafkaRegistry").field("topic", &self.topic).finish_non_exhaustive()
    }
}

impl KafkaRegistry {
    /// Creates a registry in `topic`. Connects to nothing yet. The topic is created when it is
    /// first needed, if it is missing and the broker allows it.
    pub fn new(link: Link, topic: &str) -> Self {
        Self { link, topic: topic.into(), following: Following::default() }
    }

    async fn write_record(&self, name: &str, value: Option<Vec<u8>>) -> Result<(), RegistryError> {
        let (topic, key) = (self.topic.to_string(), Some(name.as_bytes().to_vec()));
        self.link.producer.send(&Outgoing { topic, key, value, ..Outgoing::default() }).await?;
        Ok(())
    }

    /// Follows the topic until the guard is dropped.
    fn follow(&self, changes: mpsc::Sender<RegistryChange>) -> Result<FollowGuard, KafkaError> {
        let listener =
            RegistryLog { topic: self.topic.clone(), changes, runtime: Handle::current() };
        self.following.start("registry", self.link.follower.clone(), listener)
    }
}

impl Registry for KafkaRegistry {
    fn is_shared(&self) -> bool {
        true
    }

    fn put<'a>(&'a self, record: &'a Record) -> BoxFuture<'a, Result<(), RegistryError>> {
        async move { self.write_record(&record.name, Some(record.encode()?)).await }.boxed()
    }

    fn remove<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<(), RegistryError>> {
        self.write_record(name, None).boxed()
    }

    fn watch(&self) -> Result<BoxStream<'static, RegistryChange>, RegistryError> {
        let (sender, receiver) = mpsc::channel(QUEUE);
        let guard = self.follow(sender)?;
        // The guard lives as long as the stream.
        Ok(ReceiverStream::new(receiver).inspect(move |_| _ = &guard).boxed())
    }

    fn catch_up(&self) -> u64 {
        self.following.ask()
    }
}

/// Turns the records of the topic into changes.
struct RegistryLog {
    topic: Arc<str>,
    changes: mpsc::Sender<RegistryChange>,
    runtime: Handle,
}

impl Listener for RegistryLog {
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
        records.into_iter().filter_map(read_record).try_for_each(|change| self.send_change(change))
    }

    fn caught_up(&mut self, number: u64) -> Result<(), Interrupted<KafkaError>> {
        self.send_change(RegistryChange::CaughtUp(number))
    }

    fn failed(&mut self, error: KafkaError) -> Result<(), Unneeded> {
        let (topic, error) = (&self.topic, chain(&error));
        tracing::warn!(%topic, error, "could not read the registry; trying again");
        Ok(())
    }
}

impl RegistryLog {
    fn send_change(&self, change: RegistryChange) -> Result<(), Interrupted<KafkaError>> {
        self.changes.blocking_send(change).map_err(|_| Interrupted::Unneeded)
    }
}

/// Reads a record of the topic. Anybody may write to the topic, so the record may be invalid.
fn read_record(record: RawRecord) -> Option<RegistryChange> {
    let name = String::from_utf8(record.key?).ok()?;
    if fleet_job::tool_name::check_server(&name).is_err() {
        tracing::warn!(
            offset = record.position.offset,
            "ignoring a registry record whose key is not a valid server name"
        );
        return None;
    }

    let Some(value) = record.value else {
        return Some(RegistryChange::Removed { name, at: record.timestamp });
    };
    Some(match Record::decode(&name, &value) {
        Ok(record) => RegistryChange::Put(record),
        Err(error) => RegistryChange::Unreadable { name, reason: chain(&error) },
    })
}

#[cfg(test)]
mod tests {
    use fleet_job::record::Position;

    use super::*;

    #[test]
    fn invalid_records_are_ignored_or_reported() {
        let check = |key: Option<&[u8]>, value: Option<&[u8]>| {
            let position = Position { topic: "t".to_owned(), partition: 0, offset: 0 };
            let (key, value) = (key.map(<[u8]>::to_vec), value.map(<[u8]>::to_vec));
            read_record(RawRecord { position, timestamp: None, key, value, headers: Vec::new() })
        };
        assert_eq!(check(None, Some(b"{}")), None);
        assert_eq!(check(Some(b"\xff"), Some(b"{}")), None);
        assert_eq!(check(Some(b"a\nb"), None), None);
        assert_eq!(
            check(Some(b"a"), None),
            Some(RegistryChange::Removed { name: "a".to_owned(), at: None })
        );
        assert!(matches!(check(Some(b"a"), Some(b"{}")), Some(RegistryChange::Unreadable { .. })));
        let good = br#"{"config":{"command":"x"},"revision":"1","writtenAt":0}"#;
        assert!(matches!(check(Some(b"a"), Some(good)), Some(RegistryChange::Put(_))));
    }
}

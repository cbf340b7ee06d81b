//! The registry in a compacted topic: one partition, so that all replicas see one order, and the
//! newest record of a name kept for good.
//!
//! A thread of its own reads the topic from its start and goes on reading. Nothing waits for it but
//! whoever asks whether it has caught up.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::Duration,
};

use fleet_job::record::RawRecord;
use fleet_kafka::{
    KafkaError,
    admin::{self, TopicSpec},
    follow::{FollowedTopic, Mailbox},
    link::Link,
    producer::Outgoing,
    reader::From,
};
use fleet_ops::errors::chain;
use fleet_retry::{Backoff, Retry};
use futures::{FutureExt, StreamExt, future::BoxFuture, stream::BoxStream};
use tokio::{runtime::Handle, sync::mpsc};
use tokio_stream::wrappers::ReceiverStream;

use super::{Change, Record, Registry, RegistryError};

/// How long one question to a broker may take.
const ASK: Duration = Duration::from_secs(10);
/// How long the thread waits for a record before it looks whether anybody still listens.
const LOOK: Duration = Duration::from_secs(5);
/// How many changes wait to be applied.
const QUEUE: usize = 64;
/// The waits between attempts to read the topic.
const READING: Backoff = Backoff { base: Duration::from_millis(250), max: Duration::from_secs(10) };

/// The registry in Kafka.
pub struct KafkaRegistry {
    link: Link,
    topic: String,
    asked: Arc<AtomicU64>,
    /// Woken when somebody has asked how far the reading has come.
    mailbox: Mailbox,
}

impl std::fmt::Debug for KafkaRegistry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("KafkaRegistry").field("topic", &self.topic).finish_non_exhaustive()
    }
}

impl KafkaRegistry {
    /// A registry in `topic`, which is created where it is missing and may be. Nothing is connected
    /// yet.
    pub fn new(link: Link, topic: &str) -> Self {
        Self { link, topic: topic.to_owned(), asked: Arc::default(), mailbox: Mailbox::default() }
    }

    async fn write(&self, name: &str, value: Option<Vec<u8>>) -> Result<(), RegistryError> {
        let (topic, key) = (self.topic.clone(), Some(name.as_bytes().to_vec()));
        self.link.producer.send(&Outgoing { topic, key, value, ..Outgoing::default() }).await?;
        Ok(())
    }
}

impl Registry for KafkaRegistry {
    fn is_shared(&self) -> bool {
        true
    }

    fn put<'a>(&'a self, record: &'a Record) -> BoxFuture<'a, Result<(), RegistryError>> {
        async move { self.write(&record.name, Some(record.encode()?)).await }.boxed()
    }

    fn remove<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<(), RegistryError>> {
        self.write(name, None).boxed()
    }

    fn watch(&self) -> BoxStream<'static, Change> {
        let (changes, receiver) = mpsc::channel(QUEUE);
        let log = Log {
            link: self.link.clone(),
            topic: self.topic.clone(),
            asked: self.asked.clone(),
            mailbox: self.mailbox.clone(),
            changes,
            runtime: Handle::current(),
        };
        thread::spawn(move || log.read());
        ReceiverStream::new(receiver).boxed()
    }

    fn catch_up(&self) -> u64 {
        let number = self.asked.fetch_add(1, Ordering::AcqRel) + 1;
        self.mailbox.wake();
        number
    }
}

/// The reading end.
struct Log {
    link: Link,
    topic: String,
    asked: Arc<AtomicU64>,
    mailbox: Mailbox,
    changes: mpsc::Sender<Change>,
    runtime: Handle,
}

/// Nobody listens any more.
struct Unheard;

impl Log {
    /// Reads until nobody listens.
    fn read(&self) {
        let mut retry = Retry::new(READING, rand::random());
        while !self.changes.is_closed() {
            match self.open() {
                Ok(topic) => {
                    retry.succeeded();
                    match self.follow(topic) {
                        Err(Unheard) => return,
                        Ok(error) => {
                            tracing::warn!(error = chain(&error), "the registry is read anew")
                        }
                    }
                }
                Err(error) => {
                    tracing::warn!(
                        topic = self.topic,
                        error = chain(&error),
                        "the registry can't be read"
                    );
                }
            }
            thread::sleep(retry.failed());
        }
    }

    fn open(&self) -> Result<FollowedTopic, KafkaError> {
        let open = || self.link.follower.open(&self.topic, From::Start, ASK, &self.mailbox);
        match open() {
            Err(KafkaError::NoTopic(_)) => {}
            other => return other,
        }
        let topic = TopicSpec {
            name: self.topic.clone(),
            partitions: 1,
            replication: -1,
            properties: vec![("cleanup.policy", "compact")],
        };
        self.runtime.block_on(admin::create_topics(self.link.follower.settings(), &[topic]))?;
        open()
    }

    /// Tells of everything in the topic, until that fails.
    fn follow(&self, mut topic: FollowedTopic) -> Result<KafkaError, Unheard> {
        let (mut asked, mut told) = (0, None);
        loop {
            let wanted = self.asked.load(Ordering::Acquire);
            if told.is_some() && wanted > asked {
                match topic.look_for_end(ASK) {
                    Ok(()) => asked = wanted,
                    Err(error) => {
                        tracing::debug!(
                            error = chain(&error),
                            "where the registry ends is not known"
                        )
                    }
                }
            }
            // Before the wait for a record: there may be none for long.
            if topic.at_end() && told != Some(asked) {
                self.tell(Some(Change::CaughtUp(asked)))?;
                told = Some(asked);
            }

            match topic.next(LOOK) {
                Ok(Some(record)) => self.tell(change(record))?,
                Ok(None) if self.changes.is_closed() => return Err(Unheard),
                Ok(None) => {}
                Err(error) => return Ok(error),
            }
        }
    }

    fn tell(&self, change: Option<Change>) -> Result<(), Unheard> {
        match change {
            Some(change) => self.changes.blocking_send(change).map_err(|_| Unheard),
            None => Ok(()),
        }
    }
}

/// What a record of the topic says. Anybody who may write there may have written it.
fn change(record: RawRecord) -> Option<Change> {
    let name = String::from_utf8(record.key?).ok()?;
    if fleet_job::tool_name::check_server(&name).is_err() {
        tracing::warn!(
            offset = record.position.offset,
            "a record of the registry has a name that can't be one"
        );
        return None;
    }
    let Some(value) = record.value else {
        return Some(Change::Removed { name, at: record.timestamp });
    };
    Some(match Record::decode(&name, &value) {
        Ok(record) => Change::Put(record),
        Err(error) => Change::Unreadable { name, reason: chain(&error) },
    })
}

#[cfg(test)]
mod tests {
    use fleet_job::record::Position;

    use super::*;

    #[test]
    fn what_anybody_may_have_written_is_read_with_care() {
        let check = |key: Option<&[u8]>, value: Option<&[u8]>| {
            let position = Position { topic: "t".to_owned(), partition: 0, offset: 0 };
            let (key, value) = (key.map(<[u8]>::to_vec), value.map(<[u8]>::to_vec));
            change(RawRecord { position, timestamp: None, key, value, headers: Vec::new() })
        };
        assert_eq!(check(None, Some(b"{}")), None);
        assert_eq!(check(Some(b"\xff"), Some(b"{}")), None);
        assert_eq!(check(Some(b"a\nb"), None), None);
        assert_eq!(
            check(Some(b"a"), None),
            Some(Change::Removed { name: "a".to_owned(), at: None })
        );
        assert!(matches!(check(Some(b"a"), Some(b"{}")), Some(Change::Unreadable { .. })));
        let good = br#"{"config":{"command":"x"},"revision":"1","writtenAt":0}"#;
        assert!(matches!(check(Some(b"a"), Some(good)), Some(Change::Put(_))));
    }
}

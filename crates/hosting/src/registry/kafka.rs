//! The registry in a compacted topic.

use fleet_job::record::RawRecord;
use fleet_kafka::link::Link;
use fleet_ops::errors::chain;
use futures::{FutureExt, future::BoxFuture, stream::BoxStream};

use super::{Record, Registry, RegistryChange, RegistryError};
use crate::compacted::{CompactedTopic, Reading};

/// The registry in Kafka.
#[derive(Debug)]
pub struct KafkaRegistry(CompactedTopic);

impl KafkaRegistry {
    /// Creates a registry in `topic`. Connects to nothing yet. The topic is created when it is
    /// first needed, if it is missing and the broker allows it.
    pub fn new(link: Link, topic: &str) -> Self {
        Self(CompactedTopic::new(link, topic, "registry"))
    }
}

impl Registry for KafkaRegistry {
    fn is_shared(&self) -> bool {
        true
    }

    fn put<'a>(&'a self, record: &'a Record) -> BoxFuture<'a, Result<(), RegistryError>> {
        async move { Ok(self.0.write(&record.name, Some(record.encode()?)).await?) }.boxed()
    }

    fn remove<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<(), RegistryError>> {
        async move { Ok(self.0.write(name, None).await?) }.boxed()
    }

    fn watch(&self) -> Result<BoxStream<'static, RegistryChange>, RegistryError> {
        let reading = Reading { read: read_record, caught_up: RegistryChange::CaughtUp };
        Ok(self.0.watch(reading)?)
    }

    fn catch_up(&self) -> u64 {
        self.0.catch_up()
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

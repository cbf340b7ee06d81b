//! Keeps pins in a compacted topic that all replicas read.

use std::{sync::Arc, time::Duration};

use fleet_job::{record::RawRecord, tool_name, topics::pins_topic};
use fleet_kafka::{KafkaError, link::Link};
use fleet_ops::errors::chain;
use fleet_pins::ServerPins;
use fleet_retry::{Backoff, Retry};
use futures::{StreamExt as _, stream::FuturesUnordered};
use tokio_util::sync::CancellationToken;

use super::{
    MAX_SERVERS, Pins,
    replay::{Replay, Taken},
};
use crate::{
    Fleet,
    compacted::{CompactedTopic, Reading},
};

/// The waits between attempts to write a record.
const RETRIES: Backoff = Backoff { base: Duration::from_millis(500), max: Duration::from_secs(30) };

/// What is read from the topic.
enum Read {
    /// A record, and its offset.
    Record(i64, PinChange),
    CaughtUp,
}

/// A change of the pins.
#[derive(Debug, PartialEq)]
pub(super) enum PinChange {
    Put(String, ServerPins),
    Removed(String),
}

impl Pins {
    fn apply(&self, change: PinChange) {
        let mut state = self.state.write();
        match change {
            PinChange::Put(server, pins) => {
                if state.servers.len() < MAX_SERVERS || state.servers.contains_key(&server) {
                    state.servers.insert(server, pins);
                } else {
                    tracing::warn!(server, "ignoring the pins of a server: too many are kept");
                }
            }
            PinChange::Removed(server) => _ = state.servers.remove(&server),
        }
    }
}

impl Fleet {
    /// Keeps pins in a topic beside that of the registry. Must be called before servers are hosted.
    /// Tools of servers that have to be pinned are withheld until the topic has been read.
    pub fn keep_pins(self: &Arc<Self>, link: Link, registry: &str, stop: CancellationToken) {
        let topic = CompactedTopic::new(link, &pins_topic(registry), "pins");
        let topic = Arc::new(topic);
        *self.pins.topic.write() = Some(topic.clone());
        self.pins.is_read.send_replace(false);

        let this = self.clone();
        tokio::spawn(async move {
            let keep = async {
                // Whoever pins nothing needs no topic.
                while !this.policy().pins.is_on() {
                    this.pins.policy_changed.notified().await;
                }
                tokio::join!(this.follow_pins(&topic), this.write_first_sights(&topic));
            };
            tokio::select! {
                () = keep => {}
                () = stop.cancelled() => {}
            }
        });
    }

    /// Waits until the pins have been read, if there are any to be read.
    pub async fn wait_for_pins(&self) {
        if self.policy().pins.is_on() {
            // The sender lives as long as `self`.
            _ = self.pins.is_read.subscribe().wait_for(|is_read| *is_read).await;
        }
    }

    async fn follow_pins(&self, topic: &CompactedTopic) {
        let reading = Reading { read: read_record, caught_up: |_| Read::CaughtUp };
        let mut changes = match topic.watch(reading) {
            Ok(changes) => changes,
            Err(error) => {
                let error = chain(&error);
                tracing::error!(error, "could not follow the pins; pinned tools stay withheld");
                return;
            }
        };

        let mut replay = Replay::default();
        while let Some(read) = changes.next().await {
            match read {
                Read::Record(offset, change) => match replay.take(offset, change) {
                    Taken::Apply(change) => self.pins.apply(change),
                    // Reported once the whole topic has been read again.
                    Taken::Begun => _ = topic.catch_up(),
                    Taken::Held => {}
                },
                Read::CaughtUp => {
                    replay.end().into_iter().for_each(|change| self.pins.apply(change));
                    self.pins.is_read.send_replace(true);
                }
            }
            if self.pins.is_read() && !replay.is_running() {
                self.rebuild_routes();
            }
        }
    }

    /// Writes the pins of servers that were seen for the first time. No server waits for another's.
    async fn write_first_sights(&self, topic: &CompactedTopic) {
        let mut unwritten = self.pins.unwritten.1.lock().await;
        let mut writes = FuturesUnordered::new();
        loop {
            tokio::select! {
                server = unwritten.recv() => match server {
                    Some(server) => writes.push(self.write_first_sight(topic, server)),
                    None => break,
                },
                Some(()) = writes.next() => {}
            }
        }
    }

    async fn write_first_sight(&self, topic: &CompactedTopic, server: String) {
        let mut retry = Retry::new(RETRIES, rand::random());
        loop {
            let pins = self.pins.state.read().servers.get(&server).cloned();
            let Some(pins) = pins else { return };
            let Err(error) = write_pins(topic, &server, &pins).await else { return };
            tracing::warn!(server, error, "could not keep the pins of a server; trying again");
            tokio::time::sleep(retry.failed()).await;
        }
    }
}

pub(super) async fn write_pins(
    topic: &CompactedTopic,
    server: &str,
    pins: &ServerPins,
) -> Result<(), String> {
    let value = pins.encode().map_err(|error| chain(&error))?;
    topic.write(server, Some(value)).await.map_err(|error: KafkaError| chain(&error))
}

/// Reads a record of the topic. Anybody may write to the topic, so the record may be invalid; then
/// the one before it counts.
fn read_record(record: RawRecord) -> Option<Read> {
    let offset = record.position.offset;
    let server = String::from_utf8(record.key?).ok()?;
    if tool_name::check_server(&server).is_err() {
        return None;
    }
    let Some(value) = record.value else {
        return Some(Read::Record(offset, PinChange::Removed(server)));
    };
    match ServerPins::decode(&value) {
        Ok(pins) => Some(Read::Record(offset, PinChange::Put(server, pins))),
        Err(error) => {
            let error = chain(&error);
            tracing::warn!(server, error, "ignoring an unreadable record of pins");
            None
        }
    }
}

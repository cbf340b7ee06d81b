//! The identity of the log behind a topic's name. A topic that is deleted and created again keeps
//! its name, and the group may keep the offset committed for the old one; only the topic's id tells
//! the two apart.
//!
//! The id is looked up when partitions are assigned, and every few seconds afterwards (`watch`).
//! [`fleet_group::log::start`] decides how much of a commit to believe.

use std::{collections::HashMap, sync::Arc, thread, time::Duration};

use fleet_group::{
    Partition,
    log::{self, Finding, Found, LogName, Start},
};
use fleet_topic_id::{TopicIdError, topic_id};
use rdkafka::{
    Offset, TopicPartitionList,
    consumer::{BaseConsumer, Consumer as _},
};

use super::context::Context;

/// The timeout of one request to a broker.
pub(super) const TIMEOUT: Duration = Duration::from_secs(3);
/// How often an assignment requests the topic's id before it goes on without it.
const ID_TRIES: usize = 3;
/// How often the end of a log is requested again if it seems to lie below the committed offset, and
/// the pause between requests: a newly elected leader may not know yet how far its log is
/// committed.
const END_TRIES: usize = 5;
const END_PAUSE: Duration = Duration::from_millis(300);

/// The log behind a topic's name, as far as it is known.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LogIdentity {
    /// The cluster's id.
    pub cluster: Option<Arc<str>>,
    /// The topic's id.
    pub topic: Option<Arc<str>>,
}

impl LogIdentity {
    /// Returns the hashed form of the identity that commits carry.
    pub fn name(&self) -> LogName {
        LogName::of(self.cluster.as_deref(), self.topic.as_deref())
    }
}

/// Committed offset and metadata by partition.
pub(super) type Commits = HashMap<Partition, (i64, String)>;

impl Context {
    /// Fetches the identity of the topic's current log. Whatever is not answered keeps its last
    /// known value. Reports whether the topic exists.
    pub(super) fn fetch_identity(
        &self,
        consumer: &BaseConsumer<Self>,
        tries: usize,
    ) -> LogIdentity {
        let before = self.identity();
        let cluster = consumer.client().fetch_cluster_id(TIMEOUT).map(Arc::from).or(before.cluster);

        let mut answers = (0..tries).map(|_| topic_id(consumer.client(), &self.topic, TIMEOUT));
        let answer = answers.find(|answer| !matches!(answer, Err(TopicIdError::Request(_))));
        let topic = match answer {
            Some(Ok(id)) => {
                self.note_topic(true);
                id.map(Arc::from)
            }
            // A new topic may get this name: keep the id to tell them apart.
            Some(Err(_)) => {
                self.note_topic(false);
                before.topic
            }
            None => {
                tracing::warn!(
                    topic = self.topic,
                    "could not fetch the topic's id; keeping the last known one"
                );
                before.topic
            }
        };

        LogIdentity { cluster, topic }
    }

    /// Decides where to start reading each assigned partition. Changes `list` where librdkafka
    /// would start elsewhere.
    pub(super) fn find_starts(
        &self,
        consumer: &BaseConsumer<Self>,
        list: &TopicPartitionList,
        partitions: &[Partition],
        committed: &Commits,
    ) -> Vec<(Partition, Start)> {
        let (before, now) = (self.identity(), self.fetch_identity(consumer, ID_TRIES));
        let has_changed = now.name().is_another_topic(before.name());
        self.set_identity(now);

        let mut starts = Vec::new();
        for attempt in 1.. {
            starts = self.judge_starts(consumer, partitions, committed);
            let is_odd =
                |(_, start): &(_, Start)| matches!(start.finding, Finding::BeyondEnd { .. });
            if attempt >= END_TRIES || !starts.iter().any(is_odd) {
                break;
            }
            thread::sleep(END_PAUSE);
        }

        for (partition, start) in &mut starts {
            // The broker has forgotten the old topic's offsets together with the topic; we have
            // not.
            if start.finding == Finding::Nothing && has_changed {
                start.finding = Finding::Remade;
            }

            let offset = match start.finding {
                // The first offset of every log.
                Finding::Remade => Offset::Offset(0),
                Finding::BeyondEnd { .. } => Offset::Beginning,
                _ => continue,
            };

            let element = list.find_partition(&self.topic, partition.number);
            if let Some(Err(error)) = element.map(|mut element| element.set_offset(offset)) {
                tracing::error!(%error, ?partition, "could not start reading at the beginning of the log");
            }
        }
        starts
    }

    /// Judges the commit of each partition by the bounds of its log.
    fn judge_starts(
        &self,
        consumer: &BaseConsumer<Self>,
        partitions: &[Partition],
        committed: &Commits,
    ) -> Vec<(Partition, Start)> {
        let log = self.identity().name();
        let with_commit =
            || partitions.iter().copied().filter(|partition| committed.contains_key(partition));
        let firsts = self.fetch_bounds(consumer, with_commit(), Offset::Beginning);
        let ends = self.fetch_bounds(consumer, with_commit(), Offset::End);

        let judge = |partition: &Partition| {
            let commit = committed.get(partition);
            let found = Found {
                log,
                committed: commit.map(|(offset, metadata)| (*offset, metadata.as_str())),
                first: firsts.get(partition).copied(),
                end: ends.get(partition).copied(),
            };
            (*partition, log::start(found))
        };
        partitions.iter().map(judge).collect()
    }

    /// Fetches the first offset or the end of each of these partitions. Partitions without an
    /// answer are left out.
    pub(super) fn fetch_bounds(
        &self,
        consumer: &BaseConsumer<Self>,
        partitions: impl Iterator<Item = Partition>,
        which: Offset,
    ) -> HashMap<Partition, i64> {
        let mut asked = self.partition_list(partitions);
        if asked.count() == 0 || asked.set_all_offsets(which).is_err() {
            return HashMap::new();
        }

        let found = match consumer.offsets_for_times(asked, TIMEOUT) {
            Ok(found) => found,
            Err(error) => {
                tracing::warn!(%error, "could not fetch the first and last offsets of the logs");
                return HashMap::new();
            }
        };

        let elements = found.elements();
        let told =
            elements.iter().filter_map(|element| match (element.error(), element.offset()) {
                (Ok(()), Offset::Offset(offset)) => {
                    Some((self.partition(element.topic(), element.partition())?, offset))
                }
                _ => None,
            });
        told.collect()
    }
}

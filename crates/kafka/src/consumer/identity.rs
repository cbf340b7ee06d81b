//! Which logs the topics are. A topic that is deleted and made again keeps its name, and the group
//! may keep the offset that was committed for the old one; only the topic's id tells the two apart.
//!
//! The id is looked up when partitions are assigned, and every few seconds from then on (`watch`).
//! What is to be believed of a commit is decided by [`fleet_group::log::start`].

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

/// How long the broker may take to answer.
pub(super) const TIMEOUT: Duration = Duration::from_secs(3);
/// How often an assignment asks for a topic's id before it goes on without.
const ID_TRIES: usize = 3;
/// How often the end of a log is asked for that seems to lie below the committed offset, and how
/// long apart: a leader that was just elected may not know yet how far its log is committed.
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
    /// What a commit says of it.
    pub fn name(&self) -> LogName {
        LogName::of(self.cluster.as_deref(), self.topic.as_deref())
    }
}

/// What was committed for a partition.
pub(super) type Commits = HashMap<Partition, (i64, String)>;

impl Context {
    /// The log that the topic is now. Without an answer, what was known of it before. Tells if the
    /// topic does not exist any more, or exists again.
    pub(super) fn look_up(&self, consumer: &BaseConsumer<Self>, tries: usize) -> LogIdentity {
        let before = self.identity();
        let cluster = consumer.client().fetch_cluster_id(TIMEOUT).map(Arc::from).or(before.cluster);

        let mut answers = (0..tries).map(|_| topic_id(consumer.client(), &self.topic, TIMEOUT));
        let answer = answers.find(|answer| !matches!(answer, Err(TopicIdError::Request(_))));
        let topic = match answer {
            Some(Ok(id)) => {
                self.note_topic(true);
                id.map(Arc::from)
            }
            // Another topic of this name may come.
            Some(Err(_)) => {
                self.note_topic(false);
                before.topic
            }
            None => {
                tracing::warn!(
                    topic = self.topic,
                    "the broker does not say which id the topic has"
                );
                before.topic
            }
        };

        LogIdentity { cluster, topic }
    }

    /// Where each of the assigned partitions is to be read from. Says so in `list` where librdkafka
    /// would do otherwise.
    pub(super) fn starts(
        &self,
        consumer: &BaseConsumer<Self>,
        list: &TopicPartitionList,
        partitions: &[Partition],
        committed: &Commits,
    ) -> Vec<(Partition, Start)> {
        let (before, now) = (self.identity(), self.look_up(consumer, ID_TRIES));
        let has_changed = now.name().is_another_topic(before.name());
        self.identify(now);

        let mut starts = Vec::new();
        for attempt in 1.. {
            starts = self.judged(consumer, partitions, committed);
            let is_odd =
                |(_, start): &(_, Start)| matches!(start.finding, Finding::BeyondEnd { .. });
            if attempt >= END_TRIES || !starts.iter().any(is_odd) {
                break;
            }
            thread::sleep(END_PAUSE);
        }

        for (partition, start) in &mut starts {
            // The broker has forgotten the old topic's offsets with it, but we have not.
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
                tracing::error!(%error, ?partition, "reading can't start at the beginning of the log");
            }
        }
        starts
    }

    fn judged(
        &self,
        consumer: &BaseConsumer<Self>,
        partitions: &[Partition],
        committed: &Commits,
    ) -> Vec<(Partition, Start)> {
        let log = self.identity().name();
        let with_commit =
            || partitions.iter().copied().filter(|partition| committed.contains_key(partition));
        let firsts = self.ends(consumer, with_commit(), Offset::Beginning);
        let ends = self.ends(consumer, with_commit(), Offset::End);
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

    /// The first offset of each of these partitions, or the end. One that nobody tells is left out.
    pub(super) fn ends(
        &self,
        consumer: &BaseConsumer<Self>,
        partitions: impl Iterator<Item = Partition>,
        which: Offset,
    ) -> HashMap<Partition, i64> {
        let mut asked = self.positions(partitions);
        if asked.count() == 0 || asked.set_all_offsets(which).is_err() {
            return HashMap::new();
        }
        let found = match consumer.offsets_for_times(asked, TIMEOUT) {
            Ok(found) => found,
            Err(error) => {
                tracing::warn!(%error, "the broker does not say where the logs begin and end");
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

//! The metrics for the controllers, from a real broker and real processes.

use std::{collections::BTreeMap, net::SocketAddr, time::Duration};

use rdkafka::{
    Offset, TopicPartitionList,
    consumer::{BaseConsumer, Consumer as _},
};

use super::{
    Source,
    query::{Scrapes, evaluate},
    triggers::Partition,
};
use crate::{http, topics, wait};

const TIMEOUT: Duration = Duration::from_secs(30);

/// A consumer group and its topics.
pub struct Live {
    consumer: BaseConsumer,
    topics: Vec<(String, i32)>,
}

impl Live {
    /// Prepares to read the offsets of `group` on these topics, with their numbers of partitions,
    /// without joining the group.
    pub fn new(brokers: &str, group: &str, topics: Vec<(String, i32)>) -> Self {
        let consumer = topics::config(brokers).set("group.id", group).create().expect("a consumer");
        Self { consumer, topics }
    }

    /// Takes a snapshot of the topics and of the processes that listen at `scraped`.
    pub fn look(&self, scraped: impl IntoIterator<Item = SocketAddr>) -> Snapshot {
        let partitions = self
            .topics
            .iter()
            .map(|(topic, partitions)| (topic.clone(), self.partitions(topic, *partitions)));

        // A process that is about to end doesn't answer, and Prometheus would have no samples of
        // it, either.
        let scrape = |address: SocketAddr| {
            Some((address.to_string(), http::get(address, "/metrics").ok()?.1))
        };
        Snapshot {
            partitions: partitions.collect(),
            scrapes: scraped.into_iter().filter_map(scrape).collect(),
        }
    }

    fn partitions(&self, topic: &str, count: i32) -> Vec<Partition> {
        let mut asked = TopicPartitionList::new();
        asked.add_partition_range(topic, 0, count - 1);
        // A broker that has just started may have no coordinator for groups yet.
        let committed = wait::poll_until_ok("committed offsets", TIMEOUT, || {
            self.consumer.committed_offsets(asked.clone(), TIMEOUT)
        });
        let look = |partition| {
            let (earliest, latest) =
                self.consumer.fetch_watermarks(topic, partition, TIMEOUT).expect("watermarks");
            let committed =
                match committed.find_partition(topic, partition).map(|found| found.offset()) {
                    Some(Offset::Offset(offset)) => Some(offset),
                    _ => None,
                };
            Partition { partition, committed, earliest, latest }
        };

        (0..count).map(look).collect()
    }
}

/// The metrics at one time.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    partitions: BTreeMap<String, Vec<Partition>>,
    scrapes: Scrapes,
}

impl Snapshot {
    /// The number of uncommitted records, over all partitions of all topics.
    pub fn lag(&self) -> i64 {
        let lag = |partition: &Partition| {
            partition.latest - partition.committed.unwrap_or(partition.earliest)
        };
        self.partitions.values().flatten().map(lag).sum()
    }
}

impl Source for Snapshot {
    fn partitions(&mut self, topic: Option<&str>) -> Vec<Partition> {
        let of = |topic: &str| {
            let partitions = self.partitions.get(topic);
            partitions.unwrap_or_else(|| panic!("no topic {topic}")).clone()
        };
        match topic {
            Some(topic) => of(topic),
            None => self.partitions.keys().flat_map(|topic| of(topic)).collect(),
        }
    }

    fn query(&mut self, query: &str) -> Option<f64> {
        evaluate(query, &self.scrapes).unwrap_or_else(|error| panic!("{query}: {error}"))
    }
}

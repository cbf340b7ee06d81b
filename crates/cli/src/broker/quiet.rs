//! Which fetches need not ask the storage. An idle client asks the same again and again, and each
//! look costs several queries of the storage for every partition. A fetch that found nothing finds
//! nothing until one of its partitions has been written to.
//!
//! Pure: the router says what was written and what a fetch found, and passes the time in.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use tansu_sans_io::{Body, FetchRequest, ProduceRequest, fetch_request::FetchTopic};

/// How long it is believed that a fetch still finds nothing, in case a write went unnoticed.
pub(super) const LONGEST_QUIET: Duration = Duration::from_secs(30);

/// Counts the writes, and knows the last one of each partition.
#[derive(Debug, Default)]
pub(super) struct Writes {
    count: u64,
    /// The last change that may concern any partition: topics were created or deleted.
    everywhere: u64,
    partitions: HashMap<String, HashMap<i32, u64>>,
}

impl Writes {
    /// How many there were.
    pub(super) fn count(&self) -> u64 {
        self.count
    }

    /// Any fetch may find something else from now on.
    pub(super) fn note_everywhere(&mut self) {
        self.count += 1;
        self.everywhere = self.count;
        self.partitions.clear();
    }

    /// These partitions were written to.
    pub(super) fn note(&mut self, written: &Written) {
        self.count += 1;
        for (topic, partition) in &written.0 {
            let partitions = match self.partitions.get_mut(topic) {
                Some(partitions) => partitions,
                None => self.partitions.entry(topic.clone()).or_default(),
            };
            partitions.insert(*partition, self.count);
        }
    }

    /// The last write that a fetch could find.
    fn last_for(&self, asked: &Asked) -> u64 {
        let last = |topic: &FetchTopic| {
            // Without a name the topic is known by its id only, and any write may be to it.
            let Some(name) = &topic.topic else { return self.count };
            let Some(written) = self.partitions.get(name) else { return 0 };
            let partitions = topic.partitions.iter().flatten();
            partitions
                .filter_map(|asked| written.get(&asked.partition))
                .copied()
                .max()
                .unwrap_or_default()
        };
        let topics = asked.0.topics.iter().flatten();
        topics.map(last).max().unwrap_or_default().max(self.everywhere)
    }
}

/// The partitions that a request writes to.
#[derive(Debug)]
pub(super) struct Written(Vec<(String, i32)>);

impl Written {
    pub(super) fn of(produce: &ProduceRequest) -> Self {
        let mut written = Vec::new();
        for topic in produce.topic_data.iter().flatten() {
            let partitions = topic.partition_data.iter().flatten();
            written.extend(partitions.map(|partition| (topic.name.clone(), partition.index)));
        }
        Self(written)
    }
}

/// What a fetch asks, in an order of its own: librdkafka asks for another partition first each
/// time.
#[derive(Debug, PartialEq)]
pub(super) struct Asked(FetchRequest);

impl Asked {
    pub(super) fn of(fetch: &FetchRequest) -> Self {
        let mut single = Vec::new();
        for topic in fetch.topics.iter().flatten() {
            for partition in topic.partitions.iter().flatten() {
                single.push(topic.clone().partitions(Some(vec![partition.clone()])));
            }
        }
        single.sort_by(|left, right| order(left).cmp(&order(right)));
        Self(fetch.clone().topics(Some(single)))
    }
}

/// Orders topics of one partition each.
fn order(topic: &FetchTopic) -> (Option<&str>, Option<[u8; 16]>, Option<i32>) {
    let partition = topic.partitions.iter().flatten().next().map(|partition| partition.partition);
    (topic.topic.as_deref(), topic.topic_id, partition)
}

/// The last fetch of a connection that found nothing.
#[derive(Debug, Default)]
pub(super) struct LastFetch(Option<Nothing>);

/// A fetch, and how nothing was said.
#[derive(Debug)]
struct Nothing {
    asked: Asked,
    /// How many writes there had been before the storage was asked, and when that was.
    writes: u64,
    at: Instant,
    answer: Body,
}

impl LastFetch {
    /// The answer to this fetch, if it is known that it finds nothing.
    pub(super) fn found_nothing(
        &self,
        asked: &Asked,
        writes: &Writes,
        now: Instant,
    ) -> Option<Body> {
        let last = self.0.as_ref()?;
        let is_quiet = last.asked == *asked
            && writes.last_for(asked) <= last.writes
            && now.saturating_duration_since(last.at) < LONGEST_QUIET;
        is_quiet.then(|| last.answer.clone())
    }

    /// The storage found nothing for this fetch, asked after `writes` writes, at `at`.
    pub(super) fn keep(&mut self, asked: Asked, writes: u64, at: Instant, answer: Body) {
        self.0 = Some(Nothing { asked, writes, at, answer });
    }
}

#[cfg(test)]
#[path = "quiet_tests.rs"]
mod quiet_tests;

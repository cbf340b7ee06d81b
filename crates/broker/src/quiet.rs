//! Decides which fetches need not query the storage. An idle client repeats the same fetch, and
//! each one costs several storage queries per partition. A fetch that found nothing keeps finding
//! nothing until one of its partitions has been written to.
//!
//! Pure: the router reports what was written and what a fetch found, and passes the time in.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use tansu_sans_io::{Body, FetchRequest, ProduceRequest, fetch_request::FetchTopic};

/// How long an empty result is reused, in case a write went unnoticed.
pub(super) const LONGEST_QUIET: Duration = Duration::from_secs(30);

/// Counts writes and records the last one to each partition.
#[derive(Debug, Default)]
pub(super) struct Writes {
    count: u64,
    /// The last change that may affect any partition, such as a new or deleted topic.
    everywhere: u64,
    partitions: HashMap<String, HashMap<i32, u64>>,
}

impl Writes {
    /// Returns the number of writes so far.
    pub(super) fn count(&self) -> u64 {
        self.count
    }

    /// Records a change after which any fetch may have a different result.
    pub(super) fn note_everywhere(&mut self) {
        self.count += 1;
        self.everywhere = self.count;
        self.partitions.clear();
    }

    /// Records a write to these partitions.
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

    /// Returns the last write that a fetch could find.
    fn last_for(&self, asked: &Asked) -> u64 {
        let last = |topic: &FetchTopic| {
            // A topic without a name is known only by its id, so any write may be to it.
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

/// A fetch request in canonical order, since librdkafka starts with another partition each time.
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
        single.sort_by(|left, right| sort_key(left).cmp(&sort_key(right)));
        Self(fetch.clone().topics(Some(single)))
    }
}

/// The sort key of topics with one partition each.
fn sort_key(topic: &FetchTopic) -> (Option<&str>, Option<[u8; 16]>, Option<i32>) {
    let partition = topic.partitions.iter().flatten().next().map(|partition| partition.partition);
    (topic.topic.as_deref(), topic.topic_id, partition)
}

/// The last fetch of a connection, if it found nothing.
#[derive(Debug, Default)]
pub(super) struct LastFetch(Option<EmptyFetch>);

/// A fetch and its empty response.
#[derive(Debug)]
struct EmptyFetch {
    asked: Asked,
    /// The number of writes before the storage was queried, and the time of the query.
    writes: u64,
    at: Instant,
    answer: Body,
}

impl LastFetch {
    /// Returns the response to this fetch if it is known to find nothing.
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

    /// Records that the storage found nothing for this fetch at `at`, after `writes` writes.
    pub(super) fn keep(&mut self, asked: Asked, writes: u64, at: Instant, answer: Body) {
        self.0 = Some(EmptyFetch { asked, writes, at, answer });
    }
}

#[cfg(test)]
#[path = "quiet_tests.rs"]
mod quiet_tests;

//! What the controllers ask, of a real broker and a real server.

use std::{net::SocketAddr, time::Duration};

use rdkafka::{
    Offset, TopicPartitionList,
    consumer::{BaseConsumer, Consumer as _},
};

use super::{Source, triggers::Partition};
use crate::{http, topics};

const TIMEOUT: Duration = Duration::from_secs(30);
/// What the second trigger is about.
const OPEN_JOBS: &str = "mcp_server_ledger_jobs";

/// A topic, a consumer group, and servers with a ledger.
pub struct Live {
    consumer: BaseConsumer,
    topic: String,
    partitions: i32,
    servers: Vec<SocketAddr>,
}

impl Live {
    /// Looks at the offsets of `group` on `topic`. It does not join the group.
    pub fn new(brokers: &str, group: &str, topic: &str, partitions: i32, servers: Vec<SocketAddr>) -> Self {
        let consumer = topics::config(brokers).set("group.id", group).create().expect("a consumer");
        Self { consumer, topic: topic.to_owned(), partitions, servers }
    }

    /// What there is to be seen now.
    pub fn look(&self) -> Snapshot {
        let mut asked = TopicPartitionList::new();
        asked.add_partition_range(&self.topic, 0, self.partitions - 1);
        let committed = self.consumer.committed_offsets(asked, TIMEOUT).expect("committed offsets");
        let look = |partition| {
            let (earliest, latest) =
                self.consumer.fetch_watermarks(&self.topic, partition, TIMEOUT).expect("watermarks");
            let committed = match committed.find_partition(&self.topic, partition).map(|found| found.offset()) {
                Some(Offset::Offset(offset)) => Some(offset),
                _ => None,
            };
            Partition { partition, committed, earliest, latest }
        };
        let scrapes = self.servers.iter().filter_map(|server| Some(http::get(*server, "/metrics").ok()?.1));
        Snapshot { partitions: (0..self.partitions).map(look).collect(), scrapes: scrapes.collect() }
    }
}

/// What there was to be seen at one time.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// The partitions of the topic.
    pub partitions: Vec<Partition>,
    scrapes: Vec<String>,
}

impl Snapshot {
    /// How many records were not committed, over all partitions.
    pub fn lag(&self) -> i64 {
        let lag = |partition: &Partition| partition.latest - partition.committed.unwrap_or(partition.earliest);
        self.partitions.iter().map(lag).sum()
    }

    /// How many jobs are in one of these states, by the replica that knows most of them.
    pub fn jobs(&self, states: &[&str]) -> Option<f64> {
        self.scrapes.iter().map(|scrape| jobs(scrape, states)).max_by(f64::total_cmp)
    }
}

impl Source for Snapshot {
    fn partitions(&mut self) -> Vec<Partition> {
        self.partitions.clone()
    }

    /// Answers queries for jobs in certain states. Every replica of the server has all jobs, so the greatest sum counts.
    fn query(&mut self, query: &str) -> Option<f64> {
        let states = states(query).unwrap_or_else(|| panic!("this query is not understood: {query}"));
        self.jobs(&states)
    }
}

/// The states of the jobs that a query counts; none where it is another query. It has to take the greatest over the replicas.
fn states(query: &str) -> Option<Vec<&str>> {
    let (around, selected) = query.split_once(OPEN_JOBS)?;
    let states = selected.trim_start().strip_prefix("{state=~\"")?.split_once('"')?.0;
    let of_names = states.split('|').all(|state| state.bytes().all(|byte| byte.is_ascii_alphabetic()));
    (around.contains("max") && of_names).then(|| states.split('|').collect())
}

/// How many jobs a scrape has in these states.
fn jobs(scrape: &str, states: &[&str]) -> f64 {
    let of = |line: &str| {
        let (state, value) = line.strip_prefix(OPEN_JOBS)?.strip_prefix("{state=\"")?.split_once("\"}")?;
        states.contains(&state).then(|| value.trim().parse::<f64>().ok())?
    };
    scrape.lines().filter_map(of).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_query_says_which_states_count() {
        let check = |query: &str, expected: Option<f64>| {
            let scrape = "mcp_server_ledger_jobs{state=\"queued\"} 3\nmcp_server_ledger_jobs{state=\"running\"} 4\n\
                mcp_server_ledger_jobs{state=\"succeeded\"} 500\nother{state=\"queued\"} 7\n";
            assert_eq!(states(query).map(|states| jobs(scrape, &states)), expected, "{query}");
        };
        check("max(sum by (instance) (mcp_server_ledger_jobs{state=~\"queued|running\"}))", Some(7.0));
        check("sum(max by (state) (mcp_server_ledger_jobs{state=~\"queued|retrying\"}))", Some(3.0));
        check("sum(mcp_server_ledger_jobs{state=~\"queued|running\"})", None);
        check("max(mcp_server_ledger_jobs{state=~\"q.*\"})", None);
        check("max(up)", None);
    }
}

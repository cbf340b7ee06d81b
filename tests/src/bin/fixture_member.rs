//! A member of a consumer group that takes part in rebalances but settles nothing: its successors
//! do the work of its partitions. It is a process of its own, because librdkafka can crash the
//! process that assigns the partitions of a group whose members follow different topics.
//!
//! usage: `fixture_member BROKERS GROUP TOPIC...`

use std::{env, time::Duration};

use fleet_tests::topics;

const USAGE: &str = "usage: fixture_member BROKERS GROUP TOPIC...";

fn main() {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let [brokers, group, topics @ ..] = &arguments[..] else { panic!("{USAGE}") };
    let topics: Vec<&str> = topics.iter().map(String::as_str).collect();
    let member = topics::idle_member(brokers, group, &topics);
    loop {
        // Ignore the records.
        drop(member.poll(Duration::from_secs(1)));
    }
}

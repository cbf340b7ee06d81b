//! How far a run is: reads the events as they come, counts the records that have come to an end,
//! and names their jobs.

use std::{collections::HashSet, time::Duration};

use fleet_job::event::JobEvent;
use rdkafka::{
    Offset, TopicPartitionList,
    consumer::{BaseConsumer, Consumer as _},
};

use crate::topics;

/// A reader of an events topic that goes on where it was.
pub struct Watch {
    consumer: BaseConsumer,
    ended: HashSet<(i32, i64)>,
    /// The jobs whose end was read since somebody asked.
    fresh: Vec<String>,
}

impl Watch {
    /// Reads the topic `events` of so many partitions from its beginning.
    pub fn new(brokers: &str, events: &str, partitions: i32) -> Self {
        let consumer: BaseConsumer = topics::config(brokers)
            .set("group.id", "fleet-tests-watch")
            .set("enable.auto.commit", "false")
            .create()
            .expect("a consumer");
        let mut all = TopicPartitionList::new();
        for partition in 0..partitions {
            all.add_partition_offset(events, partition, Offset::Beginning).expect("a partition");
        }
        consumer.assign(&all).expect("an assignment");
        Self { consumer, ended: HashSet::new(), fresh: Vec::new() }
    }

    /// Reads what there is, for `wait` at most if there is nothing, and returns how many records
    /// have come to an end.
    pub fn ended(&mut self, wait: Duration) -> usize {
        let mut patience = wait;
        // Errors are what a broker that is down looks like from here; librdkafka goes on by itself.
        while let Some(polled) = self.consumer.poll(patience) {
            patience = Duration::ZERO;
            let Ok(message) = polled else { continue };
            let record = topics::record(&message);
            let event: Option<JobEvent> = serde_json::from_str(&record.text()).ok();
            if let Some(event) = event.filter(|event| event.state.is_terminal())
                && let Some(source) = event.source
                && self.ended.insert((source.partition, source.offset))
            {
                self.fresh.push(event.job_id);
            }
        }
        self.ended.len()
    }

    /// The jobs whose end was read since this was called last.
    pub fn take_fresh(&mut self) -> Vec<String> {
        std::mem::take(&mut self.fresh)
    }
}

//! The progress of a run: reads events as they arrive, counts the records that have ended, and
//! names their jobs.

use std::{collections::HashSet, time::Duration};

use fleet_job::event::JobEvent;
use rdkafka::{
    Offset, TopicPartitionList,
    consumer::{BaseConsumer, Consumer as _},
};

use crate::topics;

/// A reader of an events topic that continues where it stopped.
pub struct Watch {
    consumer: BaseConsumer,
    ended: HashSet<(i32, i64)>,
    /// The jobs whose ends were read since the last request for them.
    fresh: Vec<String>,
}

impl Watch {
    /// Starts to read the topic `events` with this many partitions from its beginning.
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

    /// Reads the available events, waiting up to `wait` if there are none, and returns how many
    /// records have ended so far.
    pub fn ended(&mut self, wait: Duration) -> usize {
        let mut patience = wait;
        // A broker that is down shows as an error here; librdkafka recovers by itself.
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

    /// The jobs whose ends were read since the last call.
    pub fn take_fresh(&mut self) -> Vec<String> {
        std::mem::take(&mut self.fresh)
    }
}

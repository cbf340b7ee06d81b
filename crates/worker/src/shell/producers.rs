//! A producer for each member of the group. A member that loses its partitions forgets what it
//! still had to write about their jobs; what the other member has to write goes on.

use std::{sync::Arc, time::Duration};

use fleet_kafka::{KafkaError, producer::Producer};

use super::DELAYED;

/// The producers of this worker.
#[derive(Debug)]
pub(super) struct Producers {
    /// Writes everything about jobs.
    jobs: Arc<Producer>,
    /// Passes on what has waited in the delayed topic. Made when the first record is passed on,
    /// since most workers of a fleet without delayed jobs never need it.
    relays: Option<Arc<Producer>>,
}

impl Producers {
    pub(super) fn new(jobs: Arc<Producer>) -> Self {
        Self { jobs, relays: None }
    }

    /// The producer for what is said of jobs.
    pub(super) fn for_jobs(&self) -> Arc<Producer> {
        self.jobs.clone()
    }

    /// The producer for records of this topic.
    ///
    /// # Errors
    /// [`KafkaError::Client`] when it can't be made.
    pub(super) fn for_topic(&mut self, topic: u16) -> Result<Arc<Producer>, KafkaError> {
        if topic != DELAYED {
            return Ok(self.jobs.clone());
        }

        if let Some(relays) = &self.relays {
            return Ok(relays.clone());
        }
        let relays = Arc::new(self.jobs.sibling()?);
        Ok(self.relays.insert(relays).clone())
    }

    /// Drops what is not written yet about records of this topic.
    pub(super) fn forget_topic(&self, topic: u16) {
        let producer = if topic == DELAYED { self.relays.as_ref() } else { Some(&self.jobs) };
        if let Some(producer) = producer {
            producer.forget();
        }
    }

    /// Waits until everything is written, at most so long for each producer. Blocks the thread.
    ///
    /// # Errors
    /// [`KafkaError::Request`] when the time did not suffice.
    pub(super) fn flush_all(&self, timeout: Duration) -> Result<(), KafkaError> {
        let relays = self.relays.as_ref().map_or(Ok(()), |relays| relays.flush(timeout));
        self.jobs.flush(timeout).and(relays)
    }
}

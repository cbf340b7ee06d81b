//! One producer for each member of the group. When a member loses its partitions, its unwritten
//! records about their jobs are dropped, and those of the other member are not.

use std::{sync::Arc, time::Duration};

use fleet_kafka::{KafkaError, producer::Producer};

use super::DELAYED;

/// The producers of this worker.
#[derive(Debug)]
pub(super) struct Producers {
    /// Writes everything about jobs.
    jobs: Arc<Producer>,
    /// Passes on records of the delayed topic. Made for the first such record: without delayed jobs
    /// it is never needed.
    relays: Option<Arc<Producer>>,
}

impl Producers {
    pub(super) fn new(jobs: Arc<Producer>) -> Self {
        Self { jobs, relays: None }
    }

    /// The producer for events and dead letters.
    pub(super) fn for_jobs(&self) -> Arc<Producer> {
        self.jobs.clone()
    }

    /// The producer for records of this topic.
    ///
    /// # Errors
    /// [`KafkaError::Client`] if it can't be made.
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

    /// Drops unwritten records about this topic.
    pub(super) fn forget_topic(&self, topic: u16) {
        let producer = if topic == DELAYED { self.relays.as_ref() } else { Some(&self.jobs) };
        if let Some(producer) = producer {
            producer.forget();
        }
    }

    /// Waits until everything is written, at most `timeout` for each producer. Blocks the thread.
    ///
    /// # Errors
    /// [`KafkaError::Request`] if that takes longer.
    pub(super) fn flush_all(&self, timeout: Duration) -> Result<(), KafkaError> {
        let relays = self.relays.as_ref().map_or(Ok(()), |relays| relays.flush(timeout));
        self.jobs.flush(timeout).and(relays)
    }
}

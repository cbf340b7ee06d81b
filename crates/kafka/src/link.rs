//! The one connection of this process to a Kafka cluster.

use std::sync::Arc;

use crate::{KafkaError, follow::Follower, producer::Producer, settings::Settings};

/// A client that reads and one that writes, for everything in this process that needs them. Clones
/// share both.
#[derive(Debug, Clone)]
pub struct Link {
    /// Follows topics, and knows the settings.
    pub follower: Follower,
    /// Writes records.
    pub producer: Arc<Producer>,
}

impl Link {
    /// A link to these brokers. Nothing is connected yet.
    ///
    /// # Errors
    ///
    /// Where a setting is not acceptable.
    pub fn new(settings: Settings) -> Result<Self, KafkaError> {
        let producer = Arc::new(Producer::new(&settings)?);
        Ok(Self { follower: Follower::new(settings), producer })
    }

    /// The brokers that were named.
    pub fn brokers(&self) -> &str {
        &self.follower.settings().brokers
    }
}

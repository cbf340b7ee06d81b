//! The Kafka clients that one process shares.

use std::sync::Arc;

use crate::{KafkaError, follow::Follower, producer::Producer, settings::Settings};

/// A client that reads and a client that writes, for everything in this process that needs them.
/// Clones share both.
#[derive(Debug, Clone)]
pub struct Link {
    /// Follows topics, and holds the settings.
    pub follower: Follower,
    /// Writes records.
    pub producer: Arc<Producer>,
}

impl Link {
    /// Creates the clients, which connect when they are first used.
    ///
    /// # Errors
    ///
    /// Returns an error if a setting is invalid.
    pub fn new(settings: Settings) -> Result<Self, KafkaError> {
        let producer = Arc::new(Producer::new(&settings)?);
        Ok(Self { follower: Follower::new(settings), producer })
    }

    /// Returns the configured brokers.
    pub fn brokers(&self) -> &str {
        &self.follower.settings().brokers
    }
}

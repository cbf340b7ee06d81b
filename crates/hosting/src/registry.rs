//! The registry: which servers all replicas should host, also after a restart.
//!
//! A [`Registry`] stores records and reports changes in the same order to every replica. [`shared`]
//! makes the fleet of this process follow it. A record is a request, not a command: every replica
//! checks its own policy, and shows records that it refuses in `server_status`.

use std::fmt::Debug;

use fleet_job::time::Timestamp;
use fleet_kafka::KafkaError;
use futures::{future::BoxFuture, stream::BoxStream};

pub mod kafka;
pub mod memory;
pub mod presence;
pub mod record;
pub mod shared;
pub mod sharing;
mod writes;

pub use record::{Record, RecordError};
pub use shared::Shared;

use sharing::Plain;

/// The settings of a registry in Kafka.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RegistryConfig {
    /// The brokers as `host:port`, comma-separated. `KAFKA_PROPERTY_…` in the environment holds
    /// further connection settings.
    pub brokers: String,
    /// The topic.
    pub topic: String,
    /// The names of values that may be written in plain text.
    pub plain: Plain,
}

/// A store of records by name, with a common order of changes.
pub trait Registry: Debug + Send + Sync {
    /// Returns whether others can read the records.
    fn is_shared(&self) -> bool;

    /// Writes a record, and replaces the previous one of its name. Resolves once the record is
    /// stored durably.
    fn put<'a>(&'a self, record: &'a Record) -> BoxFuture<'a, Result<(), RegistryError>>;

    /// Removes the record of a name. Resolves once the removal is stored durably.
    fn remove<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<(), RegistryError>>;

    /// Returns a stream of all records and then of all changes. There is one stream at a time.
    ///
    /// # Errors
    ///
    /// Returns an error if the records can't be followed at all.
    fn watch(&self) -> Result<BoxStream<'static, RegistryChange>, RegistryError>;

    /// Requests a [`RegistryChange::CaughtUp`] with the returned number, or a later one, once the
    /// stream has reported everything that the registry holds now.
    fn catch_up(&self) -> u64;
}

/// A change of the registry.
#[derive(Debug, Clone, PartialEq)]
pub enum RegistryChange {
    /// A record was written. It replaces the previous one of its name.
    Put(Record),
    /// The record of this name was removed.
    Removed {
        /// The name.
        name: String,
        /// When it was removed, if that is known.
        at: Option<Timestamp>,
    },
    /// The newest record of this name is unreadable.
    Unreadable {
        /// The name.
        name: String,
        /// What is wrong with the record.
        reason: String,
    },
    /// Everything that the registry held at some moment has been reported; see
    /// [`Registry::catch_up`]. The first one has the number 0 and follows everything that the
    /// registry held at the start.
    CaughtUp(u64),
}

/// Why the registry could not be written.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    /// Kafka did not accept the record.
    #[error(transparent)]
    Kafka(#[from] KafkaError),
    /// The registry has not been read yet, so that nobody knows what would be replaced.
    #[error("the registry has not been read yet")]
    NotRead,
    /// The record is invalid.
    #[error(transparent)]
    Record(#[from] RecordError),
}

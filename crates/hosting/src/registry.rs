//! Which servers all replicas should host: what one of them was told, for all of them, and for
//! after a restart.
//!
//! A [`Registry`] keeps records and tells of changes, in one order for everybody. [`shared`] makes
//! the fleet of this process follow it. What it tells is no command but a wish of somebody who
//! could write there: every replica asks its own policy, and a record that it refuses is shown in
//! `server_status`.

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

/// Where replicas share what they host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RegistryConfig {
    /// The brokers, `host:port`, comma-separated. More about them is in `KAFKA_PROPERTY_…` of the
    /// environment.
    pub brokers: String,
    /// The topic.
    pub topic: String,
    /// Names of what may be written there as it is.
    pub plain: Plain,
}

/// A store of records by name, and of their order.
pub trait Registry: Debug + Send + Sync {
    /// Whether what is put here can be read by others.
    fn is_shared(&self) -> bool;

    /// Puts a record in the place of what there was of its name. Ends when it can't be lost any
    /// more.
    fn put<'a>(&'a self, record: &'a Record) -> BoxFuture<'a, Result<(), RegistryError>>;

    /// Takes the record of a name out. Ends when that can't be lost any more.
    fn remove<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<(), RegistryError>>;

    /// All records, and from then on all changes, for as long as the stream is there. There is one
    /// at a time.
    ///
    /// # Errors
    ///
    /// If the records can't be followed at all.
    fn watch(&self) -> Result<BoxStream<'static, RegistryChange>, RegistryError>;

    /// Asks for a [`RegistryChange::CaughtUp`] with the number that is given back, or a later one, once the
    /// stream has told of everything that was there at this moment.
    fn catch_up(&self) -> u64;
}

/// What a stream of changes tells.
#[derive(Debug, Clone, PartialEq)]
pub enum RegistryChange {
    /// There is a record, in the place of what there was of its name.
    Put(Record),
    /// There is none of this name.
    Removed {
        /// The name.
        name: String,
        /// When it was removed, if that is known.
        at: Option<Timestamp>,
    },
    /// There is something of this name that can't be read.
    Unreadable {
        /// The name.
        name: String,
        /// What is wrong with it.
        reason: String,
    },
    /// Everything that was there at a moment has been told; see [`Registry::catch_up`]. The first
    /// one, with the number 0, comes once everything has been told that was there at the start.
    CaughtUp(u64),
}

/// Why something could not be written.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    /// Kafka has not taken it.
    #[error(transparent)]
    Kafka(#[from] KafkaError),
    /// Its start has not been read yet, so that nobody knows what would be replaced.
    #[error("the registry has not been read yet")]
    NotRead,
    /// It can't be written.
    #[error(transparent)]
    Record(#[from] RecordError),
}

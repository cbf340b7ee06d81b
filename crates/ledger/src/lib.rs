//! The ledger: the state of every job as one server knows it.
//!
//! The ledger is a projection of the events topic and nothing else. A [`Store`] applies records in
//! log order, keeps the event that is each job's state by the rule of [`fleet_job::state`],
//! remembers its position in the log, and forgets old jobs. It is in memory, in an SQLite file, or in
//! a PostgreSQL database that servers share. Callers pass in the time. The store knows nothing about
//! Kafka; the code that reads the topic is elsewhere.

pub mod config;
pub mod memory;
pub mod metrics;
pub mod postgres;
pub mod query;
pub mod retention;
pub mod sqlite;
mod sqlstate;
pub mod store;
#[cfg(feature = "testing")]
pub mod testing;

pub use config::{StoreConfig, StoreConfigError};
pub use memory::MemoryStore;
pub use postgres::{DatabaseUrl, PostgresStore};
pub use query::{Cursor, Page, Query};
pub use retention::Retention;
pub use sqlite::SqliteStore;
pub use store::{
    Batch, Known, LogId, LoggedEvent, Overtaken, Store, StoreError, Tallies, Tally, Update,
};

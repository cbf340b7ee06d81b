//! The ledger: what has become of every job.
//!
//! It is a projection of the events topic and nothing else. A [`Store`] takes up records in the
//! order of the log, keeps the event that is the state of each job by the rule of
//! [`fleet_job::state`], remembers how far it has come, and forgets what is old. It is told the
//! time, and does not know Kafka; what reads the topic stands elsewhere.

pub mod memory;
pub mod query;
pub mod retention;
pub mod sqlite;
pub mod store;

pub use memory::MemoryStore;
pub use query::{Cursor, Page, Query};
pub use retention::Retention;
pub use sqlite::SqliteStore;
pub use store::{Batch, Known, LoggedEvent, Overtaken, Store, StoreError, Update};

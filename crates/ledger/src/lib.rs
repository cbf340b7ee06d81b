//! The ledger: the state of every job as one server knows it.
//!
//! The ledger is a projection of the events topic and nothing else. A [`Store`] applies records in
//! log order, keeps the event that is each job's state by the rule of [`fleet_job::state`],
//! remembers its position in the log, and forgets old jobs. Callers pass in the time. The store
//! knows nothing about Kafka; the code that reads the topic is elsewhere.

pub mod memory;
pub mod query;
pub mod retention;
pub mod sqlite;
pub mod store;

pub use memory::MemoryStore;
pub use query::{Cursor, Page, Query};
pub use retention::Retention;
pub use sqlite::SqliteStore;
pub use store::{Batch, Known, LoggedEvent, Overtaken, Store, StoreError, Tallies, Tally, Update};

//! How far the workers of a fleet have come, and who they are, as Kafka tells it.
//!
//! Nothing here joins the consumer group, so everything can be asked while workers work. The parts
//! that decide what the answers mean perform no IO.

mod partitions;
mod workers;

pub use partitions::{Lag, LagTotals, PartitionLag, fetch_lag};
pub use workers::{Worker, WorkerList, WorkerView, Workers, client_id, fetch_workers};

//! The worker: takes jobs from Kafka, calls the tools of an MCP server, writes down what became of
//! them, and only then commits.
//!
//! `shell` carries out what the engine decides; `plan` says which calls a job makes and what their
//! outcomes add up to; `execute` makes them; `report` builds what is written. [`config`] is
//! everything that can be set.

mod call_plan;
mod call_results;
mod cancel_requests;
pub mod config;
mod delay_tiers;
mod execute;
mod limits;
pub mod metrics;
mod outages;
mod progress_pace;
mod readiness;
mod report;
mod required_topics;
mod run;
mod shell;

pub use config::Args;
pub use run::{WorkerError, run, runtime};

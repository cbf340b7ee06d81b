//! The worker: takes jobs from Kafka, calls the tools of an MCP server, writes down what became of
//! them, and only then commits.
//!
//! `shell` carries out what the engine decides; `plan` says which calls a job makes and what their
//! outcomes add up to; `execute` makes them; `report` builds what is written. [`config`] is
//! everything that can be set.

pub mod config;
mod control;
mod delay;
mod execute;
mod limits;
pub mod metrics;
mod outages;
mod pace;
mod plan;
mod readiness;
mod report;
mod results;
mod run;
mod shell;
mod topics;

pub use config::Args;
pub use run::{WorkerError, run, runtime};

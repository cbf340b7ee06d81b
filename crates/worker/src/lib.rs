//! The worker: reads jobs from Kafka, calls the tools of an MCP server, writes how each job ended,
//! and only then commits.
//!
//! `shell` carries out what the engine decides, `call_plan` knows which calls a job makes and what
//! their outcomes add up to, `execute` makes the calls, and `report` builds what is written.
//! [`config`] has all settings.

mod call_plan;
mod call_results;
mod cancel_requests;
pub mod config;
mod delay_tiers;
mod execute;
mod limits;
pub mod metrics;
mod oauth;
mod outages;
mod progress_pace;
mod public_keys;
mod readiness;
mod record_feed;
mod report;
mod required_topics;
mod run;
mod shell;
mod token_file;

pub use config::Args;
pub use public_keys::PublicKeysError;
pub use run::{WorkerError, run, runtime};

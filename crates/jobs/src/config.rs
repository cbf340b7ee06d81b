//! Settings of the jobs.

use std::{path::PathBuf, time::Duration};

use fleet_job::glob::Glob;
use fleet_ledger::Retention;

use crate::Owners;

/// What the server does with jobs.
#[derive(Debug, Clone, PartialEq)]
pub struct JobsConfig {
    /// The brokers, `host:port`, comma-separated. More about them is in `KAFKA_PROPERTY_…` of the
    /// environment.
    pub brokers: String,
    /// The jobs topic.
    pub topic: String,
    /// The topic in which servers share what they host; no job may name it in `replyTo`.
    pub registry_topic: String,
    /// The consumer group of the workers.
    pub group: String,
    /// The largest job, in bytes.
    pub max_job_bytes: usize,
    /// The directory of the ledger's file; the ledger is kept in memory if there is none.
    pub data_dir: Option<PathBuf>,
    /// What the ledger keeps.
    pub retention: Retention,
    /// How submitters are named.
    pub owners: Owners,
    /// Tools that run as tasks, beside those that say so of themselves.
    pub task_tools: Vec<Glob>,
    /// For how long a task can be asked for.
    pub task_ttl: Duration,
    /// How often clients should ask for a task.
    pub task_poll_interval: Duration,
}

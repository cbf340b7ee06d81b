//! Settings of the job service.

use std::time::Duration;

use fleet_job::glob::Glob;
use fleet_ledger::{Retention, StoreConfig};

use crate::Owners;

/// The settings of the job service.
#[derive(Debug, Clone, PartialEq)]
pub struct JobsConfig {
    /// The brokers as `host:port`, comma-separated. `KAFKA_PROPERTY_…` in the environment holds
    /// further connection settings.
    pub brokers: String,
    /// The jobs topic.
    pub topic: String,
    /// The registry topic, which no job may name in `replyTo`.
    pub registry_topic: String,
    /// The consumer group of the workers.
    pub group: String,
    /// The largest job, in bytes.
    pub max_job_bytes: usize,
    /// Where the ledger is kept.
    pub ledger: StoreConfig,
    /// How much the ledger keeps.
    pub retention: Retention,
    /// Derives the owner of a job from its submitter's credentials.
    pub owners: Owners,
    /// How long somebody may take to approve a job.
    pub approval_ttl: Duration,
    /// Tools that run as tasks, in addition to those that declare it themselves.
    pub task_tools: Vec<Glob>,
    /// How long a task can be queried.
    pub task_ttl: Duration,
    /// How often clients should poll a task.
    pub task_poll_interval: Duration,
}

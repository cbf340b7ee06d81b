//! What is known about a fleet.

use fleet_job::pause::Pause;
use fleet_lag::LagTotals;
use serde::Serialize;

/// Everything that `status` has found out.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Facts {
    pub(super) kafka: KafkaFacts,
    pub(super) server: ServerFacts,
}

/// What Kafka says.
#[derive(Debug, Clone, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct KafkaFacts {
    pub(super) brokers: String,
    /// Why Kafka could not be asked; everything else is then unknown.
    pub(super) problem: Option<String>,
    pub(super) topics: Vec<TopicFacts>,
    pub(super) group: String,
    /// The number of workers: members of the group that read the jobs topic. A worker may have a
    /// second member for the delayed topic.
    pub(super) workers: usize,
    /// Whether the workers are dividing the partitions right now.
    pub(super) is_rebalancing: bool,
    /// How far the workers have come; `None` if there is no jobs topic.
    pub(super) lag: Option<LagTotals>,
    /// Partitions whose commits could not be read.
    pub(super) unreadable_commits: usize,
    /// The number of records on the topic of dead letters.
    pub(super) dead_letters: i64,
}

/// A topic of the fleet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct TopicFacts {
    pub(super) name: String,
    /// 0 if the topic does not exist.
    pub(super) partitions: usize,
    /// Whether nothing works without it.
    pub(super) is_needed: bool,
}

/// What the server says.
#[derive(Debug, Clone, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct ServerFacts {
    pub(super) url: String,
    /// Why the server can't be reached or is not ready.
    pub(super) problem: Option<String>,
    /// Why the server gives no information about jobs.
    pub(super) jobs_problem: Option<String>,
    /// Why the server gives no information about tools and hosted servers.
    pub(super) tools_problem: Option<String>,
    pub(super) tools: usize,
    pub(super) hosted: Vec<HostedFacts>,
    /// The pauses in force, as far as the caller may see them.
    pub(super) pauses: Vec<Pause>,
}

/// A server that the server hosts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct HostedFacts {
    pub(super) name: String,
    pub(super) state: HostedState,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase", tag = "condition")]
pub(super) enum HostedState {
    Works,
    Starts,
    Fails { problem: String, remedy: String },
}

//! The workers of a consumer group, from its members.

use std::{collections::BTreeMap, time::Duration};

use fleet_job::topics::Topics;
use fleet_kafka::{
    KafkaError,
    admin::{self, GroupMember, GroupMembers},
    settings::Settings,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What every worker's `client.id` begins with.
const PREFIX: &str = "kafka-worker/";

/// The workers of a consumer group.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Workers {
    /// The consumer group.
    pub group: String,
    /// The group's state in Kafka's words, such as `Stable`; empty if there is no such group.
    pub state: String,
    /// The workers by name. All of them have been heard within the group's session timeout.
    pub workers: Vec<Worker>,
}

/// A worker. It has a member in the group for the jobs topic, and one for the delayed topic.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Worker {
    /// The name that its events have, or the `client.id` of a member that does not say one.
    pub name: String,
    /// Its version, if it says one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// The address that the brokers see.
    pub host: String,
    /// Its partitions of the jobs topic.
    pub partitions: Vec<i32>,
    /// Its partitions of the delayed topic.
    pub delayed_partitions: Vec<i32>,
}

/// The workers of the fleet, and how many jobs each is running.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct WorkerList {
    /// The consumer group of the workers.
    pub group: String,
    /// The group's state in Kafka's words, such as `Stable`; empty if there is no such group.
    pub state: String,
    /// The workers by name. All of them have been heard within the group's session timeout.
    pub workers: Vec<WorkerView>,
    /// Whether all running jobs that the ledger holds were counted in `inFlight`.
    pub counted_all: bool,
}

/// A worker and its jobs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct WorkerView {
    /// The worker.
    #[serde(flatten)]
    pub worker: Worker,
    /// The jobs that it has reported as running and not as ended.
    pub in_flight: u64,
}

/// Returns the `client.id` of a worker, from which [`fetch_workers`] reads name and version.
pub fn client_id(name: &str, version: &str) -> String {
    format!("{PREFIX}{version}/{name}")
}

/// Fetches the workers of `group`. Blocks the thread for at most `timeout`.
///
/// # Errors
///
/// As [`admin::group_members`].
pub fn fetch_workers(
    settings: &Settings,
    group: &str,
    topics: &Topics,
    timeout: Duration,
) -> Result<Workers, KafkaError> {
    let members = admin::group_members(settings, group, timeout)?;
    Ok(workers_of(group, &members, topics))
}

/// Puts the members of each worker together.
fn workers_of(group: &str, members: &GroupMembers, topics: &Topics) -> Workers {
    let mut workers = BTreeMap::<(&str, &str), Worker>::new();
    for member in &members.members {
        let host = member.host.trim_start_matches('/');
        let worker = workers.entry((&member.client_id, host)).or_insert_with(|| {
            let (name, version) = read_client_id(&member.client_id);
            Worker {
                name: name.to_owned(),
                version: version.map(str::to_owned),
                host: host.to_owned(),
                ..Worker::default()
            }
        });
        worker.partitions.extend(assigned(member, &topics.jobs));
        worker.delayed_partitions.extend(assigned(member, &topics.delayed));
    }

    let mut workers: Vec<_> = workers.into_values().collect();
    for worker in &mut workers {
        worker.partitions.sort_unstable();
        worker.delayed_partitions.sort_unstable();
    }
    Workers { group: group.to_owned(), state: members.state.clone(), workers }
}

fn assigned<'a>(member: &'a GroupMember, topic: &str) -> impl Iterator<Item = i32> + use<'a> {
    let found = member.assignment.iter().find(|(name, _)| name == topic);
    found.into_iter().flat_map(|(_, partitions)| partitions.iter().copied())
}

/// Returns the worker's name and version that a `client.id` has.
fn read_client_id(text: &str) -> (&str, Option<&str>) {
    let parts = text.strip_prefix(PREFIX).and_then(|rest| rest.split_once('/'));
    parts.map_or((text, None), |(version, name)| (name, Some(version)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member(client_id: &str, host: &str, assignment: &[(&str, &[i32])]) -> GroupMember {
        GroupMember {
            client_id: client_id.to_owned(),
            host: host.to_owned(),
            subscription: None,
            assignment: assignment
                .iter()
                .map(|(topic, partitions)| ((*topic).to_owned(), partitions.to_vec()))
                .collect(),
        }
    }

    #[test]
    fn the_members_of_a_worker_are_one_worker() {
        let one = client_id("pod-1", "0.1.0");
        let members = GroupMembers {
            state: "Stable".to_owned(),
            members: vec![
                member(&one, "/10.0.0.1", &[("jobs", &[3, 1])]),
                member(&one, "/10.0.0.1", &[("jobs.delayed", &[0])]),
                member("rdkafka", "/10.0.0.2", &[("jobs", &[2]), ("other", &[7])]),
            ],
        };

        let workers = workers_of("g", &members, &Topics::of("jobs"));
        let seen: Vec<_> = workers
            .workers
            .iter()
            .map(|worker| {
                let Worker { name, version, host, partitions, delayed_partitions } = worker;
                (name.as_str(), version.as_deref(), host.as_str(), partitions, delayed_partitions)
            })
            .collect();
        assert_eq!(
            seen,
            [
                ("pod-1", Some("0.1.0"), "10.0.0.1", &vec![1, 3], &vec![0]),
                ("rdkafka", None, "10.0.0.2", &vec![2], &vec![]),
            ]
        );
    }

    #[test]
    fn names_may_contain_slashes() {
        assert_eq!(read_client_id(&client_id("a/b", "1.2.3")), ("a/b", Some("1.2.3")));
        assert_eq!(read_client_id("kafka-worker/x"), ("kafka-worker/x", None));
    }
}

//! Making the topics, and asking whether they are there.

use std::time::Duration;

use fleet_job::topics::Topics;
use rdkafka::{
    admin::{AdminClient, AdminOptions, NewTopic, TopicReplication},
    client::DefaultClientContext,
    consumer::{BaseConsumer, Consumer},
    error::RDKafkaErrorCode,
};

use crate::{error::KafkaError, settings::Settings};

const TIMEOUT: Duration = Duration::from_secs(20);

/// How a topic is made.
#[derive(Debug, Clone)]
pub struct TopicSpec {
    /// Its name.
    pub name: String,
    /// How many partitions; at least 1.
    pub partitions: i32,
    /// How many replicas; -1 leaves it to the broker.
    pub replication: i32,
    /// Topic properties, such as `cleanup.policy`.
    pub properties: Vec<(&'static str, &'static str)>,
}

/// The topics of a fleet: jobs with `partitions` partitions, events (compacted), dead letters (kept until somebody
/// looks). Jobs may be larger than a worker takes, so that an oversized one ends as a dead letter that can be looked at
/// and not as a producer's error; a dead letter needs room for its headers on top.
pub fn fleet_topics(topics: &Topics, partitions: i32, replication: i32) -> Vec<TopicSpec> {
    let spec = |name: &str, partitions, properties: &[(&'static str, &'static str)]| TopicSpec {
        name: name.to_owned(),
        partitions,
        replication,
        properties: properties.to_vec(),
    };
    vec![
        spec(&topics.jobs, partitions, &[("max.message.bytes", "4194304")]),
        spec(&topics.events, partitions, &[("cleanup.policy", "compact"), ("max.message.bytes", "4194304")]),
        spec(&topics.dlq, partitions.min(3), &[("retention.ms", "-1"), ("max.message.bytes", "5242880")]),
    ]
}

/// Creates those of `specs` that do not exist; the names of the ones that were created.
///
/// # Errors
/// [`KafkaError::CreateTopic`] with the broker's reason, [`KafkaError::Request`] when no broker answers.
pub async fn create_topics(settings: &Settings, specs: &[TopicSpec]) -> Result<Vec<String>, KafkaError> {
    let admin: AdminClient<DefaultClientContext> = settings.admin().create().map_err(KafkaError::Client)?;
    let new: Vec<_> = specs
        .iter()
        .map(|spec| {
            let replication = TopicReplication::Fixed(spec.replication);
            spec.properties
                .iter()
                .fold(NewTopic::new(&spec.name, spec.partitions, replication), |topic, (name, value)| {
                    topic.set(name, value)
                })
        })
        .collect();
    let options = AdminOptions::new().request_timeout(Some(TIMEOUT)).operation_timeout(Some(TIMEOUT));
    let results = admin
        .create_topics(&new, &options)
        .await
        .map_err(|source| KafkaError::Unreachable { brokers: settings.brokers.clone(), source })?;
    let mut created = Vec::new();
    for result in results {
        match result {
            Ok(topic) => created.push(topic),
            Err((_, RDKafkaErrorCode::TopicAlreadyExists)) => {}
            Err((topic, code)) => {
                return Err(KafkaError::CreateTopic { topic, reason: code.to_string() });
            }
        }
    }
    Ok(created)
}

/// Whether `group` has settled with `members` members. Blocks the thread for at most `timeout`.
///
/// # Errors
/// [`KafkaError::Unreachable`] when no broker answers.
pub fn is_stable(
    settings: &Settings,
    group: &str,
    members: usize,
    timeout: Duration,
) -> Result<bool, KafkaError> {
    let client: BaseConsumer = settings.admin().create().map_err(KafkaError::Client)?;
    let groups = client
        .fetch_group_list(Some(group), timeout)
        .map_err(|source| KafkaError::Unreachable { brokers: settings.brokers.clone(), source })?;
    let found = groups.groups().iter().find(|found| found.name() == group);
    Ok(found.is_some_and(|found| found.state() == "Stable" && found.members().len() == members))
}

/// The number of partitions of `topic`. Blocks the thread for at most `timeout`.
///
/// # Errors
/// [`KafkaError::Unreachable`] or [`KafkaError::NoTopic`].
pub fn partitions(settings: &Settings, topic: &str, timeout: Duration) -> Result<i32, KafkaError> {
    let client: BaseConsumer = settings.admin().create().map_err(KafkaError::Client)?;
    let metadata = client
        .fetch_metadata(Some(topic), timeout)
        .map_err(|source| KafkaError::Unreachable { brokers: settings.brokers.clone(), source })?;
    let found = metadata.topics().iter().find(|found| found.name() == topic && found.error().is_none());
    match found.map_or(0, |found| found.partitions().len()) {
        0 => Err(KafkaError::NoTopic(topic.to_owned())),
        n => Ok(i32::try_from(n).unwrap_or(i32::MAX)),
    }
}

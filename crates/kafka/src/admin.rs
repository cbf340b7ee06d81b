//! Making the topics, asking whether they are there and how far a group has come, and deleting
//! records.

use std::time::Duration;

use fleet_job::{time::Timestamp, topics::Topics};
use rdkafka::{
    Offset, TopicPartitionList,
    admin::{
        AdminClient, AdminOptions, NewPartitions, NewTopic, ResourceSpecifier, TopicReplication,
    },
    client::DefaultClientContext,
    consumer::{BaseConsumer, Consumer},
    error::{KafkaError as Native, RDKafkaErrorCode},
};

use crate::{error::KafkaError, moved::ask_where_it_went, settings::Settings};

const TIMEOUT: Duration = Duration::from_secs(20);
/// How long a broker may take to say what a topic's properties are.
const DESCRIBE_TIMEOUT: Duration = Duration::from_secs(5);

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

/// How many lengths of waiting the delayed topic has: one for each of its partitions.
pub const DELAY_TIERS: i32 = 6;

/// How many partitions of jobs there are to one of events. Jobs have as many as there may be
/// workers; events need only what the brokers need to take them, and every worker writes to all of
/// theirs: the fewer there are, the more events go into one request.
const JOBS_TO_EVENTS: i32 = 12;

/// The topics of a fleet: jobs with `partitions` partitions, events (compacted), dead letters (kept
/// until somebody looks), delayed jobs. A record stays in the delayed topic for days at most before
/// it is written on, so what is older is only what was written on already; a fleet that stands
/// still for a month loses what waits. Jobs may be larger than a worker takes, so that an oversized
/// one ends as a dead letter that can be looked at and not as a producer's error; a dead letter
/// needs room for its headers on top.
pub fn fleet_topics(topics: &Topics, partitions: i32, replication: i32) -> Vec<TopicSpec> {
    let spec = |name: &str, partitions, properties: &[(&'static str, &'static str)]| TopicSpec {
        name: name.to_owned(),
        partitions,
        replication,
        properties: properties.to_vec(),
    };
    vec![
        spec(&topics.jobs, partitions, &[("max.message.bytes", "4194304")]),
        spec(
            &topics.events,
            1 + (partitions - 1) / JOBS_TO_EVENTS,
            &[("cleanup.policy", "compact"), ("max.message.bytes", "4194304")],
        ),
        spec(
            &topics.dlq,
            partitions.min(3),
            &[("retention.ms", "-1"), ("max.message.bytes", "5242880")],
        ),
        spec(
            &topics.delayed,
            DELAY_TIERS,
            &[("retention.ms", "2592000000"), ("max.message.bytes", "5242880")],
        ),
        // Jobs that were cancelled while they wait must be known for as long as a job can wait in
        // the delayed topic.
        spec(
            &topics.control,
            1,
            &[("cleanup.policy", "compact,delete"), ("retention.ms", "2592000000")],
        ),
        claims_topic(topics, replication),
    ]
}

/// The topic of claims: one partition, so that all servers see one order. A claim is of no use
/// after a few minutes.
pub fn claims_topic(topics: &Topics, replication: i32) -> TopicSpec {
    let properties = vec![("retention.ms", "3600000")];
    TopicSpec { name: topics.claims.clone(), partitions: 1, replication, properties }
}

/// A topic for replies: like events in size, and kept for as long as the broker keeps records.
pub fn reply_topic(name: &str, replication: i32) -> TopicSpec {
    let properties = vec![("max.message.bytes", "4194304")];
    TopicSpec { name: name.to_owned(), partitions: 3, replication, properties }
}

/// Creates those of `specs` that do not exist; the names of the ones that were created.
///
/// # Errors
/// [`KafkaError::CreateTopic`] with the broker's reason, [`KafkaError::Request`] when no broker
/// answers.
pub async fn create_topics(
    settings: &Settings,
    specs: &[TopicSpec],
) -> Result<Vec<String>, KafkaError> {
    let admin: AdminClient<DefaultClientContext> =
        settings.admin().create().map_err(KafkaError::client)?;
    let new: Vec<_> = specs
        .iter()
        .map(|spec| {
            let replication = TopicReplication::Fixed(spec.replication);
            spec.properties.iter().fold(
                NewTopic::new(&spec.name, spec.partitions, replication),
                |topic, (name, value)| topic.set(name, value),
            )
        })
        .collect();
    let options =
        AdminOptions::new().request_timeout(Some(TIMEOUT)).operation_timeout(Some(TIMEOUT));
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

/// Gives `topic` more partitions, `partitions` in all.
///
/// # Errors
/// [`KafkaError::CreateTopic`] with the broker's reason, [`KafkaError::Unreachable`] when no broker
/// answers.
pub async fn grow(settings: &Settings, topic: &str, partitions: i32) -> Result<(), KafkaError> {
    let admin: AdminClient<DefaultClientContext> =
        settings.admin().create().map_err(KafkaError::client)?;
    let options =
        AdminOptions::new().request_timeout(Some(TIMEOUT)).operation_timeout(Some(TIMEOUT));
    let new = NewPartitions::new(topic, usize::try_from(partitions).unwrap_or_default());
    let results = admin
        .create_partitions(&[new], &options)
        .await
        .map_err(|source| KafkaError::Unreachable { brokers: settings.brokers.clone(), source })?;
    for result in results {
        result
            .map_err(|(topic, code)| KafkaError::CreateTopic { topic, reason: code.to_string() })?;
    }
    Ok(())
}

/// Whether `topic` is compacted, if the broker says so. Of a compacted topic the broker keeps the
/// newest record of each key only, whatever a worker has made of the others.
///
/// # Errors
/// [`KafkaError::Client`] or [`KafkaError::Request`].
pub async fn is_compacted(settings: &Settings, topic: &str) -> Result<bool, KafkaError> {
    let request = |source| KafkaError::Request { what: "asking for a topic's properties", source };
    let admin: AdminClient<DefaultClientContext> =
        settings.admin().create().map_err(KafkaError::client)?;
    let options = AdminOptions::new().request_timeout(Some(DESCRIBE_TIMEOUT));
    let described = admin
        .describe_configs(&[ResourceSpecifier::Topic(topic)], &options)
        .await
        .map_err(request)?;
    let found = described
        .into_iter()
        .flatten()
        .find_map(|topic| topic.get("cleanup.policy")?.value.clone());
    Ok(found.is_some_and(|policy| policy.contains("compact")))
}

/// Whether `group` has members. Blocks the thread for at most `timeout`.
///
/// # Errors
/// [`KafkaError::Client`] or [`KafkaError::Unreachable`].
pub fn has_members(
    settings: &Settings,
    group: &str,
    timeout: Duration,
) -> Result<bool, KafkaError> {
    let client: BaseConsumer = settings.admin().create().map_err(KafkaError::client)?;
    let groups = client
        .fetch_group_list(Some(group), timeout)
        .map_err(|source| KafkaError::Unreachable { brokers: settings.brokers.clone(), source })?;
    let found = groups.groups().iter().find(|found| found.name() == group);
    Ok(found.is_some_and(|found| !found.members().is_empty()))
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
    let client: BaseConsumer = settings.admin().create().map_err(KafkaError::client)?;
    let groups = client
        .fetch_group_list(Some(group), timeout)
        .map_err(|source| KafkaError::Unreachable { brokers: settings.brokers.clone(), source })?;
    let found = groups.groups().iter().find(|found| found.name() == group);
    Ok(found.is_some_and(|found| found.state() == "Stable" && found.members().len() == members))
}

/// The number of partitions of `topic`. Blocks the thread for at most `timeout`.
///
/// # Errors
/// [`KafkaError::Unreachable`], [`KafkaError::Request`], or [`KafkaError::NoTopic`] where there is
/// none.
pub fn partitions(settings: &Settings, topic: &str, timeout: Duration) -> Result<i32, KafkaError> {
    let client: BaseConsumer = settings.admin().create().map_err(KafkaError::client)?;
    let metadata = client
        .fetch_metadata(Some(topic), timeout)
        .map_err(|source| KafkaError::Unreachable { brokers: settings.brokers.clone(), source })?;
    let found = metadata.topics().iter().find(|found| found.name() == topic);
    // Only this one answer says that there is no such topic; in the middle of an election there are
    // others.
    if let Some(error) = found.and_then(|found| found.error()).map(RDKafkaErrorCode::from)
        && error != RDKafkaErrorCode::UnknownTopicOrPartition
    {
        let source = Native::MetadataFetch(error);
        return Err(KafkaError::Request { what: "asking for a topic's partitions", source });
    }
    match found.map_or(0, |found| found.partitions().len()) {
        0 => Err(KafkaError::NoTopic(topic.to_owned())),
        n => Ok(i32::try_from(n).unwrap_or(i32::MAX)),
    }
}

/// How many replicas `topic` has; those of its first partition. Blocks the thread for at most
/// `timeout`.
///
/// # Errors
/// [`KafkaError::Unreachable`] or [`KafkaError::NoTopic`].
pub fn replication(settings: &Settings, topic: &str, timeout: Duration) -> Result<i32, KafkaError> {
    let client: BaseConsumer = settings.admin().create().map_err(KafkaError::Client)?;
    let metadata = client
        .fetch_metadata(Some(topic), timeout)
        .map_err(|source| KafkaError::Unreachable { brokers: settings.brokers.clone(), source })?;
    let found =
        metadata.topics().iter().find(|found| found.name() == topic && found.error().is_none());
    let first = found.and_then(|found| found.partitions().first());
    let replicas = first.ok_or_else(|| KafkaError::NoTopic(topic.to_owned()))?.replicas().len();
    Ok(i32::try_from(replicas).unwrap_or(i32::MAX))
}

/// How far a group has come on one partition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GroupPosition {
    /// The partition.
    pub partition: i32,
    /// The first offset that is still there.
    pub start: i64,
    /// One past the last record.
    pub end: i64,
    /// The committed offset; none where the group has committed nothing.
    pub committed: Option<i64>,
    /// What was committed with it.
    pub metadata: String,
}

/// How far `group` has come on each partition of `topic`. Does not join the group, so it may be
/// asked while it works. Blocks the thread, at most `timeout` for each of its requests.
///
/// # Errors
/// [`KafkaError::Unreachable`], [`KafkaError::NoTopic`] or [`KafkaError::Request`].
pub fn group_positions(
    settings: &Settings,
    group: &str,
    topic: &str,
    timeout: Duration,
) -> Result<Vec<GroupPosition>, KafkaError> {
    let request = |what| move |source| KafkaError::Request { what, source };
    let partitions = partitions(settings, topic, timeout)?;
    let client: BaseConsumer =
        settings.admin().set("group.id", group).create().map_err(KafkaError::client)?;
    let mut asked = TopicPartitionList::new();
    asked.add_partition_range(topic, 0, partitions - 1);
    let committed =
        ask_where_it_went(timeout, |timeout| client.committed_offsets(asked.clone(), timeout))
            .map_err(request("asking for the committed offsets"))?;
    let mut positions = Vec::new();
    for partition in 0..partitions {
        // The end is asked for after the commit, or it could lie before it.
        let (start, end) = ask_where_it_went(timeout, |timeout| {
            client.fetch_watermarks(topic, partition, timeout)
        })
        .map_err(request("asking for the end of a partition"))?;
        let found = committed.find_partition(topic, partition);
        let found = found.and_then(|found| match found.offset() {
            Offset::Offset(offset) if offset >= 0 => Some((offset, found.metadata().to_owned())),
            _ => None,
        });
        let (committed, metadata) =
            found.map_or((None, String::new()), |(at, text)| (Some(at), text));
        positions.push(GroupPosition { partition, start, end, committed, metadata });
    }
    Ok(positions)
}

/// The records of one partition from `start` up to `end`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span {
    /// The partition.
    pub partition: i32,
    /// The first offset that is still there.
    pub start: i64,
    /// One past the last offset meant.
    pub end: i64,
}

/// All records of these topics, asked of one client. A topic that does not exist has none. Blocks
/// the thread.
///
/// # Errors
/// [`KafkaError::Unreachable`] or [`KafkaError::Request`].
pub fn spans_of<const N: usize>(
    settings: &Settings,
    topics: [&str; N],
    timeout: Duration,
) -> Result<[Vec<Span>; N], KafkaError> {
    let client: BaseConsumer = settings.admin().create().map_err(KafkaError::client)?;
    let mut all = [const { Vec::new() }; N];
    for (topic, spans) in topics.into_iter().zip(&mut all) {
        let metadata = client.fetch_metadata(Some(topic), timeout).map_err(|source| {
            KafkaError::Unreachable { brokers: settings.brokers.clone(), source }
        })?;
        let found = metadata.topics().iter().find(|found| found.name() == topic);
        for partition in found.map_or(&[][..], |found| found.partitions()) {
            let (start, end) = ask_where_it_went(timeout, |timeout| {
                client.fetch_watermarks(topic, partition.id(), timeout)
            })
            .map_err(|source| KafkaError::Request {
                what: "asking for the end of a partition",
                source,
            })?;
            spans.push(Span { partition: partition.id(), start, end });
        }
    }
    Ok(all)
}

/// The records of `topic` that were written before `before`, or all that are there. Where
/// timestamps are out of order, a span ends at the first record that is not older. Blocks the
/// thread.
///
/// # Errors
/// [`KafkaError::Unreachable`], [`KafkaError::NoTopic`] or [`KafkaError::Request`].
pub fn spans(
    settings: &Settings,
    topic: &str,
    before: Option<Timestamp>,
    timeout: Duration,
) -> Result<Vec<Span>, KafkaError> {
    let request = |what| move |source| KafkaError::Request { what, source };
    let partitions = partitions(settings, topic, timeout)?;
    let client: BaseConsumer = settings.admin().create().map_err(KafkaError::client)?;
    let mut spans = Vec::new();
    for partition in 0..partitions {
        let (start, end) = ask_where_it_went(timeout, |timeout| {
            client.fetch_watermarks(topic, partition, timeout)
        })
        .map_err(request("asking for the end of a partition"))?;
        spans.push(Span { partition, start, end });
    }
    let Some(before) = before else { return Ok(spans) };
    let mut asked = TopicPartitionList::new();
    for span in &spans {
        asked
            .add_partition_offset(topic, span.partition, Offset::Offset(before.as_millis()))
            .map_err(request("asking for the offsets of a time"))?;
    }
    let found =
        ask_where_it_went(timeout, |timeout| client.offsets_for_times(asked.clone(), timeout))
            .map_err(request("asking for the offsets of a time"))?;
    for span in &mut spans {
        // No record that is as new: the offset is `End`, and the whole partition is older.
        if let Some(Offset::Offset(first)) =
            found.find_partition(topic, span.partition).map(|e| e.offset())
        {
            span.end = first.clamp(span.start, span.end);
        }
    }
    Ok(spans)
}

/// The cluster's id, where the brokers tell it. Blocks the thread for at most `timeout`.
///
/// # Errors
/// [`KafkaError::Client`].
pub fn cluster_id(settings: &Settings, timeout: Duration) -> Result<Option<String>, KafkaError> {
    let client: BaseConsumer = settings.admin().create().map_err(KafkaError::client)?;
    Ok(client.client().fetch_cluster_id(timeout))
}

/// Deletes the records of `spans` for good.
///
/// # Errors
/// [`KafkaError::Request`] with the broker's reason; partitions before the one that failed may be
/// done.
pub async fn delete_records(
    settings: &Settings,
    topic: &str,
    spans: &[Span],
) -> Result<(), KafkaError> {
    let request = |source| KafkaError::Request { what: "deleting records", source };
    let admin: AdminClient<DefaultClientContext> =
        settings.admin().create().map_err(KafkaError::client)?;
    let mut offsets = TopicPartitionList::new();
    for span in spans.iter().filter(|span| span.end > span.start) {
        offsets
            .add_partition_offset(topic, span.partition, Offset::Offset(span.end))
            .map_err(request)?;
    }
    if offsets.count() == 0 {
        return Ok(());
    }
    let options =
        AdminOptions::new().request_timeout(Some(TIMEOUT)).operation_timeout(Some(TIMEOUT));
    let deleted = admin.delete_records(&offsets, &options).await.map_err(request)?;
    deleted.elements().iter().try_for_each(|element| element.error().map_err(request))
}

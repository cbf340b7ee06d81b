//! Creating topics, describing topics and groups, and deleting records.

use std::{sync::Arc, time::Duration};

use fleet_job::{time::Timestamp, topics::Topics};
use fleet_topic_id::{TopicIdError, topic_id};
use rdkafka::{
    ClientConfig, Offset, TopicPartitionList,
    admin::{
        AdminClient, AdminOptions, NewPartitions, NewTopic, ResourceSpecifier, TopicReplication,
    },
    consumer::Consumer,
    error::{KafkaError as Native, RDKafkaErrorCode},
};

mod groups;

pub use groups::{GroupMember, GroupMembers, group_members, has_members, is_stable};

use crate::{
    consumer::LogIdentity,
    convert,
    error::KafkaError,
    quiet_context::{QuietConsumer, QuietContext},
    retry_while_moving::retry_while_moving,
    settings::Settings,
};

const TIMEOUT: Duration = Duration::from_secs(20);
/// How long a broker may take to describe a topic.
const DESCRIBE_TIMEOUT: Duration = Duration::from_secs(5);

/// A topic to create.
#[derive(Debug, Clone)]
pub struct TopicSpec {
    /// The name of the topic.
    pub name: String,
    /// The number of partitions, at least 1.
    pub partitions: i32,
    /// The number of replicas; -1 leaves it to the broker.
    pub replication: i32,
    /// Topic properties, such as `cleanup.policy`.
    pub properties: Vec<(&'static str, &'static str)>,
}

/// The number of partitions of the delayed topic: one for each tier of delays.
pub const DELAY_TIERS: i32 = 6;

/// The number of jobs partitions for each partition of events. Jobs need as many partitions as
/// there may be workers; events need only enough for the brokers to keep up. Every worker writes to
/// all partitions of events, so the fewer there are, the more events go into one request.
const JOBS_TO_EVENTS: i32 = 12;

/// Returns the topics of a fleet: jobs with `partitions` partitions, events (compacted), dead
/// letters (kept forever), delayed jobs, control, pauses, claims and audit records.
///
/// A record stays in the delayed topic for days at most before it is relayed, so older records have
/// been relayed already; but if all workers are down for a month, waiting jobs are lost. The jobs
/// topic accepts larger records than a worker does, so that an oversized job ends as a dead letter
/// that can be inspected instead of failing in the producer. A dead letter needs additional room
/// for its headers.
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
        // The cancellation of a waiting job must be remembered for as long as a job may wait in the
        // delayed topic.
        spec(
            &topics.control,
            1,
            &[("cleanup.policy", "compact,delete"), ("retention.ms", "2592000000")],
        ),
        pauses_topic(topics, replication),
        claims_topic(topics, replication),
        audit_topic(topics, replication),
    ]
}

/// Returns the topic of claims. It has one partition, so that all servers see the claims in the
/// same order. Claims expire within minutes.
pub fn claims_topic(topics: &Topics, replication: i32) -> TopicSpec {
    let properties = vec![("retention.ms", "3600000")];
    TopicSpec { name: topics.claims.clone(), partitions: 1, replication, properties }
}

/// Returns the topic of pauses, which keeps the newest record of each for ever.
pub fn pauses_topic(topics: &Topics, replication: i32) -> TopicSpec {
    let properties = vec![("cleanup.policy", "compact")];
    TopicSpec { name: topics.pauses.clone(), partitions: 1, replication, properties }
}

/// Returns the topic of audit records, which are kept for 90 days.
pub fn audit_topic(topics: &Topics, replication: i32) -> TopicSpec {
    let properties = vec![("retention.ms", "7776000000")];
    TopicSpec { name: topics.audit.clone(), partitions: 1, replication, properties }
}

/// Returns a topic for replies: the same record size as events, and the broker's default retention.
pub fn reply_topic(name: &str, replication: i32) -> TopicSpec {
    let properties = vec![("max.message.bytes", "4194304")];
    TopicSpec { name: name.to_owned(), partitions: 3, replication, properties }
}

/// Creates a client for changing topics and asking about their properties.
fn admin_client(settings: &Settings) -> Result<AdminClient<QuietContext>, KafkaError> {
    settings.admin().create_with_context(QuietContext::default()).map_err(KafkaError::client)
}

/// Creates a client for asking about topics and groups.
fn metadata_client(config: &ClientConfig) -> Result<QuietConsumer, KafkaError> {
    config.create_with_context(QuietContext::default()).map_err(KafkaError::client)
}

/// Creates those of `specs` that do not exist, and returns the names of the created topics.
///
/// # Errors
///
/// Returns [`KafkaError::CreateTopic`] if the broker refuses, and [`KafkaError::Unreachable`] if
/// none answers.
pub async fn create_topics(
    settings: &Settings,
    specs: &[TopicSpec],
) -> Result<Vec<String>, KafkaError> {
    let admin = admin_client(settings)?;

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

/// Increases the number of partitions of `topic` to `partitions`.
///
/// # Errors
///
/// Returns [`KafkaError::CreateTopic`] if the broker refuses, and [`KafkaError::Unreachable`] if
/// none answers.
pub async fn grow(settings: &Settings, topic: &str, partitions: i32) -> Result<(), KafkaError> {
    let admin = admin_client(settings)?;
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

/// Returns whether `topic` is compacted, as far as the broker tells. In a compacted topic the
/// broker keeps only the newest record of each key, whether or not a worker has processed the
/// others.
///
/// # Errors
///
/// Returns [`KafkaError::Client`] or [`KafkaError::Request`].
pub async fn is_compacted(settings: &Settings, topic: &str) -> Result<bool, KafkaError> {
    let request = |source| KafkaError::Request { what: "describing a topic", source };

    let admin = admin_client(settings)?;
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

/// Returns the names of all topics. Blocks the thread for at most `timeout`.
///
/// # Errors
///
/// Returns [`KafkaError::Client`] or [`KafkaError::Unreachable`].
pub fn topic_names(settings: &Settings, timeout: Duration) -> Result<Vec<String>, KafkaError> {
    let client = metadata_client(&settings.admin())?;
    let metadata = client
        .fetch_metadata(None, timeout)
        .map_err(|source| KafkaError::Unreachable { brokers: settings.brokers.clone(), source })?;
    Ok(metadata.topics().iter().map(|topic| topic.name().to_owned()).collect())
}

/// Returns the number of partitions of `topic`. Blocks the thread for at most `timeout`.
///
/// # Errors
///
/// Returns [`KafkaError::NoTopic`] if the topic does not exist, and otherwise
/// [`KafkaError::Unreachable`] or [`KafkaError::Request`].
pub fn partitions(settings: &Settings, topic: &str, timeout: Duration) -> Result<i32, KafkaError> {
    let client = metadata_client(&settings.admin())?;
    let metadata = client
        .fetch_metadata(Some(topic), timeout)
        .map_err(|source| KafkaError::Unreachable { brokers: settings.brokers.clone(), source })?;

    let found = metadata.topics().iter().find(|found| found.name() == topic);

    // Only this error means that the topic does not exist; during an election there are others.
    if let Some(error) = found.and_then(|found| found.error()).map(RDKafkaErrorCode::from)
        && error != RDKafkaErrorCode::UnknownTopicOrPartition
    {
        let source = Native::MetadataFetch(error);
        return Err(KafkaError::Request { what: "fetching the partitions of a topic", source });
    }

    match found.map_or(0, |found| found.partitions().len()) {
        0 => Err(KafkaError::NoTopic(topic.to_owned())),
        n => Ok(i32::try_from(n).unwrap_or(i32::MAX)),
    }
}

/// Returns the number of replicas of `topic`'s first partition. Blocks the thread for at most
/// `timeout`.
///
/// # Errors
///
/// Returns [`KafkaError::Unreachable`] or [`KafkaError::NoTopic`].
pub fn replication(settings: &Settings, topic: &str, timeout: Duration) -> Result<i32, KafkaError> {
    let client = metadata_client(&settings.admin())?;
    let metadata = client
        .fetch_metadata(Some(topic), timeout)
        .map_err(|source| KafkaError::Unreachable { brokers: settings.brokers.clone(), source })?;

    let found =
        metadata.topics().iter().find(|found| found.name() == topic && found.error().is_none());
    let first = found.and_then(|found| found.partitions().first());
    let replicas = first.ok_or_else(|| KafkaError::NoTopic(topic.to_owned()))?.replicas().len();

    Ok(i32::try_from(replicas).unwrap_or(i32::MAX))
}

/// The position of a group in one partition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GroupPosition {
    /// The number of the partition.
    pub partition: i32,
    /// The first offset that still exists.
    pub start: i64,
    /// The offset after the last record.
    pub end: i64,
    /// The committed offset; `None` if the group has committed none.
    pub committed: Option<i64>,
    /// The metadata of the commit.
    pub metadata: String,
}

/// Fetches the position of `group` in each partition of `topic`. Does not join the group, so it can
/// be called while the group works. Blocks the thread for at most `timeout` per request.
///
/// # Errors
///
/// Returns [`KafkaError::Unreachable`], [`KafkaError::NoTopic`] or [`KafkaError::Request`].
pub fn group_positions(
    settings: &Settings,
    group: &str,
    topic: &str,
    timeout: Duration,
) -> Result<Vec<GroupPosition>, KafkaError> {
    let request = |what| move |source| KafkaError::Request { what, source };
    let partitions = partitions(settings, topic, timeout)?;
    let client = metadata_client(settings.admin().set("group.id", group))?;

    let mut asked = TopicPartitionList::new();
    asked.add_partition_range(topic, 0, partitions - 1);
    let committed =
        retry_while_moving(timeout, |timeout| client.committed_offsets(asked.clone(), timeout))
            .map_err(request("fetching the committed offsets"))?;

    let mut positions = Vec::new();
    for partition in 0..partitions {
        // Fetch the end after the commit, or it could lie below the commit.
        let (start, end) = retry_while_moving(timeout, |timeout| {
            client.fetch_watermarks(topic, partition, timeout)
        })
        .map_err(request("fetching the end of a partition"))?;

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

/// The records of one partition from `start` up to, but not including, `end`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span {
    /// The number of the partition.
    pub partition: i32,
    /// The first offset that still exists.
    pub start: i64,
    /// The offset after the last record of the span.
    pub end: i64,
}

/// Fetches the spans of all records of these topics with one client. A topic that does not exist
/// has no spans. Blocks the thread.
///
/// # Errors
///
/// Returns [`KafkaError::Client`], [`KafkaError::Unreachable`] or [`KafkaError::Request`].
pub fn spans_of<const N: usize>(
    settings: &Settings,
    topics: [&str; N],
    timeout: Duration,
) -> Result<[Vec<Span>; N], KafkaError> {
    let client = metadata_client(&settings.admin())?;

    let mut all = [const { Vec::new() }; N];
    for (topic, spans) in topics.into_iter().zip(&mut all) {
        let metadata = client.fetch_metadata(Some(topic), timeout).map_err(|source| {
            KafkaError::Unreachable { brokers: settings.brokers.clone(), source }
        })?;

        let found = metadata.topics().iter().find(|found| found.name() == topic);
        for partition in found.map_or(&[][..], |found| found.partitions()) {
            let (start, end) = retry_while_moving(timeout, |timeout| {
                client.fetch_watermarks(topic, partition.id(), timeout)
            })
            .map_err(|source| KafkaError::Request {
                what: "fetching the end of a partition",
                source,
            })?;
            spans.push(Span { partition: partition.id(), start, end });
        }
    }

    Ok(all)
}

/// Fetches the spans of the records of `topic` that were written before `before`, or of all its
/// records. If timestamps are out of order, a span ends at the first record that is not older.
/// Blocks the thread.
///
/// # Errors
///
/// Returns [`KafkaError::Unreachable`], [`KafkaError::NoTopic`] or [`KafkaError::Request`].
pub fn spans(
    settings: &Settings,
    topic: &str,
    before: Option<Timestamp>,
    timeout: Duration,
) -> Result<Vec<Span>, KafkaError> {
    let request = |what| move |source| KafkaError::Request { what, source };
    let partitions = partitions(settings, topic, timeout)?;
    let client = metadata_client(&settings.admin())?;

    let mut spans = Vec::new();
    for partition in 0..partitions {
        let (start, end) = retry_while_moving(timeout, |timeout| {
            client.fetch_watermarks(topic, partition, timeout)
        })
        .map_err(request("fetching the end of a partition"))?;
        spans.push(Span { partition, start, end });
    }

    let Some(before) = before else { return Ok(spans) };

    let mut asked = TopicPartitionList::new();
    for span in &spans {
        asked
            .add_partition_offset(topic, span.partition, convert::time_to_offset(before))
            .map_err(request("fetching offsets by time"))?;
    }

    let found =
        retry_while_moving(timeout, |timeout| client.offsets_for_times(asked.clone(), timeout))
            .map_err(request("fetching offsets by time"))?;

    for span in &mut spans {
        // If no record is as new as `before`, the offset is `End` and the span stays whole.
        if let Some(Offset::Offset(first)) =
            found.find_partition(topic, span.partition).map(|e| e.offset())
        {
            span.end = first.clamp(span.start, span.end);
        }
    }

    Ok(spans)
}

/// Fetches the cluster's id, if the brokers reveal it. Blocks the thread for at most `timeout`.
///
/// # Errors
///
/// Returns [`KafkaError::Client`].
pub fn cluster_id(settings: &Settings, timeout: Duration) -> Result<Option<String>, KafkaError> {
    let client = metadata_client(&settings.admin())?;
    Ok(client.client().fetch_cluster_id(timeout))
}

/// Fetches what tells the log behind a topic's name from others, as far as the brokers reveal it.
/// Blocks the thread for little more than twice `timeout`.
///
/// # Errors
///
/// Returns [`KafkaError::NoTopic`], or [`KafkaError::Client`].
pub fn log_identity(
    settings: &Settings,
    topic: &str,
    timeout: Duration,
) -> Result<LogIdentity, KafkaError> {
    let client = metadata_client(&settings.admin())?;
    let cluster = client.client().fetch_cluster_id(timeout).map(Arc::from);

    let topic = match topic_id(client.client(), topic, timeout) {
        Ok(id) => id.map(Arc::from),
        Err(TopicIdError::NoTopic) => return Err(KafkaError::NoTopic(topic.to_owned())),
        Err(error) => {
            tracing::warn!(topic, %error, "could not fetch the topic's id; going on without it");
            None
        }
    };
    Ok(LogIdentity { cluster, topic })
}

/// Deletes the records of `spans` permanently.
///
/// # Errors
///
/// Returns [`KafkaError::Request`] with the broker's reason. Records of other partitions may have
/// been deleted by then.
pub async fn delete_records(
    settings: &Settings,
    topic: &str,
    spans: &[Span],
) -> Result<(), KafkaError> {
    let request = |source| KafkaError::Request { what: "deleting records", source };
    let admin = admin_client(settings)?;

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

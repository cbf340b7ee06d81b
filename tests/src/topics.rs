//! Operations of tests on topics: create them, write raw records, read everything.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use futures::executor::block_on;
use parking_lot::Mutex;
use rdkafka::{
    ClientConfig, ClientContext, Message as _, Offset, Timestamp, TopicPartitionList,
    admin::{
        AdminClient, AdminOptions, AlterConfig, ConfigEntry, NewPartitions, NewTopic,
        ResourceSpecifier, TopicReplication,
    },
    client::DefaultClientContext,
    consumer::{BaseConsumer, CommitMode, Consumer as _},
    error::{KafkaError, RDKafkaErrorCode},
    message::{DeliveryResult, Header, Headers as _, OwnedHeaders},
    producer::{BaseProducer, BaseRecord, Producer as _, ProducerContext},
};

use crate::wait;

const TIMEOUT: Duration = Duration::from_secs(30);
/// Larger than any record that a test writes.
const MAX_BYTES: &str = "8388608";

/// A record's headers, in order; a name may occur several times.
pub type RecordHeaders = Vec<(String, Option<Vec<u8>>)>;

/// A record to write.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outgoing {
    /// The ordering key.
    pub key: Option<Vec<u8>>,
    /// The value; `None` for a tombstone.
    pub value: Option<Vec<u8>>,
    /// The headers.
    pub headers: RecordHeaders,
}

impl Outgoing {
    /// A record with only a value.
    pub fn value(value: impl Into<Vec<u8>>) -> Self {
        Self { value: Some(value.into()), ..Self::default() }
    }

    /// The same with a key.
    #[must_use]
    pub fn key(mut self, key: impl Into<Vec<u8>>) -> Self {
        self.key = Some(key.into());
        self
    }

    /// The same with one more header.
    #[must_use]
    pub fn header(mut self, name: &str, value: impl Into<Vec<u8>>) -> Self {
        self.headers.push((name.to_owned(), Some(value.into())));
        self
    }
}

/// A record on a topic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// The partition.
    pub partition: i32,
    /// The offset.
    pub offset: i64,
    /// The timestamp in milliseconds.
    pub timestamp: Option<i64>,
    /// Key, value and headers.
    pub content: Outgoing,
}

impl Record {
    /// The last header with this name.
    pub fn header(&self, name: &str) -> Option<&[u8]> {
        self.content.headers.iter().rev().find(|(known, _)| known == name)?.1.as_deref()
    }

    /// The value as text, with replacement characters for invalid UTF-8.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(self.content.value.as_deref().unwrap_or_default()).into_owned()
    }
}

/// The number of nodes in the cluster's metadata.
pub fn nodes(brokers: &str) -> Result<usize, KafkaError> {
    let client: BaseConsumer = config(brokers).create()?;
    let metadata = client.fetch_metadata(None, Duration::from_secs(2))?;
    Ok(metadata.brokers().len())
}

/// Whether all replicas of all partitions of the cluster are in sync.
pub fn in_sync(brokers: &str) -> bool {
    let client: Result<BaseConsumer, _> = config(brokers).create();
    let Ok(metadata) =
        client.and_then(|client| client.fetch_metadata(None, Duration::from_secs(2)))
    else {
        return false;
    };
    let mut partitions = metadata.topics().iter().flat_map(|topic| topic.partitions());
    partitions.all(|partition| {
        partition.leader() >= 0 && partition.isr().len() == partition.replicas().len()
    })
}

/// Creates topics, and waits until their partitions have leaders.
pub fn create(brokers: &str, topics: &[(&str, i32)]) {
    let admin: AdminClient<DefaultClientContext> =
        config(brokers).create().expect("an admin client");
    let copies = i32::try_from(nodes(brokers).unwrap_or(1).min(3)).expect("a small number");
    let new: Vec<_> = topics
        .iter()
        .map(|(name, partitions)| {
            NewTopic::new(name, *partitions, TopicReplication::Fixed(copies))
                .set("max.message.bytes", MAX_BYTES)
        })
        .collect();
    let options = AdminOptions::new().operation_timeout(Some(TIMEOUT));
    for made in block_on(admin.create_topics(&new, &options)).expect("an answer from the broker") {
        if let Err((name, error)) = made {
            panic!("topic {name} was not made: {error}");
        }
    }
    for (name, partitions) in topics {
        wait::poll_until(&format!("leaders of {name}"), TIMEOUT, || {
            let metadata = admin.inner().fetch_metadata(Some(name), TIMEOUT).ok()?;
            let led = metadata
                .topics()
                .first()?
                .partitions()
                .iter()
                .filter(|partition| partition.leader() >= 0);
            (i32::try_from(led.count()) == Ok(*partitions)).then_some(())
        });
    }
}

/// Sets one property of a topic, and resets all others to the broker's defaults.
pub fn set(brokers: &str, topic: &str, property: &str, value: &str) {
    let admin: AdminClient<DefaultClientContext> =
        config(brokers).create().expect("an admin client");
    let change = AlterConfig::new(ResourceSpecifier::Topic(topic)).set(property, value);
    let options = AdminOptions::new().operation_timeout(Some(TIMEOUT));
    for changed in
        block_on(admin.alter_configs(&[change], &options)).expect("an answer from the broker")
    {
        if let Err((what, error)) = changed {
            panic!("{property} of {what:?} was not set: {error}");
        }
    }
    // The controller has it; the broker that is asked next may hear of it later.
    wait::poll_until(&format!("{property} of {topic}"), TIMEOUT, || {
        let described =
            block_on(admin.describe_configs(&[ResourceSpecifier::Topic(topic)], &options));
        let entries = described.ok()?.pop()?.ok()?.entries;
        let is_set =
            |entry: &ConfigEntry| entry.name == property && entry.value.as_deref() == Some(value);
        entries.iter().any(is_set).then_some(())
    });
}

/// Writes records, and returns them in the same order with their acknowledged positions.
pub fn produce(brokers: &str, topic: &str, records: Vec<Outgoing>) -> Vec<Record> {
    let context = Delivered::default();
    let acknowledged = Arc::clone(&context.acknowledged);
    let producer: BaseProducer<Delivered> = config(brokers)
        .set("enable.idempotence", "true")
        .set("message.max.bytes", MAX_BYTES)
        .set("linger.ms", "5")
        .create_with_context(context)
        .expect("a producer");
    let begin = Timestamp::now().to_millis();
    for (index, record) in records.iter().enumerate() {
        let headers = record.headers.iter().fold(OwnedHeaders::new(), |headers, (key, value)| {
            headers.insert(Header { key, value: value.as_deref() })
        });
        let mut message = BaseRecord::with_opaque_to(topic, index).headers(headers);
        if let Some(key) = &record.key {
            message = message.key(key.as_slice());
        }
        if let Some(value) = &record.value {
            message = message.payload(value.as_slice());
        }
        while let Err((error, again)) = producer.send(message) {
            assert!(error.rdkafka_error_code() == Some(RDKafkaErrorCode::QueueFull), "{error}");
            producer.poll(Duration::from_millis(100));
            message = again;
        }
        producer.poll(Duration::ZERO);
    }
    producer.flush(wait::LONG).expect("every record acknowledged");
    let mut acknowledged = acknowledged.lock().clone();
    acknowledged.sort_unstable();
    assert_eq!(acknowledged.len(), records.len(), "the broker did not acknowledge every record");

    let placed = records.into_iter().zip(acknowledged);
    placed
        .map(|(content, (_, partition, offset))| Record {
            partition,
            offset,
            timestamp: begin,
            content,
        })
        .collect()
}

/// Writes values to one partition in a transaction, and commits or aborts the transaction.
pub fn produce_transaction(
    brokers: &str,
    topic: &str,
    partition: i32,
    values: &[String],
    commits: bool,
) {
    let id = format!("{topic}-transactions");
    let producer: BaseProducer =
        config(brokers).set("transactional.id", id).create().expect("a transactional producer");
    producer.init_transactions(TIMEOUT).expect("transactions");
    producer.begin_transaction().expect("a transaction");
    for value in values {
        let record = BaseRecord::<(), str>::to(topic).partition(partition).payload(value);
        producer.send(record).map_err(|(error, _)| error).expect("room in the queue");
    }
    producer.flush(wait::LONG).expect("every record acknowledged");
    let ended = if commits {
        producer.commit_transaction(TIMEOUT)
    } else {
        producer.abort_transaction(TIMEOUT)
    };
    ended.expect("the end of a transaction");
}

/// All records that are on the topic now, by partition and offset.
pub fn read(brokers: &str, topic: &str) -> Vec<Record> {
    let mut records = Vec::new();
    read_each(brokers, topic, |record| records.push(record));
    records.sort_by_key(|record| (record.partition, record.offset));
    records
}

/// Passes all records that are on a topic now to `take`, those of one partition in order.
pub fn read_each(brokers: &str, topic: &str, mut take: impl FnMut(Record)) {
    let consumer: BaseConsumer = config(brokers)
        .set("group.id", "fleet-tests-reader")
        .set("enable.auto.commit", "false")
        .set("enable.partition.eof", "true")
        .set("fetch.wait.max.ms", "100")
        .create()
        .expect("a consumer");
    let mut assignment = TopicPartitionList::new();
    let mut ends = Vec::new();
    for partition in 0..partitions(brokers, topic) {
        let (low, high) = wait::poll_until_ok("watermarks", wait::LONG, || {
            consumer.fetch_watermarks(topic, partition, TIMEOUT)
        });
        if high > low {
            assignment
                .add_partition_offset(topic, partition, Offset::Offset(low))
                .expect("a partition");
            ends.push(partition);
        }
    }
    consumer.assign(&assignment).expect("an assignment");
    let mut last = Instant::now();
    while !ends.is_empty() {
        let is_stalled = last.elapsed() > wait::LONG;
        assert!(!is_stalled, "{topic} was not read to its end: {ends:?} are missing");
        match consumer.poll(Duration::from_millis(200)) {
            Some(Ok(message)) => {
                take(record(&message));
                last = Instant::now();
            }
            Some(Err(KafkaError::PartitionEOF(partition))) => ends.retain(|end| *end != partition),
            // A broker that a test has killed may not be back yet; librdkafka reconnects.
            Some(Err(error))
                if error.rdkafka_error_code() == Some(RDKafkaErrorCode::BrokerTransportFailure) => {
            }
            Some(Err(error)) => panic!("reading {topic}: {error}"),
            None => {}
        }
    }
}

/// The committed offsets of a group by partition; `None` for a partition without a commit.
pub fn committed(brokers: &str, group: &str, topic: &str, partitions: i32) -> Vec<Option<i64>> {
    let consumer: BaseConsumer =
        config(brokers).set("group.id", group).create().expect("a consumer");
    let mut asked = TopicPartitionList::new();
    asked.add_partition_range(topic, 0, partitions - 1);
    let committed = consumer.committed_offsets(asked, TIMEOUT).expect("committed offsets");
    (0..partitions)
        .map(|partition| match committed.find_partition(topic, partition)?.offset() {
            Offset::Offset(offset) => Some(offset),
            _ => None,
        })
        .collect()
}

/// A group's commit for a partition, with its metadata.
pub fn commit_of(brokers: &str, group: &str, topic: &str, partition: i32) -> Option<(i64, String)> {
    let consumer: BaseConsumer =
        config(brokers).set("group.id", group).create().expect("a consumer");
    let mut asked = TopicPartitionList::new();
    asked.add_partition(topic, partition);
    let committed = consumer.committed_offsets(asked, TIMEOUT).expect("committed offsets");
    let found = committed.find_partition(topic, partition)?;
    match found.offset() {
        Offset::Offset(offset) => Some((offset, found.metadata().to_owned())),
        _ => None,
    }
}

/// Commits on behalf of a group, as an operator's tool does while the group has no members.
pub fn commit(
    brokers: &str,
    group: &str,
    topic: &str,
    partition: i32,
    offset: i64,
    metadata: &str,
) {
    let consumer: BaseConsumer =
        config(brokers).set("group.id", group).create().expect("a consumer");
    let mut list = TopicPartitionList::new();
    let mut element = list.add_partition(topic, partition);
    element.set_offset(Offset::Offset(offset)).expect("an offset");
    element.set_metadata(metadata);
    consumer.commit(&list, CommitMode::Sync).expect("a commit");
}

/// Raises the number of a topic's partitions to `partitions`.
pub fn grow(brokers: &str, topic: &str, partitions: usize) {
    let admin: AdminClient<DefaultClientContext> =
        config(brokers).create().expect("an admin client");
    let options = AdminOptions::new().operation_timeout(Some(TIMEOUT));
    let grown =
        block_on(admin.create_partitions(&[NewPartitions::new(topic, partitions)], &options));
    grown
        .expect("an answer from the broker")
        .into_iter()
        .for_each(|grown| drop(grown.expect("more partitions")));
}

/// Deletes a topic, and creates it again.
pub fn make_again(brokers: &str, topic: &str, partitions: i32) {
    delete(brokers, topic);
    create(brokers, &[(topic, partitions)]);
}

/// Deletes a topic, and waits until it is gone.
pub fn delete(brokers: &str, topic: &str) {
    let admin: AdminClient<DefaultClientContext> =
        config(brokers).create().expect("an admin client");
    let options = AdminOptions::new().operation_timeout(Some(TIMEOUT));
    for deleted in
        block_on(admin.delete_topics(&[topic], &options)).expect("an answer from the broker")
    {
        deleted.expect("a topic that was there");
    }
    wait::poll_until(&format!("{topic} to be gone"), TIMEOUT, || {
        let metadata = admin.inner().fetch_metadata(Some(topic), TIMEOUT).ok()?;
        metadata.topics().iter().all(|found| found.partitions().is_empty()).then_some(())
    });
}

/// The end of each partition of a topic: the offset after its last record.
pub fn ends(brokers: &str, topic: &str, partitions: i32) -> Vec<i64> {
    let client: BaseConsumer = config(brokers).create().expect("a client");
    let end = |partition| client.fetch_watermarks(topic, partition, TIMEOUT).expect("watermarks").1;
    (0..partitions).map(end).collect()
}

/// The number of a topic's partitions.
pub fn partitions(brokers: &str, topic: &str) -> i32 {
    let client: BaseConsumer = config(brokers).create().expect("a client");
    let metadata = client.fetch_metadata(Some(topic), TIMEOUT).expect("metadata");
    let partitions =
        metadata.topics().first().map(|topic| topic.partitions().len()).unwrap_or_default();
    i32::try_from(partitions).expect("a small number")
}

/// The number of a group's members.
pub fn members(brokers: &str, group: &str) -> usize {
    let client: BaseConsumer = config(brokers).create().expect("a client");
    let groups = client.fetch_group_list(Some(group), TIMEOUT);
    groups
        .ok()
        .and_then(|groups| Some(groups.groups().first()?.members().len()))
        .unwrap_or_default()
}

/// The topics and partitions assigned to each member of a group, according to the coordinator.
/// Empty unless the group is stable.
pub fn assignments(brokers: &str, group: &str) -> Vec<Vec<(String, i32)>> {
    let client: BaseConsumer = config(brokers).create().expect("a client");
    let Ok(groups) = client.fetch_group_list(Some(group), TIMEOUT) else { return Vec::new() };
    let stable = groups.groups().first().filter(|group| group.state() == "Stable");
    let members = stable.map(|group| group.members()).unwrap_or_default();
    members.iter().map(|member| assignment(member.assignment().unwrap_or_default())).collect()
}

/// Reads a member's assignment in the consumer protocol: a version, and topics with their
/// partitions.
fn assignment(mut bytes: &[u8]) -> Vec<(String, i32)> {
    let mut take = |count: usize| {
        let (taken, rest) = bytes.split_at_checked(count)?;
        bytes = rest;
        Some(taken)
    };
    let mut all = Vec::new();
    let mut read = || {
        let number = |bytes: &[u8]| {
            bytes.iter().fold(0usize, |number, byte| number << 8 | usize::from(*byte))
        };
        take(2)?;
        for _ in 0..number(take(4)?) {
            let length = number(take(2)?);
            let topic = String::from_utf8_lossy(take(length)?).into_owned();
            for _ in 0..number(take(4)?) {
                all.push((topic.clone(), i32::try_from(number(take(4)?)).ok()?));
            }
        }
        Some(())
    };

    // The assignment of a member without partitions may be empty.
    read().unwrap_or_default();
    all
}

/// The node that coordinates a group, which is the leader of the group's partition of the offsets
/// topic.
pub fn coordinator(brokers: &str, group: &str) -> usize {
    // Brokers choose the partition by Java's `String.hashCode`.
    let hash = group
        .encode_utf16()
        .fold(0i32, |hash, unit| hash.wrapping_mul(31).wrapping_add(i32::from(unit)));
    let client: BaseConsumer = config(brokers).create().expect("a client");
    let metadata = client.fetch_metadata(Some("__consumer_offsets"), TIMEOUT).expect("metadata");
    let partitions = metadata.topics().first().expect("the offsets topic").partitions();
    let number = hash.checked_abs().unwrap_or_default()
        % i32::try_from(partitions.len()).expect("a small number");
    let partition =
        partitions.iter().find(|partition| partition.id() == number).expect("the partition");
    usize::try_from(partition.leader()).expect("a leader")
}

/// The state of a group according to the coordinator: `Stable`, or `PreparingRebalance` while it
/// waits for members to rejoin.
pub fn group_state(brokers: &str, group: &str) -> String {
    let client: BaseConsumer = config(brokers).create().expect("a client");
    let groups = client.fetch_group_list(Some(group), TIMEOUT);
    groups
        .ok()
        .and_then(|groups| Some(groups.groups().first()?.state().to_owned()))
        .unwrap_or_default()
}

/// A member of a group that takes part in rebalances only while it is polled, and commits nothing.
///
/// # Panics
/// When the client can't be made.
pub fn idle_member(brokers: &str, group: &str, topics: &[&str]) -> BaseConsumer {
    let mut config = config(brokers);
    config
        .set("group.id", group)
        .set("partition.assignment.strategy", "cooperative-sticky")
        .set("session.timeout.ms", "6000")
        .set("enable.auto.commit", "false");
    let member: BaseConsumer = config.create().expect("a client");
    member.subscribe(topics).expect("a subscription");
    member
}

pub(crate) fn config(brokers: &str) -> ClientConfig {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", brokers).set("log_level", "2");
    config
}

pub(crate) fn record(message: &impl rdkafka::Message) -> Record {
    let headers = message.headers().map(|headers| {
        let all = headers.iter();
        all.map(|header| (header.key.to_owned(), header.value.map(<[u8]>::to_vec))).collect()
    });
    Record {
        partition: message.partition(),
        offset: message.offset(),
        timestamp: message.timestamp().to_millis(),
        content: Outgoing {
            key: message.key().map(<[u8]>::to_vec),
            value: message.payload().map(<[u8]>::to_vec),
            headers: headers.unwrap_or_default(),
        },
    }
}

/// Collects the broker's acknowledgements: index, partition, offset.
#[derive(Clone, Debug, Default)]
struct Delivered {
    acknowledged: Arc<Mutex<Vec<(usize, i32, i64)>>>,
}

impl ClientContext for Delivered {}

impl ProducerContext for Delivered {
    type DeliveryOpaque = usize;

    fn delivery(&self, result: &DeliveryResult<'_>, index: usize) {
        if let Ok(message) = result {
            let mut acknowledged = self.acknowledged.lock();
            acknowledged.push((index, message.partition(), message.offset()));
        }
    }
}

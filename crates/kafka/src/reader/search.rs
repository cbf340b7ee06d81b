//! Searching a topic for records, within bounds of time and size.

use std::{
    collections::{HashMap, HashSet},
    time::{Duration, Instant},
};

use fleet_job::{record::RawRecord, time::Timestamp};
use rdkafka::{Offset, TopicPartitionList, consumer::Consumer as _, error::KafkaError as Native};

use super::whole_millis_until;
use crate::{
    admin, convert,
    error::KafkaError,
    quiet_context::{QuietConsumer, QuietContext},
    settings::Settings,
};

/// Reads the records that were written at or after `since` until `found` returns `true` or the end
/// is reached. Blocks the thread. Returns `false` on a timeout.
///
/// # Errors
///
/// Returns the errors of [`Reader::open`](super::Reader::open).
pub fn search(
    settings: &Settings,
    topic: &str,
    since: Timestamp,
    timeout: Duration,
    found: impl FnMut(&RawRecord) -> bool,
) -> Result<bool, KafkaError> {
    let deadline = Instant::now() + timeout;
    let request = |what| move |source| KafkaError::Request { what, source };
    let partitions = admin::partitions(settings, topic, timeout)?;
    let consumer: QuietConsumer = settings
        .reader()
        .create_with_context(QuietContext::default())
        .map_err(KafkaError::client)?;

    let mut times = TopicPartitionList::new();
    for partition in 0..partitions {
        let time = convert::time_to_offset(since);
        times
            .add_partition_offset(topic, partition, time)
            .map_err(request("selecting where to search"))?;
    }

    let starts =
        consumer.offsets_for_times(times, timeout).map_err(request("fetching offsets by time"))?;

    let mut assignment = TopicPartitionList::new();
    let mut open = HashSet::new();

    for start in starts.elements() {
        start.error().map_err(request("fetching offsets by time"))?;
        // A partition without a record of that time or later has nothing to search.
        if let offset @ Offset::Offset(_) = start.offset() {
            assignment
                .add_partition_offset(topic, start.partition(), offset)
                .map_err(request("selecting where to search"))?;
            open.insert(start.partition());
        }
    }

    let bounds = Bounds { deadline, bytes: usize::MAX };
    look_through(&consumer, &assignment, open, bounds, found)
}

/// Reads the records of one partition that were written at or after `since` until `found` returns
/// `true` or the end is reached. Blocks the thread. Returns `false` if `timeout` or `max_bytes` was
/// reached first.
///
/// # Errors
///
/// Returns the errors of [`Reader::open`](super::Reader::open).
pub fn search_partition(
    settings: &Settings,
    topic: &str,
    partition: i32,
    since: Timestamp,
    timeout: Duration,
    max_bytes: usize,
    found: impl FnMut(&RawRecord) -> bool,
) -> Result<bool, KafkaError> {
    let deadline = Instant::now() + timeout;
    let request = |what| move |source| KafkaError::Request { what, source };
    let mut config = settings.reader();
    // Barely more than may be read.
    config.set("queued.max.messages.kbytes", "4096");
    let consumer: QuietConsumer =
        config.create_with_context(QuietContext::default()).map_err(KafkaError::client)?;

    let mut times = TopicPartitionList::new();
    let time = convert::time_to_offset(since);
    times
        .add_partition_offset(topic, partition, time)
        .map_err(request("selecting where to search"))?;
    let starts =
        consumer.offsets_for_times(times, timeout).map_err(request("fetching offsets by time"))?;

    let start = starts.find_partition(topic, partition);
    let Some(start) = start else { return Ok(true) };
    start.error().map_err(request("fetching offsets by time"))?;
    // A partition without a record of that time or later has nothing to search.
    let offset @ Offset::Offset(_) = start.offset() else { return Ok(true) };
    let mut assignment = TopicPartitionList::new();
    assignment
        .add_partition_offset(topic, partition, offset)
        .map_err(request("selecting where to search"))?;

    let bounds = Bounds { deadline, bytes: max_bytes };
    look_through(&consumer, &assignment, HashSet::from([partition]), bounds, found)
}

/// Reads the records beyond the committed offsets of `group` until `found` returns `true` or the
/// end is reached. Blocks the thread. Returns `false` if `timeout` or `max_bytes` was reached
/// first.
///
/// # Errors
///
/// Returns the errors of [`Reader::open`](super::Reader::open).
pub fn search_backlog(
    settings: &Settings,
    topic: &str,
    group: &str,
    timeout: Duration,
    max_bytes: usize,
    found: impl FnMut(&RawRecord) -> bool,
) -> Result<bool, KafkaError> {
    let deadline = Instant::now() + timeout;
    let mut assignment = TopicPartitionList::new();
    let mut open = HashSet::new();

    for position in admin::group_positions(settings, group, topic, timeout)? {
        let start = position.committed.unwrap_or_default().max(position.start);
        if start < position.end {
            assignment
                .add_partition_offset(topic, position.partition, Offset::Offset(start))
                .map_err(|source| KafkaError::Request {
                    what: "selecting where to search",
                    source,
                })?;
            open.insert(position.partition);
        }
    }
    if open.is_empty() {
        return Ok(true);
    }

    let mut config = settings.reader();
    // Barely more than may be read.
    config.set("queued.max.messages.kbytes", "4096");
    let consumer: QuietConsumer =
        config.create_with_context(QuietContext::default()).map_err(KafkaError::client)?;
    look_through(&consumer, &assignment, open, Bounds { deadline, bytes: max_bytes }, found)
}

/// The bounds of a search.
struct Bounds {
    deadline: Instant,
    bytes: usize,
}

/// Searches from the assigned offsets to the end of the partitions in `open`.
fn look_through(
    consumer: &QuietConsumer,
    assignment: &TopicPartitionList,
    mut open: HashSet<i32>,
    mut bounds: Bounds,
    mut found: impl FnMut(&RawRecord) -> bool,
) -> Result<bool, KafkaError> {
    consumer
        .assign(assignment)
        .map_err(|source| KafkaError::Request { what: "selecting where to search", source })?;

    while !open.is_empty() {
        if Instant::now() >= bounds.deadline {
            return Ok(false);
        }

        match consumer.poll(whole_millis_until(bounds.deadline)) {
            Some(Ok(message)) => {
                let record = convert::to_record(&message);
                if found(&record) {
                    return Ok(true);
                }
                let Some(left) = bounds.bytes.checked_sub(record.size()) else { return Ok(false) };
                bounds.bytes = left;
            }
            Some(Err(Native::PartitionEOF(partition))) => drop(open.remove(&partition)),
            Some(Err(source @ Native::MessageConsumptionFatal(_))) => {
                return Err(KafkaError::Request { what: "reading", source });
            }
            Some(Err(error)) => {
                tracing::debug!(%error, "an error while searching; librdkafka retries")
            }
            None => {}
        }
    }

    Ok(true)
}

/// Fetches the first record at or after an offset for each partition in `from`. Blocks the thread
/// for at most `timeout`; partitions whose record was not found by then are left out.
///
/// # Errors
///
/// Returns [`KafkaError::Client`] or [`KafkaError::Request`].
pub fn first_records(
    settings: &Settings,
    topic: &str,
    from: &[(i32, i64)],
    timeout: Duration,
) -> Result<HashMap<i32, RawRecord>, KafkaError> {
    let request = |what| move |source| KafkaError::Request { what, source };
    let mut found = HashMap::new();
    let mut open: Vec<i32> = from.iter().map(|(partition, _)| *partition).collect();
    if open.is_empty() {
        return Ok(found);
    }

    let mut config = settings.reader();
    // Only one record of each partition is wanted, so nothing should be fetched ahead.
    config.set("queued.min.messages", "1");
    let consumer: QuietConsumer =
        config.create_with_context(QuietContext::default()).map_err(KafkaError::client)?;

    let mut assignment = TopicPartitionList::new();
    for (partition, offset) in from {
        assignment
            .add_partition_offset(topic, *partition, Offset::Offset(*offset))
            .map_err(request("selecting where to read"))?;
    }
    consumer.assign(&assignment).map_err(request("selecting what to read"))?;

    let deadline = Instant::now() + timeout;
    while !open.is_empty() && Instant::now() < deadline {
        let ended = match consumer.poll(whole_millis_until(deadline)) {
            Some(Ok(message)) => {
                let record = convert::to_record(&message);
                let partition = record.position.partition;
                found.entry(partition).or_insert(record);
                partition
            }
            Some(Err(Native::PartitionEOF(partition))) => partition,
            Some(Err(source @ Native::MessageConsumptionFatal(_))) => {
                return Err(KafkaError::Request { what: "reading", source });
            }
            Some(Err(error)) => {
                tracing::debug!(%error, "an error while reading; librdkafka retries");
                continue;
            }
            None => continue,
        };

        if open.contains(&ended) {
            open.retain(|partition| *partition != ended);
            let mut done = TopicPartitionList::new();
            done.add_partition(topic, ended);
            consumer.pause(&done).map_err(request("pausing a partition"))?;
        }
    }

    Ok(found)
}

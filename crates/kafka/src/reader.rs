//! Reading a topic without a group, for tools: from the start or from now on, up to the end or on and on.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use fleet_job::record::RawRecord;
use rdkafka::{
    Offset, TopicPartitionList,
    consumer::{BaseConsumer, Consumer},
    error::KafkaError as Native,
};

use crate::{admin, convert, error::KafkaError, settings::Settings};

/// Where to begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum From {
    /// At the first record that is still there.
    Start,
    /// With the next record that is written.
    Now,
}

/// Reads all partitions of one topic. All calls block the thread.
pub struct Reader {
    consumer: BaseConsumer,
    /// What there was when the reader was opened, per partition: the offset at which its end lies, and whether we have
    /// come that far.
    ends: Vec<(i32, i64, bool)>,
}

impl std::fmt::Debug for Reader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reader").field("ends", &self.ends).finish_non_exhaustive()
    }
}

impl Reader {
    /// Opens `topic`. With [`From::Now`], what is written after this call has returned is read.
    ///
    /// # Errors
    /// [`KafkaError::Unreachable`], [`KafkaError::NoTopic`] or [`KafkaError::Request`].
    pub fn open(settings: &Settings, topic: &str, from: From, timeout: Duration) -> Result<Self, KafkaError> {
        let partitions = admin::partitions(settings, topic, timeout)?;
        let consumer: BaseConsumer = settings.reader().create().map_err(KafkaError::client)?;
        let mut assignment = TopicPartitionList::new();
        let mut ends = Vec::new();
        let request = |what| move |source| KafkaError::Request { what, source };
        for partition in 0..partitions {
            let (low, high) = consumer
                .fetch_watermarks(topic, partition, timeout)
                .map_err(request("asking for the end of a partition"))?;
            let offset = match from {
                From::Start => Offset::Beginning,
                From::Now => Offset::Offset(high),
            };
            assignment
                .add_partition_offset(topic, partition, offset)
                .map_err(request("choosing where to read"))?;
            ends.push((partition, high, high <= low || from == From::Now));
        }
        consumer.assign(&assignment).map_err(request("choosing what to read"))?;
        Ok(Self { consumer, ends })
    }

    /// The next record, waiting for it at most `timeout`.
    ///
    /// # Errors
    /// [`KafkaError::Request`] for what librdkafka can't mend by itself.
    pub fn next(&mut self, timeout: Duration) -> Result<Option<RawRecord>, KafkaError> {
        let deadline = Instant::now() + timeout;
        loop {
            match self.consumer.poll(deadline.saturating_duration_since(Instant::now())) {
                Some(Ok(message)) => {
                    let record = convert::to_record(&message);
                    let position = &record.position;
                    self.reached(position.partition, position.offset + 1);
                    return Ok(Some(record));
                }
                Some(Err(Native::PartitionEOF(partition))) => self.reached(partition, i64::MAX),
                Some(Err(source @ Native::MessageConsumptionFatal(_))) => {
                    return Err(KafkaError::Request { what: "reading", source });
                }
                Some(Err(error)) => tracing::debug!(%error, "reading goes on after an error"),
                None => {}
            }
            if Instant::now() >= deadline || self.at_end() {
                return Ok(None);
            }
        }
    }

    fn reached(&mut self, partition: i32, next: i64) {
        for (_, end, reached) in self.ends.iter_mut().filter(|(number, ..)| *number == partition) {
            *reached |= next >= *end;
        }
    }

    /// Whether everything that was there when the reader was opened has been read.
    pub fn at_end(&self) -> bool {
        self.ends.iter().all(|(.., reached)| *reached)
    }
}

/// The first record at or after an offset, for each partition of `from` that has one. Blocks the thread for at most
/// `timeout`; what was not found by then is left out.
///
/// # Errors
/// [`KafkaError::Client`] or [`KafkaError::Request`].
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
    // One record of each partition is wanted, and not what librdkafka would fetch ahead.
    config.set("queued.min.messages", "1");
    let consumer: BaseConsumer = config.create().map_err(KafkaError::client)?;
    let mut assignment = TopicPartitionList::new();
    for (partition, offset) in from {
        assignment
            .add_partition_offset(topic, *partition, Offset::Offset(*offset))
            .map_err(request("choosing where to read"))?;
    }
    consumer.assign(&assignment).map_err(request("choosing what to read"))?;
    let deadline = Instant::now() + timeout;
    while !open.is_empty() && Instant::now() < deadline {
        let ended = match consumer.poll(deadline.saturating_duration_since(Instant::now())) {
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
                tracing::debug!(%error, "reading goes on after an error");
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

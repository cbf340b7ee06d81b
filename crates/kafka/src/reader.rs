//! Reading a topic without a group, for tools: from the start or from now on, up to the end or on and on.

use std::time::{Duration, Instant};

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
        let consumer: BaseConsumer = settings.reader().create().map_err(KafkaError::Client)?;
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

//! Reading a topic without a group, up to its end or beyond. Processes that follow a topic for as
//! long as they live use [`crate::follow`] instead.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use fleet_job::record::RawRecord;
use rdkafka::{
    Offset, TopicPartitionList,
    consumer::Consumer,
    error::{KafkaError as Native, RDKafkaErrorCode},
};

use crate::{
    admin, convert,
    error::KafkaError,
    quiet_context::{QuietConsumer, QuietContext},
    retry_while_moving::retry_while_moving,
    settings::Settings,
};

mod search;

pub use search::{first_records, search, search_backlog, search_partition};

/// The shortest timeout of a poll.
const LEAST_POLL: Duration = Duration::from_millis(1);

/// Returns the time until `deadline`, rounded up to librdkafka's unit. rdkafka would spin through a
/// fraction of a millisecond.
fn whole_millis_until(deadline: Instant) -> Duration {
    let left = deadline.saturating_duration_since(Instant::now());
    let millis = left.as_micros().div_ceil(1000);
    Duration::from_millis(u64::try_from(millis).unwrap_or(u64::MAX)).max(LEAST_POLL)
}

/// Where reading starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum From {
    /// At the first record that still exists.
    Start,
    /// After the last record that exists now.
    Now,
}

/// Reads all partitions of one topic. All calls block the thread.
pub struct Reader {
    consumer: QuietConsumer,
    settings: Settings,
    /// Created when the end of the topic is first requested.
    end_query: Option<EndQuery>,
    topic: String,
    ends: ReadPositions,
    /// Whether the end was requested since the reader was opened. librdkafka's reports of reached
    /// ends may be older than that request.
    looked: bool,
    is_out_of_reach: bool,
}

/// How far a topic has been read, and where it ends, per partition.
#[derive(Debug, Clone, Default)]
pub(crate) struct ReadPositions(Vec<PartitionPosition>);

#[derive(Debug, Clone)]
struct PartitionPosition {
    partition: i32,
    /// The offset after the last record when the end was last requested.
    end: i64,
    /// The offset to read next.
    next: i64,
}

impl ReadPositions {
    /// Records that everything before `next` has been read.
    pub(crate) fn reached(&mut self, partition: i32, next: i64) {
        for end in self.0.iter_mut().filter(|end| end.partition == partition) {
            end.next = end.next.max(next);
        }
    }

    /// Records that the partition was read to its end, even if its last offsets hold no record.
    fn reached_end(&mut self, partition: i32) {
        for end in self.0.iter_mut().filter(|end| end.partition == partition) {
            end.next = end.next.max(end.end);
        }
    }

    /// Records where a partition ends.
    fn note_end(&mut self, partition: i32, high: i64) {
        for end in self.0.iter_mut().filter(|end| end.partition == partition) {
            end.end = end.end.max(high);
        }
    }

    /// Returns the next offset to read of each partition.
    pub(crate) fn positions(&self) -> BTreeMap<i32, i64> {
        self.0.iter().map(|end| (end.partition, end.next)).collect()
    }

    /// Returns whether everything has been read that was there when the ends were last requested.
    pub(crate) fn at_end(&self) -> bool {
        self.0.iter().all(|end| end.next >= end.end)
    }
}

/// Fetches the ends of topics over separate connections. On the connections of a client that reads,
/// an answer waits behind a fetch that the broker holds back while there is nothing to read: half a
/// second for each request.
pub(crate) struct EndQuery(QuietConsumer);

impl EndQuery {
    pub(crate) fn new(settings: &Settings) -> Result<Self, KafkaError> {
        settings
            .reader()
            .create_with_context(QuietContext::default())
            .map(Self)
            .map_err(KafkaError::client)
    }

    /// Fetches where the partitions of `topic` end now.
    pub(crate) fn refresh_end(
        &self,
        topic: &str,
        ends: &mut ReadPositions,
        timeout: Duration,
    ) -> Result<(), KafkaError> {
        let request = |source| KafkaError::Request { what: "fetching the end of a topic", source };
        // One request for all partitions. Instead of a time, `End` requests the next offset to be
        // written.
        let mut question = TopicPartitionList::new();
        for end in &ends.0 {
            question.add_partition_offset(topic, end.partition, Offset::End).map_err(request)?;
        }

        let answer = self.0.offsets_for_times(question, timeout).map_err(request)?;
        for found in answer.elements() {
            found.error().map_err(request)?;
            if let Offset::Offset(high) = found.offset() {
                ends.note_end(found.partition(), high);
            }
        }
        Ok(())
    }
}

impl std::fmt::Debug for Reader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reader").field("ends", &self.ends).finish_non_exhaustive()
    }
}

impl Reader {
    /// Opens `topic`. With [`From::Now`], every record that is written after this call returns is
    /// read.
    ///
    /// # Errors
    ///
    /// Returns [`KafkaError::Unreachable`], [`KafkaError::NoTopic`] or [`KafkaError::Request`].
    pub fn open(
        settings: &Settings,
        topic: &str,
        from: From,
        timeout: Duration,
    ) -> Result<Self, KafkaError> {
        Self::open_where(settings, topic, timeout, |_, low, high| match from {
            From::Start => Ok((Offset::Beginning, low)),
            From::Now => Ok((Offset::Offset(high), high)),
        })
    }

    /// Opens `topic` where an earlier reader stopped: at these offsets. Partitions without an
    /// offset are read from their start. Records that no longer exist are skipped.
    ///
    /// # Errors
    ///
    /// Returns the errors of [`Reader::open`], and [`KafkaError::LogReset`] if the topic ends
    /// before one of the offsets.
    pub fn open_at(
        settings: &Settings,
        topic: &str,
        offsets: &BTreeMap<i32, i64>,
        timeout: Duration,
    ) -> Result<Self, KafkaError> {
        Self::open_where(settings, topic, timeout, |partition, low, high| {
            match offsets.get(&partition) {
                Some(offset) if *offset > high => Err(KafkaError::LogReset(topic.to_owned())),
                Some(offset) if *offset > low => Ok((Offset::Offset(*offset), *offset)),
                _ => Ok((Offset::Beginning, low)),
            }
        })
    }

    fn open_where(
        settings: &Settings,
        topic: &str,
        timeout: Duration,
        place: impl Fn(i32, i64, i64) -> Result<(Offset, i64), KafkaError>,
    ) -> Result<Self, KafkaError> {
        let partitions = admin::partitions(settings, topic, timeout)?;
        let consumer: QuietConsumer = settings
            .reader()
            .create_with_context(QuietContext::default())
            .map_err(KafkaError::client)?;

        let mut assignment = TopicPartitionList::new();
        let mut ends = ReadPositions::default();
        let request = |what| move |source| KafkaError::Request { what, source };

        for partition in 0..partitions {
            let (low, high) = retry_while_moving(timeout, |timeout| {
                consumer.fetch_watermarks(topic, partition, timeout)
            })
            .map_err(request("fetching the end of a partition"))?;

            let (offset, next) = place(partition, low, high)?;
            assignment
                .add_partition_offset(topic, partition, offset)
                .map_err(request("selecting where to read"))?;
            ends.0.push(PartitionPosition { partition, end: high, next });
        }

        consumer.assign(&assignment).map_err(request("selecting what to read"))?;

        let settings = settings.clone();
        Ok(Self {
            consumer,
            settings,
            end_query: None,
            topic: topic.to_owned(),
            ends,
            looked: false,
            is_out_of_reach: false,
        })
    }

    /// Waits for the next record for at most `timeout`.
    ///
    /// # Errors
    ///
    /// Returns [`KafkaError::Request`] for errors that librdkafka cannot recover from.
    pub fn next(&mut self, timeout: Duration) -> Result<Option<RawRecord>, KafkaError> {
        let deadline = Instant::now() + timeout;
        loop {
            match self.consumer.poll(whole_millis_until(deadline)) {
                Some(Ok(message)) => {
                    self.is_out_of_reach = false;
                    let record = convert::to_record(&message);
                    let position = &record.position;
                    self.ends.reached(position.partition, position.offset + 1);
                    return Ok(Some(record));
                }
                Some(Err(Native::PartitionEOF(partition))) => {
                    self.is_out_of_reach = false;
                    if !self.looked {
                        self.ends.reached_end(partition);
                    }
                }
                Some(Err(source @ Native::MessageConsumptionFatal(_))) => {
                    return Err(KafkaError::Request { what: "reading", source });
                }
                Some(Err(error)) => {
                    self.is_out_of_reach |=
                        error.rdkafka_error_code() == Some(RDKafkaErrorCode::AllBrokersDown);
                    tracing::debug!(%error, "an error while reading; librdkafka retries");
                }
                None => {}
            }

            if Instant::now() >= deadline || self.at_end() {
                return Ok(None);
            }
        }
    }

    /// Returns whether all connections to brokers were lost and no broker has answered a fetch
    /// since.
    pub fn is_out_of_reach(&self) -> bool {
        self.is_out_of_reach
    }

    /// Returns the next offset to read of each partition.
    pub fn positions(&self) -> BTreeMap<i32, i64> {
        self.ends.positions()
    }

    pub(crate) fn ends(&self) -> ReadPositions {
        self.ends.clone()
    }

    /// Returns whether everything has been read that was there when the reader was opened, or at
    /// the last call of [`Reader::refresh_end`].
    pub fn at_end(&self) -> bool {
        self.ends.at_end()
    }

    /// Fetches where the topic ends now. A topic that ends in something other than a record (such
    /// as a transaction marker) is then never read to its end.
    ///
    /// # Errors
    ///
    /// Returns [`KafkaError::Request`].
    pub fn refresh_end(&mut self, timeout: Duration) -> Result<(), KafkaError> {
        let end_query = match self.end_query.take() {
            Some(end_query) => end_query,
            None => EndQuery::new(&self.settings)?,
        };

        end_query.refresh_end(&self.topic, &mut self.ends, timeout)?;
        self.end_query = Some(end_query);
        self.looked = true;
        Ok(())
    }
}

//! Reading a topic without a group: from the start or from now on, up to the end or on and on. What
//! follows topics for as long as it lives uses [`crate::follow`].

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    time::{Duration, Instant},
};

use fleet_job::{record::RawRecord, time::Timestamp};
use rdkafka::{
    ClientContext, Offset, TopicPartitionList,
    consumer::{BaseConsumer, Consumer, ConsumerContext},
    error::{KafkaError as Native, RDKafkaErrorCode},
    util::Timeout,
};

use crate::{admin, convert, error::KafkaError, moved::ask_where_it_went, settings::Settings};

/// The least that a poll can wait.
const LEAST_POLL: Duration = Duration::from_millis(1);

/// What is left until `deadline`, rounded up to what librdkafka counts in. rdkafka asks again and
/// again, without waiting, through a part of a millisecond.
fn whole_millis_until(deadline: Instant) -> Duration {
    let left = deadline.saturating_duration_since(Instant::now());
    let millis = left.as_micros().div_ceil(1000);
    Duration::from_millis(u64::try_from(millis).unwrap_or(u64::MAX)).max(LEAST_POLL)
}

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
    consumer: BaseConsumer<Quiet>,
    settings: Settings,
    /// Made when somebody asks where the topic ends.
    asker: Option<Asker>,
    topic: String,
    ends: Ends,
    /// Whether an end has been looked for since the reader was opened. What librdkafka says about
    /// ends may be older.
    looked: bool,
    is_out_of_reach: bool,
}

/// Says nothing of the ends of partitions, which librdkafka reports as errors.
#[derive(Debug)]
pub(crate) struct Quiet;

impl ClientContext for Quiet {
    fn error(&self, error: Native, reason: &str) {
        if error.rdkafka_error_code() != Some(RDKafkaErrorCode::PartitionEOF) {
            tracing::warn!(%error, reason, "Kafka");
        }
    }
}

impl ConsumerContext for Quiet {
    /// Everything comes through the queue that is polled, so nothing has to interrupt the wait for
    /// it.
    fn main_queue_min_poll_interval(&self) -> Timeout {
        Timeout::Never
    }
}

/// How far a topic has been read, and how far there is to read, per partition.
#[derive(Debug, Clone, Default)]
pub(crate) struct Ends(Vec<End>);

#[derive(Debug, Clone)]
struct End {
    partition: i32,
    /// One past the last record that was there when somebody looked.
    end: i64,
    /// The offset to read next.
    next: i64,
}

impl Ends {
    /// Everything before `next` has been read.
    pub(crate) fn reached(&mut self, partition: i32, next: i64) {
        for end in self.0.iter_mut().filter(|end| end.partition == partition) {
            end.next = end.next.max(next);
        }
    }

    /// Nothing is left before the end, though the last offsets there may hold no record.
    fn reached_end(&mut self, partition: i32) {
        for end in self.0.iter_mut().filter(|end| end.partition == partition) {
            end.next = end.next.max(end.end);
        }
    }

    fn ends_at(&mut self, partition: i32, high: i64) {
        for end in self.0.iter_mut().filter(|end| end.partition == partition) {
            end.end = end.end.max(high);
        }
    }

    /// The offset to read next, by partition.
    pub(crate) fn positions(&self) -> BTreeMap<i32, i64> {
        self.0.iter().map(|end| (end.partition, end.next)).collect()
    }

    /// Whether everything has been read that was there when somebody looked.
    pub(crate) fn at_end(&self) -> bool {
        self.0.iter().all(|end| end.next >= end.end)
    }
}

/// Asks where topics end, over connections of its own. On those of a client that reads, every
/// answer waits behind a fetch, which a broker holds back while there is nothing to read: half a
/// second for each question.
pub(crate) struct Asker(BaseConsumer<Quiet>);

impl Asker {
    pub(crate) fn new(settings: &Settings) -> Result<Self, KafkaError> {
        settings.reader().create_with_context(Quiet).map(Self).map_err(KafkaError::client)
    }

    /// Notes where the partitions of `topic` end now.
    pub(crate) fn look_for_end(
        &self,
        topic: &str,
        ends: &mut Ends,
        timeout: Duration,
    ) -> Result<(), KafkaError> {
        let request =
            |source| KafkaError::Request { what: "asking for the end of a topic", source };
        // All partitions in one question. In place of a time, `End` asks for the offset that comes
        // next.
        let mut question = TopicPartitionList::new();
        for end in &ends.0 {
            question.add_partition_offset(topic, end.partition, Offset::End).map_err(request)?;
        }

        let answer = self.0.offsets_for_times(question, timeout).map_err(request)?;
        for found in answer.elements() {
            found.error().map_err(request)?;
            if let Offset::Offset(high) = found.offset() {
                ends.ends_at(found.partition(), high);
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
    /// Opens `topic`. With [`From::Now`], what is written after this call has returned is read.
    ///
    /// # Errors
    /// [`KafkaError::Unreachable`], [`KafkaError::NoTopic`] or [`KafkaError::Request`].
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

    /// Opens `topic` where a reader before had stopped: at these offsets, and at the start of
    /// partitions that have none. What is not there any more is passed over.
    ///
    /// # Errors
    /// As [`Reader::open`], and [`KafkaError::LogReset`] where the topic ends before one of the
    /// offsets.
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
        let consumer: BaseConsumer<Quiet> =
            settings.reader().create_with_context(Quiet).map_err(KafkaError::client)?;
        let mut assignment = TopicPartitionList::new();
        let mut ends = Ends::default();
        let request = |what| move |source| KafkaError::Request { what, source };
        for partition in 0..partitions {
            let (low, high) = ask_where_it_went(timeout, |timeout| {
                consumer.fetch_watermarks(topic, partition, timeout)
            })
            .map_err(request("asking for the end of a partition"))?;
            let (offset, next) = place(partition, low, high)?;
            assignment
                .add_partition_offset(topic, partition, offset)
                .map_err(request("choosing where to read"))?;
            ends.0.push(End { partition, end: high, next });
        }
        consumer.assign(&assignment).map_err(request("choosing what to read"))?;
        let settings = settings.clone();
        Ok(Self {
            consumer,
            settings,
            asker: None,
            topic: topic.to_owned(),
            ends,
            looked: false,
            is_out_of_reach: false,
        })
    }

    /// The next record, waiting for it at most `timeout`.
    ///
    /// # Errors
    /// [`KafkaError::Request`] for what librdkafka can't mend by itself.
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
                    tracing::debug!(%error, "reading continues after an error");
                }
                None => {}
            }
            if Instant::now() >= deadline || self.at_end() {
                return Ok(None);
            }
        }
    }

    /// Whether all connections to brokers were lost, and no broker has answered a fetch since.
    pub fn is_out_of_reach(&self) -> bool {
        self.is_out_of_reach
    }

    /// The offset to read next, by partition.
    pub fn positions(&self) -> BTreeMap<i32, i64> {
        self.ends.positions()
    }

    pub(crate) fn ends(&self) -> Ends {
        self.ends.clone()
    }

    /// Whether everything has been read that was there when the reader was opened, or at the last
    /// [`Reader::look_for_end`].
    pub fn at_end(&self) -> bool {
        self.ends.at_end()
    }

    /// Looks again where the topic ends. A topic that ends in anything but a record (markers of
    /// transactions) is then never read to its end.
    ///
    /// # Errors
    /// [`KafkaError::Request`].
    pub fn look_for_end(&mut self, timeout: Duration) -> Result<(), KafkaError> {
        let asker = match self.asker.take() {
            Some(asker) => asker,
            None => Asker::new(&self.settings)?,
        };

        asker.look_for_end(&self.topic, &mut self.ends, timeout)?;
        self.asker = Some(asker);
        self.looked = true;
        Ok(())
    }
}

/// Looks through the records that were written at `since` or later, until `found` says that there
/// is no need to go on or the end is reached. Blocks the thread; `false` where `timeout` did not
/// suffice.
///
/// # Errors
/// As [`Reader::open`].
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
    let consumer: BaseConsumer<Quiet> =
        settings.reader().create_with_context(Quiet).map_err(KafkaError::client)?;
    let mut times = TopicPartitionList::new();
    for partition in 0..partitions {
        let time = Offset::Offset(since.as_millis());
        times
            .add_partition_offset(topic, partition, time)
            .map_err(request("choosing where to look"))?;
    }
    let starts = consumer
        .offsets_for_times(times, timeout)
        .map_err(request("asking for offsets by time"))?;
    let mut assignment = TopicPartitionList::new();
    let mut open = HashSet::new();
    for start in starts.elements() {
        start.error().map_err(request("asking for offsets by time"))?;
        // Partitions without a record of that time or later have nothing to look through.
        if let offset @ Offset::Offset(_) = start.offset() {
            assignment
                .add_partition_offset(topic, start.partition(), offset)
                .map_err(request("choosing where to look"))?;
            open.insert(start.partition());
        }
    }
    let bounds = Bounds { deadline, bytes: usize::MAX };
    look_through(&consumer, &assignment, open, bounds, found)
}

/// Looks through the records that `group` has not come to yet, until `found` says that there is no
/// need to go on or the end is reached. Blocks the thread; `false` where the bounds did not
/// suffice.
///
/// # Errors
/// As [`Reader::open`].
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
                .map_err(|source| KafkaError::Request { what: "choosing where to look", source })?;
            open.insert(position.partition);
        }
    }
    if open.is_empty() {
        return Ok(true);
    }

    let mut config = settings.reader();
    // Little more than what may be looked at.
    config.set("queued.max.messages.kbytes", "4096");
    let consumer: BaseConsumer<Quiet> =
        config.create_with_context(Quiet).map_err(KafkaError::client)?;
    look_through(&consumer, &assignment, open, Bounds { deadline, bytes: max_bytes }, found)
}

/// How much is looked through.
struct Bounds {
    deadline: Instant,
    bytes: usize,
}

/// Reads from these places on to the end of the partitions that are `open`.
fn look_through(
    consumer: &BaseConsumer<Quiet>,
    assignment: &TopicPartitionList,
    mut open: HashSet<i32>,
    mut bounds: Bounds,
    mut found: impl FnMut(&RawRecord) -> bool,
) -> Result<bool, KafkaError> {
    consumer
        .assign(assignment)
        .map_err(|source| KafkaError::Request { what: "choosing where to look", source })?;
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
            Some(Err(error)) => tracing::debug!(%error, "reading continues after an error"),
            None => {}
        }
    }
    Ok(true)
}

/// The first record at or after an offset, for each partition of `from` that has one. Blocks the
/// thread for at most `timeout`; what was not found by then is left out.
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
    let consumer: BaseConsumer<Quiet> =
        config.create_with_context(Quiet).map_err(KafkaError::client)?;
    let mut assignment = TopicPartitionList::new();
    for (partition, offset) in from {
        assignment
            .add_partition_offset(topic, *partition, Offset::Offset(*offset))
            .map_err(request("choosing where to read"))?;
    }
    consumer.assign(&assignment).map_err(request("choosing what to read"))?;
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
                tracing::debug!(%error, "reading continues after an error");
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

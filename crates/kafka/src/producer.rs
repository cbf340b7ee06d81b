//! Writing records and learning whether they were written.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use fleet_job::{record::Header, time::Timestamp};
use parking_lot::Mutex;
use rdkafka::{
    ClientContext, Message as _,
    config::RDKafkaLogLevel,
    error::{KafkaError as Native, RDKafkaErrorCode},
    message::DeliveryResult,
    producer::{BaseProducer, BaseRecord, Producer as _, ProducerContext, PurgeConfig},
};
use tokio::sync::oneshot;

use crate::{
    consumer::GroupContact, convert, error::KafkaError, quiet_context::FailureLog,
    settings::Settings,
};

/// The pause before librdkafka's queue is tried again after it was full.
const QUEUE_RETRY: Duration = Duration::from_millis(20);

/// A record to write.
#[derive(Debug, Clone, Default)]
pub struct Outgoing {
    /// The topic to write to.
    pub topic: String,
    /// The partition; `None` leaves the choice to the key.
    pub partition: Option<i32>,
    /// The record key, which selects the partition.
    pub key: Option<Vec<u8>>,
    /// The value; `None` writes a tombstone.
    pub value: Option<Vec<u8>>,
    /// The headers, in order.
    pub headers: Vec<Header>,
    /// The record's timestamp; `None` means the current time. The broker replaces it if the topic
    /// is configured to do so.
    pub timestamp: Option<Timestamp>,
}

/// The position at which a record was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Delivered {
    /// The partition that the record was written to.
    pub partition: i32,
    /// The record's offset in that partition.
    pub offset: i64,
}

type OnDelivery = Box<dyn FnOnce(Result<Delivered, KafkaError>) + Send + Sync>;

/// A callback for the outcome of a write, which is called at most once.
struct DeliveryCallback(Option<OnDelivery>);

impl DeliveryCallback {
    fn tell(&mut self, result: Result<Delivered, KafkaError>) {
        if let Some(then) = self.0.take() {
            then(result);
        }
    }
}

impl Drop for DeliveryCallback {
    fn drop(&mut self) {
        self.tell(Err(KafkaError::Produce { topic: String::new(), source: Native::Canceled }));
    }
}

/// Passes librdkafka's delivery reports to the callbacks, on the thread that polls.
#[derive(Default)]
struct Deliveries {
    failures: FailureLog,
}

impl ClientContext for Deliveries {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        self.failures.log_line(level, facility, message);
    }

    fn error(&self, error: Native, reason: &str) {
        self.failures.log_error(&error, reason);
    }
}

impl ProducerContext for Deliveries {
    type DeliveryOpaque = Box<DeliveryCallback>;

    fn delivery(&self, result: &DeliveryResult<'_>, mut report: Box<DeliveryCallback>) {
        report.tell(match result {
            Ok(message) => {
                Ok(Delivered { partition: message.partition(), offset: message.offset() })
            }
            Err((source, message)) => Err(KafkaError::Produce {
                topic: message.topic().to_owned(),
                source: source.clone(),
            }),
        });
    }
}

/// The timeout of a poll. Reports are handled as they arrive in any case. Since rdkafka spins
/// through the last millisecond of each poll, the timeout is long; the thread outlives its client
/// by as much.
const POLL: Duration = Duration::from_secs(5);

/// A client and the thread that polls it for delivery reports.
struct PolledClient {
    client: Arc<BaseProducer<Deliveries>>,
    is_dropped: Arc<AtomicBool>,
}

impl PolledClient {
    fn start(settings: &Settings) -> Result<Self, Native> {
        let client: BaseProducer<Deliveries> =
            settings.producer().create_with_context(Deliveries::default())?;
        let (client, is_dropped) = (Arc::new(client), Arc::new(AtomicBool::new(false)));
        let (polled, end) = (client.clone(), is_dropped.clone());

        thread::Builder::new()
            .name("kafka-produce".to_owned())
            .spawn(move || {
                while !end.load(Ordering::Relaxed) {
                    polled.poll(POLL);
                }
            })
            .map_err(|error| Native::ClientCreation(error.to_string()))?;

        Ok(Self { client, is_dropped })
    }

    /// Discards everything that has not been written yet. Does not wait for librdkafka's broker
    /// threads, which may be blocked resolving a host name.
    fn purge(&self) {
        self.client.purge(PurgeConfig::default().queue().inflight().non_blocking());
    }
}

impl Drop for PolledClient {
    fn drop(&mut self) {
        self.is_dropped.store(true, Ordering::Relaxed);
        self.purge();
    }
}

type Inner = Arc<PolledClient>;

/// A producer whose writes are acknowledged by all in-sync replicas. Records with the same key keep
/// their order.
pub struct Producer {
    settings: Settings,
    /// While contact is lost, records are refused.
    contact: GroupContact,
    /// The current client. After a fatal error, an idempotent producer has to be replaced.
    current: Mutex<Inner>,
}

impl std::fmt::Debug for Producer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Producer").field("brokers", &self.settings.brokers).finish_non_exhaustive()
    }
}

impl Producer {
    /// Creates a producer for these brokers, which connects when it is first used.
    ///
    /// # Errors
    ///
    /// Returns [`KafkaError::Property`] or [`KafkaError::Client`].
    pub fn new(settings: &Settings) -> Result<Self, KafkaError> {
        settings.check()?;
        Ok(Self {
            settings: settings.clone(),
            contact: GroupContact::default(),
            current: Mutex::new(Self::create(settings).map_err(KafkaError::client)?),
        })
    }

    /// Makes the producer refuse records while `contact` is lost: events for a job that another
    /// process may own would end up behind that job's terminal event.
    #[must_use]
    pub fn bound_to(mut self, contact: GroupContact) -> Self {
        self.contact = contact;
        self
    }

    /// Creates another producer with the same settings and contact, so that the pending records of
    /// one can be discarded while the other keeps writing.
    ///
    /// # Errors
    ///
    /// Returns the errors of [`Producer::new`].
    pub fn sibling(&self) -> Result<Self, KafkaError> {
        Ok(Self::new(&self.settings)?.bound_to(self.contact.clone()))
    }

    fn create(settings: &Settings) -> Result<Inner, Native> {
        PolledClient::start(settings).map(Arc::new)
    }

    fn current(&self) -> Inner {
        // Only the clone could panic while the lock is held, and it would leave the producer
        // intact.
        self.current.lock().clone()
    }

    /// Queues `record` without waiting. Calls `then` once the broker has acknowledged the record or
    /// librdkafka has given up. In the latter case the record may have been written nevertheless,
    /// if only its acknowledgement was lost. Records with the same key are written in the order of
    /// these calls.
    ///
    /// `then` runs on the thread that handles all delivery reports and must not block it. It is not
    /// called if this method returns an error.
    ///
    /// # Errors
    ///
    /// Returns [`KafkaError::Produce`] if librdkafka's queue is full or the record is too large,
    /// and [`KafkaError::OutOfContact`] if contact with the group is lost (see
    /// [`Producer::bound_to`]).
    pub fn enqueue_then(
        &self,
        record: &Outgoing,
        then: impl FnOnce(Result<Delivered, KafkaError>) + Send + Sync + 'static,
    ) -> Result<(), KafkaError> {
        if self.contact.is_lost() {
            return Err(KafkaError::OutOfContact { topic: record.topic.clone() });
        }

        let producer = self.current();
        let native = BaseRecord::<'_, [u8], [u8], _> {
            topic: &record.topic,
            partition: record.partition,
            payload: record.value.as_deref(),
            key: record.key.as_deref(),
            timestamp: record.timestamp.map(Timestamp::as_millis),
            headers: (!record.headers.is_empty()).then(|| convert::to_headers(&record.headers)),
            delivery_opaque: Box::new(DeliveryCallback(Some(Box::new(then)))),
        };
        producer.client.send(native).map_err(|(source, mut native)| {
            self.replace_after_fatal(&producer, &source);
            let topic = record.topic.clone();
            native.delivery_opaque.0 = None;
            KafkaError::Produce { topic, source }
        })
    }

    /// Queues `record` without waiting. Returns a future that completes when it is known whether
    /// the record was written.
    ///
    /// # Errors
    ///
    /// Returns the errors of [`Producer::enqueue_then`]. The future fails once librdkafka's own
    /// retries are exhausted.
    pub fn enqueue(
        &self,
        record: &Outgoing,
    ) -> Result<impl Future<Output = Result<Delivered, KafkaError>> + use<>, KafkaError> {
        let (sender, receiver) = oneshot::channel();
        // A receiver that was dropped does not need the result.
        self.enqueue_then(record, move |result| drop(sender.send(result)))?;

        let topic = record.topic.clone();

        Ok(async move {
            receiver.await.unwrap_or(Err(KafkaError::Produce { topic, source: Native::Canceled }))
        })
    }

    /// Does the same as [`Producer::enqueue`], but waits while librdkafka's queue is full.
    ///
    /// # Errors
    ///
    /// Returns the errors of [`Producer::enqueue`].
    pub async fn enqueue_patiently(
        &self,
        record: &Outgoing,
    ) -> Result<impl Future<Output = Result<Delivered, KafkaError>> + use<>, KafkaError> {
        loop {
            match self.enqueue(record) {
                Err(error) if error.is_queue_full() => tokio::time::sleep(QUEUE_RETRY).await,
                other => return other,
            }
        }
    }

    /// Writes `record`: waits for room in librdkafka's queue and for the acknowledgement.
    ///
    /// # Errors
    ///
    /// Returns the errors of [`Producer::enqueue`].
    pub async fn send(&self, record: &Outgoing) -> Result<Delivered, KafkaError> {
        self.enqueue_patiently(record).await?.await
    }

    /// Replaces the client if `error` is fatal for it.
    fn replace_after_fatal(&self, failed: &Inner, error: &Native) {
        let fatal = error.rdkafka_error_code() == Some(RDKafkaErrorCode::Fatal)
            || failed.client.client().fatal_error().is_some();
        if !fatal {
            return;
        }
        self.replace(failed.clone());
    }

    /// Discards all records that have not been written yet; their writes fail. Call this when
    /// partitions were lost: events for their jobs would arrive after those of the new owner.
    ///
    /// Records that are being sent at this moment cannot be recalled.
    pub fn forget(&self) {
        self.replace(self.current());
    }

    /// Replaces `old` by a new client, unless that has already been done: many writes fail at once.
    fn replace(&self, old: Inner) {
        let mut current = self.current.lock();
        if Arc::ptr_eq(&current, &old) {
            match Self::create(&self.settings) {
                Ok(fresh) => *current = fresh,
                Err(error) => {
                    tracing::error!(%error, "could not replace the Kafka producer after a failure")
                }
            }
        }
        drop(current);

        // Another thread may still be handing a record to the old client and keep it alive for a
        // moment.
        old.purge();
    }

    /// Waits for at most `timeout` until every queued record has been acknowledged or has failed.
    /// Blocks the thread.
    ///
    /// # Errors
    ///
    /// Returns [`KafkaError::Request`] on a timeout.
    pub fn flush(&self, timeout: Duration) -> Result<(), KafkaError> {
        self.current()
            .client
            .flush(timeout)
            .map_err(|source| KafkaError::Request { what: "flushing the producer", source })
    }
}

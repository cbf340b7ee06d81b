//! Writing records and knowing that they are written.

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
    error::{KafkaError as Native, RDKafkaErrorCode},
    message::DeliveryResult,
    producer::{BaseProducer, BaseRecord, Producer as _, ProducerContext, PurgeConfig},
};
use tokio::sync::oneshot;

use crate::{consumer::GroupContact, convert, error::KafkaError, settings::Settings};

/// How soon to look again whether librdkafka's own queue has room.
const QUEUE_RETRY: Duration = Duration::from_millis(20);

/// A record to write.
#[derive(Debug, Clone, Default)]
pub struct Outgoing {
    /// The topic.
    pub topic: String,
    /// The partition, where it is not left to the key.
    pub partition: Option<i32>,
    /// The record key; it chooses the partition.
    pub key: Option<Vec<u8>>,
    /// The value.
    pub value: Option<Vec<u8>>,
    /// The headers, in order.
    pub headers: Vec<Header>,
    /// The record's time; the producer's clock says where it is not set. A topic may put the
    /// broker's in its place.
    pub timestamp: Option<Timestamp>,
}

/// Where a record was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Delivered {
    /// The partition.
    pub partition: i32,
    /// The offset.
    pub offset: i64,
}

type OnDelivery = Box<dyn FnOnce(Result<Delivered, KafkaError>) + Send + Sync>;

/// What is to happen when it is known whether a record was written. It happens at most once.
struct Report(Option<OnDelivery>);

impl Report {
    fn tell(&mut self, result: Result<Delivered, KafkaError>) {
        if let Some(then) = self.0.take() {
            then(result);
        }
    }
}

impl Drop for Report {
    fn drop(&mut self) {
        self.tell(Err(KafkaError::Produce { topic: String::new(), source: Native::Canceled }));
    }
}

/// Hands on what librdkafka reports, on the thread that polls it.
struct Deliveries;

impl ClientContext for Deliveries {}

impl ProducerContext for Deliveries {
    type DeliveryOpaque = Box<Report>;

    fn delivery(&self, result: &DeliveryResult<'_>, mut report: Box<Report>) {
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

/// How long a poll lasts. It takes reports as they come; rdkafka spins through the last millisecond
/// of each poll, so they are long. The thread outlives its client by as much.
const POLL: Duration = Duration::from_secs(5);

/// A client and the thread that hears of its writes.
struct Polled {
    client: Arc<BaseProducer<Deliveries>>,
    is_dropped: Arc<AtomicBool>,
}

impl Polled {
    fn start(settings: &Settings) -> Result<Self, Native> {
        let client: BaseProducer<Deliveries> =
            settings.producer().create_with_context(Deliveries)?;
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

    /// Gives up everything that is not written yet. Does not wait for the broker's threads, which
    /// may wait for a name to be resolved.
    fn give_up(&self) {
        self.client.purge(PurgeConfig::default().queue().inflight().non_blocking());
    }
}

impl Drop for Polled {
    fn drop(&mut self) {
        self.is_dropped.store(true, Ordering::Relaxed);
        self.give_up();
    }
}

type Inner = Arc<Polled>;

/// A producer whose writes are acknowledged by all in-sync replicas. Records of one key keep their
/// order.
pub struct Producer {
    settings: Settings,
    /// While this is lost, nothing is handed over.
    contact: GroupContact,
    /// An idempotent producer that met a fatal error has to be replaced by a new one.
    current: Mutex<Inner>,
}

impl std::fmt::Debug for Producer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Producer").field("brokers", &self.settings.brokers).finish_non_exhaustive()
    }
}

impl Producer {
    /// A producer for these brokers. Nothing is connected yet.
    ///
    /// # Errors
    /// [`KafkaError::Property`] or [`KafkaError::Client`].
    pub fn new(settings: &Settings) -> Result<Self, KafkaError> {
        settings.check()?;
        Ok(Self {
            settings: settings.clone(),
            contact: GroupContact::default(),
            current: Mutex::new(Self::create(settings).map_err(KafkaError::client)?),
        })
    }

    /// A producer that hands nothing over while `contact` is lost: what a process says of jobs that
    /// another one may have could stand behind their end for ever.
    #[must_use]
    pub fn bound_to(mut self, contact: GroupContact) -> Self {
        self.contact = contact;
        self
    }

    /// Another producer for the same brokers, bound to the same group, so that one can forget what
    /// the other one goes on writing.
    ///
    /// # Errors
    /// As [`Producer::new`].
    pub fn sibling(&self) -> Result<Self, KafkaError> {
        Ok(Self::new(&self.settings)?.bound_to(self.contact.clone()))
    }

    fn create(settings: &Settings) -> Result<Inner, Native> {
        Polled::start(settings).map(Arc::new)
    }

    fn current(&self) -> Inner {
        // A panic while the lock is held can only come from the clone, which leaves the producer
        // whole.
        self.current.lock().clone()
    }

    /// Hands `record` over, without waiting, and calls `then` when the broker has acknowledged it,
    /// or when librdkafka has given up. In the latter case the record may have been written all the
    /// same, where only the acknowledgement was lost. Records of one key are written in the order
    /// of these calls.
    ///
    /// `then` runs on the thread that hears of all writes, which must not be held up. It is not
    /// called where an error is returned.
    ///
    /// # Errors
    /// [`KafkaError::Produce`] at once when librdkafka's queue is full or the record is too large;
    /// [`KafkaError::OutOfContact`] after [`Producer::bound_to`].
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
            delivery_opaque: Box::new(Report(Some(Box::new(then)))),
        };
        producer.client.send(native).map_err(|(source, mut native)| {
            self.replace_after_fatal(&producer, &source);
            let topic = record.topic.clone();
            native.delivery_opaque.0 = None;
            KafkaError::Produce { topic, source }
        })
    }

    /// As [`Producer::enqueue_then`], with a future that ends when it is known whether the record
    /// was written.
    ///
    /// # Errors
    /// As [`Producer::enqueue_then`]; from the future after librdkafka's own retries.
    pub fn enqueue(
        &self,
        record: &Outgoing,
    ) -> Result<impl Future<Output = Result<Delivered, KafkaError>> + use<>, KafkaError> {
        let (sender, receiver) = oneshot::channel();
        // Whoever does not wait any more is not told.
        self.enqueue_then(record, move |result| drop(sender.send(result)))?;
        let topic = record.topic.clone();
        Ok(async move {
            receiver.await.unwrap_or(Err(KafkaError::Produce { topic, source: Native::Canceled }))
        })
    }

    /// As [`Producer::enqueue`], but waits for room where librdkafka's queue is full.
    ///
    /// # Errors
    /// As [`Producer::enqueue`].
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

    /// Writes `record`, waiting for room where librdkafka's queue is full, and for the
    /// acknowledgement.
    ///
    /// # Errors
    /// As [`Producer::enqueue`].
    pub async fn send(&self, record: &Outgoing) -> Result<Delivered, KafkaError> {
        self.enqueue_patiently(record).await?.await
    }

    fn replace_after_fatal(&self, failed: &Inner, error: &Native) {
        let fatal = error.rdkafka_error_code() == Some(RDKafkaErrorCode::Fatal)
            || failed.client.client().fatal_error().is_some();
        if !fatal {
            return;
        }
        self.replace(failed.clone());
    }

    /// Drops everything that was handed over and is not written yet; each of those sends fails. For
    /// a member of the group that has lost its partitions: whatever it still had to say of their
    /// jobs would come after what their new owner says.
    ///
    /// What is on its way to the broker at this moment can't be called back.
    pub fn forget(&self) {
        self.replace(self.current());
    }

    /// Puts a new producer in the place of `old`, unless that has been done already: many sends
    /// fail at once.
    fn replace(&self, old: Inner) {
        let mut current = self.current.lock();
        if Arc::ptr_eq(&current, &old) {
            match Self::create(&self.settings) {
                Ok(fresh) => *current = fresh,
                Err(error) => tracing::error!(%error, "the Kafka producer can't be replaced"),
            }
        }
        drop(current);
        // Somebody else may be about to hand it a record, and so keep it for a moment.
        old.give_up();
    }

    /// Waits until everything handed over is acknowledged or has failed, at most `timeout`. Blocks
    /// the thread.
    ///
    /// # Errors
    /// [`KafkaError::Request`] when the time did not suffice.
    pub fn flush(&self, timeout: Duration) -> Result<(), KafkaError> {
        self.current()
            .client
            .flush(timeout)
            .map_err(|source| KafkaError::Request { what: "flushing the producer", source })
    }
}

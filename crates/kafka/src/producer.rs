//! Writing records and knowing that they are written.

use std::{sync::Mutex, thread, time::Duration};

use fleet_job::{record::Header, time::Timestamp};
use rdkafka::{
    error::{KafkaError as Native, RDKafkaErrorCode},
    producer::{FutureProducer, FutureRecord, Producer as _, PurgeConfig},
};

use crate::{convert, error::KafkaError, settings::Settings};

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
    /// The record's time; the producer's clock says where it is not set. A topic may put the broker's in its place.
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

/// A producer whose writes are acknowledged by all in-sync replicas. Records of one key keep their order.
pub struct Producer {
    settings: Settings,
    /// An idempotent producer that met a fatal error has to be replaced by a new one.
    current: Mutex<FutureProducer>,
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
        let current = settings.producer().create().map_err(KafkaError::client)?;
        Ok(Self { settings: settings.clone(), current: Mutex::new(current) })
    }

    fn current(&self) -> FutureProducer {
        // A panic while the lock is held can only come from the clone, which leaves the producer whole.
        self.current.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clone()
    }

    /// Hands `record` over, without waiting; the future ends when the broker has acknowledged it. Records of one key are
    /// written in the order of these calls.
    ///
    /// # Errors
    /// [`KafkaError::Produce`] at once when librdkafka's queue is full or the record is too large, or from the future
    /// after librdkafka's own retries. In the latter case the record may have been written all the same, where only the
    /// acknowledgement was lost.
    pub fn enqueue(
        &self,
        record: &Outgoing,
    ) -> Result<impl Future<Output = Result<Delivered, KafkaError>> + use<>, KafkaError> {
        let producer = self.current();
        let mut native: FutureRecord<'_, [u8], [u8]> =
            FutureRecord::to(&record.topic).headers(convert::to_headers(&record.headers));
        native.key = record.key.as_deref();
        native.payload = record.value.as_deref();
        native.partition = record.partition;
        native.timestamp = record.timestamp.map(Timestamp::as_millis);
        let topic = record.topic.clone();
        let delivery = producer.send_result(native).map_err(|(source, _)| {
            self.replace_after_fatal(&producer, &source);
            KafkaError::Produce { topic: topic.clone(), source }
        })?;
        Ok(async move {
            match delivery.await {
                Ok(Ok(delivery)) => Ok(Delivered { partition: delivery.partition, offset: delivery.offset }),
                Ok(Err((source, _))) => Err(KafkaError::Produce { topic, source }),
                Err(_) => Err(KafkaError::Produce { topic, source: Native::Canceled }),
            }
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

    /// Writes `record`, waiting for room where librdkafka's queue is full, and for the acknowledgement.
    ///
    /// # Errors
    /// As [`Producer::enqueue`].
    pub async fn send(&self, record: &Outgoing) -> Result<Delivered, KafkaError> {
        self.enqueue_patiently(record).await?.await
    }

    fn replace_after_fatal(&self, failed: &FutureProducer, error: &Native) {
        let fatal = error.rdkafka_error_code() == Some(RDKafkaErrorCode::Fatal)
            || failed.client().fatal_error().is_some();
        if !fatal {
            return;
        }
        self.replace(failed.clone());
    }

    /// Drops everything that was handed over and is not written yet; each of those sends fails. For a worker that has
    /// lost its partitions: whatever it still had to say of their jobs would come after what their new owner says.
    ///
    /// What is on its way to the broker at this moment can't be called back.
    pub fn forget(&self) {
        self.replace(self.current());
    }

    /// Puts a new producer in the place of `old`, unless that has been done already: many sends fail at once.
    fn replace(&self, old: FutureProducer) {
        let mut current = self.current.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if current.client().native_ptr() == old.client().native_ptr() {
            match self.settings.producer().create() {
                Ok(fresh) => *current = fresh,
                Err(error) => tracing::error!(%error, "the Kafka producer can't be replaced"),
            }
        }
        drop(current);
        old.purge(PurgeConfig::default().queue().inflight());
        // Ending a producer waits for its threads, which nobody here has the time for.
        thread::spawn(move || drop(old));
    }

    /// Waits until everything handed over is acknowledged or has failed, at most `timeout`. Blocks the thread.
    ///
    /// # Errors
    /// [`KafkaError::Request`] when the time did not suffice.
    pub fn flush(&self, timeout: Duration) -> Result<(), KafkaError> {
        self.current()
            .flush(timeout)
            .map_err(|source| KafkaError::Request { what: "flushing the producer", source })
    }
}

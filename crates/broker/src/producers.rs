//! Decides which producers may write what, before the storage engine sees the request.
//!
//! The engine knows a producer only by the epoch that it issued itself. It does not reject an
//! unknown epoch: it panics, and ends. But a non-transactional producer raises its own epoch
//! whenever it loses count, typically after a record has timed out, and tells nobody: the next
//! batch has the new epoch and counts from zero. This module obtains a separate producer id from
//! the engine for each such epoch and relabels its batches. The engine then checks sequence numbers
//! and finds duplicates as for any producer.
//!
//! The labels are JSON lines in a file beside the engine's file, so that producers survive a
//! restart of the broker.

use std::{
    collections::{BTreeMap, HashMap},
    fs, io, mem,
    path::Path,
    sync::Arc,
};

use serde::{Deserialize, Serialize};
use tansu_sans_io::{
    ErrorCode, InitProducerIdRequest, InitProducerIdResponse, ProduceRequest, ProduceResponse,
    produce_request::PartitionProduceData,
    produce_response::{PartitionProduceResponse, TopicProduceResponse},
    record::deflated::Batch,
};
use tansu_storage::{Storage as _, TopicId};
use tokio::{
    sync::{Mutex, OwnedSemaphorePermit, Semaphore},
    task::spawn_blocking,
};

use super::{
    batches,
    line_file::{LineFile, to_line},
    storage::Storage,
};

const FILE: &str = "producers.jsonl";
/// How many requests may be decoded, or be kept decoded until they are stored, at once. Each may
/// take [`batches::MAX_DECODED`] of memory.
const DECODERS: usize = 2;
/// The protocol's value for "no producer" or "no epoch".
const NONE: i64 = -1;

#[derive(Debug, Deserialize, Serialize)]
struct Line {
    producer: i64,
    epoch: i16,
    label: i64,
}

/// Relabels and rejects batches.
#[derive(Debug)]
pub(super) struct Producers {
    storage: Arc<Storage>,
    labels: Mutex<Labels>,
    decoders: Arc<Semaphore>,
}

/// What is left of a request, and may be written.
#[derive(Debug)]
pub(super) struct Admission {
    /// The parts that were removed.
    pub(super) refused: Refused,
    /// Held until the request is stored, if anything had to be decoded.
    decoder: Option<OwnedSemaphorePermit>,
}

/// The rejected parts of a request, by topic and partition.
pub(super) type Refused = Vec<(String, i32, ErrorCode)>;

impl Producers {
    pub(super) fn open(storage: Arc<Storage>) -> io::Result<Self> {
        let labels = Mutex::new(Labels::open(&storage.directory.join(FILE))?);
        Ok(Self { storage, labels, decoders: Arc::new(Semaphore::new(DECODERS)) })
    }

    /// Returns the request for a new producer that the engine supports, which is only the most
    /// common form. A producer that asks for its next epoch gets a new id instead, which serves the
    /// same purpose.
    pub(super) fn fresh(
        request: InitProducerIdRequest,
    ) -> Result<InitProducerIdRequest, InitProducerIdResponse> {
        if request.transactional_id.is_some() {
            return Err(InitProducerIdResponse::default()
                .error_code(ErrorCode::TransactionalIdAuthorizationFailed.into())
                .producer_id(NONE)
                .producer_epoch(-1));
        }
        Ok(request.producer_id(Some(NONE)).producer_epoch(Some(-1)))
    }

    /// Removes from the request what the engine must not see, decodes the rest, and relabels it.
    /// `malformed` are the partitions whose batches have already been removed.
    pub(super) async fn admit(
        &self,
        request: &mut ProduceRequest,
        malformed: Refused,
    ) -> Admission {
        let mut admission = Admission { refused: malformed, decoder: None };
        let mut budget = batches::MAX_DECODED;
        // The broker has no transactions, so the engine must not look for one.
        request.transactional_id = None;

        for topic in request.topic_data.iter_mut().flatten() {
            let partitions = self.partitions(&topic.name).await;
            let mut admitted = Vec::new();

            for mut data in topic.partition_data.take().unwrap_or_default() {
                let mut refused = admission.refused.iter();
                if refused.any(|(name, index, _)| *name == topic.name && *index == data.index) {
                    continue;
                }

                let outcome = match partitions {
                    Ok(count) if (0..count).contains(&data.index) => {
                        self.admit_partition(&mut data, &mut budget, &mut admission).await
                    }
                    Ok(_) => Err(ErrorCode::UnknownTopicOrPartition),
                    Err(error) => Err(error),
                };
                match outcome {
                    Ok(()) => admitted.push(data),
                    Err(error) => admission.refused.push((topic.name.clone(), data.index, error)),
                }
            }
            topic.partition_data = Some(admitted);
        }
        admission
    }

    async fn admit_partition(
        &self,
        data: &mut PartitionProduceData,
        budget: &mut usize,
        admission: &mut Admission,
    ) -> Result<(), ErrorCode> {
        // As in Kafka: exactly one, so that an error always means that nothing was written.
        let batches = data.records.as_mut().map(|records| records.batches.as_mut_slice());
        let Some([batch]) = batches else { return Err(ErrorCode::InvalidRecord) };

        if batches::is_quick(batch) {
            batches::make_servable(batch, budget)?;
        } else {
            if admission.decoder.is_none() {
                let decoder = Arc::clone(&self.decoders).acquire_owned().await;
                admission.decoder = Some(decoder.map_err(|_| ErrorCode::UnknownServerError)?);
            }
            decode_apart(batch, budget).await?;
        }

        self.relabel(batch).await
    }

    /// Returns the number of partitions of a topic.
    async fn partitions(&self, topic: &str) -> Result<i32, ErrorCode> {
        let asked = [TopicId::Name(topic.to_owned())];
        let metadata = self
            .storage
            .engine
            .metadata(Some(&asked))
            .await
            .map_err(|_| ErrorCode::UnknownServerError)?;

        let found = metadata.topics().first().ok_or(ErrorCode::UnknownTopicOrPartition)?;
        i32::try_from(found.partitions.iter().flatten().count())
            .map_err(|_| ErrorCode::UnknownServerError)
    }

    async fn relabel(&self, batch: &mut Batch) -> Result<(), ErrorCode> {
        if batch.is_idempotent() {
            let label = self.label(batch).await?;
            if label != batch.producer_id {
                (batch.producer_id, batch.producer_epoch) = (label, 0);
            }
        }
        Ok(())
    }

    /// Returns the engine's id for the producer of a batch.
    async fn label(&self, batch: &Batch) -> Result<i64, ErrorCode> {
        let (producer, epoch) = (batch.producer_id, batch.producer_epoch);
        let mut labels = self.labels.lock().await;

        let newest = labels.newest(producer);
        if epoch < newest {
            return Err(ErrorCode::InvalidProducerEpoch);
        }
        if epoch == newest {
            return Ok(labels.label(producer, epoch));
        }

        if batch.base_sequence != 0 {
            // A sequence whose start is unknown.
            return Err(ErrorCode::UnknownProducerId);
        }

        let made = self.storage.engine.init_producer(None, 0, Some(NONE), Some(-1)).await;
        let made = made.map_err(|_| ErrorCode::UnknownServerError)?;
        if made.error != ErrorCode::None {
            return Err(made.error);
        }

        let line = Line { producer, epoch, label: made.id };
        labels.write(&line).map_err(|_| ErrorCode::KafkaStorageError)?;
        Ok(made.id)
    }
}

/// Makes a batch servable on a thread that may block: the broker's own threads have to answer other
/// clients meanwhile.
async fn decode_apart(batch: &mut Batch, budget: &mut usize) -> Result<(), ErrorCode> {
    let (mut taken, mut left) = (mem::take(batch), *budget);
    let decoded = spawn_blocking(move || {
        batches::make_servable(&mut taken, &mut left).map(|()| (taken, left))
    });

    // It has panicked, or the broker is stopping.
    (*batch, *budget) = decoded.await.map_err(|_| ErrorCode::UnknownServerError)??;
    Ok(())
}

/// Adds the rejected parts to the response to the rest.
pub(super) fn complete(response: &mut ProduceResponse, refused: Refused) {
    let topics = response.responses.get_or_insert_default();
    for (name, index, error) in refused {
        let partition = PartitionProduceResponse::default()
            .index(index)
            .error_code(error.into())
            .base_offset(-1)
            .log_append_time_ms(Some(-1))
            .log_start_offset(Some(0))
            .record_errors(Some(Vec::new()));
        match topics.iter_mut().find(|topic| topic.name == name) {
            Some(topic) => topic.partition_responses.get_or_insert_default().push(partition),
            None => {
                let topic = TopicProduceResponse::default().name(name);
                topics.push(topic.partition_responses(Some(vec![partition])));
            }
        }
    }
}

/// The producers that have raised their epoch, with every epoch in which they wrote.
#[derive(Debug)]
struct Labels {
    known: HashMap<i64, BTreeMap<i16, i64>>,
    file: LineFile,
}

impl Labels {
    fn open(path: &Path) -> io::Result<Self> {
        let file = LineFile::open(path)?;
        let before = fs::read(path)?;

        let mut labels = Self { known: HashMap::new(), file };

        for line in before.split(|byte| *byte == b'\n') {
            if let Ok(line) = serde_json::from_slice::<Line>(line) {
                labels.insert(&line);
            }
        }

        Ok(labels)
    }

    fn newest(&self, producer: i64) -> i16 {
        let epochs = self.known.get(&producer);
        epochs.and_then(|epochs| epochs.last_key_value()).map_or(0, |(epoch, _)| *epoch)
    }

    /// Returns the engine's id for a producer; in the epoch that the engine issued, that is the
    /// producer's own id.
    fn label(&self, producer: i64, epoch: i16) -> i64 {
        let epochs = self.known.get(&producer);
        epochs.and_then(|epochs| epochs.get(&epoch)).copied().unwrap_or(producer)
    }

    fn write(&mut self, line: &Line) -> io::Result<()> {
        self.file.append(&to_line(line)?)?;
        self.insert(line);
        Ok(())
    }

    fn insert(&mut self, line: &Line) {
        self.known.entry(line.producer).or_default().insert(line.epoch, line.label);
    }
}

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
    fs::{self, File},
    io::{self, Write as _},
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
use tokio::sync::Mutex;

use super::{batches, storage::Storage};

const FILE: &str = "producers.jsonl";
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
}

/// The rejected parts of a request, by topic and partition.
pub(super) type Refused = Vec<(String, i32, ErrorCode)>;

impl Producers {
    pub(super) fn open(storage: Arc<Storage>) -> io::Result<Self> {
        let labels = Mutex::new(Labels::open(&storage.directory.join(FILE))?);
        Ok(Self { storage, labels })
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

    /// Removes from the request what the engine must not see, and relabels the rest.
    pub(super) async fn admit(&self, request: &mut ProduceRequest) -> Refused {
        let mut refused = Vec::new();
        for topic in request.topic_data.iter_mut().flatten() {
            let partitions = self.partitions(&topic.name).await;
            let mut admitted = Vec::new();
            for mut data in topic.partition_data.take().unwrap_or_default() {
                let outcome = match partitions {
                    Ok(count) if (0..count).contains(&data.index) => match check_batches(&mut data)
                    {
                        Ok(()) => self.relabel(&mut data).await,
                        Err(error) => Err(error),
                    },
                    Ok(_) => Err(ErrorCode::UnknownTopicOrPartition),
                    Err(error) => Err(error),
                };
                match outcome {
                    Ok(()) => admitted.push(data),
                    Err(error) => refused.push((topic.name.clone(), data.index, error)),
                }
            }
            topic.partition_data = Some(admitted);
        }
        refused
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

    async fn relabel(&self, data: &mut PartitionProduceData) -> Result<(), ErrorCode> {
        let batches = data.records.iter_mut().flat_map(|records| &mut records.batches);
        for batch in batches.filter(|batch| batch.is_idempotent()) {
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

fn check_batches(data: &mut PartitionProduceData) -> Result<(), ErrorCode> {
    let mut batches = data.records.iter_mut().flat_map(|records| &mut records.batches);
    batches.try_for_each(batches::make_servable)
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
    file: File,
}

impl Labels {
    fn open(path: &Path) -> io::Result<Self> {
        let mut file = File::options().create(true).append(true).open(path)?;
        let before = fs::read(path)?;

        if !before.is_empty() && !before.ends_with(b"\n") {
            // Terminate an incomplete line left by a broker that was killed, so that it does not
            // spoil the next one.
            file.write_all(b"\n")?;
        }

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
        let mut text = serde_json::to_vec(line)?;
        text.push(b'\n');
        self.file.write_all(&text)?;
        self.insert(line);
        Ok(())
    }

    fn insert(&mut self, line: &Line) {
        self.known.entry(line.producer).or_default().insert(line.epoch, line.label);
    }
}

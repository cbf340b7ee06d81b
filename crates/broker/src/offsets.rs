//! Committed offsets: the storage engine keeps the offsets, and this module keeps their metadata
//! strings, which the engine accepts but never returns.
//!
//! Metadata is an append-only file of JSON lines beside the engine's file, compacted when it is
//! opened. A string is returned only with the exact offset it was committed with, so a lost line
//! costs no more than lost metadata does: repeats.

use std::{collections::HashMap, fs, io, path::Path, sync::Arc};

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tansu_sans_io::{
    Body, ErrorCode, OffsetCommitRequest, OffsetCommitResponse, OffsetFetchRequest,
    OffsetFetchResponse,
    offset_commit_response::{OffsetCommitResponsePartition, OffsetCommitResponseTopic},
    offset_fetch_response::{
        OffsetFetchResponseGroup, OffsetFetchResponsePartition, OffsetFetchResponsePartitions,
        OffsetFetchResponseTopic, OffsetFetchResponseTopics,
    },
};
use tansu_storage::{Storage as _, Topition};

use super::{
    line_file::{LineFile, to_line},
    storage::Storage,
};

const FILE: &str = "commit-metadata.jsonl";
/// Kafka's default limit.
const MAX_METADATA: usize = 4096;
/// The protocol's value for "no commit".
const NONE: i64 = -1;

type Key = (String, String, i32);

#[derive(Debug, Deserialize, Serialize)]
struct Line {
    group: String,
    topic: String,
    partition: i32,
    offset: i64,
    metadata: String,
}

/// Commits and fetches offsets, with their metadata.
#[derive(Debug)]
pub(super) struct Offsets {
    storage: Arc<Storage>,
    noted: Mutex<MetadataFile>,
}

impl Offsets {
    pub(super) fn open(storage: Arc<Storage>) -> io::Result<Self> {
        let noted = Mutex::new(MetadataFile::open(&storage.directory.join(FILE))?);
        Ok(Self { storage, noted })
    }

    /// Commits offsets if `allowed`. Each partition reports its own failure.
    pub(super) async fn commit(
        &self,
        request: OffsetCommitRequest,
        allowed: Result<(), ErrorCode>,
    ) -> Body {
        let mut topics = Vec::new();
        for topic in request.topics.unwrap_or_default() {
            let mut partitions = Vec::new();
            for partition in topic.partitions.unwrap_or_default() {
                let index = partition.partition_index;
                let metadata = partition.committed_metadata.as_deref().unwrap_or_default();
                let outcome = match allowed {
                    Err(error) => error,
                    Ok(()) if metadata.len() > MAX_METADATA => ErrorCode::OffsetMetadataTooLarge,
                    Ok(()) => self.commit_one(&request.group_id, &topic.name, &partition).await,
                };
                let done = OffsetCommitResponsePartition::default().partition_index(index);
                partitions.push(done.error_code(outcome.into()));
            }
            topics.push(
                OffsetCommitResponseTopic::default().name(topic.name).partitions(Some(partitions)),
            );
        }
        OffsetCommitResponse::default().throttle_time_ms(Some(0)).topics(Some(topics)).into()
    }

    async fn commit_one(
        &self,
        group: &str,
        topic: &str,
        partition: &tansu_sans_io::offset_commit_request::OffsetCommitRequestPartition,
    ) -> ErrorCode {
        let at = Topition::new(topic.to_owned(), partition.partition_index);
        let Ok(offset) = tansu_storage::OffsetCommitRequest::try_from(partition) else {
            return ErrorCode::InvalidRequest;
        };

        let written = self.storage.engine.offset_commit(group, None, &[(at, offset)]).await;
        let outcome = match written.as_deref() {
            Ok([(_, outcome)]) => *outcome,
            Ok(_) | Err(_) => ErrorCode::UnknownServerError,
        };

        if outcome == ErrorCode::None {
            let line = Line {
                group: group.to_owned(),
                topic: topic.to_owned(),
                partition: partition.partition_index,
                offset: partition.committed_offset,
                metadata: partition.committed_metadata.clone().unwrap_or_default(),
            };
            let mut noted = self.noted.lock();
            if noted.write(line).is_err() {
                return ErrorCode::KafkaStorageError;
            }
        }
        outcome
    }

    /// Fetches offsets. A request has one group at the top level (up to version 7) or several
    /// groups.
    pub(super) async fn fetch(&self, request: OffsetFetchRequest) -> Body {
        let response = OffsetFetchResponse::default()
            .throttle_time_ms(Some(0))
            .error_code(Some(ErrorCode::None.into()));

        if let Some(asked) = request.groups {
            let mut groups = Vec::new();
            for group in asked {
                let topics = group.topics.map(|topics| {
                    let named =
                        topics.into_iter().map(|topic| (topic.name, topic.partition_indexes));
                    named.collect::<Vec<_>>()
                });
                groups.push(self.fetch_group(group.group_id, topics).await);
            }
            return response.groups(Some(groups)).topics(None).into();
        }

        let topics = request.topics.map(|topics| {
            let named = topics.into_iter().map(|topic| (topic.name, topic.partition_indexes));
            named.collect::<Vec<_>>()
        });

        let group = self.fetch_group(request.group_id.unwrap_or_default(), topics).await;
        let topics =
            group.topics.unwrap_or_default().into_iter().map(to_single_group_topic).collect();
        response.error_code(Some(group.error_code)).topics(Some(topics)).groups(None).into()
    }

    async fn fetch_group(
        &self,
        group: String,
        topics: Option<Vec<(String, Option<Vec<i32>>)>>,
    ) -> OffsetFetchResponseGroup {
        let response = OffsetFetchResponseGroup::default().group_id(group.clone());
        let Ok(committed) = self.storage.engine.committed_offset_topitions(&group).await else {
            let failed = ErrorCode::CoordinatorNotAvailable.into();
            return response.error_code(failed).topics(Some(Vec::new()));
        };

        let topics = topics.unwrap_or_else(|| group_by_topic(committed.keys()));
        let noted = self.noted.lock();
        let topics = topics
            .into_iter()
            .map(|(topic, partitions)| {
                let partitions = partitions.unwrap_or_default().into_iter().map(|partition| {
                    let at = Topition::new(topic.clone(), partition);
                    let offset = committed.get(&at).copied().unwrap_or(NONE);
                    let metadata = noted.read(&(group.clone(), topic.clone(), partition), offset);
                    OffsetFetchResponsePartitions::default()
                        .partition_index(partition)
                        .committed_offset(offset)
                        .committed_leader_epoch(-1)
                        .metadata(Some(metadata))
                        .error_code(ErrorCode::None.into())
                });
                let partitions = Some(partitions.collect());
                OffsetFetchResponseTopics::default().name(topic.clone()).partitions(partitions)
            })
            .collect();

        response.error_code(ErrorCode::None.into()).topics(Some(topics))
    }

    /// Returns whether the group has ever committed anything.
    pub(super) async fn has_commits(&self, group: &str) -> bool {
        let committed = self.storage.engine.committed_offset_topitions(group).await;
        committed.is_ok_and(|committed| !committed.is_empty())
    }
}

fn group_by_topic<'a>(all: impl Iterator<Item = &'a Topition>) -> Vec<(String, Option<Vec<i32>>)> {
    let mut topics: Vec<(String, Option<Vec<i32>>)> = Vec::new();
    for at in all {
        match topics.iter_mut().find(|(topic, _)| topic == at.topic()) {
            Some((_, Some(partitions))) => partitions.push(at.partition()),
            _ => topics.push((at.topic().to_owned(), Some(vec![at.partition()]))),
        }
    }
    topics
}

fn to_single_group_topic(topic: OffsetFetchResponseTopics) -> OffsetFetchResponseTopic {
    let partitions = topic.partitions.unwrap_or_default().into_iter().map(|partition| {
        OffsetFetchResponsePartition::default()
            .partition_index(partition.partition_index)
            .committed_offset(partition.committed_offset)
            .committed_leader_epoch(Some(partition.committed_leader_epoch))
            .metadata(partition.metadata)
            .error_code(partition.error_code)
    });
    let partitions = Some(partitions.collect());
    OffsetFetchResponseTopic::default().name(topic.name).partitions(partitions)
}

/// The newest metadata of every group and partition, in memory and on disk.
#[derive(Debug)]
struct MetadataFile {
    newest: HashMap<Key, (i64, String)>,
    file: LineFile,
}

impl MetadataFile {
    fn open(path: &Path) -> io::Result<Self> {
        let mut newest = HashMap::new();
        let before = match fs::read(path) {
            Ok(before) => before,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            Err(error) => return Err(error),
        };
        for line in before.split(|byte| *byte == b'\n') {
            // The last line may be incomplete if the broker was killed.
            if let Ok(line) = serde_json::from_slice::<Line>(line) {
                newest
                    .insert((line.group, line.topic, line.partition), (line.offset, line.metadata));
            }
        }

        let mut compacted = Vec::new();
        for ((group, topic, partition), (offset, metadata)) in newest.clone() {
            compacted.extend(to_line(&Line { group, topic, partition, offset, metadata })?);
        }
        Ok(Self { newest, file: LineFile::replace(path, &compacted)? })
    }

    fn write(&mut self, line: Line) -> io::Result<()> {
        let key = (line.group.clone(), line.topic.clone(), line.partition);
        if line.metadata.is_empty() {
            // There is nothing to return. An older line is ignored because of its offset, or
            // replaced in memory.
            self.newest.remove(&key);
            return Ok(());
        }

        self.file.append(&to_line(&line)?)?;
        self.newest.insert(key, (line.offset, line.metadata));
        Ok(())
    }

    fn read(&self, key: &Key, offset: i64) -> String {
        let noted = self.newest.get(key).filter(|(noted, _)| *noted == offset);
        noted.map(|(_, metadata)| metadata.clone()).unwrap_or_default()
    }
}

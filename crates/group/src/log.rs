//! Which log a commit is about, and where reading starts.
//!
//! Kafka stores a group's offset under the *name* of its topic. A topic that is deleted and
//! recreated has the same name and other records; a mirrored topic has the same records at other
//! offsets. So every commit names its log, by short digests of the ids of its cluster and its
//! topic, and [`start`] decides which parts of a commit are believed.

use crate::progress::{Progress, ProgressError};

/// The name of a log: short digests of the ids of its cluster and of its topic. A digest is 0 if
/// the id is not known, because the broker has none or could not be asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct LogName {
    /// The digest of the cluster's id.
    pub cluster: u64,
    /// The digest of the topic's id.
    pub topic: u64,
}

impl LogName {
    /// The name of a log about which nothing is known.
    pub const UNKNOWN: Self = Self { cluster: 0, topic: 0 };

    /// The name of the log with these ids.
    #[must_use]
    pub fn of(cluster: Option<&str>, topic: Option<&str>) -> Self {
        Self { cluster: cluster.map_or(0, digest), topic: topic.map_or(0, digest) }
    }

    /// Whether the two can't be the same cluster.
    fn is_elsewhere(self, other: Self) -> bool {
        differ(self.cluster, other.cluster)
    }

    /// Whether the two can't be the same topic.
    #[must_use]
    pub fn is_another_topic(self, other: Self) -> bool {
        differ(self.topic, other.topic)
    }
}

fn differ(one: u64, other: u64) -> bool {
    one != 0 && other != 0 && one != other
}

/// FNV-1a. Commits contain the digests, so they must never change. The ids are random, so nothing
/// stronger is needed.
fn digest(id: &str) -> u64 {
    let hash = id.bytes().fold(0xCBF2_9CE4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01B3)
    });
    hash.max(1)
}

/// What the consumer finds when a partition is assigned to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Found<'a> {
    /// The partition's log.
    pub log: LogName,
    /// The committed offset and its metadata; `None` if the group has committed nothing.
    pub committed: Option<(i64, &'a str)>,
    /// The first offset that still exists, if the broker has told.
    pub first: Option<i64>,
    /// One past the last record, if the broker has told.
    pub end: Option<i64>,
}

/// Where reading starts in a partition, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Start {
    /// What is known about the log, starting at the first offset to read; `None` if it is read from
    /// its beginning.
    pub progress: Option<Progress>,
    /// What the committed offset turned out to be.
    pub finding: Finding,
    /// The number of offsets below the log's first record that nobody has settled: their records
    /// were deleted too early.
    pub deleted: i64,
}

/// What a committed offset turned out to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Finding {
    /// There is no committed offset.
    Nothing,
    /// A worker has committed it for this log: all of it is believed.
    Own,
    /// It has no metadata: somebody has set the offset, the broker keeps no metadata, or a worker
    /// of version 1 had nothing to add. The offset is believed.
    Bare,
    /// The metadata is about another offset of this log: somebody has moved the offset. The new
    /// offset is believed.
    Moved {
        /// The offset that the metadata is about.
        from: i64,
    },
    /// The metadata can't be read. The offset is believed.
    Unreadable(ProgressError),
    /// The commit was made on another cluster and mirrored to this one. The offset was translated
    /// and is believed; the metadata was not.
    Mirrored,
    /// The commit is about an earlier topic of this name. Nothing of it is believed.
    Remade,
    /// The offset lies beyond the end of the log: the topic was recreated or has lost records, or
    /// somebody has set an impossible offset. Nothing of the commit is believed.
    BeyondEnd {
        /// The committed offset.
        committed: i64,
        /// One past the last record.
        end: i64,
    },
}

/// Decides which parts of a commit are believed, and so where reading starts.
#[must_use]
pub fn start(found: Found<'_>) -> Start {
    let Some((offset, metadata)) = found.committed else {
        return Start { progress: None, finding: Finding::Nothing, deleted: 0 };
    };

    let finding = judge_commit(found, offset, metadata);
    let progress = match finding {
        Finding::Nothing | Finding::Remade | Finding::BeyondEnd { .. } => None,
        Finding::Own => Progress::decode(offset, metadata).ok(),
        _ => Some(Progress::none(offset)),
    };

    let first = found.first.unwrap_or(offset);
    let deleted = progress.as_ref().map_or(0, |progress| progress.open_below(first));
    Start { progress, finding, deleted }
}

fn judge_commit(found: Found<'_>, offset: i64, metadata: &str) -> Finding {
    let read = (!metadata.is_empty()).then(|| Progress::read(metadata));
    let log = match &read {
        Some(Ok((log, _))) => *log,
        _ => LogName::UNKNOWN,
    };

    // Every topic has an id of its own, so a mirrored topic has another one, too. Only the cluster
    // tells a mirrored topic from a recreated one.
    let is_elsewhere = log.is_elsewhere(found.log);
    if log.is_another_topic(found.log) && !is_elsewhere {
        return Finding::Remade;
    }
    if let Some(end) = found.end.filter(|end| offset > *end) {
        return Finding::BeyondEnd { committed: offset, end };
    }

    match read {
        _ if is_elsewhere => Finding::Mirrored,
        None => Finding::Bare,
        Some(Ok((_, progress))) if progress.base == offset => Finding::Own,
        Some(Ok((_, progress))) => Finding::Moved { from: progress.base },
        Some(Err(error)) => Finding::Unreadable(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HERE: LogName = LogName { cluster: 1, topic: 10 };
    const REMADE: LogName = LogName { cluster: 1, topic: 11 };
    const MIRROR: LogName = LogName { cluster: 2, topic: 12 };
    const NO_IDS: LogName = LogName { cluster: 1, topic: 0 };

    /// A worker's commit of offset 40 of `log`, with 41 done and 40 and 42 open.
    fn commit_of(log: LogName) -> String {
        let (open, attempts) = (vec![(40, 41), (42, 43)], vec![(42, 2)]);
        Progress { base: 40, end: 43, open, attempts, is_stalled: false }.encode(log).unwrap()
    }

    #[test]
    fn only_what_is_about_this_log_is_believed() {
        let own = commit_of(HERE);
        // A worker of version 1 had the same to say, and named no log.
        let version_1 = "AQAoAgABAQEBAQIC";
        let unreadable = Finding::Unreadable(ProgressError::Version(9));
        let beyond = |end| Finding::BeyondEnd { committed: 40, end };
        let table = [
            // log,   committed,                      end, finding,                      starts at,
            // knows more
            (HERE, None, 50, Finding::Nothing, None, false),
            (HERE, Some((40, own.as_str())), 50, Finding::Own, Some(40), true),
            (HERE, Some((40, own.as_str())), 40, Finding::Own, Some(40), true),
            (NO_IDS, Some((40, own.as_str())), 50, Finding::Own, Some(40), true),
            (HERE, Some((40, version_1)), 50, Finding::Own, Some(40), true),
            (HERE, Some((40, "")), 50, Finding::Bare, Some(40), false),
            (HERE, Some((40, "CQAA")), 50, unreadable, Some(40), false),
            // Moved by an operator whose tool has kept the metadata.
            (HERE, Some((10, own.as_str())), 50, Finding::Moved { from: 40 }, Some(10), false),
            (HERE, Some((45, own.as_str())), 50, Finding::Moved { from: 40 }, Some(45), false),
            // Made again, with fewer records and with more.
            (REMADE, Some((40, own.as_str())), 3, Finding::Remade, None, false),
            (REMADE, Some((40, own.as_str())), 500, Finding::Remade, None, false),
            (REMADE, Some((20, own.as_str())), 500, Finding::Remade, None, false),
            // Mirrored: the offset is right, the metadata beside it is not, even where the numbers
            // agree.
            (MIRROR, Some((40, own.as_str())), 50, Finding::Mirrored, Some(40), false),
            (MIRROR, Some((33, own.as_str())), 50, Finding::Mirrored, Some(33), false),
            (MIRROR, Some((40, own.as_str())), 30, beyond(30), None, false),
            // Where there are no ids, only the end of the log can show that it is another one.
            (NO_IDS, Some((40, "")), 39, beyond(39), None, false),
            (HERE, Some((40, own.as_str())), 39, beyond(39), None, false),
            (HERE, Some((40, version_1)), 39, beyond(39), None, false),
        ];
        for (log, committed, end, finding, at, knows) in table {
            let start = start(Found { log, committed, first: Some(0), end: Some(end) });
            let context = format!("{log:?} {committed:?} {end}");
            assert_eq!(start.finding, finding, "{context}");
            assert_eq!(start.progress.as_ref().map(|progress| progress.base), at, "{context}");
            let is_known =
                start.progress.is_some_and(|progress| progress.is_done(progress.base + 1));
            assert_eq!(is_known, knows, "{context}");
        }
    }

    #[test]
    fn without_an_answer_about_the_ends_the_commit_is_believed() {
        let own = commit_of(HERE);
        let start = start(Found { log: HERE, committed: Some((40, &own)), first: None, end: None });
        assert_eq!((start.finding, start.deleted), (Finding::Own, 0));
    }

    #[test]
    fn records_that_were_deleted_before_they_were_settled_are_counted() {
        let own = commit_of(HERE);
        for (first, deleted) in [(0, 0), (40, 0), (41, 1), (42, 1), (43, 2), (50, 9)] {
            let committed = Some((40, own.as_str()));
            let start = start(Found { log: HERE, committed, first: Some(first), end: Some(60) });
            assert_eq!(
                start.deleted, deleted,
                "of 40 and 42 and what follows, when {first} is the first"
            );
        }
    }

    /// Commits contain the digests, so these are fixed like the commits' own bytes.
    #[test]
    fn digests_stay_as_they_are() {
        let name = LogName::of(Some("bWNwLWZsZWV0LXRlc3RzMA"), Some("AAAAAAAAAAAAAAAAAAAAAQ"));
        assert_eq!(name, LogName { cluster: 0x5c56_0872_5a4f_8eac, topic: 0x6464_9462_4cdb_042b });
        assert_eq!(LogName::of(None, None), LogName::UNKNOWN);
    }
}

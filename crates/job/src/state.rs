//! The state of a job: the one rule by which all readers of events determine it.
//!
//! # The rule
//!
//! The state of a job is the newest event of its newest source, with one exception: an end takes
//! precedence over all other events of the same source, and the first end over later ones. A source
//! is a record that asked for the job; the newest source is the one whose first event comes last.
//! So an event that one worker writes after another worker has written the end changes nothing,
//! however late it arrives.
//!
//! - A tombstone forgets the job: drop its [`Standing`].
//! - A `queued` event without a source announces a record and is written before it. It begins a new
//!   source, whose record is the next one that was not known before.
//! - Any other event without a source belongs to the newest source.
//! - A round that asks for input is not an end, but it takes precedence over later events of the
//!   same round by the worker. What the server writes in response to it (answers, a cancellation)
//!   replaces it. The same holds for a job that awaits approval.
//! - The id of a topic distinguishes its records from those of an earlier topic with the same name.
//!   If one of two events has no id, the time of the record decides.
//!
//! # Following the topic
//!
//! Pass the events of a job in the order of the topic to [`Standing::take`]. Besides the event that
//! is the state, only the [`Standing`] has to be kept. After compaction, the remaining events give
//! the same states, provided that the last record of each job is its state. If it is not,
//! [`Standing::is_overtaken`] returns `true`, and a server writes the state again: the same bytes
//! with a header ([`Restated`]) that tells the state's original position. Taking a record twice, or
//! before its turn, does no harm.
//!
//! [`Standings`] does the same for many jobs. A reader that waits for single records instead of
//! jobs takes the events of each record separately and finds the first end of that record.

use std::{collections::HashMap, hash::Hash};

use serde::{Deserialize, Serialize};

use crate::{
    event::{JobEvent, JobState, Source},
    record::{Header, RawRecord},
    time::Timestamp,
};

/// The header of a state that was written again.
pub const RESTATED: &str = "mcp-fleet-restated";
/// How many sources before the newest one are remembered. A stale event of an even older source
/// would count as a new source.
const MAX_OLDER: usize = 8;

/// The properties of one record of the events topic that the rule needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry {
    offset: i64,
    source: Option<SourceKey>,
    rank: Rank,
    announces: bool,
    digest: u64,
    restated: Option<Restated>,
}

impl Entry {
    /// Creates the entry of `event`, whose record has this offset and value. `restated` comes from
    /// the record's headers.
    pub fn new(offset: i64, event: &JobEvent, value: &[u8], restated: Option<Restated>) -> Self {
        // In another topic than the one it was written to, such as a mirror, an offset says
        // nothing.
        let restated = restated
            .filter(|restated| restated.offset <= restated.known && restated.known < offset);

        Self {
            offset,
            source: event.source.as_ref().map(|source| SourceKey::new(source, event.submitted_at)),
            rank: Rank::of(event),
            announces: event.state == JobState::Queued && event.source.is_none(),
            digest: digest([value]),
            restated,
        }
    }

    /// Creates the entry of `event`, which was read from `record`.
    pub fn of(record: &RawRecord, event: &JobEvent) -> Self {
        let value = record.value.as_deref().unwrap_or_default();
        Self::new(record.position.offset, event, value, Restated::of(record))
    }

    /// Returns the offset at which the event was written first.
    fn origin(&self) -> i64 {
        self.restated.map_or(self.offset, |restated| restated.offset)
    }
}

/// Marks a record as the state of its job, written again because another record followed it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Restated {
    /// The offset in the same partition at which the state was written first.
    pub offset: i64,
    /// The last offset of the partition that the writer had read.
    pub known: i64,
}

impl Restated {
    /// Reads the header of a record.
    pub fn of(record: &RawRecord) -> Option<Self> {
        serde_json::from_str(record.header(RESTATED)?).ok()
    }

    /// Returns the header.
    pub fn header(&self) -> Header {
        // Two numbers always serialize.
        (RESTATED.to_owned(), Some(serde_json::to_vec(self).unwrap_or_default()))
    }
}

/// What a record means for the state of its job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// The record is the state.
    State,
    /// The record repeats the state.
    Again,
    /// The record is outdated; the state is another one.
    Stale,
}

/// What has to be kept of a job besides the event that is its state.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Standing {
    /// The newest source; `None` while its record is only announced.
    source: Option<SourceKey>,
    rank: Rank,
    digest: u64,
    /// The offset at which the state was written first.
    offset: i64,
    /// The offset at which the state was written last.
    stands: i64,
    /// The offset of the last record of the job that was taken.
    seen: i64,
    /// Earlier sources, oldest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    older: Vec<SourceKey>,
}

impl Standing {
    /// Creates the standing of a job from its first record.
    pub fn new(entry: &Entry) -> Self {
        Self {
            source: entry.source,
            rank: entry.rank,
            digest: entry.digest,
            offset: entry.origin(),
            stands: entry.offset,
            seen: entry.offset,
            older: Vec::new(),
        }
    }

    /// Takes the next record of the job. [`Verdict::State`] means that its event is now the state;
    /// before that, the state was another event, or the same record was taken before.
    pub fn take(&mut self, entry: &Entry) -> Verdict {
        self.seen = self.seen.max(entry.offset);
        if entry.offset == self.offset && entry.digest == self.digest {
            return Verdict::State;
        }

        match self.relate(entry) {
            Relation::Older => {
                self.remember(entry.source);
                Verdict::Stale
            }
            Relation::Newer => {
                self.remember(self.source);
                self.older.retain(|older| entry.source.is_none_or(|source| !older.matches(source)));
                self.source = entry.source;
                self.replace(entry)
            }
            Relation::Same => self.take_of_same_source(entry),
        }
    }

    /// Takes a record of the newest source.
    fn take_of_same_source(&mut self, entry: &Entry) -> Verdict {
        // Knowledge of the source's record grows: first that there will be one, then which one it
        // is, then in which topic.
        if entry.source.is_some_and(|source| {
            self.source.is_none_or(|known| known.log.is_none() && source.log.is_some())
        }) {
            self.source = entry.source;
        }

        if entry.rank != self.rank {
            return if entry.rank > self.rank { self.replace(entry) } else { Verdict::Stale };
        }

        let origin = entry.origin();
        if entry.digest == self.digest && self.rank > Rank::Open {
            self.offset = self.offset.min(origin);
            self.stands = self.stands.max(entry.offset);
            return Verdict::Again;
        }

        let stands_before = match self.rank {
            Rank::Over => origin < self.offset,
            Rank::Open | Rank::Asks => origin > self.offset,
        };

        if stands_before { self.replace(entry) } else { Verdict::Stale }
    }

    /// Makes a record the state.
    fn replace(&mut self, entry: &Entry) -> Verdict {
        self.rank = entry.rank;
        self.digest = entry.digest;
        self.offset = entry.origin();
        self.stands = entry.offset;
        Verdict::State
    }

    /// Compares the source of a record with the newest known source.
    fn relate(&self, entry: &Entry) -> Relation {
        let is_later = entry.origin() > self.offset;

        // Its writer knew everything that is known of the job here, and possibly more.
        let is_told = entry.restated.is_some_and(|restated| self.offset <= restated.known);

        match (entry.source, self.source) {
            (Some(source), Some(newest)) if source.matches(newest) => Relation::Same,
            (Some(_), _) if is_told => Relation::Newer,
            (Some(source), _) if self.older.iter().any(|older| older.matches(source)) => {
                Relation::Older
            }
            (Some(_), None) if is_later => Relation::Same,
            (Some(_), Some(_)) if is_later => Relation::Newer,
            (None, _) if is_later && entry.announces => Relation::Newer,
            (None, _) if is_later || is_told => Relation::Same,
            _ => Relation::Older,
        }
    }

    /// Remembers an earlier source.
    fn remember(&mut self, source: Option<SourceKey>) {
        let Some(source) =
            source.filter(|source| !self.older.iter().any(|older| older.matches(*source)))
        else {
            return;
        };

        if self.older.len() == MAX_OLDER {
            self.older.remove(0);
        }
        self.older.push(source);
    }

    /// Returns the offset at which the state was written first.
    pub fn offset(&self) -> i64 {
        self.offset
    }

    /// Forgets the sources before the newest one. Call this for a tombstone that precedes
    /// everything known of the job.
    pub fn forget_older(&mut self) {
        self.older.clear();
    }

    /// Returns the offset of the last record that was taken.
    pub fn seen(&self) -> i64 {
        self.seen
    }

    /// Returns whether the state is an end, or a round that asks for input, but another record of
    /// the job follows it. Compaction would keep that record instead of the state.
    pub fn is_overtaken(&self) -> bool {
        self.rank > Rank::Open && self.seen > self.stands
    }

    /// Returns the header for writing the state again. `known` is the last offset of the partition
    /// that the caller has read.
    pub fn restated(&self, known: i64) -> Restated {
        Restated { offset: self.offset, known }
    }
}

/// The standings of many jobs, for a reader without a ledger. Keys are job ids, or positions for a
/// reader of single records.
#[derive(Debug)]
pub struct Standings<K> {
    /// The jobs with the most recent events.
    young: HashMap<K, Standing>,
    /// The jobs before those, which are forgotten when `young` is full.
    old: HashMap<K, Standing>,
    /// The capacity of `young`.
    most: usize,
}

impl<K> Default for Standings<K> {
    /// Never forgets a job.
    fn default() -> Self {
        Self::of_at_least(usize::MAX)
    }
}

impl<K> Standings<K> {
    /// Remembers at least this many of the jobs with the most recent events, and at most twice as
    /// many. The next event of a forgotten job counts as its first.
    pub fn of_at_least(most: usize) -> Self {
        Self { young: HashMap::new(), old: HashMap::new(), most }
    }
}

impl<K: Eq + Hash> Standings<K> {
    /// Takes the next record of a job.
    pub fn take(&mut self, key: K, entry: &Entry) -> Verdict {
        if let Some(standing) = self.young.get_mut(&key) {
            return standing.take(entry);
        }

        let known = self.old.remove(&key);
        let (standing, verdict) = match known {
            Some(mut standing) => {
                let verdict = standing.take(entry);
                (standing, verdict)
            }
            None => (Standing::new(entry), Verdict::State),
        };

        if self.young.len() >= self.most {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.insert(key, standing);
        verdict
    }

    /// Forgets a job, because of its tombstone.
    pub fn forget(&mut self, key: &K) {
        self.young.remove(key);
        self.old.remove(key);
    }
}

/// How the source of an event relates to the newest known source.
enum Relation {
    Same,
    Newer,
    Older,
}

/// The precedence of events within a source.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Rank {
    /// The job continues.
    Open,
    /// The round is over and asks for input, or the job asks for approval.
    Asks,
    /// The job has ended.
    Over,
}

impl Rank {
    fn of(event: &JobEvent) -> Self {
        match event {
            event if event.is_over() => Self::Over,
            event if event.asks_for_input() => Self::Asks,
            event if event.state == JobState::AwaitingApproval => Self::Asks,
            _ => Self::Open,
        }
    }
}

/// A compact form of a source. Only digests are kept, since the original values are never needed
/// again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct SourceKey {
    /// The digest of topic, partition and offset.
    place: u64,
    /// The digest of the topic's id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    log: Option<u64>,
    /// The timestamp of the record.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    time: Option<Timestamp>,
}

impl SourceKey {
    fn new(source: &Source, time: Option<Timestamp>) -> Self {
        let (partition, offset) = (source.partition.to_be_bytes(), source.offset.to_be_bytes());
        Self {
            place: digest([source.topic.as_bytes(), &partition, &offset]),
            log: source.topic_id.as_ref().map(|id| digest([id.as_bytes()])),
            time,
        }
    }

    /// Returns whether both are the same record, as far as is known.
    fn matches(self, other: Self) -> bool {
        let is_same_log = match (self.log, other.log) {
            (Some(log), Some(other)) => log == other,
            _ => self.time.zip(other.time).is_none_or(|(time, other)| time == other),
        };

        self.place == other.place && is_same_log
    }
}

/// FNV-1a, which must never change because stores keep the digests.
fn digest<const N: usize>(parts: [&[u8]; N]) -> u64 {
    let bytes = parts.iter().flat_map(|part| part.iter());
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

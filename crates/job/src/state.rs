//! The state of a job: the one rule by which everybody decides who reads events.
//!
//! # The rule
//!
//! A job's state is the newest event of its newest source, except that an end stands before
//! everything else of the same source, and the first end before later ones. A source is the record
//! that asked for the job; the newest one is the one whose first event stands last. So an event
//! that a worker writes behind the end that another worker has written changes nothing, however
//! late it comes.
//!
//! - A tombstone forgets the job: whoever keeps a [`Standing`] drops it.
//! - `queued` without a source is written before the record that it announces. It begins a new
//!   source, whose record is the next one that was not known before.
//! - Any other event without a source belongs to the newest one.
//! - A round that asks for input is no end, but stands before what its own worker may still say of
//!   it. What the server adds to it (answers, a cancel) replaces it.
//! - The topic's id tells the records of a topic apart from those of one that was made again under
//!   its name. Where one of two events has no id, the time of the record does.
//!
//! # Following the topic
//!
//! Take the events of a job in the order of the topic through [`Standing::take`]. A [`Standing`] is
//! all that has to be kept beside the event that is the state; what is left of the topic after
//! compaction gives the same states, as long as the record that stands last is the state. Where it
//! is not, [`Standing::is_overtaken`] says so, and a server writes the state again: the same bytes,
//! with a header ([`Restated`]) that says where they first stood. Taking a record again, or ahead
//! of its turn, does no harm.
//!
//! [`Standings`] is that for many jobs at once. A reader that waits for single records, rather than
//! for jobs, takes the events of each record on its own: then the first end of the record is what
//! it finds.

use std::{collections::HashMap, hash::Hash};

use serde::{Deserialize, Serialize};

use crate::{
    event::{JobEvent, JobState, Source},
    record::{Header, RawRecord},
    time::Timestamp,
};

/// The header of a state that was written again.
pub const RESTATED: &str = "mcp-fleet-restated";
/// How many sources before the newest one are remembered. A stale event of an older one would count
/// as a new source.
const MAX_OLDER: usize = 8;

/// What one record of the events topic says of its job, as far as the rule needs it.
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
    /// The entry of `event`, which stands at `offset` as `value`. `restated` is from the record's
    /// headers.
    pub fn new(offset: i64, event: &JobEvent, value: &[u8], restated: Option<Restated>) -> Self {
        // Elsewhere than where it was written, as in a mirrored topic, a place says nothing.
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

    /// The entry of `event`, which was read from `record`.
    pub fn of(record: &RawRecord, event: &JobEvent) -> Self {
        let value = record.value.as_deref().unwrap_or_default();
        Self::new(record.position.offset, event, value, Restated::of(record))
    }

    /// Where the event first stood.
    fn origin(&self) -> i64 {
        self.restated.map_or(self.offset, |restated| restated.offset)
    }
}

/// Says of a record that it is the state of its job, written again because something stood behind
/// it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Restated {
    /// Where it first stood: the offset in the same partition.
    pub offset: i64,
    /// Whoever wrote it had read the partition up to and including this offset.
    pub known: i64,
}

impl Restated {
    /// Reads the header of a record.
    pub fn of(record: &RawRecord) -> Option<Self> {
        serde_json::from_str(record.header(RESTATED)?).ok()
    }

    /// The header.
    pub fn header(&self) -> Header {
        // Two numbers can't fail to become JSON.
        (RESTATED.to_owned(), Some(serde_json::to_vec(self).unwrap_or_default()))
    }
}

/// What a record is to the state of its job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It is the state.
    State,
    /// It says again what the state is.
    Again,
    /// The state is another one.
    Stale,
}

/// What is kept of a job beside the event that is its state.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Standing {
    /// The newest source; absent while its record is only announced.
    source: Option<SourceKey>,
    rank: Rank,
    digest: u64,
    /// Where the state first stood.
    offset: i64,
    /// Where it stands last.
    stands: i64,
    /// The last record of the job that was taken.
    seen: i64,
    /// Older sources, the oldest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    older: Vec<SourceKey>,
}

impl Standing {
    /// What is known of a job after the first record of it.
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

    /// Takes the next record of the job. After [`Verdict::State`] its event is the state, and
    /// before it another one was, or the same record was taken before.
    pub fn take(&mut self, entry: &Entry) -> Verdict {
        self.seen = self.seen.max(entry.offset);
        if entry.offset == self.offset && entry.digest == self.digest {
            return Verdict::State;
        }

        match self.relation(entry) {
            Relation::Older => {
                self.remember(entry.source);
                Verdict::Stale
            }
            Relation::Newer => {
                self.remember(self.source);
                self.older.retain(|older| entry.source.is_none_or(|source| !older.is(source)));
                self.source = entry.source;
                self.replace(entry)
            }
            Relation::Same => self.within_the_source(entry),
        }
    }

    fn within_the_source(&mut self, entry: &Entry) -> Verdict {
        // What is known of the record grows: first that there will be one, then which, then in
        // which topic.
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

    fn replace(&mut self, entry: &Entry) -> Verdict {
        self.rank = entry.rank;
        self.digest = entry.digest;
        self.offset = entry.origin();
        self.stands = entry.offset;
        Verdict::State
    }

    fn relation(&self, entry: &Entry) -> Relation {
        let is_later = entry.origin() > self.offset;
        // Whoever wrote it again knew all that is known of the job here, and perhaps more.
        let is_told = entry.restated.is_some_and(|restated| self.offset <= restated.known);
        match (entry.source, self.source) {
            (Some(source), Some(newest)) if source.is(newest) => Relation::Same,
            (Some(_), _) if is_told => Relation::Newer,
            (Some(source), _) if self.older.iter().any(|older| older.is(source)) => Relation::Older,
            (Some(_), None) if is_later => Relation::Same,
            (Some(_), Some(_)) if is_later => Relation::Newer,
            (None, _) if is_later && entry.announces => Relation::Newer,
            (None, _) if is_later || is_told => Relation::Same,
            _ => Relation::Older,
        }
    }

    fn remember(&mut self, source: Option<SourceKey>) {
        let Some(source) =
            source.filter(|source| !self.older.iter().any(|older| older.is(*source)))
        else {
            return;
        };
        if self.older.len() == MAX_OLDER {
            self.older.remove(0);
        }
        self.older.push(source);
    }

    /// Where the state first stood.
    pub fn offset(&self) -> i64 {
        self.offset
    }

    /// Forgets the sources before the newest one, for a tombstone that stands before what is known
    /// of the job.
    pub fn forget_older(&mut self) {
        self.older.clear();
    }

    /// Where the last record stands that was taken.
    pub fn seen(&self) -> i64 {
        self.seen
    }

    /// Whether the state is an end, or a round that asks for input, and something else of the job
    /// stands behind it. Compaction would leave that in its place.
    pub fn is_overtaken(&self) -> bool {
        self.rank > Rank::Open && self.seen > self.stands
    }

    /// The header with which the state is written again by a reader that has read its partition up
    /// to and including `known`.
    pub fn restated(&self, known: i64) -> Restated {
        Restated { offset: self.offset, known }
    }
}

/// The standings of many jobs, for a reader without a ledger. The keys say whose they are: jobs by
/// their ids, or single records by their places.
#[derive(Debug)]
pub struct Standings<K> {
    /// The jobs with the most recent events.
    young: HashMap<K, Standing>,
    /// Those before them, which are forgotten when there are enough young ones.
    old: HashMap<K, Standing>,
    /// How many young ones are enough.
    most: usize,
}

impl<K> Default for Standings<K> {
    /// Forgets nobody.
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

    /// Forgets a job, as its tombstone says.
    pub fn forget(&mut self, key: &K) {
        self.young.remove(key);
        self.old.remove(key);
    }
}

/// What an event's source is to the newest one that is known.
enum Relation {
    Same,
    Newer,
    Older,
}

/// What stands before what, within a source.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Rank {
    /// The job goes on.
    Open,
    /// The round is over and asks for input.
    Asks,
    /// The job is over.
    Over,
}

impl Rank {
    fn of(event: &JobEvent) -> Self {
        match event {
            event if event.is_over() => Self::Over,
            event if event.asks_for_input() => Self::Asks,
            _ => Self::Open,
        }
    }
}

/// A source in little room. What it is a digest of is never needed again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct SourceKey {
    /// Topic, partition and offset.
    place: u64,
    /// The topic's id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    log: Option<u64>,
    /// The record's time.
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

    /// Whether both are the same record, as far as they say.
    fn is(self, other: Self) -> bool {
        let is_same_log = match (self.log, other.log) {
            (Some(log), Some(other)) => log == other,
            _ => self.time.zip(other.time).is_none_or(|(time, other)| time == other),
        };
        self.place == other.place && is_same_log
    }
}

/// FNV-1a: the same in every version, since stores keep it.
fn digest<const N: usize>(parts: [&[u8]; N]) -> u64 {
    let bytes = parts.iter().flat_map(|part| part.iter());
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

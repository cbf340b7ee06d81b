//! Open writes, which the registry has not acknowledged yet: the newest of each name, until it is
//! acknowledged or replaced by a newer change.
//!
//! Pure: the caller writes and reports the outcome. Writes are identified by numbers. The caller
//! - adds a write ([`Writes::add`]) and then, as long as it is [`WriteState::Open`]
//!   ([`Writes::state`]), tries it and tells of the end of each try ([`Writes::note_acknowledged`],
//!   [`Writes::note_failed`]),
//! - shows every change of the registry to [`Writes::observe`] before it acts on it.

use std::{
    collections::{BTreeMap, VecDeque},
    time::{Duration, Instant},
};

use fleet_job::time::Timestamp;
use fleet_retry::{Backoff, Random};

use super::{Record, RegistryChange};

/// The waits between attempts.
const RETRIES: Backoff = Backoff { base: Duration::from_millis(500), max: Duration::from_secs(30) };
/// How many acknowledged writes are remembered, for callers that share one.
const REMEMBERED: usize = 64;

/// A change to write.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Write {
    /// Write this record.
    Put(Box<Record>),
    /// Remove the record.
    Remove {
        /// When the removal was decided.
        at: Timestamp,
    },
}

impl Write {
    fn at(&self) -> Timestamp {
        match self {
            Self::Put(record) => record.written_at,
            Self::Remove { at } => *at,
        }
    }

    /// Returns whether both write the same server.
    fn is_same_server(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Put(record), Self::Put(other)) => record.entry == other.entry,
            _ => false,
        }
    }
}

/// The state of a write.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum WriteState {
    /// The write is still to be made.
    Open(Write),
    /// The change is in the registry.
    Written,
    /// A newer change has replaced it.
    Superseded,
}

/// What a change of the registry means, given an open write of the same name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Observed {
    /// The change must be applied.
    Newest,
    /// The open write is newer, so the change must be ignored.
    Outdated,
}

/// All open writes.
#[derive(Debug)]
pub(super) struct Writes {
    by_name: BTreeMap<String, Pending>,
    /// The number of the last write.
    added: u64,
    /// The numbers of the last acknowledged writes, the oldest first.
    taken: VecDeque<u64>,
    random: Random,
}

/// An open write.
#[derive(Debug)]
struct Pending {
    number: u64,
    write: Write,
    /// Whether the change was read from the registry, although its write was not acknowledged.
    seen: bool,
    since: Instant,
    failures: u32,
    last_error: Option<String>,
}

/// What a status shows about an open write.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Unwritten {
    /// Whether the change is a removal.
    pub(super) removal: bool,
    /// How long the write has been open.
    pub(super) age: Duration,
    /// How often the write has failed.
    pub(super) failures: u32,
    /// The last error.
    pub(super) last_error: Option<String>,
}

impl Writes {
    /// Creates an empty set. `seed` determines the jitter of the waits between attempts.
    pub(super) fn new(seed: u64) -> Self {
        Self {
            by_name: BTreeMap::new(),
            added: 0,
            taken: VecDeque::new(),
            random: Random::new(seed),
        }
    }

    /// Adds a write, and replaces an open one of the same name. If the open one writes the same
    /// server, returns its number instead.
    pub(super) fn add(&mut self, name: &str, write: Write, now: Instant) -> u64 {
        if let Some(open) = self.by_name.get(name).filter(|open| open.write.is_same_server(&write))
        {
            return open.number;
        }

        self.added += 1;
        let number = self.added;
        let pending =
            Pending { number, write, seen: false, since: now, failures: 0, last_error: None };
        self.by_name.insert(name.to_owned(), pending);
        number
    }

    /// Returns the state of a write.
    #[must_use]
    pub(super) fn state(&mut self, name: &str, number: u64) -> WriteState {
        let is_taken = self.taken.contains(&number);
        match self.open_write(name, number) {
            None if is_taken => WriteState::Written,
            None => WriteState::Superseded,
            Some(pending) if pending.seen => {
                self.mark_taken(name, number);
                WriteState::Written
            }
            Some(pending) => WriteState::Open(pending.write.clone()),
        }
    }

    /// Notes that the registry has acknowledged a write.
    pub(super) fn note_acknowledged(&mut self, name: &str, number: u64) {
        if self.open_write(name, number).is_some() {
            self.mark_taken(name, number);
        }
    }

    fn mark_taken(&mut self, name: &str, number: u64) {
        self.by_name.remove(name);
        if self.taken.len() == REMEMBERED {
            self.taken.pop_front();
        }
        self.taken.push_back(number);
    }

    /// Notes that a write has failed. Returns how long to wait before the next attempt.
    #[must_use]
    pub(super) fn note_failed(&mut self, name: &str, number: u64, error: String) -> Duration {
        let Some(pending) = self.open_write(name, number) else { return Duration::ZERO };
        pending.failures = pending.failures.saturating_add(1);
        pending.last_error = Some(error);
        let failures = pending.failures;
        RETRIES.spread(failures, &mut self.random)
    }

    /// Notes a change of the registry. Returns whether to apply it.
    #[must_use]
    pub(super) fn observe(&mut self, change: &RegistryChange) -> Observed {
        let (name, at, revision) = match change {
            RegistryChange::Put(record) => {
                (&record.name, Some(record.written_at), Some(&record.revision))
            }
            RegistryChange::Removed { name, at } => (name, *at, None),
            // The time of an unreadable record is not known. It is not ours, which is readable.
            RegistryChange::Unreadable { name, .. } => (name, None, None),
            RegistryChange::CaughtUp(_) => return Observed::Newest,
        };
        let Some(pending) = self.by_name.get_mut(name) else { return Observed::Newest };

        let is_ours =
            matches!(&pending.write, Write::Put(record) if Some(&record.revision) == revision);
        if is_ours {
            // The acknowledgement was lost or is still to come.
            pending.seen = true;
            return Observed::Newest;
        }
        if at.is_some_and(|at| at > pending.write.at()) {
            tracing::warn!(
                server = name,
                "dropping an unwritten change, because the registry has a newer one"
            );
            self.by_name.remove(name);
            return Observed::Newest;
        }
        // Whoever has removed it, that is what the open write wants.
        let is_removal = matches!(change, RegistryChange::Removed { .. });
        if is_removal && matches!(pending.write, Write::Remove { .. }) {
            return Observed::Newest;
        }
        Observed::Outdated
    }

    /// Returns the number of open writes.
    pub(super) fn len(&self) -> usize {
        self.by_name.values().filter(|pending| !pending.seen).count()
    }

    /// Describes the open write of a name.
    pub(super) fn unwritten(&self, name: &str, now: Instant) -> Option<Unwritten> {
        let pending = self.by_name.get(name).filter(|pending| !pending.seen)?;
        Some(Unwritten {
            removal: matches!(pending.write, Write::Remove { .. }),
            age: now.duration_since(pending.since),
            failures: pending.failures,
            last_error: pending.last_error.clone(),
        })
    }

    fn open_write(&mut self, name: &str, number: u64) -> Option<&mut Pending> {
        self.by_name.get_mut(name).filter(|pending| pending.number == number)
    }
}

#[cfg(test)]
mod tests {
    use fleet_job::mcp_servers::ServerEntry;
    use serde_json::json;

    use super::*;

    fn record(seconds: i64) -> Record {
        let entry = ServerEntry::from_value(&json!({"command": "x"}), "config").unwrap();
        Record { written_at: at(seconds), ..Record::new("s", &entry) }
    }

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_millis(seconds * 1000).unwrap()
    }

    fn put(record: &Record) -> Write {
        Write::Put(Box::new(record.clone()))
    }

    #[test]
    fn a_write_is_repeated_until_it_is_acknowledged() {
        let (mut writes, now, ours) = (Writes::new(7), Instant::now(), record(1));
        let number = writes.add("s", put(&ours), now);
        for (failure, ceiling) in
            (1..).zip([500, 1000, 2000, 4000, 8000, 16000, 30000, 30000, 30000])
        {
            assert_eq!(writes.state("s", number), WriteState::Open(put(&ours)));
            let wait = writes.note_failed("s", number, format!("failure {failure}")).as_millis();
            assert!((ceiling / 2..=ceiling).contains(&wait), "{wait} ms is not up to {ceiling} ms");
        }
        let unwritten = writes.unwritten("s", now + Duration::from_secs(5)).unwrap();
        assert_eq!((unwritten.failures, unwritten.age), (9, Duration::from_secs(5)));
        assert_eq!((unwritten.last_error.as_deref(), writes.len()), (Some("failure 9"), 1));
        writes.note_acknowledged("s", number);
        assert_eq!((writes.unwritten("s", now), writes.len()), (None, 0));
    }

    #[test]
    fn a_removal_is_applied_while_one_is_being_written() {
        let mut writes = Writes::new(7);
        let number = writes.add("s", Write::Remove { at: at(2) }, Instant::now());
        for removed_at in [None, Some(at(1))] {
            let change = RegistryChange::Removed { name: "s".to_owned(), at: removed_at };
            assert_eq!(writes.observe(&change), Observed::Newest);
        }
        let older = RegistryChange::Put(record(1));
        assert_eq!(writes.observe(&older), Observed::Outdated);
        assert_eq!(writes.state("s", number), WriteState::Open(Write::Remove { at: at(2) }));
    }

    #[test]
    fn the_newest_write_of_a_name_counts() {
        let (mut writes, now) = (Writes::new(7), Instant::now());
        let old = writes.add("s", put(&record(1)), now);
        let new = writes.add("s", Write::Remove { at: at(2) }, now);
        assert_eq!(writes.state("s", old), WriteState::Superseded);
        writes.note_acknowledged("s", old);
        assert_eq!(writes.note_failed("s", old, "late".to_owned()), Duration::ZERO);
        assert_eq!(writes.state("s", new), WriteState::Open(Write::Remove { at: at(2) }));
        assert!(writes.unwritten("s", now).is_some_and(|open| open.removal && open.failures == 0));
    }

    #[test]
    fn callers_that_want_the_same_server_share_a_write() {
        let (mut writes, now) = (Writes::new(7), Instant::now());
        let first = writes.add("s", put(&record(1)), now);
        let second = writes.add("s", put(&record(2)), now);
        assert_eq!((first, writes.len()), (second, 1));
        writes.note_acknowledged("s", first);
        assert_eq!(
            writes.state("s", second),
            WriteState::Written,
            "also for a caller that looks later"
        );

        let third = writes.add("s", put(&record(3)), now);
        assert_ne!(third, first, "the first write is no longer open");
        writes.add("s", Write::Remove { at: at(4) }, now);
        assert_eq!(writes.state("s", third), WriteState::Superseded);
    }

    #[test]
    fn changes_of_others_count_if_they_are_newer() {
        let removed =
            |seconds| RegistryChange::Removed { name: "s".to_owned(), at: Some(at(seconds)) };
        let check = |write: Write,
                     change: RegistryChange,
                     observed: Observed,
                     state: &dyn Fn(Write) -> WriteState| {
            let mut writes = Writes::new(7);
            let number = writes.add("s", write.clone(), Instant::now());
            assert_eq!(writes.observe(&change), observed, "{change:?}");
            assert_eq!(writes.state("s", number), state(write), "{change:?}");
        };
        let ours = record(5);
        check(put(&ours), RegistryChange::Put(record(6)), Observed::Newest, &|_| {
            WriteState::Superseded
        });
        check(put(&ours), RegistryChange::Put(record(4)), Observed::Outdated, &WriteState::Open);
        check(put(&ours), removed(6), Observed::Newest, &|_| WriteState::Superseded);
        check(put(&ours), removed(4), Observed::Outdated, &WriteState::Open);
        check(put(&ours), RegistryChange::Put(ours.clone()), Observed::Newest, &|_| {
            WriteState::Written
        });
        check(
            Write::Remove { at: at(5) },
            RegistryChange::Put(record(4)),
            Observed::Outdated,
            &WriteState::Open,
        );
        check(
            Write::Remove { at: at(5) },
            RegistryChange::Put(record(6)),
            Observed::Newest,
            &|_| WriteState::Superseded,
        );
        let unreadable =
            RegistryChange::Unreadable { name: "s".to_owned(), reason: "odd".to_owned() };
        check(put(&ours), unreadable, Observed::Outdated, &WriteState::Open);
        let timeless = RegistryChange::Removed { name: "s".to_owned(), at: None };
        check(put(&ours), timeless, Observed::Outdated, &WriteState::Open);
        // Changes of other names have no effect.
        let other = RegistryChange::Removed { name: "other".to_owned(), at: Some(at(9)) };
        check(put(&ours), other, Observed::Newest, &WriteState::Open);
    }
}

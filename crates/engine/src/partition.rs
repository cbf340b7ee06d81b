//! One assigned partition: which offsets are open, where the frontier is, and whether one more job
//! may start without outgrowing the commit metadata.

use std::collections::BTreeSet;

use fleet_group::{
    DENSE_WINDOW, FinalCommit, MAX_ESCAPES, MAX_RAW_BYTES, Partition, Progress, log::LogName,
};
use fleet_job::time::Timestamp;

use crate::{
    open::{LARGE_ATTEMPTS, OpenRecords},
    slot::Slot,
    sums::{Change, Sums},
};

/// What a delivered record means to its partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Delivery {
    /// It has to be done; this many attempts have been spent.
    New(u32),
    /// An earlier owner of the partition has settled it.
    Done,
    /// It was delivered before under this assignment.
    Repeat,
    /// It has to be done, and is the first record of a log that has begun anew.
    Reset,
}

/// The most bytes that a run of open offsets takes in the metadata: two LEB128 numbers below 2²¹.
const RUN_BYTES: usize = 6;
/// The most bytes that an attempt count takes there.
const ATTEMPTS_BYTES: usize = 5;
/// The most bytes that the metadata's header and the numbers between its lists take.
const HEADER_BYTES: usize = 48;

/// One assigned partition.
#[derive(Debug)]
pub(crate) struct PartitionState {
    pub(crate) generation: u64,
    /// The log that the partition belongs to; every commit names it.
    pub(crate) log: LogName,
    pub(crate) draining: bool,
    pub(crate) paused: bool,
    /// The partition stays paused until something that is unavailable comes back.
    pub(crate) is_stalled: bool,
    /// Open records by offset. An offset below `next` that is not in here is done, or was never
    /// delivered.
    open: OpenRecords,
    /// Over all open records. Changed by [`PartitionState::transition`], and by what adds and
    /// removes records.
    sums: Sums,
    /// One past the last offset that was delivered; `None` until the position is known.
    next: Option<i64>,
    /// Whether a record has been delivered under this assignment.
    has_delivered: bool,
    /// What the last owner left for offsets that have not been delivered again yet.
    restored: Progress,
    /// The highest offset that was ever started or settled. The window that commits describe ends
    /// there at the latest.
    touched: i64,
    /// Records that wait for room in the metadata. Some may have stopped waiting.
    gated: BTreeSet<i64>,
    /// The last offset whose commit the broker has accepted.
    pub(crate) committed: Option<i64>,
    /// Whether anything has changed since the last commit was built.
    pub(crate) dirty: bool,
    /// When the last commit was built.
    pub(crate) committed_at: Option<Timestamp>,
    /// When the next one is due.
    pub(crate) commit_due: Option<Timestamp>,
    /// The offset and the attempt counts of the commit that is under way.
    pub(crate) in_commit: Option<(i64, Vec<(i64, u32)>)>,
}

impl PartitionState {
    /// A partition that is read from the beginning of `restored`, or of its log.
    pub(crate) fn new(generation: u64, log: LogName, restored: Option<Progress>) -> Self {
        let committed = restored.as_ref().map(|progress| progress.base);
        let restored = restored.unwrap_or_default();
        Self {
            generation,
            log,
            draining: false,
            paused: false,
            is_stalled: false,
            open: OpenRecords::default(),
            sums: Sums::default(),
            next: committed,
            has_delivered: false,
            touched: restored.end,
            restored,
            gated: BTreeSet::new(),
            committed,
            dirty: false,
            committed_at: None,
            commit_due: None,
            in_commit: None,
        }
    }

    /// The offset that may be committed: everything below it is settled or was never delivered
    /// (I1).
    pub(crate) fn frontier(&self) -> Option<i64> {
        self.open.first().or(self.next)
    }

    /// Takes note that `offset` was delivered, and returns what that means.
    pub(crate) fn deliver(&mut self, offset: i64) -> Delivery {
        if self.next.is_some_and(|next| offset < next) {
            if self.has_delivered {
                return Delivery::Repeat;
            }
            // Reading starts at the committed offset, unless the log no longer reaches that far.
            // Then what was committed says nothing about the records that come now.
            *self = Self {
                paused: self.paused,
                draining: self.draining,
                ..Self::new(self.generation, self.log, None)
            };
            self.advance_to(offset);
            return Delivery::Reset;
        }

        self.advance_to(offset);
        if self.restored.is_done(offset) {
            self.dirty = true;
            return Delivery::Done;
        }

        let attempts = self.restored.attempts(offset);
        if offset + 1 >= self.restored.end {
            // Everything that the last owner knew has been read again.
            self.forget_restored();
        }
        Delivery::New(attempts)
    }

    /// Takes note that nothing more below `end` will be delivered. Returns whether that is news.
    pub(crate) fn pass_hole(&mut self, end: i64) -> bool {
        if self.next.is_some_and(|next| next >= end) {
            return false;
        }

        self.next = Some(end);
        if end >= self.restored.end {
            self.forget_restored();
        }
        self.dirty = true;
        true
    }

    /// Forgets what the last owner knew.
    pub(crate) fn forget_restored(&mut self) {
        self.restored = Progress::none(self.next.unwrap_or_default());
    }

    fn advance_to(&mut self, offset: i64) {
        self.has_delivered = true;
        self.next = Some(offset + 1);
    }

    /// The open records.
    pub(crate) fn open(&self) -> &OpenRecords {
        &self.open
    }

    /// The open record at `offset`.
    pub(crate) fn slot(&self, offset: i64) -> Option<&Slot> {
        self.open.get(offset)
    }

    /// Sums over the open records.
    pub(crate) fn sums(&self) -> Sums {
        self.sums
    }

    /// Changes an open record. Every change of a record's state goes through here, so that the sums
    /// follow from the states.
    pub(crate) fn transition(
        &mut self,
        offset: i64,
        change: impl FnOnce(&mut Slot),
    ) -> Option<(&Slot, Change)> {
        let slot = self.open.get_mut(offset)?;

        let before = Sums::of(slot);
        change(slot);
        let change = Change { before, after: Sums::of(slot) };

        self.sums.change(change);
        Some((slot, change))
    }

    /// Adds a record, which lies beyond all others.
    pub(crate) fn insert(&mut self, offset: i64, slot: Slot) -> Change {
        let change = Change { before: Sums::default(), after: Sums::of(&slot) };
        self.sums.change(change);
        self.open.insert(offset, slot);
        change
    }

    /// The record at `offset` is settled.
    pub(crate) fn settle(&mut self, offset: i64) -> Option<(Slot, Change)> {
        let slot = self.open.remove(offset)?;
        let change = Change { before: Sums::of(&slot), after: Sums::default() };
        self.sums.change(change);

        self.touched = self.touched.max(offset);
        self.dirty = true;
        Some((slot, change))
    }

    /// The record at `offset` was just delivered and is settled already. The next commit says so if
    /// there is room for that.
    pub(crate) fn pass_over(&mut self, offset: i64) {
        if self.has_room(offset) {
            self.touched = self.touched.max(offset);
        }
        self.dirty = true;
    }

    /// The job at `offset` has spent one more attempt.
    pub(crate) fn spend_attempt(&mut self, offset: i64) {
        self.open.spend_attempt(offset);
        self.dirty = true;
    }

    /// Sets how many attempts of each job are durable; returns the jobs that were waiting for that.
    pub(crate) fn confirm_attempts(&mut self, durable: impl Fn(i64, &Slot) -> u32) -> Vec<i64> {
        self.open.confirm_attempts(durable)
    }

    /// Whether the record at `offset` may start or end: whatever happens then, in whatever order,
    /// the progress must fit into the metadata. Either the dense encoding covers the whole window,
    /// or the runs encoding fits even if every active record splits a run and has attempts to
    /// remember. The record at the frontier may always go on, or nothing would ever move again.
    pub(crate) fn has_room(&self, offset: i64) -> bool {
        self.has_room_beside(offset, 0)
    }

    /// The same, if this many others are about to start.
    fn has_room_beside(&self, offset: i64, others: usize) -> bool {
        let Some(frontier) = self.frontier().filter(|frontier| *frontier < offset) else {
            return true;
        };

        let attempts = self.open.get(offset).map_or(0, Slot::attempts);
        let may_escape = attempts.saturating_add(1) >= LARGE_ATTEMPTS;
        let dense = self.touched.max(offset) - frontier < DENSE_WINDOW
            && self.open.escapes() + usize::from(may_escape) <= MAX_ESCAPES;

        let restored =
            self.restored.open.len() * RUN_BYTES + self.restored.attempts.len() * ATTEMPTS_BYTES;
        let active = self.sums.active() + others + 1;
        let runs = self.open.runs().len() + active + 1;
        let runs = runs * RUN_BYTES + (self.open.spent().len() + active) * ATTEMPTS_BYTES;

        dense || runs + restored + HEADER_BYTES <= MAX_RAW_BYTES
    }

    /// The job at `offset` is about to run, so commits have to mention it.
    pub(crate) fn touch(&mut self, offset: i64) {
        self.touched = self.touched.max(offset);
    }

    /// The record at `offset` has to wait for room in the metadata.
    pub(crate) fn gate(&mut self, offset: i64) {
        self.gated.insert(offset);
    }

    /// Takes out one record that has waited for room, if there is room for it now, besides that for
    /// `others` that were just taken out. If those did not count, all records would leave for room
    /// that is enough for one, only to be sent back.
    pub(crate) fn ungate(&mut self, others: usize) -> Option<i64> {
        let first = *self.gated.first()?;
        if !self.has_room_beside(first, others) {
            return None;
        }
        self.gated.pop_first()
    }

    /// What to commit now: the frontier, and what is known beyond it. `None` until the position is
    /// known.
    pub(crate) fn progress(&self) -> Option<Progress> {
        let base = self.frontier()?;
        let next = self.next.unwrap_or(base);
        let mut progress = Progress { is_stalled: self.is_stalled, ..Progress::none(base) };

        // Offsets beyond the last record that was ever started are as new as unread ones: nothing
        // has to be said about them, and their holes cost nothing.
        let known = (self.touched + 1).clamp(base, next.max(base));
        let open = self.open.runs().iter().take_while(|(first, _)| *first < known);
        let open = open.map(|(first, end)| (*first, (*end).min(known)));

        // What the last owner knew and this one has not read again yet is handed on.
        let ahead = self.restored.open.iter().filter(|(_, end)| *end > next);
        let ahead = ahead.map(|(first, end)| ((*first).max(next), *end));
        for (first, end) in open.chain(ahead) {
            match progress.open.last_mut() {
                Some((_, last)) if *last == first => *last = end,
                _ => progress.open.push((first, end)),
            }
        }

        progress.end = if self.restored.end > next { self.restored.end } else { known };
        let attempts =
            self.open.spent().range(..known).map(|(offset, attempts)| (*offset, *attempts));
        let ahead = self.restored.attempts.iter().copied().filter(|(offset, _)| *offset >= next);
        progress.attempts = attempts.chain(ahead).filter(|(_, attempts)| *attempts > 0).collect();

        trim_open_end(&mut progress);
        Some(progress)
    }

    /// The commit that says [`PartitionState::progress`].
    pub(crate) fn commit(&mut self, partition: Partition) -> Sayable {
        let Some(progress) = self.progress() else { return Sayable::Nothing };
        let Some(metadata) = progress.encode(self.log) else { return Sayable::TooMuch };

        self.in_commit = Some((progress.base, progress.attempts));
        self.dirty = false;
        let generation = self.generation;
        Sayable::Commit(FinalCommit { partition, generation, offset: progress.base, metadata })
    }
    /// Whether there is anything to commit before the partition is given away.
    pub(crate) fn needs_last_commit(&self) -> bool {
        self.dirty || self.is_stalled || self.in_commit.is_some()
    }

    /// The commit before the partition is given away. If its progress does not fit, the frontier
    /// alone is better than nothing.
    pub(crate) fn last_commit(&mut self, partition: Partition) -> Option<FinalCommit> {
        self.is_stalled = false;
        match self.commit(partition) {
            Sayable::Commit(commit) => Some(commit),
            Sayable::Nothing => None,
            Sayable::TooMuch => {
                let (offset, generation) = (self.frontier()?, self.generation);
                let metadata = Progress::none(offset).encode(self.log).unwrap_or_default();
                Some(FinalCommit { partition, generation, offset, metadata })
            }
        }
    }
}

/// Leaves out open offsets at the end, which say nothing that their absence would not say, as long
/// as no attempts of theirs have to be remembered.
fn trim_open_end(progress: &mut Progress) {
    let last = progress.open.last().filter(|(_, end)| *end == progress.end);
    let Some((first, _)) = last.copied() else { return };

    let last_spent = progress.attempts.last().map_or(first, |(offset, _)| offset + 1);
    progress.end = last_spent.max(first);
    if progress.end == first {
        progress.open.pop();
    } else if let Some(last) = progress.open.last_mut() {
        last.1 = progress.end;
    }
}

/// Whether a partition's progress can be committed.
#[derive(Debug)]
pub(crate) enum Sayable {
    /// By this commit.
    Commit(FinalCommit),
    /// The position is not known yet.
    Nothing,
    /// The progress does not fit into the metadata; the commit has to wait until more is settled.
    TooMuch,
}

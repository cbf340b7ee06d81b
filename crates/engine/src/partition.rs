//! One assigned partition: which offsets are open, where the frontier stands, and whether one more
//! job may start without outgrowing the commit metadata.

use std::collections::BTreeSet;

use fleet_group::{
    DENSE_WINDOW, FinalCommit, MAX_ESCAPES, MAX_RAW_BYTES, Partition, Progress, log::LogName,
};
use fleet_job::time::Timestamp;

use crate::{
    open::{LARGE_ATTEMPTS, Open},
    slot::Slot,
};

/// What a delivered record is to its partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Delivery {
    /// To be done; so many attempts have been spent.
    New(u32),
    /// Settled by an earlier owner of the partition.
    Done,
    /// Delivered before under this assignment.
    Repeat,
    /// To be done, and the first record of a log that has begun anew.
    Reset,
}

/// The bytes that one run of open offsets can take in the metadata, two LEB128 numbers below 2²¹.
const RUN_BYTES: usize = 6;
/// The bytes that one attempt count can take there.
const ATTEMPTS_BYTES: usize = 5;

/// What the metadata's header and the numbers between its lists can take beside them.
const HEADER_BYTES: usize = 48;

/// One assigned partition.
#[derive(Debug)]
pub(crate) struct PartitionState {
    pub(crate) generation: u64,
    /// The log that it is a part of; every commit names it.
    pub(crate) log: LogName,
    pub(crate) draining: bool,
    pub(crate) paused: bool,
    /// It is paused until something that is unavailable is back.
    pub(crate) is_stalled: bool,
    /// Open jobs by offset. What lies below `next` and is not in here is done, or was never
    /// delivered.
    pub(crate) open: Open,
    /// One past the last offset that was delivered; `None` until the position is known.
    next: Option<i64>,
    /// Whether a record has been delivered under this assignment.
    has_delivered: bool,
    /// What the last owner left for offsets that have not been delivered again yet.
    restored: Progress,
    /// The highest offset that was ever started or settled; the window to encode ends at or below
    /// it.
    touched: i64,
    /// Jobs that were ready but had to wait for the window to move.
    gated: BTreeSet<i64>,
    /// Records to be passed on whose time has not come.
    pub(crate) waiting_relays: usize,
    pub(crate) waiting_relay_bytes: usize,
    /// Jobs under way or being written: they can settle in any order without asking again.
    pub(crate) active: usize,
    pub(crate) buffered_bytes: usize,
    /// The last offset that the broker has taken.
    pub(crate) committed: Option<i64>,
    /// Something has changed since the last commit was built.
    pub(crate) dirty: bool,
    /// When the last commit was built.
    pub(crate) committed_at: Option<Timestamp>,
    /// When the next one is due.
    pub(crate) commit_due: Option<Timestamp>,
    /// A commit is under way: its offset, and the attempt counts in it.
    pub(crate) in_commit: Option<(i64, Vec<(i64, u32)>)>,
}

impl PartitionState {
    /// A partition that is read from where `restored` begins, or from the beginning of its log.
    pub(crate) fn new(generation: u64, log: LogName, restored: Option<Progress>) -> Self {
        let committed = restored.as_ref().map(|progress| progress.base);
        let restored = restored.unwrap_or_default();
        Self {
            generation,
            log,
            draining: false,
            paused: false,
            is_stalled: false,
            open: Open::default(),
            next: committed,
            has_delivered: false,
            touched: restored.end,
            restored,
            gated: BTreeSet::new(),
            waiting_relays: 0,
            waiting_relay_bytes: 0,
            active: 0,
            buffered_bytes: 0,
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

    /// Takes note that `offset` was delivered, and says what that means.
    pub(crate) fn deliver(&mut self, offset: i64) -> Delivery {
        if self.next.is_some_and(|next| offset < next) {
            if self.has_delivered {
                return Delivery::Repeat;
            }
            // Reading starts at the committed offset, unless the log does not reach that far any
            // more: then what was committed says nothing about what comes now.
            *self = Self {
                paused: self.paused,
                draining: self.draining,
                ..Self::new(self.generation, self.log, None)
            };
            self.note(offset);
            return Delivery::Reset;
        }
        self.note(offset);
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

    /// Notes that nothing below `end` will be delivered. Returns whether that was not known before.
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

    fn note(&mut self, offset: i64) {
        self.has_delivered = true;
        self.next = Some(offset + 1);
    }

    pub(crate) fn insert(&mut self, offset: i64, slot: Slot) {
        self.buffered_bytes += slot.bytes;
        self.open.insert(offset, slot);
    }

    /// The job at `offset` is settled.
    pub(crate) fn settle(&mut self, offset: i64) -> Option<Slot> {
        let slot = self.open.remove(offset)?;
        self.buffered_bytes -= slot.bytes;
        self.touched = self.touched.max(offset);
        self.dirty = true;
        Some(slot)
    }

    /// The record at `offset`, just delivered, is settled already. Said in the next commit, if
    /// there is room for it.
    pub(crate) fn pass_over(&mut self, offset: i64) {
        if self.has_room(offset) {
            self.touched = self.touched.max(offset);
        }
        self.dirty = true;
    }

    /// Takes note that the job at `offset` has spent one more attempt.
    pub(crate) fn spend(&mut self, offset: i64) {
        self.open.spend(offset);
        self.dirty = true;
    }

    /// Whether the job at `offset` may start: whatever then happens, in whatever order, the
    /// progress must fit into the metadata. Either the dense encoding holds the whole window, or
    /// the worst case of the runs encoding fits: every active job splits a run and has attempts to
    /// remember. The job at the frontier may always start, or nothing would ever move again.
    pub(crate) fn has_room(&self, offset: i64) -> bool {
        self.has_room_beside(offset, 0)
    }

    /// The same where so many others are about to start.
    fn has_room_beside(&self, offset: i64, others: usize) -> bool {
        let Some(frontier) = self.frontier().filter(|frontier| *frontier < offset) else {
            return true;
        };
        let attempts = self.open.get(offset).map_or(0, |slot| slot.attempts);
        let may_escape = attempts.saturating_add(1) >= LARGE_ATTEMPTS;
        let dense = self.touched.max(offset) - frontier < DENSE_WINDOW
            && self.open.escapes() + usize::from(may_escape) <= MAX_ESCAPES;
        let restored =
            self.restored.open.len() * RUN_BYTES + self.restored.attempts.len() * ATTEMPTS_BYTES;
        let active = self.active + others + 1;
        let runs = self.open.runs().len() + active + 1;
        let runs = runs * RUN_BYTES + (self.open.spent().len() + active) * ATTEMPTS_BYTES;
        dense || runs + restored + HEADER_BYTES <= MAX_RAW_BYTES
    }

    /// The job at `offset` is about to run.
    pub(crate) fn start(&mut self, offset: i64) {
        self.touched = self.touched.max(offset);
        self.active += 1;
    }

    /// The job at `offset` must wait for the window to move.
    pub(crate) fn gate(&mut self, offset: i64) {
        self.gated.insert(offset);
    }

    /// Takes one job out of the gate, if there is room for it now, beside so `others` that were
    /// just taken out. If those were not counted, all that wait here would leave for room that is
    /// enough for one, only to be sent back.
    pub(crate) fn ungate(&mut self, others: usize) -> Option<i64> {
        let first = *self.gated.first()?;
        if !self.has_room_beside(first, others) {
            return None;
        }
        self.gated.pop_first()
    }

    /// What is to be committed now: the frontier, and what is known beyond it.
    pub(crate) fn progress(&self) -> Option<Progress> {
        let base = self.frontier()?;
        let next = self.next.unwrap_or(base);
        let mut progress = Progress { is_stalled: self.is_stalled, ..Progress::none(base) };
        // What lies beyond the last job that was ever started is as new as what has not been read:
        // nothing need be said of it, and its holes cost nothing.
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
        // Open offsets at the end say nothing that their absence would not say.
        if let Some((first, end)) = progress.open.last().copied()
            && end == progress.end
        {
            let spent =
                progress.attempts.last().map_or(first, |(offset, _)| (*offset + 1).max(first));
            progress.end = spent;
            if spent == first {
                progress.open.pop();
            } else if let Some(last) = progress.open.last_mut() {
                last.1 = spent;
            }
        }
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
}

impl PartitionState {
    /// The commit before the partition is given away. Where its progress can't be said in full, the
    /// frontier alone is better than nothing.
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

/// Whether a partition's progress can be committed.
#[derive(Debug)]
pub(crate) enum Sayable {
    /// Like this.
    Commit(FinalCommit),
    /// The position is not known yet.
    Nothing,
    /// It does not fit into the metadata; the commit must wait until more is settled.
    TooMuch,
}

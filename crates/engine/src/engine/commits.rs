//! When partitions are committed, and what follows from the answer.

use std::time::Duration;

use fleet_group::Partition;
use fleet_job::time::Timestamp;

use super::Engine;
use crate::{
    invariant::Invariant,
    partition::Sayable,
    slot::Slot,
    types::{Command, Token},
};

impl Engine {
    /// Makes sure that `partition` is committed, but not sooner than `interval` after the last
    /// time.
    pub(super) fn schedule_commit(
        &mut self,
        now: Timestamp,
        partition: Partition,
        interval: Duration,
    ) {
        let Some(state) = self.partitions.get_mut(partition) else { return };

        let due = state.committed_at.map_or(now, |last| last.plus(interval)).max(now);
        if state.commit_due.is_some_and(|earlier| earlier <= due) {
            return;
        }

        if let Some(later) = state.commit_due.replace(due) {
            self.commits.remove(&(later, partition));
        }
        self.commits.insert((due, partition));
    }

    /// The frontier passes what was never delivered, up to `offset`.
    pub(super) fn reach_end_of_log(&mut self, now: Timestamp, partition: Partition, offset: i64) {
        // Records that were delivered while the partition drained are left to its next owner.
        let state = self.partitions.get_mut(partition).filter(|state| !state.draining);
        if state.is_some_and(|state| state.pass_hole(offset)) {
            self.schedule_commit(now, partition, self.config.commit_interval);
        }
    }

    pub(super) fn send_due_commits(&mut self, now: Timestamp) {
        while let Some((due, partition)) = self.commits.first().copied()
            && due <= now
        {
            self.commits.pop_first();
            self.commit(now, partition);
        }
    }

    fn commit(&mut self, now: Timestamp, partition: Partition) {
        let Some(state) = self.partitions.get_mut(partition) else { return };
        state.commit_due = None;

        // One commit at a time; its answer schedules the next one. The last commit comes from
        // `release`.
        if !state.dirty || state.draining || state.in_commit.is_some() {
            return;
        }
        state.committed_at = Some(now);

        let (frontier, committed, generation) =
            (state.frontier(), state.committed, state.generation);
        let token = |offset| Token { partition, offset, generation };
        match state.commit(partition) {
            Sayable::Nothing => {}
            Sayable::Commit(commit) => {
                let token = token(commit.offset);
                let is_settled = frontier.is_none_or(|frontier| commit.offset <= frontier);
                let is_forward = committed.is_none_or(|committed| commit.offset >= committed);

                self.check(Invariant::MetadataFits, token, true);
                self.check(Invariant::NoCommitPastGap, token, is_settled && is_forward);
                self.out.push_back(Command::Commit(commit));
            }
            Sayable::TooMuch => {
                let token = token(frontier.unwrap_or_default());
                self.check(Invariant::MetadataFits, token, false);
                // Jobs that wait for durable attempts must not wait for ever. What is settled
                // meanwhile may repeat.
                self.confirm_attempts(partition, |_, slot| slot.attempts());
            }
        }
    }

    pub(super) fn take_commit_answer(
        &mut self,
        now: Timestamp,
        partition: Partition,
        generation: u64,
        ok: bool,
    ) {
        let state = self.partitions.get_mut(partition);
        let Some(state) = state.filter(|state| state.generation == generation) else { return };
        let Some((offset, attempts)) = state.in_commit.take() else { return };

        if ok {
            state.committed = Some(offset);
            // The commit lists attempts in ascending order of offsets.
            self.confirm_attempts(partition, |offset, slot| {
                let found = attempts.binary_search_by_key(&offset, |(at, _)| *at);
                found.map_or(slot.durable(), |index| attempts[index].1)
            });
        } else {
            state.dirty = true;
        }

        let Some(state) = self.partitions.get(partition).filter(|state| state.dirty) else {
            return;
        };
        let is_urgent = ok && state.open().awaits_commit();
        let interval = match is_urgent {
            true => self.config.urgent_commit_interval,
            false => self.config.commit_interval,
        };
        self.schedule_commit(now, partition, interval);
    }

    /// Sets how many attempts of each job are durable, and makes the jobs ready that were waiting
    /// for that.
    pub(super) fn confirm_attempts(
        &mut self,
        partition: Partition,
        durable: impl Fn(i64, &Slot) -> u32,
    ) {
        let Some(state) = self.partitions.get_mut(partition) else { return };
        let generation = state.generation;

        for offset in state.confirm_attempts(durable) {
            let token = Token { partition, offset, generation };
            self.make_ready(token);
        }
    }
}

//! When partitions are committed, and what follows from the answer.

use std::time::Duration;

use fleet_group::{Partition, Progress};
use fleet_job::time::Timestamp;

use super::Engine;
use crate::{
    partition::Sayable,
    slot::{Phase, Slot},
    types::{Command, Token, faulty},
};

impl Engine {
    /// Makes sure that `partition` is committed, not sooner than `interval` after the last time.
    pub(super) fn schedule_commit(
        &mut self,
        now: Timestamp,
        partition: Partition,
        interval: Duration,
    ) {
        let Some(state) = self.partitions.get_mut(&partition) else { return };
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
    pub(super) fn end_of_log(&mut self, now: Timestamp, partition: Partition, offset: i64) {
        // What was delivered while the partition leaves has been left to its next owner.
        let state = self.partitions.get_mut(&partition).filter(|state| !state.draining);
        if state.is_some_and(|state| state.pass_hole(offset)) {
            self.schedule_commit(now, partition, self.config.commit_interval);
        }
    }

    pub(super) fn commit(&mut self, now: Timestamp, partition: Partition) {
        let Some(state) = self.partitions.get_mut(&partition) else { return };
        state.commit_due = None;
        // One commit at a time; its answer schedules the next one. The final commit comes from
        // `release`.
        if !state.dirty || state.draining || state.in_commit.is_some() {
            return;
        }
        state.committed_at = Some(now);
        match state.commit(partition) {
            Sayable::Commit(mut commit) => {
                if faulty!(self.config, CommitPastGap) {
                    commit.offset = state.open.last().map_or(commit.offset, |last| last + 1);
                    commit.metadata =
                        Progress::none(commit.offset).encode(state.log).unwrap_or_default();
                } else if commit.offset > state.frontier().unwrap_or(commit.offset)
                    || state.committed.is_some_and(|committed| commit.offset < committed)
                {
                    let generation = state.generation;
                    let token = Token { partition, offset: commit.offset, generation };
                    self.out.push_back(Command::Violation("I1", token));
                }
                self.out.push_back(Command::Commit(commit));
            }
            Sayable::Nothing => {}
            // What waits for durable attempts must not wait for ever; what is settled meanwhile may
            // repeat.
            Sayable::TooMuch => {
                let frontier = state.frontier().unwrap_or_default();
                let token = Token { partition, offset: frontier, generation: state.generation };
                self.out.push_back(Command::Violation("metadata-overflow", token));
                self.release_waiting(partition, |_, slot| slot.attempts);
            }
        }
    }

    pub(super) fn committed(
        &mut self,
        now: Timestamp,
        partition: Partition,
        generation: u64,
        ok: bool,
    ) {
        let Some(state) =
            self.partitions.get_mut(&partition).filter(|state| state.generation == generation)
        else {
            return;
        };
        let Some((offset, attempts)) = state.in_commit.take() else { return };
        if ok {
            state.committed = Some(offset);
            // They stand there in the order of their offsets.
            self.release_waiting(partition, |offset, slot| {
                let found = attempts.binary_search_by_key(&offset, |(at, _)| *at);
                found.map_or(slot.durable, |index| attempts[index].1)
            });
        } else {
            state.dirty = true;
        }
        let Some(state) = self.partitions.get(&partition) else { return };
        if state.dirty {
            let waiting = state.open.awaits_commit();
            let interval = if ok && waiting {
                self.config.urgent_commit_interval
            } else {
                self.config.commit_interval
            };
            self.schedule_commit(now, partition, interval);
        }
    }

    /// Sets how many attempts of each job are durable, and makes those ready that waited for it.
    pub(super) fn release_waiting(
        &mut self,
        partition: Partition,
        durable: impl Fn(i64, &Slot) -> u32,
    ) {
        let Some(state) = self.partitions.get_mut(&partition) else { return };
        let generation = state.generation;
        let ready = &mut self.ready;
        state.open.for_each_spent(|offset, slot| {
            if slot.attempts <= slot.durable {
                return;
            }
            slot.durable = durable(offset, slot);
            if slot.phase == Phase::AwaitsCommit
                && slot.attempts == slot.durable
                && let Some(spec) = slot.spec
            {
                slot.phase = Phase::Ready;
                ready.push(spec.priority, spec.limits, Token { partition, offset, generation });
            }
        });
    }
}

//! The life of a job, from its record to the end that is written of it. What its attempts come to
//! is in `attempts`.

use fleet_group::Partition;
use fleet_job::time::Timestamp;

use super::Engine;
use crate::{
    keys::{self, Lane},
    partition::Delivery,
    schedule::Alarm,
    slot::{Phase, Slot},
    types::{Admission, Command, JobSpec, Ordering, Terminal, Token, faulty},
};

/// So many times longer than others a job waits in memory that has come back from the delayed
/// topic.
const RETURNED: u32 = 10;

impl Engine {
    pub(super) fn record(
        &mut self,
        now: Timestamp,
        partition: Partition,
        offset: i64,
        bytes: usize,
        admission: Admission,
    ) {
        let Some(state) = self.partitions.get_mut(&partition) else { return };
        let token = Token { partition, offset, generation: state.generation };
        // What comes while the partition leaves is its next owner's.
        if state.draining {
            self.out.push_back(Command::Forget(token));
            return;
        }
        let attempts = match state.deliver(offset) {
            Delivery::New(_) if faulty!(self.config, AttemptsForgotten) => 0,
            Delivery::New(attempts) => attempts,
            Delivery::Reset => {
                self.out.push_back(Command::LogReset(partition));
                0
            }
            Delivery::Repeat => {
                if !state.open.contains(offset) {
                    self.out.push_back(Command::Forget(token));
                }
                return;
            }
            Delivery::Done => {
                self.out.push_back(Command::Forget(token));
                self.schedule_commit(now, partition, self.config.commit_interval);
                return;
            }
        };
        if faulty!(self.config, KnowledgeNotHandedOn) {
            state.forget_restored();
        }
        let (spec, key, early) = match admission {
            Admission::Job(spec) | Admission::Cancelled(spec) => (Some(spec), Some(spec.key), None),
            Admission::Relay(_) => (None, None, Some(Terminal::Relayed)),
            Admission::Reject { key } => (None, Some(key), Some(Terminal::Rejected)),
            Admission::Ended if !faulty!(self.config, EndsNotRepeated) => {
                (None, None, Some(Terminal::Again))
            }
            Admission::Settled | Admission::Ended => return self.pass_over(now, token),
        };
        // What stands in the metadata includes what was spent before, but a broker may have dropped
        // it.
        let before = spec
            .filter(|_| !faulty!(self.config, DeferredAttemptsForgotten))
            .map(|spec| spec.spent);
        let attempts = attempts.max(before.unwrap_or_default());
        let Some(state) = self.partitions.get_mut(&partition) else { return };
        // Whatever it is, it holds its place among those of its key until its end is written.
        let lane = key.and_then(|key| keys::lane(self.config.ordering, partition, key));
        let held_since = spec.and_then(|spec| spec.held_since);
        state.insert(offset, Slot { spec, lane, early, held_since, ..Slot::new(bytes, attempts) });
        self.buffered += 1;
        self.buffered_bytes += bytes;
        let first = lane.is_none_or(|lane| self.keys.join(lane, offset))
            || faulty!(self.config, KeysIgnored);
        match admission {
            // Before anything else: it must not be deferred either, or it would come back again and
            // again.
            Admission::Cancelled(_) if !faulty!(self.config, CancelIgnored) => {
                self.end_as(token, Terminal::Cancelled);
            }
            Admission::Job(spec) | Admission::Cancelled(spec) => {
                self.admit(now, token, spec, first)
            }
            Admission::Reject { .. } => self.end_in_turn(token, Terminal::Rejected, first),
            Admission::Relay(at) if at > now => {
                self.set_phase(token, Phase::Delayed);
                if let Some(state) = self.partitions.get_mut(&partition) {
                    state.waiting_relays += 1;
                    state.waiting_relay_bytes += bytes;
                }
                self.relays += 1;
                self.relay_bytes += bytes;
                self.timers.set(at, token, Alarm::Eligible);
            }
            _ => self.end_early(token),
        }
        self.update_pause(partition);
    }

    /// The record at `token` is settled already, and the commits do not say so yet.
    fn pass_over(&mut self, now: Timestamp, token: Token) {
        if let Some(state) = self.partitions.get_mut(&token.partition) {
            state.pass_over(token.offset);
        }
        self.out.push_back(Command::Forget(token));
        self.schedule_commit(now, token.partition, self.config.commit_interval);
    }

    fn admit(&mut self, now: Timestamp, token: Token, spec: JobSpec, first: bool) {
        let attempts = self.slot(token).map_or(0, |slot| slot.attempts);
        if let Some(at) = spec
            .not_before
            .filter(|at| attempts < spec.max_attempts && self.is_far(now, *at, &spec))
        {
            if spec.deadline.is_some_and(|deadline| deadline <= at) {
                return self.end_in_turn(token, Terminal::Expired, first);
            }
            return self.end_as(token, Terminal::Deferred(at));
        }
        if attempts >= spec.max_attempts {
            return self.end_in_turn(token, Terminal::Failed, first);
        }
        if let Some(deadline) = spec.deadline.filter(|_| !faulty!(self.config, DeadlineIgnored)) {
            self.timers.set(deadline, token, Alarm::Deadline);
        }
        if first {
            self.unblocked(now, token);
        }
    }

    /// Whether `at` is too far away to be waited for in memory.
    pub(super) fn is_far(&self, now: Timestamp, at: Timestamp, spec: &JobSpec) -> bool {
        let Some(max) =
            self.config.max_park.filter(|_| self.config.ordering != Ordering::Partition)
        else {
            return false;
        };
        let max = if spec.returned { max.saturating_mul(RETURNED) } else { max };
        at > now.plus(max)
    }

    /// The delayed topic can't take the job, so it waits here after all.
    pub(super) fn not_deferred(&mut self, now: Timestamp, token: Token) {
        let Some(slot) = self.slot(token) else { return };
        let (Phase::Settling(Terminal::Deferred(at)), Some(spec)) = (slot.phase, slot.spec) else {
            return;
        };
        slot.early = None;
        slot.phase = Phase::Queued;
        slot.stays = true;
        let (cancelled, held_since, lane) = (slot.cancelled, slot.held_since, slot.lane);
        if let Some(state) = self.partitions.get_mut(&token.partition) {
            state.active -= 1;
        }
        if cancelled {
            return self.end_as(token, Terminal::Cancelled);
        }
        if let Some(deadline) = spec.deadline {
            self.timers.set(deadline, token, Alarm::Deadline);
        }
        if held_since.is_some() {
            return self.unblocked(now, token);
        }
        // Behind others of its key, its turn comes when they are settled.
        if lane.is_none_or(|lane| self.keys.is_head(lane, token.offset)) {
            self.set_phase(token, Phase::Delayed);
            self.timers.set(at, token, Alarm::Eligible);
        }
    }

    /// The record comes to this end without being run, when its key's turn has come, so that the
    /// ends of a key are in the order of its records.
    fn end_in_turn(&mut self, token: Token, terminal: Terminal, is_its_turn: bool) {
        if is_its_turn || faulty!(self.config, EndsOutOfTurn) {
            return self.end_as(token, terminal);
        }
        if let Some(slot) = self.slot(token) {
            slot.early = Some(terminal);
        }
    }

    /// The job comes to this end without being run (again).
    pub(super) fn end_as(&mut self, token: Token, terminal: Terminal) {
        self.stop_waiting(token);
        if let Some(slot) = self.slot(token) {
            slot.early = Some(terminal);
        }
        self.end_early(token);
    }

    /// Brings what is not to be run here to its end at once, unless even that would outgrow the
    /// metadata.
    fn end_early(&mut self, token: Token) {
        let Some(slot) = self.slot(token) else { return };
        let attempts = slot.attempts;
        let Some(terminal) = slot.early else { return };
        if terminal == Terminal::Rejected && faulty!(self.config, RejectsDropped) {
            return;
        }
        let Some(state) = self.partitions.get_mut(&token.partition).filter(|state| !state.draining)
        else {
            return;
        };
        if state.has_room(token.offset) {
            self.conclude(token, terminal, attempts);
        } else {
            state.gate(token.offset);
            self.set_phase(token, Phase::Ready);
        }
    }

    /// The job is not wanted any more. One that has not started ends at once, whatever is before it
    /// in its key: somebody has asked for that.
    pub(super) fn cancel(&mut self, token: Token) {
        if faulty!(self.config, CancelIgnored) {
            return;
        }
        let Some(slot) = self.slot(token).filter(|slot| slot.spec.is_some()) else { return };
        match slot.phase {
            Phase::Running => {
                slot.cancelled = true;
                self.out.push_back(Command::Abort(token));
            }
            // It has come to another end, which waits for its turn or for room.
            _ if slot.early.is_some_and(Terminal::is_final) => {}
            Phase::Queued
            | Phase::Delayed
            | Phase::AwaitsCommit
            | Phase::Ready
            | Phase::Held(_) => {
                self.end_as(token, Terminal::Cancelled);
            }
            // Should the delayed topic not take it, it is not wanted here either.
            Phase::Settling(Terminal::Deferred(_)) | Phase::Unwritten(Terminal::Deferred(_)) => {
                slot.cancelled = true;
            }
            // Its end is being written: the cancel came too late.
            Phase::Settling(_) | Phase::Unwritten(_) => {}
        }
    }

    pub(super) fn set_phase(&mut self, token: Token, phase: Phase) {
        if let Some(slot) = self.slot(token) {
            slot.phase = phase;
        }
    }

    pub(super) fn slot(&mut self, token: Token) -> Option<&mut Slot> {
        let unfenced = faulty!(self.config, NoFence);
        self.partitions
            .get_mut(&token.partition)
            .filter(|state| unfenced || state.generation == token.generation)?
            .open
            .get_mut(token.offset)
    }

    /// Nothing of its key is before it any more: the job may start when its time has come.
    pub(super) fn unblocked(&mut self, now: Timestamp, token: Token) {
        let waits = |slot: &&mut Slot| matches!(slot.phase, Phase::Queued | Phase::Delayed);
        let Some(slot) = self.slot(token).filter(waits) else { return };
        if slot.early.is_some() {
            return self.end_early(token);
        }
        let Some(spec) = slot.spec else { return };
        match spec.not_before.filter(|at| *at > now) {
            Some(at) => {
                slot.phase = Phase::Delayed;
                self.timers.set(at, token, Alarm::Eligible);
            }
            None => {
                slot.phase = Phase::Ready;
                self.ready.push(spec.priority, spec.limits, token);
            }
        }
    }

    /// The job has come to its end: all that is left is to write that down.
    pub(super) fn conclude(&mut self, token: Token, terminal: Terminal, attempts: u32) {
        let Some(slot) = self.slot(token) else { return };
        slot.phase = Phase::Settling(terminal);
        let spec = slot.spec;
        if let Some(deadline) = spec.and_then(|spec| spec.deadline) {
            self.timers.clear(deadline, token, Alarm::Deadline);
        }
        if let Some(not_before) = spec.and_then(|spec| spec.not_before) {
            self.timers.clear(not_before, token, Alarm::Eligible);
        }
        if let Some(state) = self.partitions.get_mut(&token.partition) {
            state.active += 1;
        }
        self.unwritten += usize::from(terminal.is_final());
        self.out.push_back(Command::Settle(token, terminal, attempts));
    }

    pub(super) fn write_failed(&mut self, now: Timestamp, token: Token) {
        let Some(slot) = self.slot(token) else { return };
        let Phase::Settling(terminal) = slot.phase else { return };
        slot.phase = Phase::Unwritten(terminal);
        slot.rewrites = slot.rewrites.saturating_add(1);
        let rewrites = slot.rewrites;
        let at = now.plus(self.config.rewrite.spread(rewrites, &mut self.random));
        self.timers.set(at, token, Alarm::Rewrite);
    }

    pub(super) fn written(&mut self, now: Timestamp, token: Token) {
        let Some(slot) = self.slot(token) else { return };
        let Phase::Settling(terminal) = slot.phase else {
            self.out.push_back(Command::Violation("I2", token));
            return;
        };
        let Some(state) = self.partitions.get_mut(&token.partition) else { return };
        state.active -= 1;
        let Some(slot) = state.settle(token.offset) else { return };
        self.unwritten -= usize::from(terminal.is_final());
        self.buffered -= 1;
        self.buffered_bytes -= slot.bytes;
        self.out.push_back(Command::Forget(token));
        self.leave_lane(now, token, slot.lane);
        self.ungate(token.partition);
        self.schedule_commit(now, token.partition, self.config.commit_interval);
        self.update_pause(token.partition);
    }

    /// Gives up the job's place in its key; the next one may start.
    pub(super) fn leave_lane(&mut self, now: Timestamp, token: Token, lane: Option<Lane>) {
        if let Some(next) = lane.and_then(|lane| self.keys.leave(lane, token.offset)) {
            self.unblocked(now, Token { offset: next, ..token });
        }
    }

    fn ungate(&mut self, partition: Partition) {
        let mut released = 0;
        while let Some(state) = self.partitions.get_mut(&partition) {
            let generation = state.generation;
            let Some(offset) = state.ungate(released) else { return };
            let token = Token { partition, offset, generation };
            let Some(slot) = state.open.get(offset).filter(|slot| slot.phase == Phase::Ready)
            else {
                continue;
            };
            match (slot.early, slot.spec) {
                (Some(terminal), _) => {
                    let attempts = slot.attempts;
                    self.conclude(token, terminal, attempts);
                }
                (None, Some(spec)) => {
                    released += 1;
                    self.ready.push(spec.priority, spec.limits, token);
                }
                (None, None) => {}
            }
        }
    }

    pub(super) fn alarm(&mut self, now: Timestamp, token: Token, alarm: Alarm) {
        let draining = self.partitions.get(&token.partition).is_none_or(|state| state.draining);
        let waits_for_commit = !faulty!(self.config, RetryBeforeDurable);
        let ignores_deadline = faulty!(self.config, HoldIgnoresDeadline);
        let Some(slot) = self.slot(token) else { return };
        let (phase, attempts) = (slot.phase, slot.attempts);
        match (alarm, phase) {
            (Alarm::Rewrite, Phase::Unwritten(terminal)) => {
                slot.phase = Phase::Settling(terminal);
                let attempts = attempts + u32::from(terminal == Terminal::Succeeded);
                self.out.push_back(Command::Settle(token, terminal, attempts));
            }
            (Alarm::Eligible, Phase::Delayed) if slot.early == Some(Terminal::Relayed) => {
                // Also where the partition leaves: its next owner counts anew.
                slot.phase = Phase::Queued;
                let bytes = slot.bytes;
                if let Some(state) = self.partitions.get_mut(&token.partition) {
                    state.waiting_relays -= 1;
                    state.waiting_relay_bytes -= bytes;
                }
                self.relays -= 1;
                self.relay_bytes -= bytes;
                self.end_early(token);
                self.update_pause(token.partition);
            }
            (Alarm::Eligible, Phase::Delayed)
                if waits_for_commit && slot.attempts > slot.durable =>
            {
                slot.phase = Phase::AwaitsCommit;
                self.schedule_commit(now, token.partition, self.config.urgent_commit_interval);
            }
            (Alarm::Eligible, Phase::Delayed) => self.unblocked(now, token),
            (Alarm::Deadline, Phase::Held(_)) if ignores_deadline => {}
            (
                Alarm::Deadline,
                Phase::Queued
                | Phase::Delayed
                | Phase::AwaitsCommit
                | Phase::Ready
                | Phase::Held(_),
            ) if !draining && slot.early.is_none() => {
                let (lane, offset) = (slot.lane, token.offset);
                let is_its_turn = lane.is_none_or(|lane| self.keys.is_head(lane, offset));
                self.end_in_turn(token, Terminal::Expired, is_its_turn);
            }
            (Alarm::Relay, Phase::Held(_)) if !draining => self.relay(now, token),
            _ => {}
        }
    }
}

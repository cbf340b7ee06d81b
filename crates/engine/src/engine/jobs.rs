//! The life of a job before it runs: from its record to the queue of jobs that may start. Its
//! attempts are in `attempts`, its end is in `endings`.

use fleet_group::Partition;
use fleet_job::time::Timestamp;

use super::Engine;
use crate::{
    keys,
    partition::Delivery,
    schedule::Alarm,
    slot::{Slot, State, Step, Wait},
    types::{Admission, Command, JobSpec, Ordering, Terminal, Token},
};

/// A job that returned from the delayed topic may park in memory this many times longer than
/// `max_park`.
const RETURNED: u32 = 10;

impl Engine {
    pub(super) fn take_record(
        &mut self,
        now: Timestamp,
        partition: Partition,
        offset: i64,
        bytes: usize,
        admission: Admission,
    ) {
        let Some((token, restored)) = self.deliver(now, partition, offset) else { return };

        let (key, spent, end) = match admission {
            Admission::Job(spec) | Admission::Cancelled(spec) => (spec.key, spec.spent, None),
            Admission::Reject { key } => (key, 0, Some(Terminal::Rejected)),
            Admission::Relay(_) => (None, 0, Some(Terminal::Relayed)),
            Admission::Ended => (None, 0, Some(Terminal::Again)),
            Admission::Settled => return self.pass_over(now, token),
        };

        // Any record with a key holds its place in the order of its key until its end is written.
        let is_ordered = !matches!(admission, Admission::Relay(_) | Admission::Ended);
        let lane = keys::lane(self.config.ordering, partition, key).filter(|_| is_ordered);
        // The metadata counts what was spent before the record was written, too, but the broker may
        // have dropped it.
        let attempts = restored.max(spent);
        let slot = match (admission, end) {
            (Admission::Job(spec) | Admission::Cancelled(spec), _) => {
                Slot::of_job(spec, lane, bytes, attempts)
            }
            (_, end) => Slot::of_end(end.unwrap_or(Terminal::Again), lane, bytes, attempts),
        };
        self.partitions.insert(token, slot);
        if let Some(lane) = lane {
            self.keys.join(lane, offset);
        }

        match admission {
            // Before anything else. It must not be deferred either, or it would return again and
            // again.
            Admission::Cancelled(_) => self.end_now(token, Terminal::Cancelled),
            Admission::Job(spec) => self.admit(now, token, spec),
            Admission::Reject { .. } => self.end_in_turn(token, Terminal::Rejected),
            Admission::Relay(at) if at > now => self.relay_at(token, at),
            Admission::Relay(_) | Admission::Ended | Admission::Settled => self.end_early(token),
        }
        self.update_pause(partition);
    }

    /// Takes note that a record was delivered. Returns its token, and the attempts that it has
    /// spent as far as its partition knows, if there is anything to do for it.
    fn deliver(
        &mut self,
        now: Timestamp,
        partition: Partition,
        offset: i64,
    ) -> Option<(Token, u32)> {
        let state = self.partitions.get_mut(partition)?;
        let token = Token { partition, offset, generation: state.generation };

        // Records that arrive while the partition drains are left to its next owner.
        if state.draining {
            self.out.push_back(Command::Forget(token));
            return None;
        }

        match state.deliver(offset) {
            Delivery::New(attempts) => Some((token, attempts)),
            Delivery::Reset => {
                self.out.push_back(Command::LogReset(partition));
                Some((token, 0))
            }
            Delivery::Repeat => {
                if state.slot(offset).is_none() {
                    self.out.push_back(Command::Forget(token));
                }
                None
            }
            Delivery::Done => {
                self.out.push_back(Command::Forget(token));
                self.schedule_commit(now, partition, self.config.commit_interval);
                None
            }
        }
    }

    /// The record at `token` is settled already, and the commits do not say so yet.
    fn pass_over(&mut self, now: Timestamp, token: Token) {
        if let Some(state) = self.partitions.get_mut(token.partition) {
            state.pass_over(token.offset);
        }

        self.out.push_back(Command::Forget(token));
        self.schedule_commit(now, token.partition, self.config.commit_interval);
    }

    /// Decides what becomes of a job that has just been delivered.
    fn admit(&mut self, now: Timestamp, token: Token, spec: JobSpec) {
        let attempts = self.slot(token).map_or(0, Slot::attempts);
        if attempts >= spec.max_attempts {
            return self.end_in_turn(token, Terminal::Failed);
        }

        if let Some(at) = spec.not_before.filter(|at| self.is_far(now, *at, &spec)) {
            if spec.deadline.is_some_and(|deadline| deadline <= at) {
                return self.end_in_turn(token, Terminal::Expired);
            }
            return self.end_now(token, Terminal::Deferred(at));
        }

        if let Some(deadline) = spec.deadline {
            self.timers.set(deadline, token, Alarm::Deadline);
        }
        if self.is_first_of_key(token) {
            self.unblock(now, token);
        }
    }

    /// The record waits until it is to be relayed.
    fn relay_at(&mut self, token: Token, at: Timestamp) {
        self.transition(token, |slot| slot.go_on_to(Step::Time));
        self.timers.set(at, token, Alarm::Eligible);
    }

    /// Whether `at` is too far away to be waited for in memory.
    pub(super) fn is_far(&self, now: Timestamp, at: Timestamp, spec: &JobSpec) -> bool {
        let max = self.config.max_park.filter(|_| self.config.ordering != Ordering::Partition);
        let Some(max) = max else { return false };

        let max = if spec.returned { max.saturating_mul(RETURNED) } else { max };
        at > now.plus(max)
    }

    /// No record of its key is before this one any more: it may start as soon as its time has come,
    /// or come to the end that it has waited for.
    pub(super) fn unblock(&mut self, now: Timestamp, token: Token) {
        let Some(slot) = self.slot(token) else { return };
        let not_before = match slot.state() {
            State::Ending { step: Step::Turn, .. } => return self.end_early(token),
            State::Waiting { job, wait: Wait::Turn | Wait::Time } => job.spec.not_before,
            _ => return,
        };

        match not_before.filter(|at| *at > now) {
            Some(at) => self.wait_until(token, at),
            None => self.make_ready(token),
        }
    }

    /// The job waits in memory for a time.
    pub(super) fn wait_until(&mut self, token: Token, at: Timestamp) {
        self.transition(token, |slot| slot.wait_for(Wait::Time));
        self.timers.set(at, token, Alarm::Eligible);
    }

    /// The job may start as soon as there is a free slot and its tenant has its turn.
    pub(super) fn make_ready(&mut self, token: Token) {
        self.transition(token, |slot| slot.wait_for(Wait::Start));
        if let Some(spec) = self.slot(token).and_then(Slot::job).map(|job| job.spec) {
            self.ready.push(&spec, token);
        }
    }

    /// The job goes first among those of its tenant and priority when jobs may start.
    pub(super) fn make_first(&mut self, token: Token) {
        self.transition(token, |slot| slot.wait_for(Wait::Start));
        if let Some(spec) = self.slot(token).and_then(Slot::job).map(|job| job.spec) {
            self.ready.push_front(&spec, token);
        }
    }

    /// The job is not wanted any more. One that has not started ends at once, even if others of its
    /// key are before it, because somebody has asked for that.
    pub(super) fn cancel(&mut self, token: Token) {
        let Some(slot) = self.slot(token).filter(|slot| slot.job().is_some()) else { return };

        match *slot.state() {
            State::Waiting { .. } => self.end_now(token, Terminal::Cancelled),
            State::Running { .. } => {
                self.transition(token, Slot::note_cancel);
                self.out.push_back(Command::Abort(token));
            }
            // It has come to another end, or that is being written: the cancel came too late.
            State::Ending { end, .. } if end.is_final() => {}
            State::Ending { step: Step::Settling(_) | Step::Unwritten(_), .. } => {
                // If the delayed topic does not take the job, it is not wanted here either.
                self.transition(token, Slot::note_cancel);
            }
            State::Ending { .. } => self.end_now(token, Terminal::Cancelled),
        }
    }

    /// A time has come for which the record has waited.
    pub(super) fn handle_alarm(&mut self, now: Timestamp, token: Token, alarm: Alarm) {
        let is_draining = self.partitions.get(token.partition).is_none_or(|state| state.draining);
        let Some(slot) = self.slot(token) else { return };

        match (alarm, slot.state()) {
            (Alarm::Rewrite, &State::Ending { step: Step::Unwritten(failures), .. }) => {
                self.rewrite(token, failures);
            }
            // Also if the partition drains: its next owner counts anew.
            (Alarm::Eligible, State::Ending { step: Step::Time, .. }) => {
                self.transition(token, |slot| slot.go_on_to(Step::Turn));
                self.end_early(token);
                self.update_pause(token.partition);
            }
            (Alarm::Eligible, State::Waiting { wait: Wait::Time, .. }) => {
                if slot.is_durable() {
                    return self.unblock(now, token);
                }
                self.transition(token, |slot| slot.wait_for(Wait::Commit));
                self.schedule_commit(now, token.partition, self.config.urgent_commit_interval);
            }
            (Alarm::Deadline, State::Waiting { .. }) if !is_draining => {
                self.end_in_turn(token, Terminal::Expired);
            }
            (Alarm::Relay, &State::Waiting { wait: Wait::Need(need), job }) if !is_draining => {
                self.give_up_holding(now, token, need, job.held_since);
            }
            _ => {}
        }
    }
}

//! The end of a record: waiting for its turn, being written, and what follows from that.

use fleet_group::Partition;
use fleet_job::time::Timestamp;

use super::Engine;
use crate::{
    invariant::Invariant,
    keys::Lane,
    schedule::Alarm,
    slot::{Job, Slot, State, Step, Wait},
    types::{Command, Terminal, Token},
};

impl Engine {
    /// The record comes to this end without being run, when the turn of its key has come, so that
    /// the ends of a key are in the order of its records.
    pub(super) fn end_in_turn(&mut self, token: Token, end: Terminal) {
        if self.is_first_of_key(token) {
            return self.end_now(token, end);
        }

        self.transition(token, |slot| slot.end_as(end));
    }

    /// The record comes to this end without being run (again), whatever is before it in its key.
    pub(super) fn end_now(&mut self, token: Token, end: Terminal) {
        self.stop_waiting_for_needs(token);
        self.transition(token, |slot| slot.end_as(end));
        self.end_early(token);
    }

    /// Concludes a record that is not to be run here, unless even that would outgrow the metadata,
    /// or its partition leaves.
    pub(super) fn end_early(&mut self, token: Token) {
        let Some(end) = self.slot(token).and_then(Slot::end) else { return };
        let state = self.partitions.get_mut(token.partition).filter(|state| !state.draining);
        let Some(state) = state else { return };

        if state.has_room(token.offset) {
            return self.conclude(token, end);
        }
        state.gate(token.offset);
        self.transition(token, |slot| slot.go_on_to(Step::Room));
    }

    /// The record has come to its end: all that is left is to write it.
    pub(super) fn conclude(&mut self, token: Token, end: Terminal) {
        let Some(slot) = self.slot(token) else { return };
        let attempts = slot.reported_attempts(end);

        if let Some(Job { spec, .. }) = slot.job().copied() {
            if let Some(deadline) = spec.deadline {
                self.timers.clear(deadline, token, Alarm::Deadline);
            }
            if let Some(not_before) = spec.not_before {
                self.timers.clear(not_before, token, Alarm::Eligible);
            }
        }

        self.transition(token, |slot| {
            slot.end_as(end);
            slot.go_on_to(Step::Settling(0));
        });
        self.out.push_back(Command::Settle(token, end, attempts));
    }

    /// The terminal record could not be written.
    pub(super) fn schedule_rewrite(&mut self, now: Timestamp, token: Token) {
        let Some(slot) = self.slot(token) else { return };
        let State::Ending { step: Step::Settling(failures), .. } = *slot.state() else { return };

        let failures = failures.saturating_add(1);
        self.transition(token, |slot| slot.go_on_to(Step::Unwritten(failures)));
        let at = now.plus(self.config.rewrite.spread(failures, &mut self.random));
        self.timers.set(at, token, Alarm::Rewrite);
    }

    /// The terminal record is written once more, after so many failures in a row.
    pub(super) fn rewrite(&mut self, token: Token, failures: u32) {
        let Some(slot) = self.slot(token) else { return };
        let Some(end) = slot.end() else { return };
        let attempts = slot.reported_attempts(end);

        self.transition(token, |slot| slot.go_on_to(Step::Settling(failures)));
        self.out.push_back(Command::Settle(token, end, attempts));
    }

    /// The terminal record is acknowledged, so the record is settled.
    pub(super) fn settle(&mut self, now: Timestamp, token: Token) {
        let Some(slot) = self.slot(token) else { return };
        let is_settling = slot.settling().is_some();
        self.check(Invariant::SettledMeansWritten, token, is_settling);
        if !is_settling {
            return;
        }

        let Some(slot) = self.partitions.settle(token) else { return };
        self.out.push_back(Command::Forget(token));

        self.leave_lane(now, token, slot.lane());
        self.open_gate(token.partition);
        self.schedule_commit(now, token.partition, self.config.commit_interval);
        self.update_pause(token.partition);
    }

    /// The delayed topic can't take the job, so it waits here.
    pub(super) fn keep_undeferred(&mut self, now: Timestamp, token: Token) {
        let Some(slot) = self.slot(token) else { return };
        let State::Ending {
            job: Some(job),
            end: Terminal::Deferred(at),
            step: Step::Settling(_),
            is_cancelled,
        } = *slot.state()
        else {
            return;
        };

        self.transition(token, |slot| {
            slot.wait_for(Wait::Turn);
            slot.edit_job(|job| job.stays = true);
        });
        if is_cancelled {
            return self.end_now(token, Terminal::Cancelled);
        }

        if let Some(deadline) = job.spec.deadline {
            self.timers.set(deadline, token, Alarm::Deadline);
        }
        if job.held_since.is_some() {
            self.unblock(now, token);
        } else if self.is_first_of_key(token) {
            self.wait_until(token, at);
        }
        // Behind others of its key, its turn comes when they are settled.
    }

    /// Gives up the record's place in its key; the next one has its turn.
    pub(super) fn leave_lane(&mut self, now: Timestamp, token: Token, lane: Option<Lane>) {
        if let Some(next) = lane.and_then(|lane| self.keys.leave(lane, token.offset)) {
            self.unblock(now, Token { offset: next, ..token });
        }
    }

    /// Lets records go on that have waited for room in the metadata, as far as there is room now.
    fn open_gate(&mut self, partition: Partition) {
        let mut released = 0;

        while let Some(state) = self.partitions.get_mut(partition) {
            let generation = state.generation;
            let Some(offset) = state.ungate(released) else { return };
            let token = Token { partition, offset, generation };

            match self.slot(token).map(Slot::state) {
                Some(State::Waiting { wait: Wait::Room, .. }) => {
                    released += 1;
                    self.make_ready(token);
                }
                Some(&State::Ending { step: Step::Room, end, .. }) => self.conclude(token, end),
                _ => {}
            }
        }
    }
}

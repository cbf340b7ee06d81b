//! Attempts: which jobs start, and what follows from what their calls come to.

use std::time::Duration;

use fleet_job::{outcome::FailureClass, time::Timestamp};

use super::Engine;
use crate::{
    schedule::Alarm,
    slot::{Phase, Slot},
    types::{Attempt, Command, Need, Terminal, Token, faulty},
};

/// The longest that a server's `Retry-After` is believed.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(3600);
impl Engine {
    /// How many jobs may wait for their end to be written before nothing more is started: when
    /// Kafka takes no records, running ahead would only pile up results in memory and calls to
    /// repeat.
    fn max_unwritten(&self) -> usize {
        self.config.max_in_flight.saturating_mul(4).saturating_add(64)
    }

    pub(super) fn start_ready(&mut self, now: Timestamp) {
        while self.in_flight < self.config.max_in_flight
            && self.unwritten < self.max_unwritten()
            && self.breaker.allows_start()
        {
            let Some(token) = self.ready.pop() else { return };
            let Some(state) = self.partitions.get_mut(&token.partition) else { continue };
            if state.draining || state.generation != token.generation {
                continue;
            }
            let room = state.has_room(token.offset);
            let waits = |slot: &&mut Slot| slot.phase == Phase::Ready && slot.early.is_none();
            let Some(slot) = state.open.get_mut(token.offset).filter(waits) else { continue };
            let Some(spec) = slot.spec else { continue };
            let (attempt, lane) = (slot.attempts + 1, slot.lane);
            if !room {
                state.gate(token.offset);
                self.holds.does_not_scout(token);
                continue;
            }
            let obstacle = self.holds.obstacle(spec.needs(), token);
            if let Some(need) = obstacle.filter(|_| !faulty!(self.config, HoldIgnored)) {
                self.hold(now, token, need);
                continue;
            }
            slot.phase = Phase::Running;
            slot.scouts = self.holds.started(spec.needs(), now);
            let is_durable =
                slot.attempts <= slot.durable || faulty!(self.config, RetryBeforeDurable);
            state.start(token.offset);
            self.in_flight += 1;
            if !faulty!(self.config, LimitsIgnored) {
                self.ready.started(&spec.limits);
            }
            self.breaker.started(now);
            self.out.push_back(Command::Start(token, attempt));
            if lane.is_some_and(|lane| !self.keys.is_head(lane, token.offset)) {
                self.out.push_back(Command::Violation("I5", token));
            }
            if attempt > spec.max_attempts || !is_durable {
                self.out.push_back(Command::Violation("I6", token));
            }
        }
    }

    pub(super) fn finished(&mut self, now: Timestamp, token: Token, attempt: Attempt) {
        let Some(slot) = self.slot(token).filter(|slot| slot.phase == Phase::Running) else {
            return;
        };
        let Some(spec) = slot.spec else { return };
        let (spent, cancelled, lane) = (slot.attempts + 1, slot.cancelled, slot.lane);
        // Between attempts a job is not active; `conclude` counts it again when it has come to its
        // end.
        slot.phase = Phase::Queued;
        self.in_flight -= 1;
        if !faulty!(self.config, LimitLeak) {
            self.ready.ended(&spec.limits);
        }
        if let Some(state) = self.partitions.get_mut(&token.partition) {
            state.active -= 1;
        }
        let attempt = match attempt {
            Attempt::Held(..) if faulty!(self.config, HoldSpendsAttempts) => {
                Attempt::Failed(FailureClass::Retry, None)
            }
            Attempt::Held(_, wish) if faulty!(self.config, HoldBlocksOthers) => {
                Attempt::Failed(FailureClass::Unavailable, wish)
            }
            // Said of the server as a whole.
            Attempt::Failed(FailureClass::Held(_), wish) => Attempt::Held(Need::Room, wish),
            other => other,
        };
        match attempt {
            Attempt::Succeeded => {
                self.breaker.reached();
                self.answered(token);
                self.conclude(token, Terminal::Succeeded, spent);
                if faulty!(self.config, NextBeforeWritten) {
                    self.leave_lane(now, token, lane);
                }
            }
            // The cancel was in time; what the aborted call came to says nothing about server or
            // job.
            Attempt::Failed(..) | Attempt::Held(..) | Attempt::NotMade if cancelled => {
                self.conclude(token, Terminal::Cancelled, spent - 1);
            }
            Attempt::NotMade => {
                self.breaker.withdrawn();
                self.put_back(token);
            }
            Attempt::Held(need, wish) => {
                self.breaker.reached();
                self.turned_away(now, token, need, wish);
            }
            Attempt::Failed(FailureClass::Unavailable, wish)
                if !faulty!(self.config, OutageSpendsAttempts) =>
            {
                self.breaker.unavailable(now, wish, &mut self.random);
                self.put_back(token);
            }
            Attempt::Failed(class, wish) => {
                self.breaker.reached();
                self.answered(token);
                if let Some(state) = self.partitions.get_mut(&token.partition) {
                    state.spend(token.offset);
                }
                let wish = wish.unwrap_or_default().min(MAX_RETRY_AFTER);
                let at = now.plus(self.config.retry.jittered(spent, &mut self.random).max(wish));
                if class == FailureClass::Permanent || spent >= spec.max_attempts {
                    self.conclude(token, Terminal::Failed, spent);
                } else if spec.deadline.is_some_and(|deadline| at > deadline) {
                    self.conclude(token, Terminal::Expired, spent);
                } else if !spec.keeps_progress && self.is_far(now, at, &spec) && lane.is_none() {
                    self.conclude(token, Terminal::Deferred(at), spent);
                } else {
                    self.retry_at(now, token, spent, at);
                }
            }
        }
    }

    /// The job has made no call that counts, and goes first when jobs may start.
    fn put_back(&mut self, token: Token) {
        let Some(slot) = self.slot(token) else { return };
        slot.phase = Phase::Ready;
        slot.scouts = false;
        let Some(spec) = slot.spec else { return };
        self.ready.push_front(spec.priority, spec.limits, token);
        // The deadline may have passed while the job was running and could not expire.
        if let Some(deadline) = spec.deadline {
            self.timers.set(deadline, token, Alarm::Deadline);
        }
    }

    /// Takes back the starts that nobody has polled yet: deadlines may have passed since they were
    /// decided, and holds begun.
    pub(super) fn recall_starts(&mut self, now: Timestamp) {
        if faulty!(self.config, StartsNotRecalled) {
            return;
        }
        let mut recalled = Vec::new();
        self.out.retain(|command| match command {
            Command::Start(token, _) => {
                recalled.push(*token);
                false
            }
            _ => true,
        });
        // Each goes to the front, so the first one last.
        for token in recalled.into_iter().rev() {
            self.finished(now, token, Attempt::NotMade);
        }
    }

    fn retry_at(&mut self, now: Timestamp, token: Token, spent: u32, at: Timestamp) {
        if faulty!(self.config, SlotLeak) {
            self.in_flight += 1;
        }
        self.set_phase(token, Phase::Delayed);
        self.timers.set(at, token, Alarm::Eligible);
        self.out.push_back(Command::Retrying(token, spent, at));
        // The attempt must be durable before the next one starts (I6).
        self.schedule_commit(now, token.partition, self.config.urgent_commit_interval);
    }
}

//! Attempts: which jobs start, and what follows from the outcome of their calls.

use std::time::Duration;

use fleet_job::{outcome::FailureClass, time::Timestamp};

use super::Engine;
use crate::{
    invariant::Invariant,
    schedule::Alarm,
    slot::{State, Wait},
    types::{Attempt, Command, JobSpec, Need, Terminal, Token},
};

/// The longest `Retry-After` of a server that is believed.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(3600);

/// An attempt that has ended.
#[derive(Debug, Clone, Copy)]
struct Ended {
    token: Token,
    spec: JobSpec,
    is_scout: bool,
    is_cancelled: bool,
    /// The job's attempts with this one.
    attempts: u32,
}

impl Engine {
    /// How many jobs may wait for their end to be written before nothing more starts. If Kafka
    /// takes no records, running ahead would only pile up results in memory and calls to repeat.
    fn max_unwritten(&self) -> usize {
        self.config.max_in_flight.saturating_mul(4).saturating_add(64)
    }

    /// Starts jobs for as long as there are free slots.
    pub(super) fn start_ready(&mut self, now: Timestamp) {
        while self.partitions.sums().running < self.config.max_in_flight
            && self.partitions.sums().writing_final < self.max_unwritten()
            && self.breaker.allows_start()
        {
            let Some(token) = self.ready.pop() else { return };
            self.start_unless_kept(now, token);
        }
    }

    /// Starts the job whose turn it is, unless its queue entry is out of date, or there is no room
    /// in the metadata, or something that it needs is away.
    fn start_unless_kept(&mut self, now: Timestamp, token: Token) {
        let Some(state) = self.partitions.get_mut(token.partition) else { return };
        if state.draining || state.generation != token.generation {
            return;
        }
        let Some(slot) = state.slot(token.offset) else { return };
        let State::Waiting { job, wait: Wait::Start } = slot.state() else { return };
        let spec = job.spec;

        if !state.has_room(token.offset) {
            state.gate(token.offset);
            self.transition(token, |slot| slot.wait_for(Wait::Room));
            return self.holds.withdraw_scout(token);
        }
        if let Some(need) = self.holds.obstacle(spec.needs(), token) {
            return self.hold(now, token, need);
        }

        state.touch(token.offset);
        self.start(now, token, spec);
    }

    fn start(&mut self, now: Timestamp, token: Token, spec: JobSpec) {
        let Some(slot) = self.slot(token) else { return };
        let attempt = slot.attempts() + 1;
        let is_durable = slot.is_durable();

        let is_scout = self.holds.started(spec.needs(), now);
        self.transition(token, |slot| slot.start(is_scout));
        self.breaker.started(now);
        self.out.push_back(Command::Start(token, attempt));

        self.check(Invariant::OrderOfKeys, token, self.is_first_of_key(token));
        let is_allowed = attempt <= spec.max_attempts;
        self.check(Invariant::AttemptsAreDurable, token, is_allowed && is_durable);
    }

    /// An attempt has ended like this.
    pub(super) fn finish_attempt(&mut self, now: Timestamp, token: Token, outcome: Attempt) {
        let Some(ended) = self.stop_running(token) else { return };

        match outcome {
            Attempt::Succeeded => {
                self.breaker.reached();
                self.note_answer(ended);
                self.conclude(token, Terminal::Succeeded);
            }
            // The cancel was in time. What the aborted call came to says nothing about the server
            // or the job.
            Attempt::Failed(..)
            | Attempt::FailedBeside { .. }
            | Attempt::Held(..)
            | Attempt::NotMade
            | Attempt::Paused(_)
                if ended.is_cancelled =>
            {
                self.conclude(token, Terminal::Cancelled);
            }
            Attempt::NotMade => {
                self.breaker.withdrawn();
                self.put_back(ended);
            }
            Attempt::Paused(pause) => {
                self.breaker.withdrawn();
                self.pause_job(now, token, ended.spec.needs(), pause, ended.is_scout);
            }
            Attempt::Held(need, wish) => {
                self.breaker.reached();
                self.turn_away(now, token, need, wish, ended.is_scout);
            }
            Attempt::Failed(FailureClass::Held(_), wish) => {
                // The server said this of itself as a whole.
                self.breaker.reached();
                self.turn_away(now, token, Need::Room, wish, ended.is_scout);
            }
            Attempt::Failed(FailureClass::Unavailable, wish) => {
                self.breaker.unavailable(now, wish, &mut self.random);
                self.put_back(ended);
            }
            Attempt::FailedBeside { need, need_wish, wish } => {
                self.breaker.reached();
                self.note_away(now, need, need_wish, ended.is_scout);
                self.stop_needing(token);
                self.spend_attempt(now, ended, FailureClass::Retry, wish);
            }
            Attempt::Failed(class, wish) => {
                self.breaker.reached();
                self.note_answer(ended);
                self.spend_attempt(now, ended, class, wish);
            }
        }
    }

    /// Takes a job out of those that run; between attempts it waits for what `finish_attempt`
    /// decides.
    fn stop_running(&mut self, token: Token) -> Option<Ended> {
        let slot = self.slot(token)?;
        let State::Running { job, is_scout, is_cancelled } = *slot.state() else { return None };
        let attempts = slot.attempts() + 1;

        self.transition(token, |slot| slot.wait_for(Wait::Turn));
        Some(Ended { token, spec: job.spec, is_scout, is_cancelled, attempts })
    }

    /// The attempt has failed and counts: the job fails, expires, is deferred or is tried again.
    fn spend_attempt(
        &mut self,
        now: Timestamp,
        ended: Ended,
        class: FailureClass,
        wish: Option<Duration>,
    ) {
        let Ended { token, spec, attempts, .. } = ended;
        if let Some(state) = self.partitions.get_mut(token.partition) {
            state.spend_attempt(token.offset);
        }

        let wish = wish.unwrap_or_default().min(MAX_RETRY_AFTER);
        let at = now.plus(self.config.retry.jittered(attempts, &mut self.random).max(wish));
        let has_lane = self.slot(token).is_some_and(|slot| slot.lane().is_some());

        if class == FailureClass::Permanent || attempts >= spec.max_attempts {
            self.conclude(token, Terminal::Failed);
        } else if spec.deadline.is_some_and(|deadline| at > deadline) {
            self.conclude(token, Terminal::Expired);
        } else if !spec.keeps_progress && !has_lane && self.is_far(now, at, &spec) {
            self.conclude(token, Terminal::Deferred(at));
        } else {
            self.retry_at(now, token, attempts, at);
        }
    }

    fn retry_at(&mut self, now: Timestamp, token: Token, attempts: u32, at: Timestamp) {
        self.wait_until(token, at);
        self.out.push_back(Command::Retrying(token, attempts, at));

        // The attempt must be durable before the next one starts (I6).
        self.schedule_commit(now, token.partition, self.config.urgent_commit_interval);
    }

    /// The job has made no call that counts, and goes first when jobs may start.
    fn put_back(&mut self, ended: Ended) {
        self.make_first(ended.token);

        // The deadline may have passed while the job was running and could not expire.
        if let Some(deadline) = ended.spec.deadline {
            self.timers.set(deadline, ended.token, Alarm::Deadline);
        }
    }

    /// The tool has answered the job, so what the job needs is there.
    fn note_answer(&mut self, ended: Ended) {
        self.transition(ended.token, |slot| slot.edit_job(|job| job.held_since = None));

        if ended.is_scout {
            ended.spec.needs().into_iter().flatten().for_each(|need| self.lift_hold(need));
        }
    }

    /// Takes back the starts that nobody has polled yet: deadlines may have passed since they were
    /// decided, and holds may have begun.
    pub(super) fn recall_starts(&mut self, now: Timestamp) {
        let mut recalled = Vec::new();
        self.out.retain(|command| match command {
            Command::Start(token, _) => {
                recalled.push(*token);
                false
            }
            _ => true,
        });

        // Each goes to the front, so the first one comes last.
        for token in recalled.into_iter().rev() {
            self.finish_attempt(now, token, Attempt::NotMade);
        }
    }
}

//! Jobs that wait for something that is away while the server answers: a hosted server, or room
//! (I7).

use std::time::Duration;

use fleet_job::time::Timestamp;

use super::Engine;
use crate::{
    schedule::Alarm,
    slot::{Phase, Slot},
    types::{Need, Ordering, Terminal, Token, faulty},
};

/// The longest that a job is deferred for something that is away, before somebody asks for it
/// again.
const LONGEST_RELAY: Duration = Duration::from_secs(600);

impl Engine {
    /// The call of a job was turned away for want of `need`: the job goes on when that is back, and
    /// has spent nothing.
    pub(super) fn turned_away(
        &mut self,
        now: Timestamp,
        token: Token,
        need: Need,
        wish: Option<Duration>,
    ) {
        let Some(slot) = self.slot(token) else { return };
        let is_scout = std::mem::take(&mut slot.scouts);
        let Some(spec) = slot.spec.as_mut() else { return };
        let (deadline, lane) = (spec.deadline, slot.lane);
        if let Need::Hosted(server) = need {
            spec.hosted = Some(server);
        }
        self.holds.turned_away(need, now, wish, is_scout, &mut self.random);
        if is_scout && need != Need::Room {
            self.lift(Need::Room);
        }
        // The deadline may have passed while the job was running and could not expire.
        if let Some(deadline) = deadline {
            self.timers.set(deadline, token, Alarm::Deadline);
        }
        if faulty!(self.config, HoldIgnored) {
            return self.unblocked(now, token);
        }
        self.hold(now, token, need);
        if faulty!(self.config, HoldForgetsOrder)
            && let Some(next) = lane.and_then(|lane| self.keys.leave(lane, token.offset))
        {
            self.unblocked(now, Token { offset: next, ..token });
        }
    }

    /// Sets a job aside until `need` is back.
    pub(super) fn hold(&mut self, now: Timestamp, token: Token, need: Need) {
        self.holds.does_not_scout(token);
        let Some(slot) = self.slot(token) else { return };
        let Some(spec) = slot.spec else { return };
        slot.phase = Phase::Held(need);
        let since = *slot.held_since.get_or_insert(now);
        self.holds.wait(need, spec.priority, token);
        if let Some(patience) = self.patience_of(token, need) {
            self.timers.set(since.plus(patience).max(now), token, Alarm::Relay);
        }
    }

    /// How long the job waits in memory for `need` before it goes to the delayed topic; `None`
    /// where it stays. One with a key stays in its order, and nothing else could go on where there
    /// is no room.
    fn patience_of(&mut self, token: Token, need: Need) -> Option<Duration> {
        let max = self.config.max_park.filter(|_| self.config.ordering != Ordering::Partition)?;
        let defers_keys = faulty!(self.config, HoldDefersKeys);
        let slot = self.slot(token)?;
        let stays = need == Need::Room
            || slot.stays
            || (slot.lane.is_some() && !defers_keys)
            || slot.spec.is_none_or(|spec| spec.keeps_progress)
            || relay_delay(max, max) > LONGEST_RELAY;
        (!stays).then_some(max / 4)
    }

    /// The job has waited in memory for long enough. One stays behind as the next scout.
    pub(super) fn relay(&mut self, now: Timestamp, token: Token) {
        let Some(slot) = self.slot(token) else { return };
        let (Phase::Held(need), Some(since)) = (slot.phase, slot.held_since) else { return };
        let Some(patience) = self.patience_of(token, need) else { return };
        if self.holds.is_next(need, token) {
            return self.timers.set(now.plus(patience), token, Alarm::Relay);
        }
        let Some(max) = self.config.max_park else { return };
        let delay = relay_delay(max, now.since(since));
        // Not all at the same time.
        let delay = delay - self.random.up_to(delay / 8);
        self.end_as(token, Terminal::Deferred(now.plus(delay)));
    }

    /// The tool has answered a job: what the job needs is there.
    pub(super) fn answered(&mut self, token: Token) {
        let Some(slot) = self.slot(token) else { return };
        slot.held_since = None;
        let is_scout = std::mem::take(&mut slot.scouts);
        let Some(spec) = slot.spec.filter(|_| is_scout) else { return };
        spec.needs().into_iter().flatten().for_each(|need| self.lift(need));
    }

    /// Lets all jobs that wait for `need` start.
    fn lift(&mut self, need: Need) {
        for token in self.holds.lift(need) {
            self.make_ready(token, false);
        }
    }

    /// Lets the scouts go that are due; `true` if there was one.
    pub(super) fn send_scouts(&mut self, now: Timestamp) -> bool {
        if faulty!(self.config, NeverScouts) {
            return false;
        }
        let mut any = false;
        while let Some(token) = self.holds.next_scout(now) {
            any = true;
            self.make_ready(token, true);
        }
        any
    }

    fn make_ready(&mut self, token: Token, is_first: bool) {
        let Some(slot) = self.slot(token).filter(|slot| matches!(slot.phase, Phase::Held(_)))
        else {
            return self.holds.does_not_scout(token);
        };
        slot.phase = Phase::Ready;
        let Some(spec) = slot.spec else { return };
        match is_first {
            true => self.ready.push_front(spec.priority, spec.limits, token),
            false => self.ready.push(spec.priority, spec.limits, token),
        }
    }

    /// The job, which may have been waiting for something that is away, comes to its end instead.
    pub(super) fn stop_waiting(&mut self, token: Token) {
        self.holds.does_not_scout(token);
        let Some(slot) = self.slot(token) else { return };
        if let (Phase::Held(need), Some(spec)) = (slot.phase, slot.spec) {
            self.holds.leave(need, spec.priority, token);
        }
    }

    /// The jobs that would start if it were not for something that is away, with what that is
    /// (`None` for the server itself) and the attempts that they have spent; in no order. Costs as
    /// much as there are jobs.
    pub fn held_jobs(&self) -> impl Iterator<Item = (Token, Option<Need>, u32)> {
        let allows_start = self.breaker.allows_start();
        let wait = move |slot: &Slot| awaited(slot, allows_start);
        self.partitions.iter().flat_map(move |(partition, state)| {
            let token =
                |offset| Token { partition: *partition, offset, generation: state.generation };
            state
                .open
                .iter()
                .filter_map(move |(offset, slot)| Some((token(offset), wait(slot)?, slot.attempts)))
        })
    }
}

/// What is away that keeps a job from starting, if anything; `Some(None)` for the server itself,
/// which does not take calls unless `allows_start`.
pub(super) fn awaited(slot: &Slot, allows_start: bool) -> Option<Option<Need>> {
    match slot.phase {
        Phase::Held(need) => Some(Some(need)),
        Phase::Ready if !allows_start && slot.early.is_none() => Some(None),
        _ => None,
    }
}

/// How long a job is deferred that has waited for so long: as long again, but never so short that
/// it would wait in memory anyway.
fn relay_delay(max_park: Duration, waited: Duration) -> Duration {
    let least = max_park + max_park / 4;
    waited.min(LONGEST_RELAY).max(least)
}

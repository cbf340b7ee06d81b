//! Jobs that wait for something that is away while the server answers: a hosted server, or room
//! (I7).

use std::time::Duration;

use fleet_job::time::Timestamp;

use super::Engine;
use crate::{
    schedule::Alarm,
    slot::{Slot, State, Wait},
    types::{Need, Ordering, Terminal, Token},
};

/// The longest time for which a job is deferred because something is away, before somebody asks for
/// it again.
const LONGEST_RELAY: Duration = Duration::from_secs(600);

impl Engine {
    /// The call of a job was turned away for want of `need`. The job goes on when that is back, and
    /// has spent nothing.
    pub(super) fn turn_away(
        &mut self,
        now: Timestamp,
        token: Token,
        need: Need,
        wish: Option<Duration>,
        is_scout: bool,
    ) {
        if let Need::Hosted(server) = need {
            self.transition(token, |slot| slot.edit_job(|job| job.spec.hosted = Some(server)));
        }

        self.note_away(now, need, wish, is_scout);
        self.watch_deadline(token);
        self.hold(now, token, need);
    }

    /// The shell did not begin the attempt of a job, because the job is paused. It waits for the end
    /// of the pause, and has spent nothing. If others relied on it as their scout, the next one
    /// goes.
    pub(super) fn pause_job(
        &mut self,
        now: Timestamp,
        token: Token,
        needs: [Option<Need>; 2],
        pause: u64,
        is_scout: bool,
    ) {
        if is_scout {
            self.holds.not_asked(needs, now);
        }

        let need = Need::Paused(pause);
        self.holds.paused(need, now, &mut self.random);
        self.watch_deadline(token);
        self.hold(now, token, need);
    }

    /// Lets the job's deadline end its wait again: it may have passed while the job was running and
    /// could not expire.
    fn watch_deadline(&mut self, token: Token) {
        let job = self.slot(token).and_then(Slot::job);
        if let Some(deadline) = job.and_then(|job| job.spec.deadline) {
            self.timers.set(deadline, token, Alarm::Deadline);
        }
    }

    /// Takes note that a call was turned away for want of `need`.
    pub(super) fn note_away(
        &mut self,
        now: Timestamp,
        need: Need,
        wish: Option<Duration>,
        is_scout: bool,
    ) {
        self.holds.turned_away(need, now, wish, is_scout, &mut self.random);
        if is_scout && need != Need::Room {
            self.lift_hold(Need::Room);
        }
    }

    /// Lets a job run without its hosted server, whatever earlier attempts found: some of its calls
    /// were answered, and it can continue with them.
    pub(super) fn stop_needing(&mut self, token: Token) {
        self.transition(token, |slot| {
            slot.edit_job(|job| {
                job.spec.hosted = None;
                job.held_since = None;
            });
        });
    }

    /// Sets a job aside until `need` is back.
    pub(super) fn hold(&mut self, now: Timestamp, token: Token, need: Need) {
        self.holds.withdraw_scout(token);

        self.transition(token, |slot| {
            slot.wait_for(Wait::Need(need));
            slot.edit_job(|job| _ = job.held_since.get_or_insert(now));
        });
        let Some(job) = self.slot(token).and_then(Slot::job) else { return };
        let since = job.held_since.unwrap_or(now);

        self.holds.wait(need, job.spec.priority, token);
        if let Some(patience) = self.patience_of(token, need) {
            self.timers.set(since.plus(patience).max(now), token, Alarm::Relay);
        }
    }

    /// How long the job waits in memory for `need` before it goes to the delayed topic; `None` if
    /// it stays. A job with a key stays in its order. Without room at the server, or while all jobs
    /// are paused, nothing else could go on in its place.
    fn patience_of(&self, token: Token, need: Need) -> Option<Duration> {
        let max = self.config.max_park.filter(|_| self.config.ordering != Ordering::Partition)?;
        let slot = self.slot(token)?;
        let job = slot.job()?;

        let stays = matches!(need, Need::Room | Need::Paused(0))
            || job.stays
            || job.spec.keeps_progress
            || slot.lane().is_some()
            || relay_delay(max, max) > LONGEST_RELAY;
        (!stays).then_some(max / 4)
    }

    /// The job has waited in memory for as long as it may, so it goes to the delayed topic, until
    /// its deadline at the latest. One stays behind as the next scout.
    pub(super) fn give_up_holding(
        &mut self,
        now: Timestamp,
        token: Token,
        need: Need,
        since: Option<Timestamp>,
    ) {
        let (Some(since), Some(max)) = (since, self.config.max_park) else { return };
        let Some(patience) = self.patience_of(token, need) else { return };
        if self.holds.is_next(need, token) {
            return self.timers.set(now.plus(patience), token, Alarm::Relay);
        }

        let deadline = self.slot(token).and_then(Slot::job).and_then(|job| job.spec.deadline);
        if deadline.is_some_and(|deadline| deadline <= now.plus(max)) {
            // Near enough to be waited for in memory, where the job's deadline ends the wait.
            return;
        }

        // Jobs must not all come back at the same time.
        let delay = relay_delay(max, now.since(since));
        let until = now.plus(delay - self.random.up_to(delay / 8));
        let until = deadline.map_or(until, |deadline| until.min(deadline));
        self.end_now(token, Terminal::Deferred(until));
    }

    /// Lets all jobs start that wait for `need`.
    pub(super) fn lift_hold(&mut self, need: Need) {
        for token in self.holds.lift(need) {
            if self.is_still_held(token) {
                self.make_ready(token);
            }
        }
    }

    /// Lets the scouts go that are due; `true` if there was one.
    pub(super) fn send_scouts(&mut self, now: Timestamp) -> bool {
        let mut any = false;
        while let Some(token) = self.holds.next_scout(now) {
            any = true;
            if self.is_still_held(token) {
                self.make_first(token);
            }
        }
        any
    }

    /// Whether a job that has left the queue of a hold has waited for that until now. If not, it is
    /// no scout.
    fn is_still_held(&mut self, token: Token) -> bool {
        let is_held = self.slot(token).is_some_and(Slot::is_held);
        if !is_held {
            self.holds.withdraw_scout(token);
        }
        is_held
    }

    /// The job, which may have been waiting for something that is away, comes to its end instead.
    pub(super) fn stop_waiting_for_needs(&mut self, token: Token) {
        self.holds.withdraw_scout(token);

        if let Some(State::Waiting { job, wait: Wait::Need(need) }) =
            self.partitions.slot(token).map(Slot::state)
        {
            self.holds.leave(*need, job.spec.priority, token);
        }
    }

    /// The jobs that would start if something were not away, with what that is (`None` for the
    /// server itself) and the attempts that they have spent; in no order. Looks through all jobs in
    /// memory.
    pub fn held_jobs(&self) -> impl Iterator<Item = (Token, Option<Need>, u32)> {
        let allows_start = self.breaker.allows_start();

        self.partitions.iter().flat_map(move |(partition, state)| {
            let generation = state.generation;
            state.open().iter().filter_map(move |(offset, slot)| {
                let need = missing_need(slot, allows_start)?;
                Some((Token { partition, offset, generation }, need, slot.attempts()))
            })
        })
    }
}

/// What is away that keeps a job from starting, if anything; `Some(None)` for the server itself,
/// which takes no calls unless `allows_start`.
pub(super) fn missing_need(slot: &Slot, allows_start: bool) -> Option<Option<Need>> {
    match slot.wait()? {
        Wait::Need(need) => Some(Some(need)),
        Wait::Start | Wait::Room if !allows_start => Some(None),
        _ => None,
    }
}

/// For how long a job is deferred that has waited this long: as long again, but never so short that
/// it would wait in memory anyway.
fn relay_delay(max_park: Duration, waited: Duration) -> Duration {
    let least = max_park + max_park / 4;
    waited.min(LONGEST_RELAY).max(least)
}

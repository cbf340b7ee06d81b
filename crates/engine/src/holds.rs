//! Waiting for something that is away behind a server that answers (I7): a hosted server, or room
//! at our own server. Jobs that people have paused wait here as well.
//!
//! There is one *hold* per need. While a hold lasts, the jobs with that need wait here without a
//! slot, and all others go on. At growing intervals, and never before the time that the server
//! asked for, one job goes first as a *scout*. Any answer of the tool to a scout lifts the hold. A
//! scout that is neither turned away nor answered within [`TRIAL`] makes room for the next one:
//! refusals come at once, and work takes time.
//!
//! The shell says when a pause ends, so its hold needs no scouts. They go nevertheless, as rarely as
//! possible, and are turned away without a call.
//!
//! There are no more holds than servers that are away, so they are looked through one by one. While
//! there is none, every question here costs nothing.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use fleet_job::time::Timestamp;
use fleet_retry::{Backoff, Random};

use crate::types::{Need, Token};

/// How long no second scout is sent after one.
const TRIAL: Duration = Duration::from_secs(1);
/// The longest delay that a server may ask for; longer ones are cut.
const MAX_WISH: Duration = Duration::from_secs(600);
/// A hold that no job has asked about for this long is forgotten.
const KEPT: Duration = Duration::from_secs(600);

/// All holds of one worker.
#[derive(Debug)]
pub(crate) struct Holds {
    held: BTreeMap<Need, Hold>,
    backoff: Backoff,
}

#[derive(Debug)]
struct Hold {
    stage: Stage,
    since: Timestamp,
    /// Scouts in a row that were turned away.
    failures: u32,
    /// The most urgent first, and among equals the oldest.
    waiting: BTreeSet<(Reverse<u8>, Token)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// No job may start before this time.
    Until(Timestamp),
    /// A scout has started. No other job may start before this time, unless the scout makes no call
    /// after all.
    Trial(Timestamp),
    /// A scout may go, since this time.
    Due(Timestamp),
    /// This job goes next.
    Scouting(Token),
}

impl Holds {
    pub(crate) fn new(backoff: Backoff) -> Self {
        Self { held: BTreeMap::new(), backoff }
    }

    /// The first of these needs that keeps the job from starting now, if any.
    pub(crate) fn obstacle(&self, needs: [Option<Need>; 2], token: Token) -> Option<Need> {
        let blocks = |need: &Need| match self.held.get(need).map(|hold| hold.stage) {
            None | Some(Stage::Due(_)) => false,
            Some(Stage::Scouting(scout)) => scout != token,
            Some(Stage::Until(_) | Stage::Trial(_)) => true,
        };
        needs.into_iter().flatten().find(blocks)
    }

    /// Takes note that a job without an obstacle has started; `true` if it is a scout.
    pub(crate) fn started(&mut self, needs: [Option<Need>; 2], now: Timestamp) -> bool {
        let mut is_scout = false;
        for need in needs.into_iter().flatten() {
            if let Some(hold) = self.held.get_mut(&need) {
                hold.stage = Stage::Trial(now.plus(TRIAL));
                is_scout = true;
            }
        }
        is_scout
    }

    /// A scout that was started has made no call: another one may go at once.
    pub(crate) fn not_asked(&mut self, needs: [Option<Need>; 2], now: Timestamp) {
        for need in needs.into_iter().flatten() {
            if let Some(hold) = self.held.get_mut(&need)
                && let Stage::Trial(_) = hold.stage
            {
                hold.stage = Stage::Due(now);
            }
        }
    }

    /// A pause keeps a job from starting.
    pub(crate) fn paused(&mut self, need: Need, now: Timestamp, random: &mut Random) {
        self.turned_away(need, now, Some(MAX_WISH), false, random);
    }

    /// A call was turned away for want of `need`. Calls that were under way when the hold began are
    /// no news, except for the time at which the server wants to be asked again.
    pub(crate) fn turned_away(
        &mut self,
        need: Need,
        now: Timestamp,
        wish: Option<Duration>,
        is_scout: bool,
        random: &mut Random,
    ) {
        let is_new = !self.held.contains_key(&need);
        if is_new {
            self.forget_unused(now);
        }

        let hold = self.held.entry(need).or_insert_with(|| Hold {
            stage: Stage::Due(now),
            since: now,
            failures: 0,
            waiting: BTreeSet::new(),
        });

        let wished = now.plus(wish.unwrap_or_default().min(MAX_WISH));
        if is_new || is_scout {
            hold.failures = hold.failures.saturating_add(1);
            let delay = self.backoff.spread(hold.failures, random);
            hold.stage = Stage::Until(now.plus(delay).max(wished));
        } else if wished > now {
            let at = match hold.stage {
                Stage::Until(at) | Stage::Trial(at) => at,
                Stage::Due(_) | Stage::Scouting(_) => now,
            };
            hold.stage = Stage::Until(at.max(wished));
        }
    }

    /// A scout was answered, so the hold ends. Returns the jobs that have waited for it.
    pub(crate) fn lift(&mut self, need: Need) -> Vec<Token> {
        let hold = self.held.remove(&need);
        hold.into_iter().flat_map(|hold| hold.waiting).map(|(_, token)| token).collect()
    }

    /// The job waits for `need`.
    pub(crate) fn wait(&mut self, need: Need, priority: u8, token: Token) {
        if let Some(hold) = self.held.get_mut(&need) {
            hold.waiting.insert((Reverse(priority), token));
        }
    }

    /// The job does not wait for `need` any more.
    pub(crate) fn leave(&mut self, need: Need, priority: u8, token: Token) {
        if let Some(hold) = self.held.get_mut(&need) {
            hold.waiting.remove(&(Reverse(priority), token));
        }
    }

    /// Whether the job is the next scout; one job has to stay for that.
    pub(crate) fn is_next(&self, need: Need, token: Token) -> bool {
        let first = self.held.get(&need).and_then(|hold| hold.waiting.first());
        first.is_some_and(|(_, first)| *first == token)
    }

    /// The job does not go as a scout after all; another one may.
    pub(crate) fn withdraw_scout(&mut self, token: Token) {
        for hold in self.held.values_mut().filter(|hold| hold.stage == Stage::Scouting(token)) {
            hold.stage = Stage::Due(hold.since);
        }
    }

    /// The next job that is to go as a scout, if one is due.
    pub(crate) fn next_scout(&mut self, now: Timestamp) -> Option<Token> {
        for hold in self.held.values_mut() {
            if let Stage::Until(at) | Stage::Trial(at) = hold.stage
                && at <= now
            {
                hold.stage = Stage::Due(at);
            }
            if let Stage::Due(_) = hold.stage
                && let Some((_, token)) = hold.waiting.pop_first()
            {
                hold.stage = Stage::Scouting(token);
                return Some(token);
            }
        }
        None
    }

    /// When the next scout is due.
    pub(crate) fn next(&self) -> Option<Timestamp> {
        let due = self.held.values().filter_map(|hold| match hold.stage {
            Stage::Until(at) | Stage::Trial(at) => Some(at),
            Stage::Due(_) | Stage::Scouting(_) => None,
        });
        due.min()
    }

    /// Whether any job waits.
    pub(crate) fn has_waiting(&self) -> bool {
        self.held.values().any(|hold| !hold.waiting.is_empty())
    }

    /// What is away, since when, and how many jobs wait for it.
    pub(crate) fn all(&self) -> impl Iterator<Item = (Need, Timestamp, usize)> {
        self.held.iter().map(|(need, hold)| (*need, hold.since, hold.waiting.len()))
    }

    pub(crate) fn retain(&mut self, keep: impl Fn(&Token) -> bool) {
        for hold in self.held.values_mut() {
            hold.waiting.retain(|(_, token)| keep(token));
            if let Stage::Scouting(token) = hold.stage
                && !keep(&token)
            {
                // The time only matters if no job waits, and then the hold is soon forgotten.
                hold.stage = Stage::Due(hold.since);
            }
        }
    }

    /// Forgets holds whose jobs have all gone elsewhere: nobody will ever lift them.
    fn forget_unused(&mut self, now: Timestamp) {
        self.held.retain(|_, hold| match hold.stage {
            Stage::Due(since) => !hold.waiting.is_empty() || now < since.plus(KEPT),
            Stage::Until(_) | Stage::Trial(_) | Stage::Scouting(_) => true,
        });
    }
}

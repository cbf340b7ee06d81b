//! A chaos run from one seed: the disturbances with their times and durations, and the jobs. Pure;
//! the test `tests/chaos/main.rs` carries it out.
//!
//! `jobs` has the jobs and their expected ends, `ledger` the calls that the tool saw, and `audit`
//! compares both with the topics. A seed gives the same disturbances at the same points of the
//! work, but processes don't interleave in the same way again; it only narrows down what to look
//! at.

pub mod audit;
pub mod evidence;
pub mod hosted;
pub mod jobs;
pub mod keyring;
pub mod ledger;
pub mod watch;

use std::fmt;

use crate::proxy::Network;
use hosted::Forgotten;

/// The number of workers while nothing is disturbed.
pub const WORKERS: usize = 4;
/// The worker behind a network that can fail.
pub const BEHIND_PROXY: usize = WORKERS - 1;
/// The number of nodes of the cluster.
pub const BROKERS: usize = 3;
/// A run of fewer jobs is short: each disturbance happens once.
const SHORT: usize = 10_000;
/// The most workers that are disturbed at once; the others go on.
const MOST_DISTURBED: usize = 2;
/// Longer than the session timeout of the harness's workers, so that the group reassigns the
/// partitions.
const BEYOND_SESSION_MS: (u64, u64) = (8_000, 11_000);
/// How long the group has no coordinator after a stopped worker wakes up.
pub const WITHOUT_COORDINATOR_MS: u64 = 10_000;

/// Pseudo-random numbers that are the same on every machine and in every version: SplitMix64.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// Creates a generator from a seed.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next number.
    pub fn number(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// A number from `low` to `high`, both included.
    pub fn between(&mut self, low: u64, high: u64) -> u64 {
        low + self.number() % (high - low + 1)
    }

    /// One of `0..count`.
    pub fn index(&mut self, count: usize) -> usize {
        usize::try_from(self.between(0, count as u64 - 1)).unwrap_or_default()
    }

    fn shuffle<T>(&mut self, items: &mut [T]) {
        for last in (1..items.len()).rev() {
            items.swap(last, self.index(last + 1));
        }
    }
}

/// A disturbance of the fleet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Disturbance {
    /// SIGKILL of a worker; another worker takes its place.
    KillWorker {
        /// The worker.
        worker: usize,
    },
    /// SIGSTOP of a worker for a while, then SIGCONT: it wakes up after its work has been given to
    /// others.
    StopWorker {
        /// The worker.
        worker: usize,
        /// The duration in milliseconds.
        ms: u64,
    },
    /// The worker behind the proxy loses Kafka for a while, but not the server.
    CutWorker {
        /// [`Network::Refused`] or [`Network::Silent`].
        how: Network,
        /// The duration in milliseconds.
        ms: u64,
    },
    /// Workers start and stop in quick succession, all of them in order.
    Storm {
        /// The number of additional workers that start.
        join: usize,
        /// The usual workers that are stopped with SIGTERM together with those, and replaced.
        leave: usize,
    },
    /// SIGKILL of the server, which comes back after a while.
    KillServer {
        /// The duration in milliseconds.
        ms: u64,
    },
    /// SIGKILL of a broker, which comes back after a while.
    KillBroker {
        /// The broker.
        broker: usize,
        /// The duration in milliseconds.
        ms: u64,
    },
    /// SIGSTOP of a worker for a while, then SIGKILL of the group's coordinator and SIGCONT: the
    /// worker wakes up without contact with its group. The broker comes back after
    /// [`WITHOUT_COORDINATOR_MS`].
    WakeWithoutCoordinator {
        /// The worker.
        worker: usize,
        /// How long the worker is stopped.
        ms: u64,
    },
    /// SIGKILL of the hosted remote server, which comes back after a while without its sessions.
    KillHosted {
        /// The duration in milliseconds.
        ms: u64,
        /// How the new process refuses earlier sessions.
        forgotten: Forgotten,
    },
    /// The server loses the hosted remote server for a while.
    CutHosted {
        /// [`Network::Refused`] or [`Network::Silent`].
        how: Network,
        /// The duration in milliseconds.
        ms: u64,
    },
    /// The hosted remote server refuses our credentials for a while.
    RefuseHosted {
        /// The duration in milliseconds.
        ms: u64,
    },
}

impl Disturbance {
    /// The workers that the disturbance puts out of action.
    pub fn workers(self) -> Vec<usize> {
        match self {
            Self::KillWorker { worker }
            | Self::StopWorker { worker, .. }
            | Self::WakeWithoutCoordinator { worker, .. } => vec![worker],
            Self::CutWorker { .. } => vec![BEHIND_PROXY],
            // Use the first workers, so that the one behind the proxy remains available for a cut.
            Self::Storm { leave, .. } => (0..leave).collect(),
            Self::KillServer { .. }
            | Self::KillBroker { .. }
            | Self::KillHosted { .. }
            | Self::CutHosted { .. }
            | Self::RefuseHosted { .. } => Vec::new(),
        }
    }

    /// How long the disturbance lasts, if that is fixed in advance.
    pub fn lasts_ms(self) -> u64 {
        match self {
            Self::KillWorker { .. } | Self::Storm { .. } => 0,
            Self::StopWorker { ms, .. }
            | Self::CutWorker { ms, .. }
            | Self::KillServer { ms }
            | Self::KillBroker { ms, .. }
            | Self::KillHosted { ms, .. }
            | Self::CutHosted { ms, .. }
            | Self::RefuseHosted { ms } => ms,
            Self::WakeWithoutCoordinator { ms, .. } => ms + WITHOUT_COORDINATOR_MS,
        }
    }

    /// Whether a broker is down during the disturbance.
    fn needs_a_broker(self) -> bool {
        matches!(self, Self::KillBroker { .. } | Self::WakeWithoutCoordinator { .. })
    }

    fn is_about_hosted(self) -> bool {
        matches!(self, Self::KillHosted { .. } | Self::CutHosted { .. } | Self::RefuseHosted { .. })
    }

    /// Whether the disturbance may begin while `active` ones go on: at most one that concerns a
    /// broker, the server or the hosted server each, and never too many workers.
    pub fn may_join(self, active: &[Self]) -> bool {
        let busy: Vec<usize> = active.iter().flat_map(|other| other.workers()).collect();
        let mine = self.workers();
        let has = |kind: fn(&Self) -> bool| active.iter().any(kind);
        let is_broker = |other: &Self| other.needs_a_broker();
        let is_server = |other: &Self| matches!(other, Self::KillServer { .. });
        let is_storm = |other: &Self| matches!(other, Self::Storm { .. });
        let clash = match self {
            Self::KillBroker { .. } | Self::WakeWithoutCoordinator { .. } => {
                has(is_broker) || has(is_storm)
            }
            Self::KillServer { .. } => has(is_server),
            // A worker can't leave in order while the coordinator is down.
            Self::Storm { .. } => has(is_broker) || has(is_storm),
            Self::KillHosted { .. } | Self::CutHosted { .. } | Self::RefuseHosted { .. } => {
                has(|other| other.is_about_hosted())
            }
            _ => false,
        };

        !clash
            && mine.iter().all(|worker| !busy.contains(worker))
            && (mine.is_empty() || busy.len() + mine.len() <= MOST_DISTURBED)
    }
}

impl fmt::Display for Disturbance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::KillWorker { worker } => write!(f, "SIGKILL of worker {worker}"),
            Self::StopWorker { worker, ms } => write!(f, "SIGSTOP of worker {worker} for {ms} ms"),
            Self::CutWorker { how, ms } => {
                write!(f, "worker {BEHIND_PROXY} without Kafka ({how:?}) for {ms} ms")
            }
            Self::Storm { join, leave } => {
                write!(f, "{join} workers join, they and {leave} others leave")
            }
            Self::KillServer { ms } => write!(f, "SIGKILL of the server for {ms} ms"),
            Self::KillBroker { broker, ms } => write!(f, "SIGKILL of broker {broker} for {ms} ms"),
            Self::WakeWithoutCoordinator { worker, ms } => {
                write!(
                    f,
                    "SIGSTOP of worker {worker} for {ms} ms, SIGKILL of the coordinator as it wakes"
                )
            }
            Self::KillHosted { ms, forgotten } => {
                write!(
                    f,
                    "SIGKILL of the hosted server for {ms} ms; it refuses old sessions with {forgotten}"
                )
            }
            Self::CutHosted { how, ms } => {
                write!(f, "the hosted server is cut off ({how:?}) for {ms} ms")
            }
            Self::RefuseHosted { ms } => {
                write!(f, "the hosted server refuses credentials for {ms} ms")
            }
        }
    }
}

/// A disturbance and its start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    /// The disturbance begins once this many jobs have ended and the active disturbances allow it.
    pub after: usize,
    /// The disturbance.
    pub what: Disturbance,
}

/// All disturbances of a run, in the order of their starts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Schedule {
    /// The seed of the run.
    pub seed: u64,
    /// The number of jobs.
    pub jobs: usize,
    /// The disturbances, in the order in which they begin.
    pub steps: Vec<Step>,
}

impl Schedule {
    /// Creates the schedule of a seed: in each round, every disturbance happens once, in random
    /// order. Longer runs have more rounds.
    pub fn new(seed: u64, jobs: usize) -> Self {
        let mut random = Random::new(seed);
        let mut all = Vec::new();
        for _ in 0..rounds(jobs) {
            let mut round = round(&mut random);
            random.shuffle(&mut round);
            all.extend(round);
        }

        // No disturbance begins during the first and the last part of the jobs, so that some jobs
        // run undisturbed before and after.
        let part = jobs / (all.len() + 2);
        let steps = (1..).zip(all).map(|(number, what)| {
            let jitter = random.between(0, (part / 2) as u64);
            Step { after: part * number + usize::try_from(jitter).unwrap_or_default(), what }
        });
        Self { seed, jobs, steps: steps.collect() }
    }

    /// The number of jobs to submit once `begun` steps have begun: always more than the next step
    /// waits for, and the last jobs only after the last step has begun, so that the fleet is never
    /// idle during a disturbance.
    pub fn submitted(&self, begun: usize) -> usize {
        if begun == self.steps.len() {
            self.jobs
        } else {
            self.jobs / (self.steps.len() + 2) * (begun + 2)
        }
    }
}

/// How often each disturbance happens.
fn rounds(jobs: usize) -> usize {
    if jobs < SHORT { 1 } else { 2 + jobs / 100_000 }
}

fn round(random: &mut Random) -> Vec<Disturbance> {
    let mut beyond_session = || random.between(BEYOND_SESSION_MS.0, BEYOND_SESSION_MS.1);
    let (stop, refused, silent) = (beyond_session(), beyond_session(), beyond_session());
    let wake = beyond_session();
    let mut forgotten = || Forgotten::ALL[random.index(Forgotten::ALL.len())];
    let (after_outage, at_once) = (forgotten(), forgotten());
    vec![
        Disturbance::KillWorker { worker: random.index(WORKERS) },
        Disturbance::StopWorker { worker: random.index(WORKERS), ms: stop },
        Disturbance::CutWorker { how: Network::Refused, ms: refused },
        Disturbance::CutWorker { how: Network::Silent, ms: silent },
        Disturbance::Storm { join: random.index(2) + 1, leave: random.index(MOST_DISTURBED) + 1 },
        Disturbance::KillServer { ms: random.between(500, 4_000) },
        Disturbance::KillBroker { broker: random.index(BROKERS), ms: random.between(1_000, 6_000) },
        Disturbance::WakeWithoutCoordinator { worker: random.index(BEHIND_PROXY), ms: wake },
        Disturbance::KillHosted { ms: random.between(2_000, 8_000), forgotten: after_outage },
        Disturbance::KillHosted { ms: 0, forgotten: at_once },
        Disturbance::CutHosted { how: Network::Refused, ms: random.between(2_000, 6_000) },
        Disturbance::CutHosted { how: Network::Silent, ms: random.between(1_000, 4_000) },
        Disturbance::RefuseHosted { ms: random.between(2_000, 8_000) },
    ]
}

impl fmt::Display for Schedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "seed {}, {} jobs:", self.seed, self.jobs)?;
        for Step { after, what } in &self.steps {
            writeln!(f, "  after {after:>7}: {what}")?;
        }
        write!(
            f,
            "again: FLEET_CHAOS_SEED={} FLEET_CHAOS_JOBS={} scripts/test -p fleet-tests --test chaos",
            self.seed, self.jobs
        )
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, mem};

    use proptest::prelude::*;

    use super::*;

    /// Plays the steps as early as they may begin. Each lasts for its own time, and one that
    /// concerns a broker a while longer.
    fn play(schedule: &Schedule) {
        let mut active: Vec<(u64, Disturbance)> = Vec::new();
        let mut now = 0;
        for step in &schedule.steps {
            loop {
                let others: Vec<_> = active.iter().map(|(_, what)| *what).collect();
                let brokers = others.iter().filter(|what| what.needs_a_broker());
                assert!(brokers.count() <= 1, "two brokers down: {others:?}");
                let down: BTreeSet<_> = others.iter().flat_map(|what| what.workers()).collect();
                assert!(down.len() <= MOST_DISTURBED, "no worker is left: {others:?}");
                if step.what.may_join(&others) {
                    break;
                }
                // A step that may not begin now may begin once another has ended.
                let next =
                    active.iter().map(|(end, _)| *end).min().expect("something that is in the way");
                now = next;
                active.retain(|(end, _)| *end > now);
            }
            active.push((now + step.what.lasts_ms() + 1_000, step.what));
        }
    }

    proptest! {
        #[test]
        fn every_disturbance_happens_but_never_too_many_at_once(seed: u64, jobs in 1_000_usize..2_000_000) {
            let schedule = Schedule::new(seed, jobs);
            prop_assert_eq!(&schedule, &Schedule::new(seed, jobs));
            let kinds: Vec<_> = schedule.steps.iter().map(|step| mem::discriminant(&step.what)).collect();
            for kind in round(&mut Random::new(0)) {
                let times = kinds.iter().filter(|other| **other == mem::discriminant(&kind)).count();
                prop_assert!(times >= rounds(jobs), "{kind} happens {times} times");
            }
            for how in [Network::Refused, Network::Silent] {
                let mut cuts = schedule.steps.iter().map(|step| step.what);
                let cut = cuts.any(|what| matches!(what, Disturbance::CutWorker { how: other, .. } if other == how));
                prop_assert!(cut, "no cut is {:?}", how);
            }

            prop_assert!(schedule.steps.is_sorted_by_key(|step| step.after));
            prop_assert!(schedule.steps.iter().all(|step| (1..jobs).contains(&step.after)));
            for (begun, step) in schedule.steps.iter().enumerate() {
                prop_assert!(step.after < schedule.submitted(begun), "step {} would never begin", begun);
            }

            prop_assert_eq!(schedule.submitted(schedule.steps.len()), jobs);
            play(&schedule);
        }
    }

    #[test]
    fn seeds_differ() {
        assert_ne!(Schedule::new(1, 20_000).steps, Schedule::new(2, 20_000).steps);
    }
}

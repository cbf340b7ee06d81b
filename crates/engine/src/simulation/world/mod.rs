//! The simulated world: a broker with logs and committed offsets, workers with an engine each, a
//! server and a consumer group. Every move is drawn from a seed of its own. The module `moves` has
//! the moves, and `oracles` checks the promises.

mod attempts;
mod events;
mod fairness;
mod fault;
mod members;
mod moves;
mod narration;
mod oracles;
mod pauses;
mod remakes;
mod subject;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    time::Duration,
};

use events::{Events, Word};
use fairness::tenant_of;
pub(crate) use fault::Fault;
use fleet_group::{
    Contact, FinalCommit, Partition, Patience, Progress, Sample,
    log::{self, Found, LogName},
};
use fleet_job::{event::JobState, outcome::FailureClass, time::Timestamp};
use fleet_retry::Backoff;
pub(crate) use narration::Listener;
pub(crate) use subject::Subject;

use crate::{
    Admission, Attempt, Command, Config, Input, JobSpec, Limit, Limits, Need, Status, Tenant,
    Terminal, Token,
};

/// Moves of a schedule, before everything is left to come to its end.
const STEPS: u64 = 600;
/// Partitions of the jobs topic, by these numbers; the next one is the delayed topic's only one.
const JOBS: usize = 3;
const DELAYED: usize = JOBS;
const PARTITIONS: i32 = JOBS as i32 + 1;
const MAX_ATTEMPTS: u32 = 4;
/// A job that has to wait longer goes on in the delayed topic.
const MAX_PARK: i64 = 800;
/// A worker that has been silent for this long loses its partitions.
const SESSION: i64 = 1_200;
/// The clock moves by no more than this at once, so that workers that are awake are heard in time.
const BREATH: i64 = SESSION / 6;
/// The longest time that a record waits in the delayed topic.
const TIER: i64 = 600;
/// The number of moves in which all jobs end that do not need a hosted server that is away.
const SIT_OUT: usize = 3_000;
/// The number of hosted servers; they are numbered from 0.
const HOSTED: u64 = 2;
/// How long a hosted server that is away wants to be left alone.
const LEAVE_ALONE: i64 = 250;

/// Ends the schedule because a promise is broken. Unwinding without the panic hook keeps the many
/// schedules of the mutants quiet.
pub(crate) fn broken(message: String) -> ! {
    std::panic::resume_unwind(Box::new(message))
}

macro_rules! ensure {
    ($holds:expr, $($message:tt)+) => {
        if !$holds {
            broken(format!($($message)+));
        }
    };
}
use ensure;

struct Rng(u64);

impl Rng {
    /// Neighbouring seeds give unlike numbers; the state is never 0.
    fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }

    fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }
}

/// The outcome of a job's calls, whichever worker makes them.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Script {
    /// The calls fail this many times and then succeed.
    FailsThenSucceeds(u32),
    FailsForEver,
    Permanent,
    NoJob,
}

#[derive(Debug, Clone)]
struct Job {
    /// The same in every record of this job.
    id: u64,
    /// For a record of the delayed topic: when it is relayed, and which partition the job came
    /// from.
    relay: Option<(i64, usize)>,
    /// Attempts that were spent before this record was written.
    spent: u32,
    /// The record continues another one.
    passed_on: bool,
    limits: Limits,
    /// The hosted server that the job calls, if it calls one.
    hosted: Option<u64>,
    /// Whether the record names that server; for some jobs only the call shows it.
    is_known: bool,
    /// Since when the job has waited for that server, if it went to the delayed topic because of
    /// it.
    held_since: Option<i64>,
    /// The generation of the assignment under which the job was cancelled.
    cancelled: Option<u64>,
    key: Option<u64>,
    script: Script,
    /// Must not start after.
    deadline: Option<i64>,
    /// Must not start before.
    not_before: Option<i64>,
    /// Attempts that were spent, over all workers.
    ended: u32,
    terminals: Vec<Terminal>,
    /// The job was started after its end was written, and its end was not written again: readers
    /// take it for running.
    seems_to_run: bool,
    /// Settled and covered by an acknowledged commit or handed over in good order: must not run
    /// again (I4).
    must_not_repeat: bool,
}

/// One partition's log, and what the group has committed.
#[derive(Debug, Default)]
struct Log {
    /// How often the topic was recreated.
    remade: u64,
    /// The jobs of earlier logs that workers held when the topic was recreated, by generation and
    /// offset.
    gone: HashMap<(u64, i64), Job>,
    /// Offsets have holes.
    jobs: BTreeMap<i64, Job>,
    next: i64,
    committed: Option<(i64, String)>,
}

impl Log {
    fn name(&self) -> LogName {
        LogName { cluster: 1, topic: 1 + self.remade }
    }
}

struct Worker<E> {
    engine: E,
    contact: Contact,
    /// The log that the worker believes each of its partitions to be.
    logs: HashMap<i32, LogName>,
    /// The next offset to deliver, per partition.
    position: HashMap<i32, i64>,
    paused: BTreeSet<i32>,
    running: Vec<(Token, u32)>,
    writing: Vec<(Token, Terminal, u32)>,
    /// Attempts whose partition was taken away while they ran.
    late: Vec<(Token, u32)>,
    commits: Vec<FinalCommit>,
    probing: bool,
    /// The time that each hosted server that is away has asked this worker to wait for. No job
    /// calls the server earlier.
    held_until: BTreeMap<u64, i64>,
    /// Its engine may have commands from before contact was lost.
    has_old_commands: bool,
    /// The records that the worker knows to be settled, because it has written their ends.
    settled: BTreeSet<(i32, u64, i64)>,
    /// The terminal events that the worker has written, by the jobs' ids.
    ends: HashMap<u64, Word>,
    /// Partitions that the group has taken away while the worker was frozen, which does not know it
    /// yet.
    gone: Vec<i32>,
    /// How many jobs of others it has started while a tenant had a job that could start.
    passed: BTreeMap<u64, u32>,
    /// Its engine's status when the listener was last told.
    told: Option<Status>,
}

pub(crate) struct World<E> {
    rng: Rng,
    now: i64,
    logs: Vec<Log>,
    events: Events,
    /// How many events were made.
    words: u64,
    workers: Vec<Worker<E>>,
    owner: Vec<Option<usize>>,
    /// The worker that has stopped before it could carry out its engine's commands.
    dozes: Option<usize>,
    server_up: bool,
    /// Which hosted servers are away, and whether the server has no room for calls.
    away: BTreeSet<Need>,
    /// The pauses in force, by their numbers.
    pauses: BTreeSet<u64>,
    broker_up: bool,
    drops_metadata: bool,
    crashes: bool,
    /// Topics are made again under the workers.
    remakes: bool,
    /// People pause jobs, and resume them.
    pauses_jobs: bool,
    /// Whether anything has happened after which jobs may repeat: a crash, a lost partition, a last
    /// commit that failed.
    disorder: bool,
    generations: u64,
    /// How many jobs were produced, and which of them have ended.
    produced: u64,
    ended: BTreeSet<u64>,
    fault: Option<Fault>,
    /// Hears what happens.
    pub(crate) listener: Option<Listener>,
}

/// The seeds of the moves in the schedule of this seed. No two schedules share one.
pub(crate) fn moves_of(seed: u64) -> std::ops::Range<u64> {
    let first = seed.wrapping_mul(0x1_0000_0000);
    first..first + STEPS
}

fn partition(number: i32) -> Partition {
    Partition { topic: u16::from(number as usize == DELAYED), number }
}

fn ms(time: i64) -> Duration {
    Duration::from_millis(time.unsigned_abs())
}

fn engine<E: Subject>(seed: u64, fault: Option<Fault>) -> E {
    let ms = Duration::from_millis;
    let config = Config {
        max_in_flight: 4,
        max_buffered: 24,
        commit_interval: ms(200),
        urgent_commit_interval: ms(20),
        max_park: Some(Duration::from_millis(MAX_PARK as u64)),
        // With the longer one of the two, an attempt's delay is sometimes too long for memory.
        retry: Backoff { base: ms(if seed.is_multiple_of(2) { 50 } else { 900 }), max: ms(1600) },
        probe: Backoff { base: ms(100), max: ms(500) },
        rewrite: Backoff { base: ms(20), max: ms(100) },
        seed,
        ..Config::default()
    };
    E::new(config, fault)
}

impl<E: Subject> World<E> {
    pub(crate) fn new(seed: u64, fault: Option<Fault>, listener: Option<Listener>) -> Self {
        let mut rng = Rng::new(seed);
        let (drops_metadata, crashes) = (rng.chance(20), rng.chance(50));
        let mut world = Self {
            rng,
            now: 1_000_000,
            logs: (0..PARTITIONS).map(|_| Log::default()).collect(),
            events: Events::new(fault),
            words: 0,
            workers: Vec::new(),
            owner: vec![None; PARTITIONS as usize],
            dozes: None,
            server_up: true,
            away: BTreeSet::new(),
            pauses: BTreeSet::new(),
            broker_up: true,
            drops_metadata,
            crashes,
            // Without metadata nothing names the log, and jobs are lost: docs/offsets.md says so.
            remakes: seed.is_multiple_of(3) && !drops_metadata,
            pauses_jobs: seed % 3 == 1,
            disorder: drops_metadata,
            generations: 0,
            produced: 0,
            ended: BTreeSet::new(),
            fault,
            listener,
        };
        world.join();
        world
    }

    fn time(&self) -> Timestamp {
        Timestamp::from_millis(self.now).unwrap()
    }

    fn feed(&mut self, worker: usize, input: Input<'_>) {
        self.tell_input(worker, &input);
        let now = self.time();
        self.workers[worker].engine.handle(now, input);
        self.drain(worker);
        self.forget_served_tenants(worker);
        self.tell_changes(worker);
    }

    /// Lets time pass. Whoever is awake turns meanwhile, and hears the coordinator, which answers
    /// strangers too.
    fn pass(&mut self, time: i64, asleep: Option<usize>) {
        let end = self.now + time;
        while self.now < end {
            self.now = (self.now + BREATH).min(end);
            for worker in (0..self.workers.len()).filter(|worker| asleep != Some(*worker)) {
                self.breathe(worker);
            }
        }
    }

    fn breathe(&mut self, worker: usize) {
        let (now, broker_up) = (ms(self.now), self.broker_up);
        let Worker { contact, gone, has_old_commands, .. } = &mut self.workers[worker];
        // A loop that has stood still knows that it has, whatever its consumer's threads have done
        // meanwhile.
        *has_old_commands |= contact.is_broken(now);
        contact.turned(now);
        if self.fault == Some(Fault::TurnLiftsGap) {
            // As if the coordinator had accepted a commit.
            contact.accepted(now);
        }
        if broker_up {
            contact.sampled(Sample { at: now, received: Some(now), is_joining: false });
        }
        if broker_up && contact.wants_proof(now) && gone.is_empty() {
            contact.accepted(now);
        }
        self.drain(worker);
    }

    /// Whether a worker waits for its membership to be proven, and does nothing meanwhile.
    fn is_out_of_contact(&self, worker: usize) -> bool {
        self.workers[worker].contact.is_broken(ms(self.now))
    }

    /// Takes note that a worker may have no partitions any more.
    fn note_vacancy(&mut self, worker: usize) {
        if !self.owner.contains(&Some(worker)) {
            self.workers[worker].contact.vacated();
        }
    }

    fn job(&mut self, token: Token) -> &mut Job {
        let log = &mut self.logs[token.partition.number as usize];
        match log.gone.get_mut(&(token.generation, token.offset)) {
            Some(job) => job,
            None => log.jobs.get_mut(&token.offset).unwrap(),
        }
    }

    // --- The end --------------------------------------------------------------------------------

    /// Jobs that have ended, and of which the last that was said is that they run.
    fn seems_to_run(&self) -> Vec<&Job> {
        self.logs.iter().flat_map(|log| log.jobs.values()).filter(|job| job.seems_to_run).collect()
    }

    /// Lets everything go on for a while with server and broker up, one hosted server away, and some
    /// jobs paused, if they were, but not all.
    pub(crate) fn sit_out(&mut self) {
        self.server_up = true;
        self.broker_up = true;
        self.away = BTreeSet::from([Need::Hosted(0)]);
        self.resume(0);
        self.rng = Rng::new(0);
        (0..self.workers.len()).for_each(|worker| self.hear(worker));
        (0..PARTITIONS).for_each(|number| self.notice(number));
        // What has been read by now is looked at afterwards, when it has had time enough.
        let read: Vec<(usize, i64)> =
            (0..JOBS).map(|number| (number, self.read_up_to(number))).collect();
        let deadline = self.now;
        for _ in 0..SIT_OUT {
            self.go_on();
        }
        self.check_others_went_on(&read, deadline);
    }

    fn read_up_to(&self, number: usize) -> i64 {
        let worker = self.owner[number].map(|worker| &self.workers[worker]);
        worker.and_then(|worker| worker.position.get(&(number as i32)).copied()).unwrap_or_default()
    }

    fn go_on(&mut self) {
        match self.rng.below(6) {
            0 | 1 => self.deliver(),
            2 => self.finish(),
            3 => self.write(),
            4 => self.answer_commit(),
            _ => self.tick(),
        }
    }

    /// Lets everything come to its end with all servers and the broker up; every record must then
    /// have a terminal state (I3).
    pub(crate) fn settle_down(&mut self) {
        self.away.clear();
        for pause in self.pauses.clone() {
            self.resume(pause);
        }
        for _ in 0..200_000 {
            let ended =
                self.logs.iter().all(|log| log.jobs.values().all(|job| !job.terminals.is_empty()));
            // What was begun once more has to come to its end once more.
            if ended && self.seems_to_run().is_empty() {
                return;
            }
            self.go_on();
        }
        let left: Vec<_> = self
            .logs
            .iter()
            .flat_map(|log| log.jobs.iter().filter(|(_, job)| job.terminals.is_empty()))
            .collect();
        let status: Vec<_> = self.workers.iter().map(|worker| worker.engine.status()).collect();
        let seem_to_run = self.seems_to_run();
        broken(format!(
            "I3: jobs without an end: {left:?}, that seem to run: {seem_to_run:?}\n{status:?}"
        ));
    }
}

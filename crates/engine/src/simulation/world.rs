//! The simulated world: a broker with logs and committed offsets, workers with an engine each, a server, a group. Every
//! move is drawn from a seed of its own. `moves` has the moves, `oracles` what must hold.

mod moves;
mod oracles;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    time::Duration,
};

use fleet_job::{outcome::FailureClass, time::Timestamp};

use crate::{
    Admission, Attempt, Backoff, Command, Config, Contact, Engine, FinalCommit, Input, JobSpec, Limit,
    Limits, Need, Partition, Patience, Progress, Sample, Terminal, Token,
    log::{self, Found, LogName},
    types::Fault,
};

/// Partitions of the jobs topic, by these numbers; the next one is the delayed topic's only one.
const JOBS: usize = 3;
const DELAYED: usize = JOBS;
const PARTITIONS: i32 = JOBS as i32 + 1;
const MAX_ATTEMPTS: u32 = 4;
/// A job that has to wait longer goes on in the delayed topic.
const MAX_PARK: i64 = 800;
/// A worker that is not heard of for so long loses its partitions.
const SESSION: i64 = 1_200;
/// The clock does not move further at once, so that those who are awake are heard in time.
const BREATH: i64 = SESSION / 6;
/// How long a record of the delayed topic waits there at most.
const TIER: i64 = 600;
/// So many moves are enough for all jobs that a hosted server's absence does not concern.
const SIT_OUT: usize = 3_000;
/// Hosted servers, by these numbers.
const HOSTED: u64 = 2;
/// How long a hosted server that is away wants to be left alone.
const LEAVE_ALONE: i64 = 250;

/// Ends the schedule: a promise is broken. Unwinding without the panic hook keeps the many schedules of the mutants quiet.
pub(super) fn broken(message: String) -> ! {
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

/// What a job's calls come to, whoever makes them.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Script {
    /// Fails so many times and then succeeds.
    FailsThenSucceeds(u32),
    FailsForEver,
    Permanent,
    NoJob,
}

#[derive(Debug, Clone)]
struct Job {
    /// The same in every record that this job ever is.
    id: u64,
    /// For a record of the delayed topic: when it is to be looked at, and where the job came from.
    relay: Option<(i64, usize)>,
    /// Attempts that were spent before this record was written.
    spent: u32,
    /// It was written on from another record.
    passed_on: bool,
    limits: Limits,
    /// The hosted server that it calls, where it calls one.
    hosted: Option<u64>,
    /// Its record says so; of some it shows only in the call.
    is_known: bool,
    /// Since when it has waited for that, where it went to the delayed topic because of it.
    held_since: Option<i64>,
    /// The assignment under which it was cancelled.
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
    /// It was started after its end was written, and its end was not written again: whoever reads that takes it for running.
    seems_to_run: bool,
    /// Settled and covered by an acknowledged commit or handed over in good order: must not run again (I4).
    must_not_repeat: bool,
}

/// One partition's log, and what the group has committed.
#[derive(Debug, Default)]
struct Log {
    /// How often its topic was made again.
    remade: u64,
    /// The jobs of earlier logs that workers had in their hands when the topic was made again, by generation and offset.
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

struct Worker {
    engine: Engine,
    contact: Contact,
    /// The log that it takes each of its partitions for.
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
    /// When each hosted server that is away wants to be asked again, as it has said here. Before that nobody asks.
    held_until: BTreeMap<u64, i64>,
    /// Since when its engine may have commands that are not carried out: it is out of contact.
    undone_since: Option<i64>,
    /// What it knows to be settled, because it has written that.
    settled: BTreeSet<(i32, u64, i64)>,
    /// Partitions that the group has taken away while this worker was frozen; it does not know yet.
    gone: Vec<i32>,
}

pub(super) struct World {
    rng: Rng,
    now: i64,
    logs: Vec<Log>,
    workers: Vec<Worker>,
    owner: Vec<Option<usize>>,
    server_up: bool,
    /// The hosted servers, and the server's room for calls, as far as they are away.
    away: BTreeSet<Need>,
    broker_up: bool,
    drops_metadata: bool,
    crashes: bool,
    /// Topics are made again under the workers.
    remakes: bool,
    /// Something has happened after which jobs may repeat: a crash, a lost partition, a last commit that failed.
    disorder: bool,
    generations: u64,
    /// How many jobs were produced, and which of them have come to their end.
    produced: u64,
    ended: BTreeSet<u64>,
    fault: Option<Fault>,
    trace: bool,
}

fn partition(number: i32) -> Partition {
    Partition { topic: u16::from(number as usize == DELAYED), number }
}

fn ms(time: i64) -> Duration {
    Duration::from_millis(time.unsigned_abs())
}

fn engine(seed: u64, fault: Option<Fault>) -> Engine {
    let ms = Duration::from_millis;
    Engine::new(Config {
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
        fault,
        ..Config::default()
    })
}

impl World {
    pub(super) fn new(seed: u64, fault: Option<Fault>) -> Self {
        let mut rng = Rng::new(seed);
        let (drops_metadata, crashes) = (rng.chance(20), rng.chance(50));
        let mut world = Self {
            rng,
            now: 1_000_000,
            logs: (0..PARTITIONS).map(|_| Log::default()).collect(),
            workers: Vec::new(),
            owner: vec![None; PARTITIONS as usize],
            server_up: true,
            away: BTreeSet::new(),
            broker_up: true,
            drops_metadata,
            crashes,
            // Without metadata nothing names the log, and jobs are lost: docs/offsets.md says so.
            remakes: seed.is_multiple_of(3) && !drops_metadata,
            disorder: drops_metadata,
            generations: 0,
            produced: 0,
            ended: BTreeSet::new(),
            fault,
            trace: std::env::var_os("FLEET_SIM_TRACE").is_some(),
        };
        world.join();
        world
    }

    fn time(&self) -> Timestamp {
        Timestamp::from_millis(self.now).unwrap()
    }

    fn feed(&mut self, worker: usize, input: Input<'_>) {
        if self.trace {
            eprintln!("{} worker {worker}: {input:?}", self.now);
        }
        let (now, at) = (self.time(), self.now);
        self.workers[worker].undone_since.get_or_insert(at);
        self.workers[worker].engine.handle(now, input);
        self.drain(worker);
    }

    /// Lets time pass. Whoever is awake turns meanwhile, and hears the coordinator, which answers strangers too.
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
        let Worker { contact, gone, .. } = &mut self.workers[worker];
        contact.turned(now);
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

    // --- Membership -----------------------------------------------------------------------------------------------

    fn join(&mut self) {
        let seed = self.rng.next();
        let mut contact = Contact::new(Patience::new(ms(SESSION), Duration::ZERO));
        contact.fault = self.fault;
        contact.turned(ms(self.now));
        self.workers.push(Worker {
            engine: engine(seed, self.fault),
            contact,
            position: HashMap::new(),
            paused: BTreeSet::new(),
            running: Vec::new(),
            writing: Vec::new(),
            late: Vec::new(),
            commits: Vec::new(),
            probing: false,
            held_until: BTreeMap::new(),
            undone_since: None,
            settled: BTreeSet::new(),
            logs: HashMap::new(),
            gone: Vec::new(),
        });
        self.rebalance();
    }

    /// A worker stops in good order: it gives everything back first.
    fn leave(&mut self) {
        let worker = self.rng.below(self.workers.len() as u64) as usize;
        for number in 0..PARTITIONS {
            if self.owner[number as usize] == Some(worker) {
                self.revoke(worker, number);
            }
        }
        self.remove(worker);
    }

    /// A worker dies: its partitions move without a word from it.
    fn crash(&mut self) {
        self.disorder = true;
        let worker = self.rng.below(self.workers.len() as u64) as usize;
        self.remove(worker);
        if self.workers.is_empty() {
            self.join();
        }
    }

    /// A worker is frozen for so long that the group gives its partitions to others. It goes on and does not know.
    fn freeze(&mut self) {
        self.disorder = true;
        let worker = self.rng.below(self.workers.len() as u64) as usize;
        self.pass(SESSION, Some(worker));
        for number in 0..PARTITIONS {
            if self.owner[number as usize] == Some(worker) {
                self.owner[number as usize] = None;
                self.workers[worker].gone.push(number);
            }
        }
        self.rebalance();
        // Awake again, it hears the coordinator, and what it hears is a refusal.
        self.breathe(worker);
    }

    /// A worker that was frozen hears what it has lost.
    fn thaw(&mut self) {
        let worker = self.rng.below(self.workers.len() as u64) as usize;
        self.hear(worker);
    }

    fn hear(&mut self, worker: usize) {
        let gone: Vec<_> =
            std::mem::take(&mut self.workers[worker].gone).into_iter().map(partition).collect();
        if !gone.is_empty() {
            self.note_vacancy(worker);
            self.feed(worker, Input::Lost(&gone));
        }
    }

    fn remove(&mut self, worker: usize) {
        self.workers.remove(worker);
        for owner in &mut self.owner {
            *owner = match *owner {
                Some(number) if number == worker => None,
                Some(number) if number > worker => Some(number - 1),
                other => other,
            };
        }
        if !self.workers.is_empty() {
            self.rebalance();
        }
    }

    /// Moves some partitions, and gives away those without an owner.
    fn rebalance(&mut self) {
        for number in 0..PARTITIONS {
            let to = self.rng.below(self.workers.len() as u64) as usize;
            match self.owner[number as usize] {
                Some(from) if from == to => continue,
                Some(from) if self.rng.chance(50) => self.revoke(from, number),
                Some(_) => continue,
                None => {}
            }
            // It joins again only when it has heard what it has lost.
            self.hear(to);
            self.owner[number as usize] = Some(to);
            let log = &self.logs[number as usize];
            let committed = log.committed.as_ref().map(|(offset, metadata)| (*offset, metadata.as_str()));
            let name = if self.fault == Some(Fault::LogIgnored) { LogName::UNKNOWN } else { log.name() };
            let found = Found { log: name, committed, first: Some(0), end: Some(log.next) };
            let progress = log::start(found).progress;
            self.assign(to, number, progress);
        }
    }

    fn assign(&mut self, worker: usize, number: i32, progress: Option<Progress>) {
        let log = self.logs[number as usize].name();
        let start = progress.as_ref().map_or(0, |progress| progress.base);
        self.workers[worker].position.insert(number, start);
        self.workers[worker].paused.remove(&number);
        self.workers[worker].logs.insert(number, log);
        self.workers[worker].contact.turned(ms(self.now));
        self.workers[worker].contact.assigned();
        self.generations += 1;
        let generation = self.generations;
        self.feed(worker, Input::Assigned { partition: partition(number), generation, log, progress });
    }

    /// Whether the owner of a partition does not know yet that its topic was made again.
    fn is_unnoticed(&self, number: i32) -> bool {
        let log = self.logs[number as usize].name();
        self.owner[number as usize].is_some_and(|owner| self.workers[owner].logs.get(&number) != Some(&log))
    }

    /// The owner of a partition hears that its topic was made again: what runs gets to its end, nothing is committed any
    /// more, and the new log is read from its beginning.
    fn notice(&mut self, number: i32) {
        let Some(worker) = self.owner[number as usize].filter(|_| self.is_unnoticed(number)) else { return };
        let partitions = [partition(number)];
        self.feed(worker, Input::Draining(&partitions));
        for _ in 0..self.rng.below(30) {
            if self.rng.chance(50) { self.finish() } else { self.write() }
        }
        let commits = self.workers[worker].engine.release(&partitions);
        self.drain(worker);
        let reads_on = self.fault == Some(Fault::OldFrontierKept);
        let kept = commits.first().filter(|_| reads_on).map(|commit| Progress::none(commit.offset));
        self.assign(worker, number, kept);
    }

    fn revoke(&mut self, worker: usize, number: i32) {
        let partitions = [partition(number)];
        if self.rng.chance(10) {
            self.disorder = true;
            self.feed(worker, Input::Lost(&partitions));
        } else {
            self.feed(worker, Input::Draining(&partitions));
            // Some of what runs gets to its end within the drain.
            for _ in 0..self.rng.below(30) {
                if self.rng.chance(50) { self.finish() } else { self.write() }
            }
            let commits = self.workers[worker].engine.release(&partitions);
            self.drain(worker);
            if self.broker_up {
                commits.iter().for_each(|commit| self.commit(commit));
            } else {
                self.disorder = true;
            }
        }
        self.owner[number as usize] = None;
        self.note_vacancy(worker);
    }

    // --- The end --------------------------------------------------------------------------------------------------

    /// Jobs that have ended, and of which the last that was said is that they run.
    fn seems_to_run(&self) -> Vec<&Job> {
        self.logs.iter().flat_map(|log| log.jobs.values()).filter(|job| job.seems_to_run).collect()
    }

    /// Lets everything go on for a while with server and broker up, and one hosted server away.
    pub(super) fn sit_out(&mut self) {
        self.server_up = true;
        self.broker_up = true;
        self.away = BTreeSet::from([Need::Hosted(0)]);
        self.rng = Rng::new(0);
        (0..self.workers.len()).for_each(|worker| self.hear(worker));
        (0..PARTITIONS).for_each(|number| self.notice(number));
        // What has been read by now is looked at afterwards, when it has had time enough.
        let read: Vec<(usize, i64)> = (0..JOBS).map(|number| (number, self.read_up_to(number))).collect();
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

    /// Lets everything come to its end with all servers and the broker up; every record must then have a terminal state (I3).
    pub(super) fn settle_down(&mut self) {
        self.away.clear();
        for _ in 0..200_000 {
            let ended = self.logs.iter().all(|log| log.jobs.values().all(|job| !job.terminals.is_empty()));
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
        broken(format!("I3: jobs without an end: {left:?}, that seem to run: {seem_to_run:?}\n{status:?}"));
    }
}

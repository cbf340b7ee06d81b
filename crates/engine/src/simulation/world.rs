//! The simulated world: a broker with logs and committed offsets, workers with an engine each, a server, a group. Every
//! move is drawn from one seed. The oracles for I1 and I3 to I7 look at every command and every write.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    time::Duration,
};

use fleet_job::{outcome::FailureClass, time::Timestamp};

use crate::{
    Admission, Attempt, Backoff, Command, Config, Engine, FinalCommit, Input, JobSpec, Partition, Progress,
    Terminal, Token, types::Fault,
};

const PARTITIONS: i32 = 3;
const MAX_ATTEMPTS: u32 = 4;

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

struct Rng(u64);

impl Rng {
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

#[derive(Debug)]
struct Job {
    key: Option<u64>,
    script: Script,
    /// Must not start after.
    deadline: Option<i64>,
    /// Must not start before.
    not_before: Option<i64>,
    /// Attempts that have ended, over all workers.
    ended: u32,
    terminals: Vec<Terminal>,
    /// Settled and covered by an acknowledged commit or handed over in good order: must not run again (I4).
    must_not_repeat: bool,
}

/// One partition's log, and what the group has committed.
#[derive(Debug, Default)]
struct Log {
    /// Offsets have holes.
    jobs: BTreeMap<i64, Job>,
    next: i64,
    committed: Option<(i64, String)>,
}

struct Worker {
    engine: Engine,
    /// The next offset to deliver, per partition.
    position: HashMap<i32, i64>,
    paused: BTreeSet<i32>,
    running: Vec<(Token, u32)>,
    writing: Vec<(Token, Terminal)>,
    /// Attempts whose partition was taken away while they ran.
    late: Vec<(Token, u32)>,
    commits: Vec<FinalCommit>,
    probing: bool,
}

pub(super) struct World {
    rng: Rng,
    now: i64,
    logs: Vec<Log>,
    workers: Vec<Worker>,
    owner: Vec<Option<usize>>,
    server_up: bool,
    broker_up: bool,
    drops_metadata: bool,
    crashes: bool,
    /// Something has happened after which jobs may repeat: a crash, a lost partition, a last commit that failed.
    disorder: bool,
    generations: u64,
    fault: Option<Fault>,
    trace: bool,
}

fn partition(number: i32) -> Partition {
    Partition { topic: 0, number }
}

fn engine(seed: u64, fault: Option<Fault>) -> Engine {
    let ms = Duration::from_millis;
    Engine::new(Config {
        max_in_flight: 4,
        max_buffered: 24,
        commit_interval: ms(200),
        urgent_commit_interval: ms(20),
        retry: Backoff { base: ms(50), max: ms(400) },
        probe: Backoff { base: ms(100), max: ms(500) },
        rewrite: Backoff { base: ms(20), max: ms(100) },
        seed,
        fault,
        ..Config::default()
    })
}

impl World {
    pub(super) fn new(seed: u64, fault: Option<Fault>) -> Self {
        let mut rng = Rng(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1);
        let (drops_metadata, crashes) = (rng.chance(20), rng.chance(50));
        let mut world = Self {
            rng,
            now: 1_000_000,
            logs: (0..PARTITIONS).map(|_| Log::default()).collect(),
            workers: Vec::new(),
            owner: vec![None; PARTITIONS as usize],
            server_up: true,
            broker_up: true,
            drops_metadata,
            crashes,
            disorder: drops_metadata,
            generations: 0,
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
        let now = self.time();
        self.workers[worker].engine.handle(now, input);
        self.drain(worker);
    }

    fn job(&mut self, token: Token) -> &mut Job {
        self.logs[token.partition.number as usize].jobs.get_mut(&token.offset).unwrap()
    }

    // --- Commands, and the oracles on them ----------------------------------------------------------------------

    fn drain(&mut self, worker: usize) {
        while let Some(command) = self.workers[worker].engine.poll() {
            match command {
                Command::Start(token, attempt) => self.started(worker, token, attempt),
                Command::Settle(token, terminal, _) => {
                    self.workers[worker].writing.push((token, terminal));
                    if self.fault == Some(Fault::SettleBeforeWritten) {
                        let now = self.time();
                        self.workers[worker].engine.handle(now, Input::Written(token));
                    }
                }
                Command::Commit(commit) => self.workers[worker].commits.push(commit),
                Command::Forget(token) => {
                    // What has ended already may still be on its way to the engine.
                    let worker = &mut self.workers[worker];
                    let late = worker.running.iter().filter(|(running, _)| *running == token);
                    worker.late.extend(late);
                    worker.running.retain(|(running, _)| *running != token);
                    worker.writing.retain(|(writing, _)| *writing != token);
                }
                Command::Pause(partition, _) => {
                    self.workers[worker].paused.insert(partition.number);
                }
                Command::Resume(partition, _) => {
                    self.workers[worker].paused.remove(&partition.number);
                }
                Command::Probe => self.workers[worker].probing = true,
                Command::LogReset(partition) => broken(format!("{partition:?} was not reset")),
                Command::Retrying(token, attempts, _) => {
                    ensure!(
                        attempts < MAX_ATTEMPTS,
                        "I6: {token:?} is to be tried again after {attempts} attempts"
                    );
                }
                Command::Violation(name, token) => broken(format!("{name} is violated at {token:?}")),
            }
        }
    }

    fn started(&mut self, worker: usize, token: Token, attempt: u32) {
        let (number, now) = (token.partition.number, self.now);
        let owner = self.owner[number as usize];
        ensure!(owner == Some(worker), "{token:?} starts in a worker that does not have its partition");
        ensure!(attempt <= MAX_ATTEMPTS, "I6: attempt {attempt} of {token:?}");
        // Every attempt before this one is committed, where the broker keeps metadata (I6).
        if attempt > 1 && !self.drops_metadata {
            let (offset, metadata) = self.logs[number as usize].committed.clone().unwrap_or_default();
            let durable =
                Progress::decode(offset, &metadata).map_or(0, |progress| progress.attempts(token.offset));
            ensure!(
                durable + 1 >= attempt,
                "I6: attempt {attempt} of {token:?} starts, and {durable} are durable"
            );
        }
        let job = self.job(token);
        ensure!(!job.must_not_repeat, "I4: {token:?} runs again");
        ensure!(job.deadline.is_none_or(|d| d > now), "{token:?} starts after its deadline");
        ensure!(job.not_before.is_none_or(|d| d <= now), "{token:?} starts too early");
        ensure!(job.script != Script::NoJob, "what is no job must not start");
        let key = job.key;
        if let Some(key) = key {
            let log = &self.logs[number as usize];
            let earlier = log.jobs.range(..token.offset).filter(|(_, job)| job.key == Some(key));
            for (offset, job) in earlier {
                ensure!(
                    !job.terminals.is_empty() || job.script == Script::NoJob,
                    "I5: {token:?} starts before offset {offset} of its key is settled,"
                );
            }
            let same = self.workers[worker].running.iter().any(|(running, _)| {
                running.partition == token.partition
                    && self.logs[number as usize].jobs[&running.offset].key == Some(key)
            });
            ensure!(!same, "I5: two jobs of one key at once");
        }
        self.workers[worker].running.push((token, attempt));
    }

    fn commit(&mut self, commit: &FinalCommit) {
        let drops = self.drops_metadata;
        let log = &mut self.logs[commit.partition.number as usize];
        for (offset, job) in log.jobs.range(..commit.offset) {
            ensure!(!job.terminals.is_empty(), "I1: offset {offset} is committed and not settled");
        }
        let metadata = if drops { String::new() } else { commit.metadata.clone() };
        log.committed = Some((commit.offset, metadata));
        // A crash from here on must respect what the commit says; so must a handover.
        for (_, job) in log.jobs.range_mut(..commit.offset) {
            job.must_not_repeat = true;
        }
        if !drops {
            let progress = Progress::decode(commit.offset, &commit.metadata).unwrap();
            for (offset, job) in log.jobs.range_mut(commit.offset..progress.end) {
                if progress.is_done(*offset) {
                    ensure!(!job.terminals.is_empty(), "I1: {offset} is marked done and is not,");
                    job.must_not_repeat = true;
                }
            }
        }
    }

    // --- Moves ----------------------------------------------------------------------------------------------------

    pub(super) fn step(&mut self) {
        match self.rng.below(100) {
            0..=14 => self.produce(),
            15..=44 => self.deliver(),
            45..=64 => self.finish(),
            65..=79 => self.write(),
            80..=87 => self.answer_commit(),
            88..=90 => self.now += self.rng.below(500) as i64,
            91 => self.server_up = !self.server_up,
            92 => self.broker_up = !self.broker_up,
            93 if self.workers.len() < 3 => self.join(),
            94 if self.workers.len() > 1 => self.leave(),
            95 if self.crashes => self.crash(),
            _ => self.tick(),
        }
    }

    fn produce(&mut self) {
        let number = self.rng.below(PARTITIONS as u64) as usize;
        let hole = if self.rng.chance(15) { self.rng.below(4) as i64 } else { 0 };
        let key = if self.rng.chance(70) { Some(self.rng.below(4)) } else { None };
        let script = match self.rng.below(20) {
            0 => Script::FailsForEver,
            1 => Script::Permanent,
            2 => Script::NoJob,
            3..=6 => Script::FailsThenSucceeds(1 + self.rng.below(3) as u32),
            _ => Script::FailsThenSucceeds(0),
        };
        let log = &mut self.logs[number];
        let offset = log.next + hole;
        log.next = offset + 1;
        let deadline = self.time_within(20, 3000);
        let not_before = self.time_within(15, 1500);
        let log = &mut self.logs[number];
        log.jobs.insert(
            offset,
            Job {
                key,
                script,
                deadline,
                not_before,
                ended: 0,
                terminals: Vec::new(),
                must_not_repeat: false,
            },
        );
    }

    /// In so many percent of all cases a time within the next milliseconds.
    fn time_within(&mut self, percent: u64, ms: u64) -> Option<i64> {
        let at = self.now + self.rng.below(ms) as i64;
        self.rng.chance(percent).then_some(at)
    }

    fn deliver(&mut self) {
        let number = self.rng.below(PARTITIONS as u64) as i32;
        let Some(worker) = self.owner[number as usize].filter(|_| self.broker_up) else { return };
        if self.workers[worker].paused.contains(&number) {
            return;
        }
        let position = self.workers[worker].position[&number];
        let log = &self.logs[number as usize];
        let Some((offset, job)) = log.jobs.range(position..).next() else { return };
        let admission = match job.script {
            Script::NoJob => Admission::Reject,
            _ => Admission::Job(JobSpec {
                key: job.key,
                priority: (offset % 5) as u8,
                not_before: job.not_before.map(|n| Timestamp::from_millis(n).unwrap()),
                deadline: job.deadline.map(|n| Timestamp::from_millis(n).unwrap()),
                max_attempts: MAX_ATTEMPTS,
            }),
        };
        let offset = *offset;
        self.workers[worker].position.insert(number, offset + 1);
        self.feed(worker, Input::Record { partition: partition(number), offset, bytes: 10, admission });
    }

    fn finish(&mut self) {
        let worker = self.rng.below(self.workers.len() as u64) as usize;
        if self.rng.chance(10)
            && let Some((token, _)) = self.workers[worker].late.pop()
        {
            return self.feed(worker, Input::Finished(token, Attempt::Succeeded));
        }
        if self.workers[worker].running.is_empty() {
            return self.probe(worker);
        }
        let index = self.rng.below(self.workers[worker].running.len() as u64) as usize;
        let (token, attempt) = self.workers[worker].running.swap_remove(index);
        let up = self.server_up;
        let lost = self.rng.chance(3);
        let job = self.job(token);
        let outcome = match job.script {
            _ if !up => Attempt::Failed(FailureClass::Unavailable, None),
            Script::Permanent => Attempt::Failed(FailureClass::Permanent, None),
            Script::FailsForEver => Attempt::Failed(FailureClass::Retry, None),
            Script::FailsThenSucceeds(n) if attempt <= n || lost => {
                Attempt::Failed(FailureClass::Retry, None)
            }
            _ => Attempt::Succeeded,
        };
        if !matches!(outcome, Attempt::Failed(FailureClass::Unavailable, _)) {
            job.ended += 1;
        }
        self.feed(worker, Input::Finished(token, outcome));
    }

    fn probe(&mut self, worker: usize) {
        if std::mem::take(&mut self.workers[worker].probing) {
            let up = self.server_up;
            self.feed(worker, Input::Probed(up));
        }
    }

    fn write(&mut self) {
        let worker = self.rng.below(self.workers.len() as u64) as usize;
        if self.workers[worker].writing.is_empty() {
            return;
        }
        let index = self.rng.below(self.workers[worker].writing.len() as u64) as usize;
        let (token, terminal) = self.workers[worker].writing.swap_remove(index);
        if !self.broker_up || self.rng.chance(5) {
            if self.fault == Some(Fault::WriteFailureIgnored) {
                return self.feed(worker, Input::Written(token));
            }
            return self.feed(worker, Input::WriteFailed(token));
        }
        let job = self.job(token);
        let meant = match job.script {
            _ if terminal == Terminal::Expired && job.deadline.is_some() => Terminal::Expired,
            Script::NoJob => Terminal::Rejected,
            Script::Permanent | Script::FailsForEver => Terminal::Failed,
            // A lost call can spend the attempt that would have succeeded.
            Script::FailsThenSucceeds(_) if terminal == Terminal::Failed => {
                ensure!(job.ended >= MAX_ATTEMPTS, "I6: {token:?} gives up after {} attempts", job.ended);
                Terminal::Failed
            }
            Script::FailsThenSucceeds(_) => Terminal::Succeeded,
        };
        ensure!(terminal == meant, "{token:?} ends as {terminal:?} and not as {meant:?}");
        job.terminals.push(terminal);
        self.feed(worker, Input::Written(token));
    }

    fn answer_commit(&mut self) {
        let worker = self.rng.below(self.workers.len() as u64) as usize;
        if self.workers[worker].commits.is_empty() {
            return;
        }
        let commit = self.workers[worker].commits.remove(0);
        // A commit of a partition that has gone is refused by the broker: another member's generation.
        let ours = self.owner[commit.partition.number as usize] == Some(worker)
            && self.workers[worker].engine.token(commit.partition, 0).map(|token| token.generation)
                == Some(commit.generation);
        let ours = ours || self.fault == Some(Fault::CommitAfterRevoke);
        let ok = ours && self.broker_up && !self.rng.chance(5);
        if ok {
            self.commit(&commit);
        }
        let FinalCommit { partition, generation, .. } = commit;
        self.feed(worker, Input::Committed { partition, generation, ok });
    }

    fn tick(&mut self) {
        self.now += 1 + self.rng.below(60) as i64;
        for worker in 0..self.workers.len() {
            self.feed(worker, Input::Tick);
        }
    }

    // --- Membership -----------------------------------------------------------------------------------------------

    fn join(&mut self) {
        let seed = self.rng.next();
        self.workers.push(Worker {
            engine: engine(seed, self.fault),
            position: HashMap::new(),
            paused: BTreeSet::new(),
            running: Vec::new(),
            writing: Vec::new(),
            late: Vec::new(),
            commits: Vec::new(),
            probing: false,
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
            self.owner[number as usize] = Some(to);
            let committed = self.logs[number as usize].committed.clone();
            let start = committed.as_ref().map_or(0, |(offset, _)| *offset);
            self.workers[to].position.insert(number, start);
            self.workers[to].paused.remove(&number);
            let committed = committed.as_ref().map(|(offset, metadata)| (*offset, metadata.as_str()));
            self.generations += 1;
            let generation = self.generations;
            self.feed(to, Input::Assigned { partition: partition(number), generation, committed });
        }
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
    }

    // --- The end --------------------------------------------------------------------------------------------------

    /// Lets everything come to its end with server and broker up; every record must then have a terminal state (I3).
    pub(super) fn settle_down(&mut self) {
        self.server_up = true;
        self.broker_up = true;
        for _ in 0..200_000 {
            if self.logs.iter().all(|log| log.jobs.values().all(|job| !job.terminals.is_empty())) {
                return;
            }
            match self.rng.below(6) {
                0 | 1 => self.deliver(),
                2 => self.finish(),
                3 => self.write(),
                4 => self.answer_commit(),
                _ => self.tick(),
            }
        }
        let left: Vec<_> = self
            .logs
            .iter()
            .flat_map(|log| log.jobs.iter().filter(|(_, job)| job.terminals.is_empty()))
            .collect();
        let status: Vec<_> = self.workers.iter().map(|worker| worker.engine.status()).collect();
        broken(format!("I3: jobs without an end: {left:?}\n{status:?}"));
    }
}

impl World {
    /// What must hold when everything has come to its end.
    pub(super) fn check_end(&self) {
        for job in self.logs.iter().flat_map(|log| log.jobs.values()) {
            ensure!(job.terminals.len() == 1 || self.disorder, "I4: a repeat in good order: {job:?}");
            if job.script == Script::FailsForEver && job.deadline.is_none() && !self.disorder {
                ensure!(job.ended == MAX_ATTEMPTS, "I6: attempts are not exactly {MAX_ATTEMPTS}: {job:?}");
            }
        }
    }
}

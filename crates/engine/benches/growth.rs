//! What an event costs the engine, and whether that stays so as jobs and partitions get more.
//!
//! `cargo bench -p fleet-engine --bench growth`. An *event* is one input, taken in as the worker's
//! loop takes it in: `handle`, then `poll` until nothing is left, then `next_wakeup` and `breaker`,
//! and `token` where a record comes. One iteration is one event, so criterion's `elem/s` is events
//! per second on one core, and its time is that of one event. What the benchmark itself does to
//! choose the next input is in the figures.
//!
//! Each world is in its steady state: `IN_FLIGHT` jobs run, three times as many wait, and whenever
//! one has ended another record comes. A job is the inputs `Record`, `Finished` and `Written`;
//! commits come and are answered as the clock says, which moves 10 µs with each event, so there are
//! ten times as many commits to an event as there would be at a million events per second. Jobs end
//! out of order: each takes between half of the mean and one and a half.
//!
//! - `in flight`: up to 1,000 on 12 partitions, 10,000 on 100 and 100,000 on 1,000. On 12
//!   partitions 100,000 can't run: a partition's commit metadata has room for a window of 5,000
//!   offsets, from the frontier on, of which those that are done already, and those that wait
//!   behind others of their key, take their part.
//! - `partitions`: from 1 to 10,000 with 1,000 in flight; where partitions are ordered, with as
//!   many as there are partitions, because each has one.
//! - `retries`: like `in flight`, and one attempt in a hundred fails, so that commits are urgent.
//! - `backlog`: 100 in flight on 12 partitions and more and more waiting.
//! - `rebalance`: partitions with ten jobs each come and go; here an event is one partition.

use std::{collections::VecDeque, hint::black_box, time::Duration};

use criterion::{
    BatchSize, BenchmarkGroup, BenchmarkId, Criterion, SamplingMode, Throughput, criterion_group,
    criterion_main, measurement::WallTime,
};
use fleet_engine::{Admission, Attempt, Command, Config, Engine, Input, JobSpec, Ordering, Token};
use fleet_group::{Partition, Progress, log::LogName};
use fleet_job::{outcome::FailureClass, time::Timestamp};
use fleet_retry::Backoff;

const MICROS_PER_EVENT: i64 = 10;
/// How long the broker takes to answer a commit.
const ANSWER_MICROS: i64 = 5_000;
/// So many ends are being written at a time, or fewer where few jobs are in flight.
const WRITING: usize = 16;
/// A producer does not let more jobs of one key pile up; without a bound, the busiest would come to
/// own the backlog.
const OPEN_PER_KEY: u8 = 8;
const GENERATION: u64 = 1;

/// SplitMix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    fn below(&mut self, end: usize) -> usize {
        ((u128::from(self.next()) * end as u128) >> 64) as usize
    }
}

/// What is measured.
#[derive(Clone, Copy)]
struct Setting {
    ordering: Ordering,
    in_flight: usize,
    partitions: usize,
    backlog: usize,
    /// So many attempts in a thousand fail.
    failures: usize,
}

/// Running jobs by the time they end, in ended jobs: a wheel, so that the next one is found in
/// constant time.
struct Wheel {
    heads: Vec<u32>,
    nodes: Vec<(Token, bool, u32)>,
    free: u32,
    at: usize,
    len: usize,
}

const NONE: u32 = u32::MAX;

impl Wheel {
    fn new(in_flight: usize) -> Self {
        let heads = vec![NONE; (2 * in_flight).next_power_of_two()];
        Self { heads, nodes: Vec::new(), free: NONE, at: 0, len: 0 }
    }

    fn insert(&mut self, after: usize, token: Token, is_first: bool) {
        let bucket = (self.at + after) & (self.heads.len() - 1);
        let node = (token, is_first, self.heads[bucket]);
        let index = self.free;
        match self.nodes.get_mut(index as usize) {
            Some(place) => {
                self.free = place.2;
                *place = node;
                self.heads[bucket] = index;
            }
            None => {
                self.heads[bucket] = self.nodes.len() as u32;
                self.nodes.push(node);
            }
        }
        self.len += 1;
    }

    fn pop(&mut self) -> Option<(Token, bool)> {
        if self.len == 0 {
            return None;
        }
        while self.heads[self.at] == NONE {
            self.at = (self.at + 1) & (self.heads.len() - 1);
        }
        let index = self.heads[self.at];
        let (token, is_first, next) = self.nodes[index as usize];
        self.heads[self.at] = next;
        self.nodes[index as usize].2 = self.free;
        self.free = index;
        self.len -= 1;
        Some((token, is_first))
    }
}

/// A partition as the benchmark sees it.
struct Log {
    next: i64,
    paused: bool,
    /// The keys of the last records, by offset.
    keys: Vec<u32>,
}

struct World {
    setting: Setting,
    engine: Engine,
    random: Random,
    micros: i64,
    wakeup: Option<Timestamp>,
    logs: Vec<Log>,
    running: Wheel,
    writing: VecDeque<Token>,
    commits: VecDeque<(i64, Partition)>,
    open: usize,
    open_by_key: Vec<u8>,
    /// Keys are drawn by Zipf's law, in octaves: each has the same share, and within it all are
    /// alike.
    octaves: usize,
    /// The sum of what was in flight, and how often it was looked at.
    seen: (usize, usize),
}

impl World {
    fn new(setting: Setting) -> Self {
        let Setting { ordering, in_flight, partitions, backlog, .. } = setting;
        let max_buffered = (2 * backlog).max(5_000);
        let max_buffered_bytes = usize::MAX;
        let retry = Backoff { base: Duration::from_millis(20), max: Duration::from_secs(1) };
        let config = Config {
            ordering,
            max_in_flight: in_flight,
            max_buffered,
            max_buffered_bytes,
            retry,
            ..Config::default()
        };
        let octaves = (8 * in_flight).max(1024).ilog2() as usize + 1;
        let kept = (4 * backlog / partitions).next_power_of_two().max(64);
        let mut world = Self {
            setting,
            engine: Engine::new(config),
            random: Random(7),
            micros: 0,
            wakeup: None,
            logs: (0..partitions)
                .map(|_| Log { next: 0, paused: false, keys: vec![0; kept] })
                .collect(),
            running: Wheel::new(in_flight),
            writing: VecDeque::new(),
            commits: VecDeque::new(),
            open: 0,
            open_by_key: vec![0; 1 << octaves],
            octaves,
            seen: (0, 0),
        };
        for number in 0..partitions {
            let partition = Partition { topic: 0, number: number as i32 };
            world.engine.handle(
                world.now(),
                Input::Assigned {
                    partition,
                    generation: GENERATION,
                    log: LogName::UNKNOWN,
                    progress: Some(Progress::none(0)),
                },
            );
        }
        // Until everything has been replaced a few times, and commits have come round for all.
        for _ in 0..(12 * backlog).max(400_000) {
            world.step();
        }
        world.seen = (0, 0);
        world
    }

    fn now(&self) -> Timestamp {
        Timestamp::from_millis(self.micros / 1000).unwrap_or_default()
    }

    /// Takes in one event.
    fn step(&mut self) {
        self.micros += MICROS_PER_EVENT;
        let now = self.now();
        if self.wakeup.is_some_and(|at| at <= now) {
            self.engine.handle(now, Input::Tick);
        } else if let Some((_, partition)) = self.commits.pop_front_if(|(at, _)| *at <= self.micros)
        {
            self.engine
                .handle(now, Input::Committed { partition, generation: GENERATION, ok: true });
        } else if (self.writing.len() > WRITING.min(self.setting.in_flight / 8)
            || self.running.len == 0)
            && let Some(token) = self.writing.pop_front()
        {
            self.engine.handle(now, Input::Written(token));
        } else if self.open < self.setting.backlog
            && let Some((partition, offset, key)) = self.draw()
        {
            let spec = JobSpec {
                key: Some(u64::from(key).wrapping_mul(0x9E37_79B9_7F4A_7C15)),
                ..JobSpec::new(3)
            };
            black_box(self.engine.token(partition, offset));
            let admission = Admission::Job(spec);
            self.engine.handle(now, Input::Record { partition, offset, bytes: 300, admission });
            self.open += 1;
        } else if let Some((token, is_first)) = self.running.pop() {
            let fails = is_first && self.random.below(1000) < self.setting.failures;
            let attempt =
                if fails { Attempt::Failed(FailureClass::Retry, None) } else { Attempt::Succeeded };
            self.engine.handle(now, Input::Finished(token, attempt));
        } else {
            self.engine.handle(now, Input::Tick);
        }
        self.carry_out();
        self.wakeup = self.engine.next_wakeup();
        black_box(self.engine.breaker());
        self.seen = (self.seen.0 + self.running.len, self.seen.1 + 1);
    }

    /// The next record, unless its partition is paused or there are too many of its key.
    fn draw(&mut self) -> Option<(Partition, i64, u32)> {
        for _ in 0..64 {
            let octave = self.random.below(self.octaves);
            let key = (1 << octave) + self.random.below(1 << octave);
            let number = key % self.logs.len();
            let (number, has_room) = match self.setting.ordering {
                Ordering::Key => (number, self.open_by_key[key] < OPEN_PER_KEY),
                Ordering::Partition | Ordering::Unordered => {
                    (self.random.below(self.logs.len()), true)
                }
            };
            let log = &mut self.logs[number];
            if has_room && !log.paused {
                let offset = log.next;
                log.next += 1;
                let mask = log.keys.len() - 1;
                log.keys[offset as usize & mask] = key as u32;
                self.open_by_key[key] = self.open_by_key[key].saturating_add(1);
                return Some((Partition { topic: 0, number: number as i32 }, offset, key as u32));
            }
        }
        None
    }

    fn carry_out(&mut self) {
        while let Some(command) = self.engine.poll() {
            match command {
                Command::Start(token, attempt) => {
                    let mean = self.setting.in_flight;
                    self.running.insert(
                        mean / 2 + self.random.below(mean.max(1)),
                        token,
                        attempt == 1,
                    );
                }
                Command::Settle(token, ..) => self.writing.push_back(token),
                Command::Forget(token) => {
                    self.open -= 1;
                    let log = &self.logs[token.partition.number as usize];
                    let key = log.keys[token.offset as usize & (log.keys.len() - 1)];
                    self.open_by_key[key as usize] =
                        self.open_by_key[key as usize].saturating_sub(1);
                }
                Command::Commit(commit) => {
                    self.commits.push_back((self.micros + ANSWER_MICROS, commit.partition));
                }
                Command::Pause(partition, _) => self.logs[partition.number as usize].paused = true,
                Command::Resume(partition, _) => {
                    self.logs[partition.number as usize].paused = false
                }
                Command::Retrying(..) => {}
                other => panic!("the worker would have been told {other:?}"),
            }
        }
    }
}

fn measure(group: &mut BenchmarkGroup<'_, WallTime>, id: BenchmarkId, setting: Setting) {
    // Only what is asked for on the command line is built, and once for all samples.
    let mut world = None;
    group.bench_function(id, |bencher| {
        let world = world.get_or_insert_with(|| World::new(setting));
        bencher.iter(|| world.step());
    });
    if let Some(World { seen: (sum, count), .. }) = world {
        let mean = sum as f64 / count as f64;
        assert!(
            mean >= 0.6 * setting.in_flight as f64,
            "{mean:.0} in flight on average instead of {}: this would flatter the engine",
            setting.in_flight
        );
    }
}

fn name(ordering: Ordering) -> &'static str {
    match ordering {
        Ordering::Key => "key",
        Ordering::Partition => "partition",
        Ordering::Unordered => "unordered",
    }
}

fn group<'a>(criterion: &'a mut Criterion, name: &str) -> BenchmarkGroup<'a, WallTime> {
    let mut group = criterion.benchmark_group(name);
    group.throughput(Throughput::Elements(1));
    group
}

fn in_flight(criterion: &mut Criterion) {
    for (title, failures) in [("in flight", 0), ("retries", 10)] {
        let mut group = group(criterion, title);
        for ordering in [Ordering::Key, Ordering::Unordered] {
            for in_flight in [1, 10, 100, 1_000, 10_000, 100_000] {
                let partitions = match in_flight {
                    ..10_000 => 12,
                    10_000..100_000 => 100,
                    _ => 1_000,
                };
                let setting = Setting {
                    ordering,
                    in_flight,
                    partitions,
                    backlog: (4 * in_flight).max(256),
                    failures,
                };
                measure(&mut group, BenchmarkId::new(name(ordering), in_flight), setting);
            }
        }
        group.finish();
    }
}

fn partitions(criterion: &mut Criterion) {
    let mut group = group(criterion, "partitions");
    for ordering in [Ordering::Key, Ordering::Unordered, Ordering::Partition] {
        for partitions in [1, 12, 100, 1_000, 10_000] {
            let (in_flight, backlog) = match ordering {
                Ordering::Partition => (partitions, 8 * partitions),
                Ordering::Key | Ordering::Unordered => (1_000, 4_000),
            };
            let setting = Setting { ordering, in_flight, partitions, backlog, failures: 0 };
            measure(&mut group, BenchmarkId::new(name(ordering), partitions), setting);
        }
    }
    group.finish();
}

fn backlog(criterion: &mut Criterion) {
    let mut group = group(criterion, "backlog");
    for ordering in [Ordering::Key, Ordering::Unordered] {
        for backlog in [1_000, 10_000, 100_000] {
            let setting =
                Setting { ordering, in_flight: 100, partitions: 12, backlog, failures: 10 };
            measure(&mut group, BenchmarkId::new(name(ordering), backlog), setting);
        }
    }
    group.finish();
}

fn rebalance(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("rebalance");
    group.sample_size(10).sampling_mode(SamplingMode::Flat);
    for partitions in [12, 100, 1_000, 10_000] {
        let setting = Setting {
            ordering: Ordering::Key,
            in_flight: partitions,
            partitions,
            backlog: 10 * partitions,
            failures: 0,
        };
        let all: Vec<_> =
            (0..partitions).map(|number| Partition { topic: 0, number: number as i32 }).collect();
        group.throughput(Throughput::Elements(partitions as u64));
        group.bench_function(BenchmarkId::new("go", partitions), |bencher| {
            bencher.iter_batched(
                || World::new(setting),
                |mut world| {
                    black_box(world.engine.release(&all));
                    while let Some(command) = world.engine.poll() {
                        black_box(command);
                    }
                    world
                },
                BatchSize::PerIteration,
            );
        });
    }
    group.finish();
}

fn configured() -> Criterion {
    Criterion::default()
        .sample_size(20)
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_secs(2))
        .without_plots()
}

criterion_group! {
    name = growth;
    config = configured();
    targets = in_flight, partitions, backlog, rebalance
}
criterion_main!(growth);

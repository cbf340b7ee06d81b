//! Head-of-line blocking, in simulated time: how long jobs wait for their start when one in a
//! hundred is slow, and how long the one job of a tenant waits behind 10,000 of another.
//!
//! `cargo bench -p fleet-engine --bench head_of_line`. Jobs of 200 keys, drawn by Zipf, arrive at
//! random (Poisson); each takes 5 ms, and in the second run one in a hundred takes 5 s. A job
//! counts when its key was free of slow jobs, and of what had piled up behind them, at its arrival:
//! the others wait by order. The same jobs are compared in both runs. Time is simulated, so the
//! figures are exact and the same on every machine.
//!
//! For the tenants, all jobs are in one of the partitions, in which that one job is last, and each
//! takes 100 ms. They are fetched in no time, unless the engine pauses the partition.

#![expect(clippy::print_stdout, reason = "the report of a benchmark")]

use std::{
    cmp::Reverse,
    collections::{BinaryHeap, HashMap, VecDeque},
};

use fleet_engine::{
    Admission, Attempt, Command, Config, Engine, Input, JobSpec, Ordering, Tenant, Token,
};
use fleet_group::{Partition, log::LogName};
use fleet_job::time::Timestamp;

const JOBS: usize = 100_000;
const KEYS: usize = 200;
const PARTITIONS: i32 = 12;
/// One unit of the engine's clock stands for 10 µs here, since it counts in whole ones.
const UNITS_PER_MS: i64 = 100;
const FAST: i64 = 5 * UNITS_PER_MS;
const SLOW: i64 = 5_000 * UNITS_PER_MS;
/// At more than about 100 a second the busiest key alone would get more work than one job at a time
/// can do.
const ARRIVALS_PER_SECOND: f64 = 50.0;
const IN_FLIGHT: usize = 64;

struct Arrival {
    at: i64,
    key: u64,
    slow: bool,
}

/// SplitMix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        ((z ^ (z >> 31)) >> 11) as f64 / (1_u64 << 53) as f64
    }
}

fn arrivals(seed: u64) -> Vec<Arrival> {
    let mut random = Random(seed);
    let weights: Vec<f64> = (1..=KEYS).map(|rank| 1.0 / rank as f64).collect();
    let total: f64 = weights.iter().sum();
    let mut at = 0.0;
    let arrival = |_| {
        at -= random.next().max(f64::MIN_POSITIVE).ln() * 1000.0 * UNITS_PER_MS as f64
            / ARRIVALS_PER_SECOND;
        let mut left = random.next() * total;
        let key = weights.iter().position(|weight| {
            left -= weight;
            left <= 0.0
        });
        Arrival { at: at as i64, key: key.unwrap_or_default() as u64, slow: random.next() < 0.01 }
    };
    (0..JOBS).map(arrival).collect()
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Happening {
    Finish(Token),
    Arrive(usize),
}

/// How long each job waited for its start, and whether its key was held up by a slow one when it
/// came.
struct Run {
    waits: Vec<i64>,
    behind: Vec<bool>,
}

fn run(arrivals: &[Arrival], ordering: Ordering, has_slow: bool) -> Run {
    let time = |ms| Timestamp::from_millis(ms).unwrap_or_default();
    let mut engine =
        Engine::new(Config { ordering, max_in_flight: IN_FLIGHT, ..Config::default() });
    for number in 0..PARTITIONS {
        let partition = Partition { topic: 0, number };
        engine.handle(
            time(0),
            Input::Assigned { partition, generation: 1, log: LogName::UNKNOWN, progress: None },
        );
    }
    let mut agenda: BinaryHeap<Reverse<(i64, Happening)>> = arrivals
        .iter()
        .enumerate()
        .map(|(index, arrival)| Reverse((arrival.at, Happening::Arrive(index))))
        .collect();
    let mut offsets = vec![0_i64; PARTITIONS as usize];
    let mut jobs: HashMap<Token, usize> = HashMap::new();
    // Per key: how many jobs are open, and whether a slow one has been among them since it was last
    // idle.
    let mut open: HashMap<u64, (usize, bool)> = HashMap::new();
    let mut run = Run { waits: vec![-1; arrivals.len()], behind: vec![false; arrivals.len()] };
    while let Some(next) = agenda
        .peek()
        .map(|Reverse((at, _))| *at)
        .into_iter()
        .chain(engine.next_wakeup().map(Timestamp::as_millis))
        .min()
    {
        let due = agenda.peek().is_some_and(|Reverse((at, _))| *at <= next);
        match if due { agenda.pop() } else { None } {
            Some(Reverse((_, Happening::Arrive(index)))) => {
                let arrival = &arrivals[index];
                let (count, held_up) = open.entry(arrival.key).or_default();
                run.behind[index] = *held_up;
                *count += 1;
                *held_up |= has_slow && arrival.slow;
                let number = (arrival.key % PARTITIONS as u64) as i32;
                let (partition, offset) =
                    (Partition { topic: 0, number }, offsets[number as usize]);
                offsets[number as usize] += 1;
                jobs.insert(Token { partition, offset, generation: 1 }, index);
                let spec = JobSpec { key: Some(arrival.key), ..JobSpec::new(1) };
                engine.handle(
                    time(next),
                    Input::Record {
                        partition,
                        offset,
                        bytes: 300,
                        admission: Admission::Job(spec),
                    },
                );
            }
            Some(Reverse((_, Happening::Finish(token)))) => {
                let arrival = &arrivals[jobs[&token]];
                let (count, held_up) = open.entry(arrival.key).or_default();
                *count -= 1;
                *held_up &= *count > 0;
                engine.handle(time(next), Input::Finished(token, Attempt::Succeeded));
            }
            None => engine.handle(time(next), Input::Tick),
        }
        while let Some(command) = engine.poll() {
            match command {
                Command::Start(token, _) => {
                    let index = jobs[&token];
                    run.waits[index] = next - arrivals[index].at;
                    let takes = if has_slow && arrivals[index].slow { SLOW } else { FAST };
                    agenda.push(Reverse((next + takes, Happening::Finish(token))));
                }
                Command::Settle(token, ..) => engine.handle(time(next), Input::Written(token)),
                Command::Commit(commit) => {
                    let (partition, generation) = (commit.partition, commit.generation);
                    engine.handle(time(next), Input::Committed { partition, generation, ok: true });
                }
                Command::Pause(partition, _) => {
                    println!("fetching of partition {} pauses", partition.number)
                }
                _ => {}
            }
        }
    }
    run
}

/// How many jobs of the busy tenant are before the one of the other.
const BUSY: i64 = 10_000;
/// How many jobs of the tenants run at once, and how long each takes.
const SLOTS: usize = 16;
const TAKES: i64 = 100 * UNITS_PER_MS;

/// What becomes of the one job behind those of the busy tenant.
struct Behind {
    waits: i64,
    /// How many jobs of the busy tenant start before it.
    passed_over: usize,
    /// When the last job of all has ended.
    ends: i64,
}

/// Runs the jobs of `tenants`, first all of the first one and then one of the second.
fn run_behind(tenants: [Tenant; 2], max_buffered: usize) -> Behind {
    let time = |at| Timestamp::from_millis(at).unwrap_or_default();
    let config = Config { max_in_flight: SLOTS, max_buffered, ..Config::default() };
    let mut engine = Engine::new(config);
    for number in 0..PARTITIONS {
        let partition = Partition { topic: 0, number };
        engine.handle(
            time(0),
            Input::Assigned { partition, generation: 1, log: LogName::UNKNOWN, progress: None },
        );
    }

    let partition = Partition { topic: 0, number: 0 };
    let (mut now, mut next, mut is_paused) = (0, 0, false);
    let mut running: VecDeque<(i64, Token)> = VecDeque::new();
    let mut behind = Behind { waits: 0, passed_over: 0, ends: 0 };
    let mut has_started = false;
    while next <= BUSY || !running.is_empty() {
        if next <= BUSY && !is_paused {
            let [busy, other] = tenants;
            let tenant = if next < BUSY { busy } else { other };
            let admission = Admission::Job(JobSpec { tenant, ..JobSpec::new(1) });
            engine.handle(
                time(now),
                Input::Record { partition, offset: next, bytes: 300, admission },
            );
            next += 1;
        } else if let Some((at, token)) = running.pop_front() {
            now = at;
            engine.handle(time(now), Input::Finished(token, Attempt::Succeeded));
        }

        while let Some(command) = engine.poll() {
            match command {
                Command::Start(token, _) => {
                    running.push_back((now + TAKES, token));
                    if token.offset == BUSY {
                        (behind.waits, has_started) = (now, true);
                    }
                    behind.passed_over += usize::from(!has_started);
                }
                Command::Settle(token, ..) => engine.handle(time(now), Input::Written(token)),
                Command::Commit(commit) => {
                    let (partition, generation) = (commit.partition, commit.generation);
                    engine.handle(time(now), Input::Committed { partition, generation, ok: true });
                }
                Command::Pause(..) => is_paused = true,
                Command::Resume(..) => is_paused = false,
                _ => {}
            }
        }
    }
    behind.ends = now;
    behind
}

fn report_tenants() {
    println!("{BUSY} jobs of a tenant, then one of another, {SLOTS} in flight:");
    let (busy, other) = (Tenant { number: 1, weight: 1 }, Tenant { number: 2, weight: 1 });
    let window = Config::default().max_buffered;
    for (name, tenants, window) in [
        ("no tenants", [Tenant::UNNAMED; 2], window),
        ("a window of 416 records", [busy, other], 2 * 416),
        ("as it is", [busy, other], window),
    ] {
        let Behind { waits, passed_over, ends } = run_behind(tenants, window);
        let seconds = |at| at as f64 / UNITS_PER_MS as f64 / 1000.0;
        println!(
            "{name:23}: waits {:.1} s, while {passed_over} others start; all have ended after {:.1} s",
            seconds(waits),
            seconds(ends)
        );
    }
}

/// The wait that so many in a thousand do not exceed.
fn quantile(waits: &mut [i64], rank: usize) -> i64 {
    waits.sort_unstable();
    waits
        .get((waits.len() * rank / 1000).min(waits.len().saturating_sub(1)))
        .copied()
        .unwrap_or_default()
}

fn main() {
    report_tenants();
    println!();
    println!(
        "{JOBS} jobs, {KEYS} keys (Zipf), {ARRIVALS_PER_SECOND}/s, {IN_FLIGHT} in flight, {PARTITIONS} partitions"
    );
    for (name, ordering) in [
        ("key", Ordering::Key),
        ("unordered", Ordering::Unordered),
        ("partition", Ordering::Partition),
    ] {
        let arrivals = arrivals(1);
        let with = run(&arrivals, ordering, true);
        let without = run(&arrivals, ordering, false);
        let counted = |run: &Run| -> Vec<i64> {
            (0..JOBS)
                .filter(|index| !with.behind[*index] && !arrivals[*index].slow)
                .map(|index| run.waits[index])
                .collect()
        };
        let (mut slow, mut fast) = (counted(&with), counted(&without));
        let figures = |waits: &mut [i64]| {
            [500, 990, 999, 1000].map(|rank| quantile(waits, rank) as f64 / UNITS_PER_MS as f64)
        };
        let (with, without) = (figures(&mut slow), figures(&mut fast));
        println!(
            "{name:9} {:6} jobs on other keys, wait p50/p99/p99.9/max: {without:?} ms without slow jobs, {with:?} ms with; p99 {}",
            slow.len(),
            if with[1] == without[1] {
                "equal".to_owned()
            } else {
                format!("× {:.2}", with[1] / without[1])
            }
        );
    }
}

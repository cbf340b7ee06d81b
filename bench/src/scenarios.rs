//! The scenarios: each starts contestants, lets them work, stops them, and computes figures from
//! the log of calls.

use std::{
    collections::BTreeMap,
    thread,
    time::{Duration, Instant},
};

use fleet_tests::{bins, process::Process, topics};

use crate::{
    calls::{self, Call},
    contestants::{Contestant, Setup},
    figures,
    live::Live,
    machine::{self, Filled, Machine, Redis},
    measure,
    runs::Cell,
    stub::Service,
};

/// The longest time to a contestant's first call.
const FIRST_CALL: Duration = Duration::from_secs(90);
/// The longest time for a contestant to stop.
const END: Duration = Duration::from_secs(90);
/// The warm-up for the JVM's compiler, caches and connections, which doesn't count.
const WARM_UP: Duration = Duration::from_secs(5);
/// The duration of a measurement.
const WINDOW: Duration = Duration::from_secs(5);
/// The number of jobs in a backlog that no contestant can finish.
const BACKLOG: u32 = 1_000_000;
/// The same for large jobs, which all contestants process more slowly.
const LARGE_BACKLOG: u32 = 100_000;
/// The number of jobs in Celery's queue, which it can't finish in time, either.
const QUEUE: u32 = 60_000;
/// The time before and after a rebalance that is compared.
const REBALANCE: Duration = Duration::from_secs(8);

pub(crate) type Figures = BTreeMap<String, f64>;

/// A running contestant, and its environment.
struct Running {
    process: Process,
    setup: Setup,
    filled: Filled,
    /// When it was started, in µs since 1970.
    started: u64,
    _redis: Option<Redis>,
}

fn service(cell: &Cell) -> Service {
    let slow_per_1000 = if cell.slow_us > 0 { 10 } else { 0 };
    Service { service_us: cell.service_us, slow_per_1000, slow_us: cell.slow_us }
}

fn setup_of(machine: &Machine, cell: &Cell, topic: &str, worker: u32) -> Setup {
    Setup {
        brokers: machine.cluster.brokers.clone(),
        topic: topic.to_owned(),
        group: bins::unique("bench"),
        url: machine.url.clone(),
        worker,
        concurrency: cell.concurrency,
        bytes: cell.bytes,
        redis: String::new(),
    }
}

fn start(machine: &mut Machine, contestant: &Contestant, cell: &Cell, jobs: u32) -> Running {
    let filled = machine.topic(cell.partitions, cell.bytes, jobs);
    let mut setup = setup_of(machine, cell, &filled.topic, 1);
    let mut redis = None;
    if !contestant.reads_kafka() && !contestant.is_ceiling() {
        let started = Redis::start(machine);
        setup.redis.clone_from(&started.url);
        redis = Some(started);
        let (lines, count) = (machine.directory.join("jobs.jsonl"), jobs.min(QUEUE));
        machine::write_lines(&lines, &filled.workload, count);
        let fill = contestant.fill(&setup, &lines, count).expect("a way to fill its queue");
        let status = Process::start("fill", &machine.directory, fill).wait(END);
        assert!(status.success(), "filling the queue of {}: {status}", contestant.name);
    }

    machine.service(service(cell));
    let started = calls::now();
    let process = Process::start(&contestant.name, &machine.directory, contestant.command(&setup));
    Running { process, setup, filled, started, _redis: redis }
}

impl Running {
    /// Waits for the first call; returns the time to it, in ms.
    fn first_call(&mut self, machine: &Machine) -> f64 {
        let process = &mut self.process;
        let called = machine.wait_for_calls(1, FIRST_CALL, || process.is_running());
        assert!(called, "no call came: {}", self.process.log());
        (machine.stats().first.saturating_sub(self.started)) as f64 / 1000.0
    }

    /// Stops the contestant, and counts the jobs that it committed without a call or called
    /// repeatedly.
    fn end(
        &mut self,
        machine: &Machine,
        contestant: &Contestant,
        figures: &mut Figures,
    ) -> Vec<Call> {
        figures.insert("peak_rss_mib".to_owned(), measure::group(self.process.pid()).peak_rss);
        let begin = Instant::now();
        self.process.stop(END);
        figures.insert("stop_ms".to_owned(), begin.elapsed().as_secs_f64() * 1000.0);
        let calls = machine.calls();
        figures.insert("calls".to_owned(), calls.len() as f64);
        figures.insert("most_at_once".to_owned(), machine.stats().most_at_once as f64);
        if contestant.is_ceiling() {
            return calls;
        }
        figures.insert("repeats".to_owned(), figures::repeats(&calls) as f64);
        if contestant.reads_kafka() {
            let Filled { topic, workload, jobs } = &self.filled;
            let placed = workload.placed(*jobs);
            let brokers = &machine.cluster.brokers;
            let committed =
                topics::committed(brokers, &self.setup.group, topic, workload.partitions);
            figures.insert("lost".to_owned(), figures::lost(&calls, &placed, &committed) as f64);
            let order = figures::out_of_order(&calls, |job| workload.key(job));
            figures.insert("out_of_order".to_owned(), order as f64);
        }
        calls
    }
}

/// Measures an endless backlog.
pub(crate) fn throughput(machine: &mut Machine, contestant: &Contestant, cell: &Cell) -> Figures {
    let jobs = if cell.bytes > 1000 { LARGE_BACKLOG } else { BACKLOG };
    let mut running = start(machine, contestant, cell, jobs);
    let mut figures = Figures::new();
    figures.insert("first_call_ms".to_owned(), running.first_call(machine));
    thread::sleep(WARM_UP);
    let (from, cpu) = (calls::now(), measure::group(running.process.pid()).cpu);
    let others = machine.pids().map(measure::cpu);
    thread::sleep(WINDOW);
    let (to, cpu) = (calls::now(), measure::group(running.process.pid()).cpu - cpu);
    let now = machine.pids().map(measure::cpu);
    let calls = running.end(machine, contestant, &mut figures);
    let answered = figures::answered(&calls, from, to) as f64;
    let seconds = (to - from) as f64 / 1e6;
    figures.insert("jobs_per_s".to_owned(), answered / seconds);
    figures.insert("cpu_s_per_1000".to_owned(), cpu * 1000.0 / answered.max(1.0));
    figures.insert("jobs_per_cpu_s".to_owned(), answered / cpu.max(0.01));
    figures.insert("cpu_share".to_owned(), cpu / seconds);
    figures.insert("broker_cpu_share".to_owned(), (now[0] - others[0]) / seconds);
    figures.insert("stub_cpu_share".to_owned(), (now[1] - others[1]) / seconds);
    figures
}

/// Measures a backlog from its first job to its last.
pub(crate) fn drain(machine: &mut Machine, contestant: &Contestant, cell: &Cell) -> Figures {
    let mut running = start(machine, contestant, cell, BACKLOG);
    let mut figures = Figures::new();
    figures.insert("first_call_ms".to_owned(), running.first_call(machine));
    let all = running.filled.jobs as usize;
    let process = &mut running.process;
    let deadline = Duration::from_secs(1800);
    let is_done = machine.wait_for_calls(all, deadline, || process.is_running());
    let cpu = measure::group(running.process.pid()).cpu;
    let calls = running.end(machine, contestant, &mut figures);
    let (Some(first), Some(last)) = (calls.first(), calls.last()) else { return figures };
    let seconds = (last.end - first.begin) as f64 / 1e6;
    let called = calls.len() as f64 - figures.get("repeats").copied().unwrap_or_default();
    figures.insert("not_called".to_owned(), all as f64 - called);
    figures.insert("is_done".to_owned(), f64::from(u8::from(is_done)));
    figures.insert("seconds".to_owned(), seconds);
    figures.insert("jobs_per_s".to_owned(), calls.len() as f64 / seconds);
    figures.insert("cpu_s_per_1000".to_owned(), cpu * 1000.0 / calls.len() as f64);
    figures
}

/// Measures many jobs in flight with a backlog of a million.
pub(crate) fn memory(machine: &mut Machine, contestant: &Contestant, cell: &Cell) -> Figures {
    let mut running = start(machine, contestant, cell, BACKLOG);
    let mut figures = Figures::new();
    figures.insert("first_call_ms".to_owned(), running.first_call(machine));
    thread::sleep(WARM_UP + WINDOW);
    running.end(machine, contestant, &mut figures);
    figures
}

/// Measures two workers, then three.
pub(crate) fn rebalance(machine: &mut Machine, contestant: &Contestant, cell: &Cell) -> Figures {
    let mut first = start(machine, contestant, cell, BACKLOG);
    first.first_call(machine);
    let mut more = Vec::new();
    let mut joined = 0;
    for worker in [2, 3] {
        joined = calls::now();
        let setup = Setup { worker, ..first.setup.clone() };
        more.push(Process::start(&contestant.name, &machine.directory, contestant.command(&setup)));
        thread::sleep(REBALANCE);
    }

    let mut figures = Figures::new();
    for process in &mut more {
        process.stop(END);
    }

    let calls = first.end(machine, contestant, &mut figures);
    let span = u64::try_from(REBALANCE.as_micros()).unwrap_or(u64::MAX);
    let workload = &first.filled.workload;
    let stop =
        figures::stop(&calls, joined, joined + span, |job| workload.partition(workload.key(job)));
    figures.insert("rebalance_stop_ms".to_owned(), stop.worker_ms);
    figures.insert("longest_pause_before_ms".to_owned(), stop.before_ms);
    figures.insert("partitions_kept".to_owned(), stop.kept as f64);
    figures.insert("partitions_moved".to_owned(), stop.moved as f64);
    figures
}

/// Measures arrivals at `rate` per second.
pub(crate) fn latency(
    machine: &mut Machine,
    contestant: &Contestant,
    cell: &Cell,
    rate: f64,
) -> Figures {
    let topic = bins::unique("bench-live");
    machine.create(&topic, cell.partitions);
    let setup = setup_of(machine, cell, &topic, 1);
    machine.service(service(cell));
    let live = Live::new(cell.partitions, cell.bytes, rate);
    let mut figures = Figures::new();
    figures.insert("rate_per_s".to_owned(), rate);
    let mut process =
        Process::start(&contestant.name, &machine.directory, contestant.command(&setup));

    // The contestant reads from the beginning, so jobs that are written before it has joined are
    // only late, and before the measurement.
    let mut sent =
        live.send(&setup.brokers, &topic, contestant.is_fleet(), || machine.stats().calls > 0);
    let ended = sent.wait(machine, || process.is_running());
    figures.insert("peak_rss_mib".to_owned(), measure::group(process.pid()).peak_rss);
    process.stop(END);
    let calls = machine.calls();
    figures.insert("repeats".to_owned(), figures::repeats(&calls) as f64);
    sent.figures(&calls, &ended, &mut figures);
    figures
}

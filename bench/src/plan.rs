//! The plan of measurements, and their order.
//!
//! All cells are run once before any is run again, so that a slow quarter of an hour of the machine
//! affects all of them.

use std::{
    collections::BTreeMap,
    panic::{AssertUnwindSafe, catch_unwind},
    time::Instant,
};

use fleet_tests::{bins, kafka};

use crate::{
    Directories,
    contestants::{self, Contestant},
    figures,
    machine::Machine,
    report,
    runs::{self, Cell, Run, Scenario},
    scenarios,
};

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    directories: Directories,

    /// The number of runs of each cell
    #[arg(long, default_value_t = 5)]
    runs: usize,

    /// Only cells whose name contains one of these, such as `throughput/fleet-key` or `/10ms/`.
    #[arg(long, value_delimiter = ',', value_name = "TEXT")]
    only: Vec<String>,

    /// Show what would be measured, without measuring
    #[arg(long)]
    list: bool,
}

/// Calls in flight at once: the worker's default.
pub(crate) const CONCURRENCY: usize = 16;
/// Calls in flight in the memory scenario.
pub(crate) const MANY: usize = 1000;
/// Partitions and bytes, unless they are varied.
pub(crate) const PARTITIONS: i32 = 12;
pub(crate) const BYTES: usize = 300;
/// The service times, in µs.
pub(crate) const SERVICES: [u64; 4] = [0, 1_000, 10_000, 100_000];
/// The duration of a slow job, in µs.
pub(crate) const SLOW: u64 = 100_000;

/// The longest service time that is informative for a contestant. With longer ones, contestants
/// that are limited by their order within partitions, or by their own cost, differ only by that
/// limit.
fn longest(contestant: &str) -> u64 {
    match contestant {
        "celery" => 1_000,
        "floor" | "fleet-partition" => 10_000,
        _ => 100_000,
    }
}

fn cells(contestants: &[Contestant]) -> Vec<(Cell, &Contestant)> {
    let mut cells = Vec::new();
    let mut add = |scenario, contestant: &'_ str, change: &dyn Fn(&mut Cell)| {
        let Some(found) = contestants.iter().find(|one| one.name == contestant) else { return };
        let mut cell = Cell {
            scenario,
            contestant: contestant.to_owned(),
            service_us: 1_000,
            slow_us: 0,
            bytes: BYTES,
            partitions: PARTITIONS,
            concurrency: CONCURRENCY,
        };
        change(&mut cell);
        cells.push((cell, found));
    };
    for service_us in SERVICES {
        for contestant in contestants {
            if service_us <= longest(&contestant.name) {
                add(Scenario::Throughput, &contestant.name, &|cell| cell.service_us = service_us);
            }
        }
    }
    let best = ["fleet-key", "fleet-unordered", "parallel-consumer-unordered"];
    for contestant in best {
        for partitions in [1, 100] {
            add(Scenario::Throughput, contestant, &|cell| cell.partitions = partitions);
        }
    }
    for contestant in best.into_iter().chain(["ceiling", "benthos", "bento"]) {
        add(Scenario::Throughput, contestant, &|cell| cell.bytes = 10_000);
    }
    for contestant in best.into_iter().chain(["fleet-partition", "parallel-consumer-key", "floor"])
    {
        add(Scenario::Throughput, contestant, &|cell| cell.slow_us = SLOW);
    }
    for service_us in [10_000, 1_000] {
        for contestant in best.into_iter().chain(["benthos", "bento"]) {
            add(Scenario::Latency, contestant, &|cell| cell.service_us = service_us);
        }
    }
    for contestant in best {
        add(Scenario::Memory, contestant, &|cell| {
            cell.service_us = 1_000_000;
            cell.concurrency = MANY;
        });
    }
    for contestant in ["fleet-key", "parallel-consumer-key", "benthos", "bento"] {
        add(Scenario::Rebalance, contestant, &|cell| cell.service_us = 10_000);
    }
    add(Scenario::Drain, "fleet-key", &|cell| cell.service_us = 0);
    cells
}

pub(crate) fn run(args: &Args) {
    if let Some(missing) = kafka::missing() {
        eprintln!("bench: {missing} not found: scripts/setup-system --tests installs it");
        std::process::exit(3);
    }
    let contestants = contestants::all();
    let mut cells = cells(&contestants);
    cells.retain(|(cell, _)| {
        args.only.is_empty() || args.only.iter().any(|only| cell.to_string().contains(only))
    });
    if args.list {
        cells.iter().for_each(|(cell, _)| println!("{cell}"));
        return;
    }

    // Fail now, rather than in an hour, if it was not built.
    bins::bin("kafka-worker");
    let mut runs = runs::read(&args.directories.runs_file);
    let mut machine = None;
    let begin = Instant::now();
    let all = cells.len() * args.runs;
    for round in 0..args.runs {
        for (index, (cell, contestant)) in cells.iter().enumerate() {
            if runs.iter().filter(|run| run.cell == *cell).count() > round {
                continue;
            }
            let machine = machine.get_or_insert_with(Machine::start);
            let number = round * cells.len() + index + 1;
            eprintln!("[{:4} s] {number}/{all} {cell}", begin.elapsed().as_secs());
            let Some(figures) = measure(machine, contestant, cell, &runs) else { continue };
            let main = [
                "jobs_per_s",
                "cpu_s_per_1000",
                "peak_rss_mib",
                "added_to_answer_p99_ms",
                "added_to_terminal_p99_ms",
                "first_call_ms",
                "rebalance_stop_ms",
                "repeats",
                "lost",
            ];
            let shown = main
                .into_iter()
                .filter_map(|name| Some(format!("{name} {:.3}", figures.get(name)?)));
            eprintln!("         {}", shown.collect::<Vec<_>>().join(", "));
            let run = Run { cell: cell.clone(), figures };
            runs::append(&args.directories.runs_file, &run);
            runs.push(run);
        }
    }
    drop(machine);
    report::write(&args.directories);
}

/// Runs one cell; `None` if the run failed, which the panic has reported.
fn measure(
    machine: &mut Machine,
    contestant: &Contestant,
    cell: &Cell,
    runs: &[Run],
) -> Option<BTreeMap<String, f64>> {
    let run = AssertUnwindSafe(|| match cell.scenario {
        Scenario::Throughput => scenarios::throughput(machine, contestant, cell),
        Scenario::Drain => scenarios::drain(machine, contestant, cell),
        Scenario::Memory => scenarios::memory(machine, contestant, cell),
        Scenario::Rebalance => scenarios::rebalance(machine, contestant, cell),
        Scenario::Latency => {
            let rate = half_load(cell, runs)
                .expect("the throughput of the same contestant, measured before");
            scenarios::latency(machine, contestant, cell, rate)
        }
    });

    // Unwinding kills the processes of a run, and the next run starts from scratch.
    catch_unwind(run).ok()
}

/// Half of the contestant's measured throughput with the same jobs.
fn half_load(cell: &Cell, runs: &[Run]) -> Option<f64> {
    let same = Cell { scenario: Scenario::Throughput, ..cell.clone() };
    let of_same = runs.iter().filter(|run| run.cell == same);
    let rates: Vec<f64> =
        of_same.filter_map(|run| run.figures.get("jobs_per_s").copied()).collect();
    (!rates.is_empty()).then(|| figures::median(&rates) / 2.0)
}

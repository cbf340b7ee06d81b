//! The goals, and how far each is reached. Pure.

use serde::Serialize;

use crate::{
    micro::{self, Micro},
    runs::Scenario,
    summary::Summary,
};

/// A goal and what was measured.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Goal {
    /// What is wanted.
    pub(crate) goal: String,
    /// What it is measured by.
    pub(crate) of: String,
    pub(crate) wanted: f64,
    pub(crate) measured: f64,
    pub(crate) unit: &'static str,
    pub(crate) is_met: bool,
}

/// Whether more or less is better.
#[derive(Clone, Copy)]
enum Want {
    AtLeast(f64),
    AtMost(f64),
}

fn goal(text: &str, of: &str, want: Want, unit: &'static str, measured: f64) -> Goal {
    let (wanted, is_met) = match want {
        Want::AtLeast(least) => (least, measured >= least),
        Want::AtMost(most) => (most, measured <= most),
    };
    Goal { goal: text.to_owned(), of: of.to_owned(), wanted, measured, unit, is_met }
}

const ORDERS: [&str; 3] = ["fleet-key", "fleet-partition", "fleet-unordered"];

/// All goals for which there are figures.
pub(crate) fn all(summary: &Summary, micro: &[Micro]) -> Vec<Goal> {
    let mut goals = Vec::new();
    let usual = |contestant: &str, service, figure: &str| {
        Some(summary.usual(Scenario::Throughput, contestant, service, figure)?.median)
    };
    for (service, least) in [(0, 0.6), (1_000, 0.9), (10_000, 0.9), (100_000, 0.9)] {
        for order in ORDERS {
            let (ours, ceiling) =
                (usual(order, service, "jobs_per_s"), usual("ceiling", service, "jobs_per_s"));
            if let (Some(ours), Some(ceiling)) = (ours, ceiling) {
                let text = format!("jobs/s of the ceiling's at {} ms", service / 1000);
                goals.push(goal(&text, order, Want::AtLeast(least), "of it", ours / ceiling));
            }
        }
    }
    for (peer, ours, least) in [
        ("parallel-consumer-key", "fleet-key", 2.0),
        ("parallel-consumer-unordered", "fleet-unordered", 2.0),
        ("bento", "fleet-unordered", 3.0),
        ("benthos", "fleet-unordered", 3.0),
        ("celery", "fleet-unordered", 10.0),
    ] {
        for service in [0, 1_000] {
            let figure = "jobs_per_cpu_s";
            if let (Some(theirs), Some(our)) = (usual(peer, service, figure), usual(ours, service, figure)) {
                let text = format!("jobs per CPU second, times those of {peer}, at {} ms", service / 1000);
                goals.push(goal(&text, ours, Want::AtLeast(least), "times", our / theirs));
            }
        }
    }
    let mut of = |scenario, contestant: &str, service, figure: &str, text: &str, want, unit| {
        if let Some(found) = summary.usual(scenario, contestant, service, figure) {
            goals.push(goal(text, contestant, want, unit, found.median));
        }
    };
    for service in [10_000, 1_000] {
        for contestant in ["fleet-key", "fleet-unordered"] {
            for (figure, most) in [("p50", 5.0), ("p99", 25.0)] {
                let name = format!("added_to_terminal_{figure}_ms");
                let text = format!("added latency to the terminal event, {figure}, at {} ms", service / 1000);
                of(Scenario::Latency, contestant, service, &name, &text, Want::AtMost(most), "ms");
            }
        }
    }
    for contestant in ["fleet-key", "fleet-unordered"] {
        let text = "peak RSS with 1,000 in flight and a million waiting";
        of(Scenario::Memory, contestant, 1_000_000, "peak_rss_mib", text, Want::AtMost(64.0), "MiB");
    }
    let text = "start to first job, joining the group included";
    of(Scenario::Throughput, "fleet-key", 1_000, "first_call_ms", text, Want::AtMost(3_000.0), "ms");
    let text = "stop of partitions that stay, at a rebalance";
    of(Scenario::Rebalance, "fleet-key", 10_000, "rebalance_stop_ms", text, Want::AtMost(500.0), "ms");
    goals.extend(engine(micro));
    goals
}

/// How much of a difference still counts as flat. The goal does not say; timings here differ by a third from run to run.
const FLAT: f64 = 2.0;

/// The slowest of all settings that the engine is measured in counts, and how much slower it is than the fastest.
fn engine(micro: &[Micro]) -> Vec<Goal> {
    let mut goals = Vec::new();
    for group in ["in flight", "partitions"] {
        for order in ["key", "unordered", "partition"] {
            let prefix = format!("{group}/{order}/");
            let of_order: Vec<_> = micro.iter().filter(|one| one.id.starts_with(&prefix)).collect();
            let Some(slowest) = of_order.iter().max_by(|a, b| a.ns.total_cmp(&b.ns)) else { continue };
            let fastest = of_order.iter().map(|one| one.ns).fold(f64::INFINITY, f64::min);
            let at = micro::trailing(slowest.id.rsplit('/').next().unwrap_or_default());
            let text = format!("engine, events/s on one core, slowest by {group} (at {at})");
            goals.push(goal(&text, order, Want::AtLeast(1e6), "events/s", 1e9 / slowest.ns));
            let text = format!("engine, cost per event by {group}, slowest to fastest");
            goals.push(goal(&text, order, Want::AtMost(FLAT), "times", slowest.ns / fastest));
        }
    }
    goals
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        plan,
        runs::{Cell, Run},
    };

    #[test]
    fn goals_are_compared_in_the_right_direction() {
        let run = |contestant: &str, service_us, figure: &str, value| Run {
            cell: Cell {
                scenario: Scenario::Throughput,
                contestant: contestant.to_owned(),
                service_us,
                slow_us: 0,
                bytes: plan::BYTES,
                partitions: plan::PARTITIONS,
                concurrency: plan::CONCURRENCY,
            },
            figures: [(figure.to_owned(), value)].into(),
        };
        let runs = [
            run("ceiling", 1_000, "jobs_per_s", 1000.0),
            run("fleet-key", 1_000, "jobs_per_s", 950.0),
            run("fleet-unordered", 1_000, "jobs_per_s", 850.0),
            run("fleet-key", 1_000, "first_call_ms", 3500.0),
        ];
        let micro = ["in flight/key/1", "in flight/key/100"].into_iter().zip([200.0, 1100.0]);
        let micro: Vec<_> =
            micro.map(|(id, ns)| Micro { id: id.to_owned(), ns, low: ns, high: ns }).collect();
        let goals = all(&Summary::of(&runs), &micro);
        let met: Vec<_> = goals.iter().map(|goal| (goal.of.as_str(), goal.is_met)).collect();
        let expected = [
            ("fleet-key", true),
            ("fleet-unordered", false),
            ("fleet-key", false),
            ("key", false),
            ("key", false),
        ];
        assert_eq!(met, expected);
        assert!((goals[4].measured - 5.5).abs() < 1e-9);
    }
}

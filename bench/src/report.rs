//! The report: README.md for people, report.json for programs, and plots.

use std::{fmt::Write as _, fs, path::Path};

use fleet_tests::bins;
use serde_json::json;

use crate::{
    Directories,
    contestants::{self, Peer},
    goals::{self, Goal},
    machine,
    micro::{self, Micro},
    plan::SERVICES,
    plots::{self, Series},
    runs::{self, Cell, Scenario},
    summary::{Spread, Summary},
};

/// The order of contestants in tables and plots.
const ORDER: [&str; 10] = [
    "ceiling",
    "floor",
    "fleet-key",
    "fleet-partition",
    "fleet-unordered",
    "parallel-consumer-key",
    "parallel-consumer-unordered",
    "benthos",
    "bento",
    "celery",
];

/// A column: its heading, the figure, and the number of decimals.
type Column = (&'static str, &'static str, usize);

const THROUGHPUT: [Column; 8] = [
    ("jobs/s", "jobs_per_s", 0),
    ("CPU s per 1000", "cpu_s_per_1000", 3),
    ("peak RSS, MiB", "peak_rss_mib", 0),
    ("first job, ms", "first_call_ms", 0),
    ("most at once", "most_at_once", 0),
    ("repeats", "repeats", 0),
    ("lost", "lost", 0),
    ("out of order", "out_of_order", 0),
];
const LATENCY: [Column; 9] = [
    ("rate/s", "rate_per_s", 0),
    ("to answer p50, ms", "to_answer_p50_ms", 1),
    ("p99", "to_answer_p99_ms", 1),
    ("p99.9", "to_answer_p999_ms", 1),
    ("added to answer p50", "added_to_answer_p50_ms", 1),
    ("p99", "added_to_answer_p99_ms", 1),
    ("added to terminal event p50", "added_to_terminal_p50_ms", 1),
    ("p99", "added_to_terminal_p99_ms", 1),
    ("missing", "missing", 0),
];
const MEMORY: [Column; 3] = [
    ("peak RSS, MiB", "peak_rss_mib", 0),
    ("most at once", "most_at_once", 0),
    ("first job, ms", "first_call_ms", 0),
];
const REBALANCE: [Column; 6] = [
    ("longest pause of partitions that stay, ms", "rebalance_stop_ms", 0),
    ("the same before", "longest_pause_before_ms", 0),
    ("kept", "partitions_kept", 0),
    ("moved", "partitions_moved", 0),
    ("repeats", "repeats", 0),
    ("lost", "lost", 0),
];
const DRAIN: [Column; 6] = [
    ("seconds", "seconds", 0),
    ("jobs/s", "jobs_per_s", 0),
    ("CPU s per 1000", "cpu_s_per_1000", 3),
    ("peak RSS, MiB", "peak_rss_mib", 0),
    ("repeats", "repeats", 0),
    ("never called", "not_called", 0),
];

/// Writes the report from the existing runs.
pub(crate) fn write(directories: &Directories) {
    let runs = runs::read(&directories.runs_file);
    let summary = Summary::of(&runs);
    let micro = micro::read(&bins::target().join("criterion"));
    let peers = contestants::peers();
    let goals = goals::all(&summary, &micro);
    let directory = &directories.report;
    fs::create_dir_all(directory).expect("the directory of the report");
    let drawn = draw(directory, &summary, &micro);
    drawn.expect("the plots");
    let text = page(&summary, &goals, &micro, &peers);
    fs::write(directory.join("README.md"), text).expect("the report");
    let cells: Vec<_> =
        summary.0.iter().map(|(cell, figures)| json!({"cell": cell, "figures": figures})).collect();
    let all = json!({
        "machine": machine::describe(),
        "goals": goals,
        "cells": cells,
        "micro": micro,
        "peers": peers,
    });

    let text = serde_json::to_string_pretty(&all).expect("the report as JSON");
    fs::write(directory.join("report.json"), text + "\n").expect("the report as JSON");
    println!("{}", directory.join("README.md").display());
}

fn rank(cell: &Cell) -> usize {
    ORDER.iter().position(|name| *name == cell.contestant).unwrap_or(ORDER.len())
}

fn page(summary: &Summary, goals: &[Goal], micro: &[Micro], peers: &[Peer]) -> String {
    let mut text = String::from(INTRODUCTION);
    let about = machine::describe();
    let of = |key: &str| about[key].to_string().trim_matches('"').to_owned();
    add(
        &mut text,
        &format!(
            "\nMeasured on {} ({} cores), {} of memory, Linux {}. Every figure is the median of its runs, with the lowest and the highest in brackets.\n",
            of("cpu"),
            of("cores"),
            of("memory"),
            of("kernel")
        ),
    );

    if let Some(ceiling_noise) = ceiling_noise(summary) {
        add(
            &mut text,
            &format!(
                "Stability of the machine: the bare client's throughput differed by a factor of up to {} between the slowest and the fastest run of the same cell. Compare figures only within a table, and ignore small differences.\n",
                number(ceiling_noise, 1)
            ),
        );
    }

    text.push_str(&goals_table(goals));
    text.push_str("\n## An endless backlog\n\n![jobs per second](throughput.svg)\n\n![CPU seconds per 1000 jobs](cpu.svg)\n");
    for service in SERVICES {
        let usual = summary
            .cells(Scenario::Throughput, |cell| cell.is_usual() && cell.service_us == service);
        let title = format!("A call takes {} ms", service / 1000);
        text.push_str(&table(summary, &title, usual, &THROUGHPUT, true));
    }

    let others = |want: fn(&Cell) -> bool| summary.cells(Scenario::Throughput, want);
    for (title, want) in [
        ("One partition, a call takes 1 ms", (|cell| cell.partitions == 1) as fn(&Cell) -> bool),
        ("A hundred partitions, a call takes 1 ms", |cell| cell.partitions == 100),
        ("Arguments of 10 KB, a call takes 1 ms", |cell| cell.bytes == 10_000),
        ("One call in a hundred takes 100 ms, the others 1 ms", |cell| cell.slow_us > 0),
    ] {
        text.push_str(&table(summary, title, others(want), &THROUGHPUT, true));
    }
    for (scenario, title, columns) in [
        (Scenario::Latency, LATENCY_TITLE, &LATENCY[..]),
        (Scenario::Memory, "\n## A thousand in flight before a million\n", &MEMORY[..]),
        (Scenario::Rebalance, REBALANCE_TITLE, &REBALANCE[..]),
        (Scenario::Drain, "\n## A million jobs, from the first to the last\n", &DRAIN[..]),
    ] {
        let cells = summary.cells(scenario, |_| true);
        if !cells.is_empty() {
            text.push_str(title);
            text.push_str(&table(summary, "", cells, columns, false));
        }
    }

    text.push_str(&micro_tables(micro));
    text.push_str(&peers_list(peers));
    text
}

/// The largest difference between runs of the ceiling, which contain nothing of ours.
fn ceiling_noise(summary: &Summary) -> Option<f64> {
    let cells = summary.cells(Scenario::Throughput, |cell| cell.contestant == "ceiling");
    let rates = cells.into_iter().filter_map(|cell| summary.get(cell, "jobs_per_s"));
    rates.map(|rate| rate.high / rate.low.max(1.0)).reduce(f64::max)
}

fn goals_table(goals: &[Goal]) -> String {
    let mut text =
        String::from("\n## Goals\n\n| goal | of | wanted | measured | |\n|---|---|---|---|---|\n");
    for goal in goals {
        let verdict = if goal.is_met {
            "met".to_owned()
        } else {
            format!("**missed**, {} of it", number(goal.measured / goal.wanted, 2))
        };
        let (wanted, measured) = (number(goal.wanted, 2), number(goal.measured, 2));
        add(
            &mut text,
            &format!(
                "| {} | {} | {wanted} {} | {measured} | {verdict} |\n",
                goal.goal, goal.of, goal.unit
            ),
        );
    }

    text.push_str(&reasons(goals));
    text
}

/// Why goals are missed, each reason once.
fn reasons(goals: &[Goal]) -> String {
    let mut missed: Vec<(&str, Vec<&str>)> = Vec::new();
    for (why, of) in goals.iter().filter_map(|goal| Some((goal.why?, goal.of.as_str()))) {
        match missed.iter_mut().find(|(known, _)| *known == why) {
            Some((_, all)) if all.contains(&of) => {}
            Some((_, all)) => all.push(of),
            None => missed.push((why, vec![of])),
        }
    }

    let mut text = String::new();
    if !missed.is_empty() {
        text.push_str("\n### Why goals are missed\n\n");
    }
    for (why, of) in missed {
        add(&mut text, &format!("- {why} ({})\n", of.join(", ")));
    }

    text
}

/// A table with one line per cell. `has_ceiling` adds the share of the ceiling's throughput, if
/// that was measured.
fn table(
    summary: &Summary,
    title: &str,
    mut cells: Vec<&Cell>,
    columns: &[Column],
    has_ceiling: bool,
) -> String {
    if cells.is_empty() {
        return String::new();
    }

    cells.sort_by_key(|cell| (cell.service_us, rank(cell)));
    let services = cells.iter().any(|cell| cell.service_us != cells[0].service_us);
    let ceiling = cells.iter().find(|cell| cell.contestant == "ceiling" && has_ceiling);
    let ceiling = ceiling.and_then(|cell| summary.get(cell, "jobs_per_s"));
    let mut text = if title.is_empty() { String::from("\n") } else { format!("\n### {title}\n\n") };
    let mut head = vec!["contestant"];
    head.extend(services.then_some("call, ms"));
    head.push("runs");
    head.extend(columns.iter().map(|(heading, ..)| *heading));
    head.extend(ceiling.map(|_| "of the ceiling"));
    add(&mut text, &format!("| {} |\n|{}\n", head.join(" | "), "---|".repeat(head.len())));
    for cell in cells {
        let mut row = vec![cell.contestant.clone()];
        row.extend(services.then(|| (cell.service_us / 1000).to_string()));
        row.push(summary.runs(cell).to_string());
        for (_, figure, decimals) in columns {
            row.push(
                summary
                    .get(cell, figure)
                    .map_or_else(|| "–".to_owned(), |spread| shown(spread, *decimals)),
            );
        }
        if let (Some(ceiling), Some(rate)) = (ceiling, summary.get(cell, "jobs_per_s")) {
            row.push(number(rate.median / ceiling.median, 2));
        }
        add(&mut text, &format!("| {} |\n", row.join(" | ")));
    }

    text
}

fn micro_tables(micro: &[Micro]) -> String {
    if micro.is_empty() {
        return String::new();
    }
    let mut text = String::from(MICRO_TITLE);
    text.push_str("| benchmark | ns, mean | 95 % | samples |\n|---|---|---|---|\n");
    for one in micro {
        let (ns, low, high) = (number(one.ns, 0), number(one.low, 0), number(one.high, 0));
        add(&mut text, &format!("| {} | {ns} | {low} to {high} | {} |\n", one.id, one.samples));
    }
    text
}

fn peers_list(peers: &[Peer]) -> String {
    let mut text = String::from(
        "\n## Who took part\n\nSettings and their sources are in [bench/peers](../peers/README.md).\n\n",
    );
    for peer in peers {
        let line = if peer.ready {
            format!("- {} {}\n", peer.name, peer.version)
        } else {
            format!(
                "- {}: did not take part. {}\n",
                peer.name,
                peer.reason.as_deref().unwrap_or_default()
            )
        };
        text.push_str(&line);
    }

    text
}

fn shown(spread: Spread, decimals: usize) -> String {
    let [median, low, high] =
        [spread.median, spread.low, spread.high].map(|value| number(value, decimals));
    if low == high { median } else { format!("{median} ({low}–{high})") }
}

/// A number with separated thousands.
fn number(value: f64, decimals: usize) -> String {
    let text = format!("{value:.decimals$}");
    let (whole, fraction) =
        text.split_once('.').map_or((&*text, None), |(whole, rest)| (whole, Some(rest)));
    let mut grouped = String::new();
    for (index, digit) in whole.chars().enumerate() {
        let left = whole.len() - index;
        if index > 0 && left % 3 == 0 && !grouped.ends_with('-') {
            grouped.push(',');
        }
        grouped.push(digit);
    }

    match fraction {
        Some(fraction) if whole.len() <= 3 => format!("{grouped}.{fraction}"),
        _ => grouped,
    }
}

fn add(text: &mut String, more: &str) {
    // Writing to a string can't fail.
    write!(text, "{more}").unwrap_or_default();
}

fn draw(
    directory: &Path,
    summary: &Summary,
    micro: &[Micro],
) -> Result<(), Box<dyn std::error::Error>> {
    let groups: Vec<String> =
        SERVICES.iter().map(|service| format!("{} ms", service / 1000)).collect();
    let of = |figure: &str| -> Vec<Series> {
        let series = ORDER.iter().map(|name| Series {
            name: (*name).to_owned(),
            values: SERVICES
                .iter()
                .map(|service| {
                    Some(summary.usual(Scenario::Throughput, name, *service, figure)?.triple())
                })
                .collect(),
        });
        series.filter(|one| one.values.iter().any(Option::is_some)).collect()
    };

    for (file, title, figure) in [
        (
            "throughput.svg",
            "Jobs per second, by how long a call takes (16 in flight)",
            "jobs_per_s",
        ),
        (
            "cpu.svg",
            "CPU seconds of the worker per 1000 jobs, by how long a call takes",
            "cpu_s_per_1000",
        ),
    ] {
        let series = of(figure);
        if !series.is_empty() {
            plots::bars(&directory.join(file), title, &groups, &series)?;
        }
    }

    for (file, group) in
        [("engine-in-flight.svg", "in flight"), ("engine-partitions.svg", "partitions")]
    {
        let series = ["key", "unordered", "partition"].into_iter().filter_map(|order| {
            let prefix = format!("{group}/{order}/");
            let points = micro.iter().filter_map(|one| {
                let parameter = one.id.strip_prefix(&prefix)?;
                Some((micro::trailing(parameter) as f64, one.ns))
            });
            let points: Vec<_> = points.collect();
            (!points.is_empty()).then(|| (order.to_owned(), points))
        });
        let series: Vec<_> = series.collect();
        if !series.is_empty() {
            plots::lines(
                &directory.join(file),
                &format!("What an event costs the engine, by {group}"),
                group,
                &series,
            )?;
        }
    }

    Ok(())
}

const INTRODUCTION: &str = "# What a job costs

Written by `fleet-bench`; [bench/README.md](../README.md) says what is measured and how to do it again. All contestants call the same stub of an MCP server, take the same jobs from the same Apache Kafka (Celery from Redis), and have 16 calls in flight unless a table says otherwise. Broker, stub, driver and contestant share the machine's cores. The ceiling is a bare pooled HTTP client without Kafka; the floor is a plain consumer that makes one call at a time for each partition. Ours writes two events for each job and the others write nothing.
";
const LATENCY_TITLE: &str = "
## Latency at half load

Arrivals at random at half of the contestant's own throughput, for twelve seconds; every time counts from when the job was meant to be sent. “Added” is without the call itself. The terminal event counts when a consumer has it, and only ours writes one.
";
const REBALANCE_TITLE: &str = "
## A third worker joins

The longest time in which a worker made no call for partitions that it kept, in the eight seconds after the third one was started, and in the eight seconds before.
";
const MICRO_TITLE: &str = "
## Engine and codecs

![by jobs in flight](engine-in-flight.svg)

![by partitions](engine-partitions.svg)

`cargo bench -p fleet-engine -p fleet-job`. What the engine costs is for each event (an input with all that the worker asks on account of it); the rest is for one record.

";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_readable() {
        for (value, decimals, expected) in [
            (0.123_456, 3, "0.123"),
            (999.0, 0, "999"),
            (1_234.5, 1, "1,234"),
            (1_234_567.0, 0, "1,234,567"),
            (-1_234.0, 0, "-1,234"),
        ] {
            assert_eq!(number(value, decimals), expected);
        }
    }

    #[test]
    fn a_spread_without_width_is_a_number() {
        let spread = |low, high| Spread { median: 2.0, low, high, runs: 3 };
        assert_eq!(shown(spread(2.0, 2.0), 0), "2");
        assert_eq!(shown(spread(1.0, 3.0), 1), "2.0 (1.0–3.0)");
    }
}

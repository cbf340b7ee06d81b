//! What it costs to write and to read the metadata of a commit, by how many offsets are open beyond
//! the frontier.
//!
//! `cargo bench -p fleet-engine --bench codec`. `apart`: every other offset is open, so that each
//! is a run of its own, and one in eight of them has spent an attempt; up to some 1,300 they are
//! written as runs, beyond as four bits an offset. 2,500 is the most that a window holds.
//! `together`: the same number in one run, as when one slow job holds up many that have not been
//! started. A commit comes once a second and partition, so this is no part of most events.

#![expect(clippy::unwrap_used, reason = "a benchmark: a panic is the report")]

use std::{hint::black_box, time::Duration};

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use fleet_group::{Progress, log::LogName};

const BASE: i64 = 1_000_000;
const LOG: LogName = LogName { cluster: u64::MAX / 3, topic: u64::MAX / 5 };

/// Makes a progress with so many open offsets.
type Shape = fn(i64) -> Progress;

fn apart(open: i64) -> Progress {
    let mut progress = Progress::none(BASE);
    progress.open = (0..open).map(|n| (BASE + 2 * n, BASE + 2 * n + 1)).collect();
    progress.attempts = (0..open).step_by(8).map(|n| (BASE + 2 * n, 1 + (n % 3) as u32)).collect();
    progress.end = BASE + 2 * open;
    progress
}

fn together(open: i64) -> Progress {
    let mut progress = Progress::none(BASE);
    progress.open = vec![(BASE, BASE + open)];
    progress.end = BASE + open + 1;
    progress
}

fn codec(criterion: &mut Criterion) {
    let shapes = [("apart", apart as Shape), ("together", together)];
    for (shape, make) in shapes {
        for direction in ["encode", "decode"] {
            let mut group = criterion.benchmark_group(format!("metadata {direction}"));
            for open in [1, 10, 100, 500, 1_000, 2_500] {
                let progress = make(open);
                let text = progress.encode(LOG).unwrap();
                group.throughput(Throughput::Elements(open as u64));
                let id = BenchmarkId::new(shape, open);
                match direction {
                    "encode" => group.bench_function(id, |bencher| {
                        bencher.iter(|| black_box(&progress).encode(LOG));
                    }),
                    _ => group.bench_function(id, |bencher| {
                        bencher.iter(|| Progress::decode(BASE, black_box(&text)).unwrap());
                    }),
                };
            }
            group.finish();
        }
    }
}

fn configured() -> Criterion {
    Criterion::default()
        .sample_size(20)
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(1))
        .without_plots()
}

criterion_group! {
    name = benches;
    config = configured();
    targets = codec
}
criterion_main!(benches);

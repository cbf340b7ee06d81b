//! A million jobs in the ledger: the time to read them, their memory, and the latency of
//! `GET /jobs/{id}`, with the ledger in memory and in a file, when idle and while events arrive.
//!
//! `cargo build --profile dist -p mcp-server && cargo bench --profile dist -p fleet-tests
//! --bench ledger`. Broker, server and clients share one machine. `FLEET_LEDGER_JOBS` sets another
//! number of jobs.

#![expect(clippy::expect_used, reason = "a panic is the report of a benchmark")]
#![expect(clippy::print_stdout, reason = "the report of a benchmark")]

use std::{
    env,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use fleet_tests::{
    Env, Fleet,
    fleet::{ServerOptions, Service},
    http, topics,
    topics::Outgoing,
    wait,
};
use serde_json::json;

const LANES: usize = 8;
const REQUESTS: usize = 20_000;
/// The rate of events per second while the ledger is queried.
const RATE: usize = 1_000;

fn main() {
    let jobs =
        env::var("FLEET_LEDGER_JOBS").map_or(1_000_000, |jobs| jobs.parse().expect("a number"));
    let Some(env) = Env::apache_kafka() else { return };
    let fleet = Fleet::new(env, "ledger-bench", 12);
    let events = format!("{}.events", fleet.topic);
    for portion in (0..jobs).collect::<Vec<usize>>().chunks(50_000) {
        let records = portion.iter().map(|n| event(*n, "succeeded")).collect();
        topics::produce(&env.brokers, &events, records);
    }
    let bytes = event(1, "succeeded").value.map_or(0, |value| value.len());
    println!("{jobs} jobs, {bytes} bytes each\n");
    println!(
        "| ledger | start s | RSS MiB | events/s coming in | requests/s | p50 ms | p99 ms | max ms |\n|---|---|---|---|---|---|---|---|"
    );
    let limit = [
        ("MCP_LEDGER_MAX_JOBS", (jobs + 100_000).to_string()),
        ("MCP_LEDGER_MAX_BYTES", "4GiB".to_owned()),
    ];
    let directory = fleet.directory.join("ledger").display().to_string();
    for (name, data) in [
        ("memory", None),
        ("file, first start", Some(&directory)),
        ("file, again", Some(&directory)),
    ] {
        let mut env = vec![("RUST_LOG".to_owned(), "warn".to_owned())];
        env.extend(limit.iter().map(|(name, value)| ((*name).to_owned(), value.clone())));
        env.extend(data.map(|directory| ("MCP_DATA_DIR".to_owned(), directory.clone())));
        let begin = Instant::now();
        let mut server = fleet.start_replica(ServerOptions { env, ..ServerOptions::default() });
        let start = begin.elapsed();
        report(name, &fleet, &mut server, jobs, start);
    }
}

fn event(n: usize, state: &str) -> Outgoing {
    let result = json!({"content": [{"type": "text", "text": "a result of some length, as tools return it ".repeat(4)}]});
    let event = json!({"jobID": id(n), "state": state, "time": "2026-11-21T08:00:00.000Z", "jobType": "tool-call",
        "tool": format!("server__tool-{}", n % 20), "submittedAt": 1_795_000_000_000_u64 + n as u64, "attempts": 1,
        "worker": "worker-1", "source": {"topic": "mcp-jobs", "partition": n % 12, "offset": n}, "result": result,
        "tenant": format!("tenant-{}", n % 100)});
    Outgoing::value(event.to_string()).key(id(n))
}

fn id(n: usize) -> String {
    format!("01930000-0000-7000-8000-{n:012}")
}

fn report(name: &str, fleet: &Fleet<'_>, server: &mut Service, jobs: usize, start: Duration) {
    let count = wait::poll_until("the ledger's own count", wait::LONG, || {
        http::metric(server.address, "mcp_server_ledger_jobs").filter(|count| *count >= jobs as f64)
    });
    assert!(count >= jobs as f64);

    let (address, brokers) = (server.address, &fleet.env.brokers);
    let events = format!("{}.events", fleet.topic);
    for rate in [0, RATE] {
        let done = AtomicBool::new(false);
        let (times, elapsed) = thread::scope(|scope| {
            scope.spawn(|| {
                while rate > 0 && !done.load(Ordering::Relaxed) {
                    let begin = Instant::now();
                    let records = (0..rate / 10).map(|n| event(n, "running")).collect();
                    topics::produce(brokers, &events, records);
                    thread::sleep(Duration::from_millis(100).saturating_sub(begin.elapsed()));
                }
            });
            let begin = Instant::now();
            let lanes: Vec<_> =
                (0..LANES).map(|lane| scope.spawn(move || ask(address, lane, jobs))).collect();
            let times: Vec<Duration> =
                lanes.into_iter().flat_map(|lane| lane.join().expect("a lane")).collect();
            let elapsed = begin.elapsed();
            done.store(true, Ordering::Relaxed);
            (times, elapsed)
        });
        row(name, server, rate, times, start, elapsed);
    }
}

fn row(
    name: &str,
    server: &Service,
    rate: usize,
    mut times: Vec<Duration>,
    start: Duration,
    elapsed: Duration,
) {
    times.sort_unstable();
    let at = |share: f64| {
        times[((times.len() as f64 * share) as usize).min(times.len() - 1)].as_secs_f64() * 1e3
    };
    println!(
        "| {name} | {:.1} | {} | {rate} | {:.0} | {:.2} | {:.2} | {:.1} |",
        start.as_secs_f64(),
        rss(server.process.pid()) / 1024,
        times.len() as f64 / elapsed.as_secs_f64(),
        at(0.5),
        at(0.99),
        at(1.0)
    );
}

/// Queries jobs all over the ledger, one after the other on one connection.
fn ask(address: SocketAddr, lane: usize, jobs: usize) -> Vec<Duration> {
    let mut stream = TcpStream::connect(address).expect("a connection");
    stream.set_nodelay(true).expect("no delay");
    let mut reader = BufReader::new(stream.try_clone().expect("the same connection"));
    (0..REQUESTS / LANES)
        .map(|n| {
            // A large odd step covers the whole ledger.
            let job = (lane * 7_919 + n * 104_729) % jobs;
            let request = format!("GET /jobs/{} HTTP/1.1\r\nhost: {address}\r\n\r\n", id(job));
            let begin = Instant::now();
            stream.write_all(request.as_bytes()).expect("a request");
            let body = answer(&mut reader);
            let took = begin.elapsed();
            assert!(body.contains(&id(job)), "{body}");
            took
        })
        .collect()
}

fn answer(reader: &mut BufReader<TcpStream>) -> String {
    let mut length = 0;
    let mut line = String::new();
    loop {
        line.clear();
        reader.read_line(&mut line).expect("a line");
        let lower = line.to_ascii_lowercase();
        if let Some(value) = lower.strip_prefix("content-length:") {
            length = value.trim().parse().expect("a length");
        }
        if line == "\r\n" {
            break;
        }
    }

    let mut body = vec![0; length];
    reader.read_exact(&mut body).expect("a body");
    String::from_utf8(body).expect("text")
}

/// The resident memory of a process, in KiB.
fn rss(process: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    line.and_then(|line| line.split_whitespace().next()?.parse().ok()).unwrap_or_default()
}

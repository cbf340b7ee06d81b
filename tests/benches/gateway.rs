//! The cost of the gateway: the same tool of the same HTTP server is called directly and through the
//! gateway, in turns.
//!
//! `cargo build --profile dist -p mcp-server && cargo bench --profile dist -p fleet-tests --bench
//! gateway`. Everything runs on loopback on one machine, so client, gateway and upstream share its
//! cores. Every call has different arguments, and no results are remembered. The client is that of
//! the workers; its cost is in both figures.

#![expect(clippy::expect_used, reason = "a panic is the report of a benchmark")]
#![expect(clippy::print_stdout, reason = "the report of a benchmark")]

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use fleet_job::outcome::Outcome;
use fleet_mcp_client::{ClientConfig, McpClient, ToolCall};
use fleet_tests::{
    fleet::{ServerOptions, Standalone},
    http,
};
use serde_json::json;

/// The number of turns of each kind. A noisy moment of the machine affects only one of them.
const TURNS: usize = 10;
const CALLS_PER_TURN: usize = 2_000;
const WARM_UP: usize = 1_000;

fn main() {
    let upstream = Standalone::start_with(
        "bench-upstream",
        options(&["--conformance".to_owned(), "--repeat-window=0".to_owned()]),
    );
    let remote = upstream.service.address.to_string();
    let gateway = Standalone::start_with(
        "bench-gateway",
        options(&["--allow-remote".to_owned(), remote.clone(), "--repeat-window=0".to_owned()]),
    );
    let config = json!({"type": "http", "url": format!("http://{remote}/mcp")});
    let request = json!({"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params":
        {"name": "server_initialize", "arguments": {"name": "up", "config": config}}});
    let (_, answer) = http::post(gateway.service.address, "/message", &request).expect("an answer");
    assert!(answer["result"]["isError"].as_bool() != Some(true), "{answer}");

    let runtime =
        tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime");
    let client = |server: &Standalone| {
        let url = format!("http://{}/mcp", server.service.address);
        McpClient::new(ClientConfig::new(ClientConfig::parse_urls(&url).expect("a URL")))
            .expect("a client")
    };
    let ways = [
        ("direct", client(&upstream), "test_simple_text"),
        ("gateway", client(&gateway), "up__test_simple_text"),
    ];
    println!(
        "| concurrency | way | calls | p50 µs | p99 µs | calls/s |\n|---|---|---|---|---|---|"
    );
    for concurrency in [1, 32] {
        let mut times = [Vec::new(), Vec::new()];
        let mut elapsed = [Duration::ZERO; 2];
        for (_, client, tool) in &ways {
            runtime.block_on(turn(client, tool, concurrency, WARM_UP));
        }
        for _ in 0..TURNS {
            for (way, (_, client, tool)) in ways.iter().enumerate() {
                let begin = Instant::now();
                times[way].extend(runtime.block_on(turn(
                    client,
                    tool,
                    concurrency,
                    CALLS_PER_TURN,
                )));
                elapsed[way] += begin.elapsed();
            }
        }
        let mut rows = Vec::new();
        for (way, (name, ..)) in ways.iter().enumerate() {
            times[way].sort_unstable();
            let at = |share: f64| {
                let index = (times[way].len() as f64 * share) as usize;
                times[way][index.min(times[way].len() - 1)].as_secs_f64() * 1e6
            };
            let rate = times[way].len() as f64 / elapsed[way].as_secs_f64();
            println!(
                "| {concurrency} | {name} | {} | {:.0} | {:.0} | {rate:.0} |",
                times[way].len(),
                at(0.5),
                at(0.99)
            );
            rows.push((at(0.5), at(0.99)));
        }
        let added = (rows[1].0 - rows[0].0, rows[1].1 - rows[0].1);
        println!("| {concurrency} | added | | {:.0} | {:.0} | |", added.0, added.1);
    }
}

fn options(args: &[String]) -> ServerOptions {
    ServerOptions {
        args: args.to_vec(),
        env: vec![("RUST_LOG".to_owned(), "warn".to_owned())],
        ..ServerOptions::default()
    }
}

/// Makes this many calls; returns the duration of each.
async fn turn(client: &McpClient, tool: &str, concurrency: usize, calls: usize) -> Vec<Duration> {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let tool: Arc<str> = tool.into();
    let lanes = (0..concurrency).map(|_| {
        let (client, tool) = (client.clone(), tool.clone());
        tokio::spawn(async move {
            let mut times = Vec::with_capacity(calls / concurrency);
            for _ in 0..calls / concurrency {
                let number = NEXT.fetch_add(1, Ordering::Relaxed);
                let arguments = json!({"n": number, "text": format!("call {number}")});
                let call = ToolCall::new(&*tool, arguments.as_object().expect("an object").clone());
                let begin = Instant::now();
                let outcome = client.call_tool(call).await;
                times.push(begin.elapsed());
                assert!(matches!(outcome, Outcome::Succeeded(_)), "{outcome:?}");
            }
            times
        })
    });

    let mut times = Vec::with_capacity(calls);
    for lane in lanes.collect::<Vec<_>>() {
        times.extend(lane.await.expect("a lane"));
    }

    times
}

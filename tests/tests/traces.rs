//! One trace per job, from its producer to the hosted tool, as an OpenTelemetry collector receives
//! it; and the same ids in events, dead letters and log lines.

#![expect(clippy::expect_used, reason = "a panic is the report of a test")]

use std::collections::BTreeMap;

use fleet_job::{event::JobState, topics::Topics};
use fleet_tests::{
    Env, Fleet, Oracle, bins,
    fleet::ServerOptions,
    on_every_broker,
    otlp::{Collector, Span},
    rest, topics,
    topics::{Outgoing, Record},
    wait,
};
use serde_json::{Value, json};

on_every_broker!(
    a_job_is_one_trace_from_its_producer_to_the_tool,
    jobs_submitted_through_the_server_are_below_their_caller,
    without_a_collector_the_trace_is_passed_on
);

const SERVER: i32 = 2;
const CLIENT: i32 = 3;
const PRODUCER: i32 = 4;
const CONSUMER: i32 = 5;
const JOBS: u64 = 20;

fn call(id: &str, arguments: &Value) -> Value {
    json!({"jobID": id, "jobType": "tool-call", "payload": {"server": "chaos", "tool": "work", "arguments": arguments}})
}

/// A separate trace for each number, with the span in which the producer has written the job.
fn context(number: u64) -> (String, String, String) {
    let (trace, span) =
        (format!("{:032x}", 0xabc_0000 + number), format!("{:016x}", 0xdef_0000 + number));
    let parent = format!("00-{trace}-{span}-01");
    (trace, span, parent)
}

fn traced(job: &Value, number: u64) -> Outgoing {
    Outgoing::value(job.to_string()).header("traceparent", context(number).2)
}

fn a_job_is_one_trace_from_its_producer_to_the_tool(env: &Env) {
    let collector = Collector::start();
    let mut fleet = Fleet::new(env, "traces", 3);
    let ledger = fleet.directory.join("ledger");
    fleet.server_env = collector.env();
    fleet.start_tool_server(env!("CARGO_BIN_EXE_fixture_tools"), &ledger, false);
    fleet.worker_env.extend(collector.env());
    fleet.worker_env("LOG_FORMAT", "json");
    fleet.start_worker();
    fleet.start_worker();
    let mut jobs: Vec<_> =
        (0..JOBS).map(|n| traced(&call(&format!("traced-{n}"), &json!({"key": "-"})), n)).collect();

    // One job is retried, one fails, one has several calls, and one has a producer without traces.
    jobs.push(traced(&call("retried", &json!({"failures": 1})), JOBS));
    jobs.push(traced(&call("failed", &json!({"final": true})), JOBS + 1));
    let calls: Vec<_> =
        (0..3).map(|_| json!({"server": "chaos", "tool": "work", "arguments": {}})).collect();
    let batch = json!({"jobID": "batch", "jobType": "tool-batch", "payload": {"calls": calls, "parallel": 2}});
    jobs.push(traced(&batch, JOBS + 2));
    jobs.push(Outgoing::value(call("untraced", &json!({})).to_string()));
    jobs.push(traced(&json!({"jobID": "rejected", "jobType": "no such type"}), JOBS + 3));
    fleet.submit(jobs);
    fleet.wait_for_all();
    let workers =
        fleet.workers.iter().map(|worker| worker.process.log_path().to_owned()).collect::<Vec<_>>();

    // The remaining spans are exported when the processes stop.
    fleet.stop_workers();
    fleet.server.take().expect("the server").process.stop(wait::LONG);
    let account = Oracle::new(&fleet.topic, &fleet.submitted).check(&env.brokers);
    let spans = collector.spans();
    let by_job = |job: &str| -> Vec<&Span> {
        let trace = spans
            .iter()
            .find(|span| span.kind == CONSUMER && span.attributes["fleet.job.id"] == job);
        let trace = &trace.unwrap_or_else(|| panic!("{job} has no trace: {spans:#?}")).trace;
        spans.iter().filter(|span| span.trace == *trace).collect()
    };
    for number in 0..JOBS {
        let job = by_job(&format!("traced-{number}"));
        let (trace, producer, _) = context(number);
        assert_eq!(job[0].trace, trace);
        let chain = chain(&job, &producer);
        let kinds: Vec<_> = chain.iter().map(|span| (&*span.service, span.kind)).collect();
        assert_eq!(
            kinds,
            [
                ("kafka-worker", CONSUMER),
                ("kafka-worker", CLIENT),
                ("mcp-server", SERVER),
                ("mcp-server", CLIENT)
            ],
            "{job:#?}"
        );
        assert_eq!(chain[0].attributes["fleet.job.state"], "succeeded");
        assert_eq!(chain[1].name, "tools/call chaos__work");
        assert_eq!(chain[3].attributes["fleet.upstream"], "chaos");
        // The tool receives the innermost span, and events carry the worker's.
        let record = fleet
            .submitted
            .iter()
            .find(|record| record.text().contains(&format!("\"traced-{number}\"")));
        let end = account.of(record.expect("its record"));
        let seen =
            end.result.as_ref().and_then(|result| result["_meta"]["test/traceparent"].as_str());
        assert_eq!(seen, Some(&*format!("00-{trace}-{}-01", chain[3].id)), "{:?}", end.result);
    }
    let names = |job: &str| {
        let mut names = BTreeMap::new();
        by_job(job)
            .iter()
            .for_each(|span| *names.entry((span.service.clone(), span.kind)).or_insert(0) += 1);
        names.into_values().collect::<Vec<i32>>()
    };
    assert_eq!(names("retried"), [2, 1, 2, 2], "two attempts below one span of processing");
    assert_eq!(names("batch"), [3, 1, 3, 3], "each call has its own");
    assert_eq!(names("untraced"), [1, 1, 1, 1], "the worker begins the trace");
    assert_eq!(names("rejected"), [1], "no call was made");

    let failed = by_job("failed");
    assert!(failed.iter().any(|span| span.kind == CONSUMER && span.failed), "{failed:#?}");
    events_and_letters_are_of_the_trace(&fleet, &spans);
    let logs: String =
        workers.iter().map(|log| std::fs::read_to_string(log).expect("a log")).collect();
    for line in logs.lines() {
        let line: Value =
            serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
        assert_eq!(line["service"], "kafka-worker", "{line}");
    }
    let of_failed = logs.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let of_failed: Vec<_> = of_failed.filter(|line| line["job_id"] == "failed").collect();
    assert!(
        !of_failed.is_empty()
            && of_failed.iter().all(|line| line["trace_id"] == context(JOBS + 1).0),
        "{of_failed:?}"
    );
}

/// A job that is submitted over HTTP or with an MCP tool is below its submitter in the trace.
fn jobs_submitted_through_the_server_are_below_their_caller(env: &Env) {
    let collector = Collector::start();
    let mut fleet = Fleet::new(env, "submitted", 3);
    let options = ServerOptions {
        roots: vec![fleet.files()],
        env: collector.env(),
        ..ServerOptions::default()
    };
    let mut server = fleet.start_replica(options);
    fleet.server_url = format!("http://{}", server.address);
    fleet.worker_env.extend(collector.env());
    fleet.start_worker();
    let job = |id: &str| json!({"jobID": id, "jobType": "tool-call", "payload": {"tool": "file_list", "arguments": {}}});
    let (trace, span, parent) = context(1);
    rest::post_with(server.address, "/jobs", &[("traceparent", &*parent)], &job("by-http"))
        .expect(202);
    let (tools_trace, tools_span, tools_parent) = context(2);
    let params = json!({"name": "job_submit", "arguments": {"jobs": [job("by-tool")]}, "_meta": {"traceparent": tools_parent}});
    let request = json!({"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params});
    let answer = rest::post(server.address, "/message", &request).expect(200);
    assert_ne!(answer["result"]["isError"], true, "{answer}");

    for id in ["by-http", "by-tool"] {
        wait::poll_until("the job", wait::LONG, || {
            let job = rest::get(server.address, &format!("/jobs/{id}")).json();
            (job["state"] == JobState::Succeeded.as_str()).then_some(())
        });
    }
    fleet.stop_workers();
    server.process.stop(wait::LONG);
    let spans = collector.spans();
    let kinds = |trace: &str, parent: &str| -> Vec<i32> {
        let of: Vec<_> = spans.iter().filter(|span| span.trace == trace).collect();
        chain(&of, parent).iter().map(|span| span.kind).collect()
    };
    assert_eq!(kinds(&trace, &span), [PRODUCER, CONSUMER, CLIENT, SERVER], "{spans:#?}");
    assert_eq!(
        kinds(&tools_trace, &tools_span),
        [SERVER, PRODUCER, CONSUMER, CLIENT, SERVER],
        "{spans:#?}"
    );
}

/// The spans from the outermost on, each below the previous one, the first below `parent`.
fn chain<'s>(spans: &[&'s Span], parent: &str) -> Vec<&'s Span> {
    let mut chain = Vec::new();
    let mut above = parent;
    while let Some(span) = spans.iter().find(|span| span.parent == above) {
        chain.push(*span);
        above = &span.id;
    }
    assert_eq!(chain.len(), spans.len(), "some spans are not connected: {spans:#?}");
    chain
}

fn events_and_letters_are_of_the_trace(fleet: &Fleet<'_>, spans: &[Span]) {
    let topics = Topics::of(&*fleet.topic);
    let parts = |record: &Record| {
        let parent =
            record.header("traceparent").map(|value| String::from_utf8_lossy(value).into_owned());
        let parent = parent.unwrap_or_else(|| panic!("no trace: {record:?}"));
        let mut parts = parent.split('-').map(str::to_owned);
        (parts.nth(1).expect("a trace"), parts.next().expect("a span"))
    };

    for event in topics::read(&fleet.env.brokers, &topics.events) {
        let (trace, span) = parts(&event);
        let of = spans
            .iter()
            .find(|known| known.id == span)
            .unwrap_or_else(|| panic!("no span {span}: {event:?}"));
        assert_eq!((of.kind, &of.trace), (CONSUMER, &trace), "{event:?}");
    }

    let dead = topics::read(&fleet.env.brokers, &topics.dlq);
    assert_eq!(dead.len(), 2);
    for letter in dead {
        let (trace, span) = parts(&letter);
        assert!(
            [context(JOBS + 1), context(JOBS + 3)]
                .iter()
                .any(|(t, s, _)| (t, s) == (&trace, &span))
        );
    }
}

/// No spans are exported. A job that is submitted over HTTP or MCP keeps its caller's trace all the
/// way to the tool.
fn without_a_collector_the_trace_is_passed_on(env: &Env) {
    let mut fleet = Fleet::new(env, "untraced", 3);
    let ledger = fleet.directory.join("ledger");
    fleet.start_tool_server(env!("CARGO_BIN_EXE_fixture_tools"), &ledger, false);
    let jobs = fleet.start_replica(ServerOptions::default());
    fleet.start_worker();
    let (_, _, parent) = context(0);
    let id = bins::unique("rest");
    let headers = [("traceparent", &*parent), ("tracestate", "a=b")];
    let answer = rest::post_with(jobs.address, "/jobs", &headers, &call(&id, &json!({})));
    assert_eq!(answer.status, 202, "{answer:?}");

    let job = wait::poll_until("the job", wait::LONG, || {
        let job = rest::get(jobs.address, &format!("/jobs/{id}")).json();
        (job["state"] == JobState::Succeeded.as_str()).then_some(job)
    });
    assert_eq!(job["result"]["_meta"]["test/traceparent"], parent, "{job}");

    for event in topics::read(&env.brokers, &Topics::of(&*fleet.topic).events) {
        assert_eq!(event.header("traceparent"), Some(parent.as_bytes()), "{event:?}");
        assert_eq!(event.header("tracestate"), Some(&b"a=b"[..]), "{event:?}");
    }
}

//! Tenants share the slots of a worker (I8).

#![expect(clippy::expect_used, reason = "a panic is the report of a test")]

use std::fs;

use fleet_job::event::JobState;
use fleet_tests::{Env, Fleet, http, on_every_broker, topics::Outgoing};
use serde_json::json;

on_every_broker!(one_job_behind_three_hundred_of_another_tenant);

/// How many jobs the worker has under way.
const IN_FLIGHT: usize = 4;
/// How many jobs the busy tenant has.
const BUSY: usize = 300;

/// All jobs are in one partition, and those of the busy tenant are first and more urgent. Once slots
/// free up, the other's job starts within two rounds.
fn one_job_behind_three_hundred_of_another_tenant(env: &Env) {
    let mut fleet = Fleet::new(env, "fair", 1);
    let ledger = fleet.directory.join("ledger");
    fleet.start_tool_server(env!("CARGO_BIN_EXE_fixture_tools"), &ledger, false);
    fleet.worker_env("MCP_MAX_IN_FLIGHT", &IN_FLIGHT.to_string());
    let worker = fleet.start_worker().address;

    // Nothing ends before all is read.
    let gate = fleet.directory.join("gate");
    let job = |id: String, tenant: &str, priority: u8| {
        let payload = json!({"server": "chaos", "tool": "work", "arguments": {"until": gate}});
        let job = json!({"jobID": id, "jobType": "tool-call", "tenant": tenant,
            "priority": priority, "payload": payload});
        Outgoing::value(job.to_string())
    };
    let busy = (0..BUSY).map(|n| job(format!("busy-{n}"), "busy", 9));
    let busy = fleet.submit(busy.collect());
    let other = fleet.submit(vec![job("other".to_owned(), "other", 0)]).remove(0);
    fleet.wait_for_gauge("fleet_jobs_buffered", BUSY + 1);
    fleet.wait_for_gauge("fleet_jobs_in_flight", IN_FLIGHT);
    fs::write(&gate, "").expect("the gate");

    fleet.wait_for_all();
    assert_eq!(http::metric(worker, "fleet_invariant_violations_total"), Some(0.0));
    let account = fleet.settle(0);
    assert_eq!(account.count(JobState::Succeeded), BUSY + 1);
    let start_of = |record| account.of(record).timings.as_ref().and_then(|times| times.started_at);
    let first = start_of(&other).expect("it has started");
    let before = busy.iter().filter(|record| start_of(record).is_some_and(|at| at < first)).count();
    // Both weigh 1, so a round of the others is one job.
    assert!(before <= IN_FLIGHT + 2, "{before} jobs of the busy tenant have started before it");
}

//! Everyday changes: all workers are replaced one after the other, and a poison job ends after its
//! attempts however often its worker is killed in between.

use std::collections::{BTreeMap, BTreeSet};

use fleet_job::event::{JobEvent, JobState};
use fleet_tests::{
    Env, Fleet, Oracle, chaos::ledger::Ledger, http, on_every_broker, topics::Outgoing, wait,
};
use serde_json::{Value, json};

on_every_broker!(
    a_rolling_restart_repeats_nothing,
    a_poison_job_ends_after_its_attempts_despite_killed_workers
);

const WORKERS: usize = 3;
/// The number of jobs that are submitted while a worker is replaced; enough to last until its
/// successor has some, too.
const BATCH: usize = 400;

/// SIGTERM of every worker, one after the other, each replaced before it goes, under load: no
/// settled job runs again (I4), and no key loses its order (I5).
fn a_rolling_restart_repeats_nothing(env: &Env) {
    let mut fleet = Fleet::new(env, "rolling", 12);
    // On a busy machine, a worker must not lose its partitions, since nothing may be repeated.
    fleet.worker_env("KAFKA_PROPERTY_SESSION_TIMEOUT_MS", "30000");
    let ledger = fleet.directory.join("ledger");
    fleet.start_tool_server(env!("CARGO_BIN_EXE_fixture_tools"), &ledger, false);
    fleet.worker_env("MCP_MAX_IN_FLIGHT", "4");
    for _ in 0..WORKERS {
        fleet.start_worker();
    }
    submit(&mut fleet);
    for _ in 0..WORKERS {
        let fresh = fleet.start_worker().address;
        submit(&mut fleet);
        let before = settled(fleet.workers[0].address);
        wait::poll_until("jobs of the new worker and of the one that goes", wait::LONG, || {
            if settled(fresh) > 0.0 && settled(fleet.workers[0].address) > before {
                return Some(());
            }
            // The load must last until the new worker has its share.
            let ended = Oracle::new(&fleet.topic, &fleet.submitted).read(&env.brokers).ended();
            if ended + BATCH / 2 > fleet.submitted.len() {
                submit(&mut fleet);
            }
            None
        });
        let mut old = fleet.workers.remove(0);
        let status = old.process.stop(wait::LONG);
        assert!(status.success(), "a worker ended with {status}:\n{}", old.process.log());
    }
    let account = fleet.settle(0);
    assert_eq!(account.count(JobState::Succeeded), account.states.len());

    let workers: BTreeSet<_> =
        account.states.values().filter_map(|event| event.worker.clone()).collect();
    assert_eq!(workers.len(), 2 * WORKERS, "not every worker had jobs: {workers:?}");

    let ledger = Ledger::read(&ledger);
    assert_eq!(ledger.repeats(), 0, "calls were repeated");
    assert_eq!(ledger.overlaps, [], "calls of one key overlapped");
}

/// I6: the worker that takes over a job knows its spent attempts.
fn a_poison_job_ends_after_its_attempts_despite_killed_workers(env: &Env) {
    const ATTEMPTS: u32 = 4;
    const KILLS: u32 = 2;
    let mut fleet = Fleet::new(env, "poison", 1);
    let ledger = fleet.directory.join("ledger");
    fleet.start_tool_server(env!("CARGO_BIN_EXE_fixture_tools"), &ledger, false);
    fleet.worker_env("MCP_RETRY_BASE", "2s");
    fleet.worker_env("MCP_RETRY_MAX", "2s");
    fleet.start_worker();

    // Delays between attempts are random and may be zero. The attempts themselves take so long that
    // the job can't end before the last worker is killed, which would leave its end uncommitted.
    let mut poison = call("poison", &json!({"ms": 1_500, "failures": 1_000}));
    poison["maxAttempts"] = json!(ATTEMPTS);
    let poison = fleet.submit_job(&poison);
    for kill in 1..=KILLS {
        let worker = fleet.workers[0].address;
        // The `retrying` event comes before the commit that makes the attempt durable, which comes
        // before the next attempt.
        wait::poll_until_ok("a failed attempt that is durable", wait::LONG, || {
            let account = Oracle::new(&fleet.topic, &fleet.submitted).read(&env.brokers);
            let spent = account.events.values().flatten().map(|event| retrying(event)).max();
            let commits = http::metric(worker, "fleet_commits_total").unwrap_or_default();
            if spent >= Some(kill) && commits > 0.0 { Ok(()) } else { Err((spent, commits)) }
        });
        fleet.workers.remove(0).process.kill();
        fleet.start_worker();
    }
    let account = fleet.settle(0);
    let end = account.of(&poison);
    assert_eq!((end.state, end.attempts), (JobState::Failed, ATTEMPTS), "{end:?}");
    assert_eq!(account.dead.len(), 1);

    let calls: BTreeMap<u32, usize> = Ledger::read(&ledger).calls["poison"].clone();
    assert_eq!(calls.keys().copied().collect::<Vec<_>>(), [1, 2, 3, 4], "{calls:?}");

    // Each kill can interrupt one call, which then doesn't count; the job didn't need those calls
    // to end.
    let all: usize = calls.values().sum();
    assert!(all <= (ATTEMPTS + KILLS) as usize, "{calls:?}");
}

fn retrying(event: &JobEvent) -> u32 {
    if event.state == JobState::Retrying { event.attempts } else { 0 }
}

fn settled(worker: std::net::SocketAddr) -> f64 {
    http::metric(worker, "fleet_jobs_settled_total").unwrap_or_default()
}

fn call(id: &str, arguments: &Value) -> Value {
    json!({"jobID": id, "jobType": "tool-call",
        "payload": {"server": "chaos", "tool": "work", "arguments": arguments}})
}

fn submit(fleet: &mut Fleet<'_>) {
    let first = fleet.submitted.len();
    let jobs = (0..BATCH).map(|n| {
        let key = format!("k{}", n % 50);
        let job = call(&format!("c{}", first + n), &json!({"ms": 5 + n % 20, "key": key}));
        Outgoing::value(job.to_string()).key(key)
    });
    fleet.submit(jobs.collect());
}

//! A kill, a stop or an outage in the middle of the work changes nothing about the jobs.

#![expect(clippy::expect_used, reason = "a panic is the report of a test")]

use std::time::Duration;

use fleet_job::event::JobState;
use fleet_tests::{
    Env, Fleet, Oracle,
    fleet::{ServerOptions, now},
    http, on_every_broker, topics, wait,
};
use nix::sys::signal::Signal;

on_every_broker!(
    a_killed_worker_loses_nothing,
    the_jobs_of_a_killed_worker_continue_within_20_s,
    a_stopped_worker_drains_and_leaves,
    a_worker_that_wakes_up_writes_no_outdated_events,
    a_server_outage_costs_no_attempts,
);

/// The number of jobs that a worker of these tests has in flight.
const IN_FLIGHT: usize = 4;
/// The gauge of these jobs.
const BUSY: &str = "fleet_jobs_in_flight";

/// SIGKILL of one of three workers while it has jobs in flight.
fn a_killed_worker_loses_nothing(env: &Env) {
    let mut fleet = held_fleet(env, "killed", 3);
    let gate = fleet.submit_held(200);
    fleet.wait_for_gauge(BUSY, IN_FLIGHT);
    let mut victim = fleet.workers.remove(0);
    victim.process.kill();
    fleet.start_worker();
    gate.open();
    let account = fleet.settle(REPEATS);
    assert_eq!(account.count(JobState::Succeeded), 300);
}

/// How long the jobs of a killed worker may stand still on default settings, as
/// docs/configuration.md says.
const CONTINUED: Duration = Duration::from_secs(20);

/// SIGKILL of one of two workers on default settings. Its jobs in flight end as soon as the other
/// worker begins their next attempt, since nothing holds them back any longer.
fn the_jobs_of_a_killed_worker_continue_within_20_s(env: &Env) {
    let mut fleet = Fleet::new(env, "prompt", 6);
    fleet.worker_env.retain(|(name, _)| !name.starts_with("KAFKA_PROPERTY_"));
    hold(&mut fleet, 2);
    let gate = fleet.submit_held(50);
    fleet.wait_for_gauge(BUSY, IN_FLIGHT);

    let mut victim = fleet.workers.remove(0);
    let killed = now();
    victim.process.kill();
    gate.open();
    let account = fleet.settle(REPEATS);
    assert_eq!(account.count(JobState::Succeeded), 150);

    // Every job has ended after its next attempt has begun.
    let last = account.states.values().map(|event| event.time).max().expect("a job");
    let stood_still = last.since(killed);
    assert!(stood_still <= CONTINUED, "the jobs continued only after {stood_still:?}");
}

/// The most jobs that one worker had in flight, or had settled but not committed (I4): the jobs
/// that were let through before.
const REPEATS: usize = 100 + IN_FLIGHT;

/// After SIGTERM, a worker starts no new jobs, lets running ones end, commits everything, and
/// leaves the group.
fn a_stopped_worker_drains_and_leaves(env: &Env) {
    let mut fleet = held_fleet(env, "drained", 1);
    let gate = fleet.submit_held(100);
    fleet.wait_for_gauge(BUSY, IN_FLIGHT);
    assert_eq!(topics::members(&env.brokers, &fleet.group), 1);

    let worker = &mut fleet.workers[0].process;
    worker.signal(Signal::SIGTERM);
    worker.says("draining", wait::LONG);
    gate.open();
    let status = worker.wait(wait::LONG);
    assert!(status.success(), "the worker ended with {status}:\n{}", worker.log());

    fleet.workers.clear();
    assert_eq!(
        topics::members(&env.brokers, &fleet.group),
        0,
        "the worker did not leave its group"
    );

    let halfway = Oracle::new(&fleet.topic, &fleet.submitted).read(&env.brokers);
    assert_eq!(halfway.count(JobState::Running), 0, "jobs were left without an end");
    assert_eq!(
        halfway.ended(),
        100 + IN_FLIGHT,
        "it ends its running jobs, and starts no new ones"
    );

    // No settled job runs again (I4).
    fleet.start_worker();
    let account = fleet.settle(0);
    assert_eq!(account.count(JobState::Succeeded), 200);
}

/// SIGSTOP for longer than the session timeout, and SIGCONT once others have ended all jobs.
/// Everything that the worker still holds or was about to write is outdated; if it wrote an event,
/// the newest event of that job would be wrong forever.
fn a_worker_that_wakes_up_writes_no_outdated_events(env: &Env) {
    let mut fleet = held_fleet(env, "asleep", 2);
    let gate = fleet.submit_held(200);
    fleet.wait_for_gauge(BUSY, IN_FLIGHT);
    fleet.workers[0].process.signal(Signal::SIGSTOP);
    gate.open();

    // The jobs that the worker has in flight can't end without it, so all jobs have ended only once
    // the other worker has its partitions.
    fleet.wait_for_all();
    let sleeper = &mut fleet.workers[0].process;
    sleeper.signal(Signal::SIGCONT);
    sleeper.says("lost: their jobs will run elsewhere", wait::LONG);
    let account = fleet.settle(REPEATS);
    assert_eq!(account.count(JobState::Succeeded), 300);
}

/// I7: the server is killed and comes back. No job fails or spends an attempt on the outage.
fn a_server_outage_costs_no_attempts(env: &Env) {
    let mut fleet = Fleet::new(env, "outage", 6);
    fleet.start_file_server();
    fleet.worker_env("MCP_MAX_ATTEMPTS", "2");
    fleet.start_worker();
    fleet.submit_digests(20);
    fleet.wait_for_all();
    let mut server = fleet.server.take().expect("the server");
    let port = server.address.port();
    server.process.stop(wait::LONG);
    fleet.submit_digests(60);
    let worker = fleet.workers[0].address;
    wait::poll_until("the worker's breaker", wait::LONG, || {
        (http::metric(worker, "fleet_breaker_open")? > 0.0).then_some(())
    });

    // The worker stays a member and keeps its jobs all that time, which is longer than the session
    // timeout of the harness's workers.
    let outage = std::time::Instant::now();
    wait::poll_until("an outage longer than a session", wait::LONG, || {
        assert_eq!(http::get(worker, "/health").expect("the worker's health").0, 200);
        (outage.elapsed() > Duration::from_secs(8)).then_some(())
    });
    assert_eq!(topics::members(&env.brokers, &fleet.group), 1);

    fleet.start_server(&ServerOptions {
        roots: vec![fleet.files()],
        port,
        ..ServerOptions::default()
    });
    let account = fleet.settle(0);
    assert_eq!(account.count(JobState::Succeeded), 80);

    let attempts: Vec<_> = account.states.values().filter(|event| event.attempts != 1).collect();
    assert!(attempts.is_empty(), "attempts were spent on the outage: {attempts:?}");
}

/// A number of workers with partitions of their own that have ended a hundred jobs.
fn held_fleet<'e>(env: &'e Env, name: &str, workers: usize) -> Fleet<'e> {
    let mut fleet = Fleet::new(env, name, 6);
    hold(&mut fleet, workers);
    fleet
}

/// Starts the workers of a fleet, and waits until each has partitions and they have ended a hundred
/// jobs.
fn hold(fleet: &mut Fleet<'_>, workers: usize) {
    let ledger = fleet.directory.join("ledger");
    fleet.start_tool_server(env!("CARGO_BIN_EXE_fixture_tools"), &ledger, false);
    fleet.worker_env("MCP_MAX_IN_FLIGHT", &IN_FLIGHT.to_string());
    for _ in 0..workers {
        fleet.start_worker();
    }
    fleet.wait_for_gauge("fleet_partitions_assigned", 6 / workers);
    fleet.submit_held(100).open();
    fleet.wait_for_all();
}

/// A test of the harness itself: it can end a stopped process.
#[test]
fn the_harness_ends_the_processes_that_it_starts() {
    let directory = fleet_tests::bins::scratch("harness");
    fleet_tests::process::remove_at_exit(&directory);
    let mut command = std::process::Command::new("sh");
    command.args(["-c", "sleep 600 & echo started; wait"]);
    let mut process = fleet_tests::process::Process::start("sh", &directory, command);
    process.wait_until("its first words", wait::LONG, || process_log(&directory));
    process.signal(Signal::SIGSTOP);
    let group = nix::unistd::Pid::from_raw(i32::try_from(process.pid()).expect("a process id"));
    drop(process);
    wait::poll_until("the end of the group", wait::LONG, || {
        nix::sys::signal::killpg(group, None).is_err().then_some(())
    });
}

fn process_log(directory: &std::path::Path) -> Option<()> {
    let mut logs = std::fs::read_dir(directory).ok()?.flatten();
    logs.any(|log| std::fs::read_to_string(log.path()).is_ok_and(|text| text.contains("started")))
        .then_some(())
}

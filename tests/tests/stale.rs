//! A worker that wakes up while the coordinator is down: it learns neither that it has lost its
//! partitions nor that it has kept them. Apache Kafka only, with three brokers.
//!
//! librdkafka's own notice of the lost session is held back, which decides a race that a worker
//! would rarely lose. `FLEET_STALE_ROUNDS` sets more rounds than one, as `scripts/storm stale` does.

use std::{
    env,
    time::{Duration, Instant},
};

use fleet_job::event::JobState;
use fleet_tests::{
    Env, Fleet,
    kafka::{self, Cluster},
    process::Burners,
    topics, wait,
};
use nix::sys::signal::Signal;

/// The number of jobs that a worker has in flight.
const IN_FLIGHT: usize = 4;
/// The most jobs that a worker may have settled since its last commit, or have in flight.
const REPEATS: usize = 200;
/// How long the coordinator's broker stays down: about as long as the cluster takes to notice.
const OUTAGE: Duration = Duration::from_secs(10);
/// The name of the threads in which librdkafka notices that a session is over.
const LIBRDKAFKA: &str = "rdk:main";
/// For how long these threads don't run: many times as long as a worker that trusts its membership
/// takes to start the next jobs.
const STARVATION: Duration = Duration::from_secs(3);

#[test]
fn a_worker_that_wakes_up_without_a_coordinator_writes_no_outdated_events() {
    if !kafka::available() {
        return;
    }
    let rounds = env::var("FLEET_STALE_ROUNDS")
        .map_or(1, |text| text.parse().expect("FLEET_STALE_ROUNDS is a number"));
    let mut cluster = Cluster::start(3);
    for _ in 0..rounds {
        wake_up_without_a_coordinator(&mut cluster);
    }
}

fn wake_up_without_a_coordinator(cluster: &mut Cluster) {
    let env = Env::of(cluster);
    let mut fleet = Fleet::new(&env, "stale", 6);
    let ledger = fleet.directory.join("ledger");
    fleet.start_tool_server(env!("CARGO_BIN_EXE_fixture_tools"), &ledger, false);
    fleet.worker_env("MCP_MAX_IN_FLIGHT", &IN_FLIGHT.to_string());
    fleet.start_worker();
    fleet.start_worker();
    fleet.wait_for_gauge("fleet_partitions_assigned", 3);
    fleet.submit_held(100).open();
    fleet.wait_for_all();
    let gate = fleet.submit_held(300);
    fleet.wait_for_gauge("fleet_jobs_in_flight", IN_FLIGHT);

    fleet.workers[0].process.signal(Signal::SIGSTOP);
    gate.open();

    // The jobs that the worker has in flight can't end without it, so all jobs have ended only once
    // the other worker has its partitions.
    fleet.wait_for_all();

    // From here on, there is no reason for further events of these jobs.
    wait::poll_until_ok("every record to be committed", wait::LONG, || {
        let committed =
            topics::committed(&env.brokers, &fleet.group, &fleet.topic, fleet.partitions);
        let read: i64 = committed.into_iter().flatten().sum();
        if read == 400 { Ok(()) } else { Err(read) }
    });
    let coordinator = topics::coordinator(&env.brokers, &fleet.group);
    cluster.kill(coordinator);

    // librdkafka's main thread notices that the session is over. Until it does, only the worker
    // itself can know, since its own threads wake up in any order.
    let sleeper = &fleet.workers[0].process;
    sleeper.starve_threads(LIBRDKAFKA, true);
    let burners = Burners::start(&fleet.directory);
    sleeper.signal(Signal::SIGCONT);
    let awake = Instant::now();
    let wait_for = |what: &str, period: Duration| {
        wait::poll_until(what, wait::LONG, || (awake.elapsed() > period).then_some(()));
    };
    wait_for("the end of the starvation", STARVATION);
    drop(burners);
    sleeper.starve_threads(LIBRDKAFKA, false);
    wait_for("the end of the outage", OUTAGE);
    cluster.restart(coordinator);
    fleet.workers[0].process.says("lost: their jobs will run elsewhere", wait::LONG);

    cluster.wait_until_in_sync();
    let account = fleet.settle(REPEATS);
    assert_eq!(account.count(JobState::Succeeded), 400);

    let events_after_the_end = account.events.values().filter_map(|events| {
        let end = events.iter().position(|event| event.state.is_terminal())?;
        events[end..].iter().find(|event| !event.state.is_terminal())
    });
    let events_after_the_end: Vec<_> = events_after_the_end.collect();
    assert!(
        events_after_the_end.is_empty(),
        "events of jobs that had already ended: {events_after_the_end:#?}"
    );
}

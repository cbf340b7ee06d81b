//! A worker that wakes up while the coordinator is away: it hears neither that it has lost its
//! partitions nor that it has kept them. Apache Kafka only, three brokers.
//!
//! What it looks for is a race, so one round does not prove much: `FLEET_STALE_ROUNDS` asks for
//! more, as `scripts/storm stale` does.

use std::{
    env,
    time::{Duration, Instant},
};

use fleet_job::event::JobState;
use fleet_tests::{
    Env, Fleet,
    kafka::{self, Cluster},
    topics, wait,
};
use nix::sys::signal::Signal;

/// How many jobs a worker has under way.
const IN_FLIGHT: usize = 4;
/// What a worker may have settled since its last commit, or have under way.
const REPEATS: usize = 200;
/// How long the coordinator's broker stays away: about as long as the cluster takes to notice.
const OUTAGE: Duration = Duration::from_secs(10);

#[test]
fn a_worker_that_wakes_up_without_a_coordinator_says_nothing_out_of_date() {
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
    // What it has under way can't end without it, so all have ended only when the other one has its
    // partitions.
    fleet.wait_for_all();
    // From here on nobody has a reason to say anything more of these jobs.
    wait::until_ok("every record to be committed", wait::LONG, || {
        let committed =
            topics::committed(&env.brokers, &fleet.group, &fleet.topic, fleet.partitions);
        let read: i64 = committed.into_iter().flatten().sum();
        if read == 400 { Ok(()) } else { Err(read) }
    });
    let coordinator = topics::coordinator(&env.brokers, &fleet.group);
    cluster.kill(coordinator);
    fleet.workers[0].process.signal(Signal::SIGCONT);
    let awake = Instant::now();
    wait::until("the end of the outage", wait::LONG, || (awake.elapsed() > OUTAGE).then_some(()));
    cluster.restart(coordinator);
    fleet.workers[0].process.says("lost: their jobs will run elsewhere", wait::LONG);

    cluster.wait_until_in_sync();
    let account = fleet.settle(REPEATS);
    assert_eq!(account.count(JobState::Succeeded), 400);
    let said_after_the_end = account.events.values().filter_map(|events| {
        let end = events.iter().position(|event| event.state.is_terminal())?;
        events[end..].iter().find(|event| !event.state.is_terminal())
    });
    let said_after_the_end: Vec<_> = said_after_the_end.collect();
    assert!(said_after_the_end.is_empty(), "said of jobs that had ended: {said_after_the_end:#?}");
}

//! A worker that loses Kafka but not the server, until others have ended all jobs that it holds.
//! Apache Kafka only: the cut is made by proxies in front of a second listener of the broker.

use fleet_job::event::JobState;
use fleet_tests::{
    Env, Fleet,
    chaos::ledger::Ledger,
    kafka::{self, Cluster},
    proxy::Network,
    topics, wait,
};

#[test]
fn a_worker_whose_connections_are_refused_writes_no_outdated_events() {
    check("refused", Network::Refused);
}

/// The worker gets no errors; the responses that it waits for just never arrive.
#[test]
fn a_worker_whose_connections_are_silent_writes_no_outdated_events() {
    check("silence", Network::Silent);
}

/// The ends of these jobs are on their way when the worker loses its partitions, and nobody knows
/// whether the broker has them. The worker gets the records back.
#[test]
fn an_end_that_was_on_its_way_when_its_partition_was_lost_stays_the_end() {
    if !kafka::available() {
        return;
    }
    let cluster = Cluster::start(1);
    let env = Env::of(&cluster);
    let mut fleet = Fleet::new(&env, "on-its-way", 6);
    let ledger = fleet.directory.join("ledger");
    fleet.start_tool_server(env!("CARGO_BIN_EXE_fixture_tools"), &ledger, false);
    fleet.worker_env("MCP_MAX_IN_FLIGHT", "4");
    let worker = fleet.launch_worker_with(&[("KAFKA_BROKERS", &cluster.proxied)]).ready();
    fleet.workers.push(worker);
    fleet.wait_for_gauge("fleet_partitions_assigned", 6);
    let gate = fleet.submit_held(4);
    fleet.wait_for_gauge("fleet_jobs_in_flight", 4);

    cluster.network(Network::Silent);
    gate.open();
    fleet.workers[0].process.says("lost: their jobs will run elsewhere", wait::LONG);
    wait::poll_until("a group without members", wait::LONG, || {
        (topics::members(&env.brokers, &fleet.group) == 0).then_some(())
    });
    cluster.network(Network::Up);

    fleet.wait_for_all();
    let account = fleet.settle(4);
    assert_eq!(account.count(JobState::Succeeded), 4);
    assert_eq!(Ledger::read(&ledger).repeats(), 0, "a call was made again");
}

/// The most jobs that the worker may have settled since its last commit, or have in flight.
const REPEATS: usize = 200;

fn check(name: &str, how: Network) {
    if !kafka::available() {
        return;
    }
    let cluster = Cluster::start(1);
    let env = Env::of(&cluster);
    let mut fleet = Fleet::new(&env, name, 6);
    let ledger = fleet.directory.join("ledger");
    fleet.start_tool_server(env!("CARGO_BIN_EXE_fixture_tools"), &ledger, false);
    fleet.worker_env("MCP_MAX_IN_FLIGHT", "4");
    let cut = fleet.launch_worker_with(&[("KAFKA_BROKERS", &cluster.proxied)]).ready();
    fleet.workers.push(cut);
    fleet.start_worker();
    fleet.wait_for_gauge("fleet_partitions_assigned", 3);
    fleet.submit_held(100).open();
    fleet.wait_for_all();
    let gate = fleet.submit_held(400);
    fleet.wait_for_gauge("fleet_jobs_in_flight", 4);
    cluster.network(how);
    gate.open();

    // The other worker can have ended all jobs only after it has taken over those that the cut
    // worker had in flight.
    fleet.wait_for_all();
    cluster.network(Network::Up);
    fleet.workers[0].process.says("lost: their jobs will run elsewhere", wait::LONG);
    let account = fleet.settle(REPEATS);
    assert_eq!(account.count(JobState::Succeeded), 500);

    let ledger = Ledger::read(&ledger);
    assert_eq!(ledger.overlaps, [], "calls of one key overlapped");
}

//! A worker that loses Kafka but not the server, until others have ended all jobs that it holds.
//! Apache Kafka only: the cut is made by proxies in front of a second listener of the broker.

use fleet_job::event::JobState;
use fleet_tests::{
    Env, Fleet,
    chaos::ledger::Ledger,
    kafka::{self, Cluster},
    proxy::Network,
    wait,
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

//! Ways to be a member of a group that have to be asked for: KIP-848 and static membership.

use fleet_job::event::JobState;
use fleet_tests::{Env, Fleet, http, topics, wait};

/// A fleet on Apache Kafka; the embedded broker has neither.
fn fleet(name: &str) -> Option<Fleet<'static>> {
    let mut fleet = Fleet::new(Env::apache_kafka()?, name, 6);
    fleet.start_file_server();
    fleet.worker_env("MCP_MAX_IN_FLIGHT", "4");
    Some(fleet)
}

/// KIP-848: workers come and go in good order while jobs run, and nothing that has ended runs again.
#[test]
fn the_next_generation_of_groups_repeats_nothing() {
    let Some(mut fleet) = fleet("kip-848") else { return };
    // The broker decides on sessions in this protocol, and librdkafka refuses to be told.
    fleet.worker_env.retain(|(name, _)| !name.contains("SESSION") && !name.contains("HEARTBEAT"));
    fleet.worker_env("KAFKA_PROPERTY_GROUP_PROTOCOL", "consumer");
    fleet.start_worker();
    fleet.submit_digests(300);
    fleet.wait_for(30);
    fleet.start_worker();
    fleet.wait_for(80);
    let mut first = fleet.workers.remove(0);
    assert!(first.process.stop(wait::LONG).success(), "{}", first.process.log());
    let rest = fleet.workers[0].address;
    fleet.wait_for_all();
    assert_eq!(http::metric(rest, "fleet_invariant_violations_total"), Some(0.0));
    let account = fleet.settle(0);
    assert_eq!(account.count(JobState::Succeeded), 300);
}

/// A static member comes back under its name, and gets on with what is its own.
#[test]
fn a_static_member_comes_back_to_its_partitions() {
    let Some(mut fleet) = fleet("static") else { return };
    fleet.worker_env("KAFKA_PROPERTY_GROUP_INSTANCE_ID", "worker-a");
    fleet.worker_env("KAFKA_PROPERTY_SESSION_TIMEOUT_MS", "30000");
    fleet.start_worker();
    fleet.submit_digests(200);
    fleet.wait_for(30);
    fleet.stop_workers();
    let (brokers, group) = (&fleet.env.brokers, fleet.group.clone());
    assert_eq!(topics::members(brokers, &group), 1, "a static member does not leave when it stops");
    fleet.start_worker();
    let account = fleet.settle(0);
    assert_eq!(account.count(JobState::Succeeded), 200);
}

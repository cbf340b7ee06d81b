//! Members of a group: what slow ones do to the others, and the ways to be one that have to be asked for (KIP-848 and
//! static membership).

use std::time::{Duration, Instant};

use fleet_job::event::JobState;
use fleet_tests::{Env, Fleet, http, topics, wait};
use rdkafka::consumer::Consumer as _;

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

/// A rebalance that waits for a slow member stops nobody else: what a worker keeps goes on, though no commit is answered
/// meanwhile.
#[test]
fn a_rebalance_that_takes_long_does_not_stop_the_partitions_that_stay() {
    /// Well above the interval of commits.
    const STUCK: Duration = Duration::from_secs(3);
    let Some(mut fleet) = fleet("slow-member") else { return };
    fleet.worker_env("MCP_COMMIT_INTERVAL", "200ms");
    let (brokers, group) = (fleet.env.brokers.clone(), fleet.group.clone());
    let worker = fleet.start_worker().address;
    let rebalances = |kind: &str| {
        let name = format!("fleet_rebalances_total{{kind=\"{kind}\"}}");
        http::metric(worker, &name).unwrap_or_default()
    };
    wait::until("the worker's partitions", wait::LONG, || (rebalances("assigned") > 0.0).then_some(()));
    let member = topics::idle_member(&brokers, &group, &[&fleet.topic]);
    wait::until("the slow member's partitions", wait::LONG, || {
        drop(member.poll(Duration::from_millis(100)));
        member.assignment().is_ok_and(|assigned| assigned.count() > 0).then_some(())
    });
    let before = rebalances("revoked");
    // From here on nobody polls it: it can't give its partition back, and all others wait for it.
    let newcomer = fleet.launch_worker();
    wait::until("a revoke", wait::LONG, || (rebalances("revoked") > before).then_some(()));
    wait::until("a group that waits", wait::LONG, || {
        (topics::group_state(&brokers, &group) == "PreparingRebalance").then_some(())
    });
    let settled = || http::metric(worker, "fleet_jobs_settled_total").unwrap_or_default();
    let begin = Instant::now();
    for wave in 0.. {
        let before = settled();
        fleet.submit_digests(30 + wave);
        wait::until("jobs of the partitions that stay", wait::LONG, || (settled() > before).then_some(()));
        if begin.elapsed() > STUCK {
            break;
        }
    }
    assert_eq!(
        topics::group_state(&brokers, &group),
        "PreparingRebalance",
        "the rebalance has ended too soon"
    );
    drop(member);
    fleet.workers.push(newcomer.ready());
    let account = fleet.settle(0);
    assert_eq!(account.count(JobState::Succeeded), account.states.len());
}

//! Members of a group: the effect of slow members on the others, optional kinds of membership
//! (KIP-848 and static members), how far they commit, and the topics that they need.

use std::time::{Duration, Instant};

use fleet_job::{event::JobState, topics::Topics};
use fleet_tests::{Env, Fleet, http, topics, wait};
use rdkafka::consumer::Consumer as _;
use serde_json::json;

/// A fleet on Apache Kafka; the embedded broker supports neither.
fn fleet(name: &str) -> Option<Fleet<'static>> {
    let mut fleet = Fleet::new(Env::apache_kafka()?, name, 6);
    fleet.start_file_server();
    fleet.worker_env("MCP_MAX_IN_FLIGHT", "4");
    Some(fleet)
}

/// KIP-848: workers start and stop in order while jobs run, and no ended job runs again.
#[test]
fn the_next_generation_of_groups_repeats_nothing() {
    let Some(mut fleet) = fleet("kip-848") else { return };
    // In this protocol, the broker sets the session timeout, and librdkafka refuses to set it.
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

/// A static member comes back under its name, and continues with its own partitions.
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

/// A rebalance that waits for a slow member doesn't stop the others: a worker goes on with the
/// partitions that it keeps, although no commit is answered meanwhile.
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
    wait::poll_until("the worker's partitions", wait::LONG, || {
        (rebalances("assigned") > 0.0).then_some(())
    });
    let member = topics::idle_member(&brokers, &group, &[&fleet.topic]);
    wait::poll_until("the slow member's partitions", wait::LONG, || {
        drop(member.poll(Duration::from_millis(100)));
        member.assignment().is_ok_and(|assigned| assigned.count() > 0).then_some(())
    });
    let before = rebalances("revoked");

    // From here on, the member is not polled: it can't give its partition back, and all others wait
    // for it.
    let newcomer = fleet.launch_worker();
    wait::poll_until("a revoke", wait::LONG, || (rebalances("revoked") > before).then_some(()));
    wait::poll_until("a group that waits", wait::LONG, || {
        (topics::group_state(&brokers, &group) == "PreparingRebalance").then_some(())
    });
    let settled = || http::metric(worker, "fleet_jobs_settled_total").unwrap_or_default();
    let begin = Instant::now();
    for wave in 0.. {
        let before = settled();
        fleet.submit_digests(30 + wave);
        wait::poll_until("jobs of the partitions that stay", wait::LONG, || {
            (settled() > before).then_some(())
        });
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

/// Transaction markers, and records of aborted transactions, are never delivered. They still leave
/// no lag, even in a partition that has nothing else.
#[test]
fn transactions_leave_no_lag() {
    let Some(mut fleet) = fleet("transactions") else { return };
    fleet.worker_env("MCP_COMMIT_INTERVAL", "100ms");
    fleet.worker_env("KAFKA_PROPERTY_STATISTICS_INTERVAL_MS", "300");
    let (brokers, group, topic) =
        (fleet.env.brokers.clone(), fleet.group.clone(), fleet.topic.clone());
    let job = |n: usize| {
        let payload = json!({"tool": "file_digest", "arguments": {"path": "hello.txt"}});
        json!({"jobID": format!("job-{n}"), "jobType": "tool-call", "payload": payload}).to_string()
    };
    topics::produce_transaction(&brokers, &topic, 0, &[job(0), job(1)], true);
    topics::produce_transaction(&brokers, &topic, 1, &[job(2)], false);
    fleet.start_worker();
    let lag_of = |partition: usize| {
        let end = topics::ends(&brokers, &topic, 2)[partition];
        let committed = topics::committed(&brokers, &group, &topic, 2)[partition];
        (end > 0 && committed == Some(end)).then_some(())
    };
    wait::poll_until("no lag behind two jobs and a marker", wait::LONG, || lag_of(0));
    wait::poll_until("no lag behind an aborted job and a marker", wait::LONG, || lag_of(1));

    // Jobs behind the markers run, and the next markers leave no lag, either.
    topics::produce_transaction(&brokers, &topic, 1, &[job(3)], true);
    wait::poll_until("no lag behind one more job", wait::LONG, || lag_of(1));
    let worker = fleet.workers[0].address;
    let settled = http::metric(worker, "fleet_jobs_settled_total");
    assert_eq!(settled, Some(3.0), "aborted records are not jobs");
    assert_eq!(http::metric(worker, "fleet_invariant_violations_total"), Some(0.0));
}

/// A worker that may create topics needs only the jobs topic.
#[test]
fn a_worker_creates_missing_topics() {
    let Some(mut fleet) = fleet("own-topics") else { return };
    fleet.topic.push_str("-alone");
    let (brokers, topics) = (fleet.env.brokers.clone(), Topics::of(&*fleet.topic));
    topics::create(&brokers, &[(&topics.jobs, 6)]);
    fleet.worker_env("MCP_CREATE_TOPICS", "true");
    fleet.start_worker();
    let partitions =
        [&topics.events, &topics.dlq, &topics.delayed, &topics.control, &topics.pauses]
            .map(|name| topics::partitions(&brokers, name));
    assert_eq!(partitions, [1, 3, 6, 1, 1]);

    fleet.submit_digests(20);
    let account = fleet.settle(0);
    assert_eq!(account.count(JobState::Succeeded), 20);
}

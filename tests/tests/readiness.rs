//! When a worker says that it is ready: not before its group has assigned partitions, not without
//! the jobs topic, and not while it has no broker. Apache Kafka only: the cut is made by proxies in
//! front of a second listener of the broker, and the embedded broker has no topic ids.

#![expect(clippy::expect_used, reason = "a panic is the report of a test")]

use std::{net::SocketAddr, time::Duration};

use fleet_tests::{
    Env, Fleet, http,
    kafka::{self, Cluster},
    proxy::Network,
    topics::{self, Outgoing},
    wait,
};
use nix::sys::signal::Signal;
use serde_json::json;

/// The ten seconds within which a loss of Kafka has to show, plus the delay of a busy machine.
const SOON: Duration = Duration::from_secs(13);
/// An idle worker looks for its topic every 15 seconds.
const TOPIC_IS_GONE: Duration = Duration::from_secs(25);

/// Waits until `GET /ready` of a worker is answered with this status and a text with these words.
fn wait_for_answer(worker: SocketAddr, status: u16, words: &str, deadline: Duration) {
    wait::poll_until_ok(&format!("{status} with {words:?}"), deadline, || {
        let answer = http::get(worker, "/ready").expect("the worker's answer");
        if answer.0 == status && answer.1.contains(words) { Ok(()) } else { Err(answer) }
    });
}

#[test]
fn a_worker_that_loses_kafka_is_not_ready_until_kafka_is_back() {
    if !kafka::available() {
        return;
    }
    let cluster = Cluster::start(1);
    let env = Env::of(&cluster);
    let mut fleet = Fleet::new(&env, "unready", 3);
    fleet.start_file_server();
    let worker = fleet.launch_worker_with(&[("KAFKA_BROKERS", &cluster.proxied)]).ready();

    for _ in 0..2 {
        cluster.network(Network::Refused);
        wait_for_answer(worker.address, 503, "no Kafka broker can be reached", SOON);
        assert_eq!(http::get(worker.address, "/health").expect("an answer").0, 200, "it is alive");

        cluster.network(Network::Up);
        wait_for_answer(worker.address, 200, "", wait::LONG);
    }
}

#[test]
fn a_worker_is_not_ready_before_its_group_has_assigned_partitions() {
    let Some(env) = Env::apache_kafka() else { return };
    let mut fleet = Fleet::new(env, "unassigned", 3);
    fleet.start_file_server();
    // The group assigns nothing while it waits for a member that is stopped.
    fleet.worker_env("KAFKA_PROPERTY_SESSION_TIMEOUT_MS", "45000");
    fleet.start_worker();
    fleet.workers[0].process.signal(Signal::SIGSTOP);
    let newcomer = fleet.launch_worker();
    wait::poll_until("a rebalance", wait::LONG, || {
        (topics::group_state(&env.brokers, &fleet.group) == "PreparingRebalance").then_some(())
    });
    wait_for_answer(newcomer.address, 503, "waiting for the consumer group", wait::LONG);

    fleet.workers[0].process.signal(Signal::SIGCONT);
    wait_for_answer(newcomer.address, 200, "", wait::LONG);
}

#[test]
fn a_worker_without_its_jobs_topic_is_not_ready() {
    let Some(env) = Env::apache_kafka() else { return };
    let mut fleet = Fleet::new(env, "topicless", 3);
    fleet.start_file_server();
    let reader = fleet.start_worker().address;
    let jobs = || {
        let job = |n: i32| {
            let payload = json!({"tool": "file_read", "arguments": {"path": "hello.txt"}});
            let job =
                json!({"jobID": format!("job-{n}"), "jobType": "tool-call", "payload": payload});
            Outgoing::value(job.to_string()).key(format!("{n}"))
        };
        topics::produce(&env.brokers, &fleet.topic, (0..20).map(job).collect());
    };
    let wait_for_settled = |workers: &[SocketAddr], count: f64| {
        wait::poll_until_ok(&format!("{count} settled jobs"), wait::LONG, || {
            let settled = |worker: &SocketAddr| http::metric(*worker, "fleet_jobs_settled_total");
            let sum: f64 = workers.iter().filter_map(settled).sum();
            if sum >= count { Ok(()) } else { Err(sum) }
        });
    };
    jobs();
    wait_for_settled(&[reader], 20.0);

    topics::delete(&env.brokers, &fleet.topic);
    wait_for_answer(reader, 503, "the jobs topic does not exist", TOPIC_IS_GONE);
    let newcomer = fleet.launch_worker();
    wait_for_answer(newcomer.address, 503, "does not exist", wait::LONG);
    assert_eq!(http::get(reader, "/ready").expect("an answer").0, 503, "the topic is still gone");

    topics::create(&env.brokers, &[(&fleet.topic, 3)]);
    for worker in [reader, newcomer.address] {
        wait_for_answer(worker, 200, "", wait::LONG);
    }
    jobs();
    wait_for_settled(&[reader, newcomer.address], 40.0);
    fleet.workers.push(newcomer);
    fleet.stop_workers();
}

//! `mcp-fleet topics create` on topics that exist already. Apache Kafka only: the embedded broker
//! adds no partitions.

#![expect(clippy::expect_used, reason = "a panic is the report of a test")]

use std::process::Command;

use fleet_job::topics::Topics;
use fleet_tests::{Env, bins, topics, wait};

/// Runs `mcp-fleet topics create` for this jobs topic. Returns whether it succeeded, and what it
/// printed.
fn create_topics(env: &Env, topic: &str, arguments: &[&str]) -> (bool, String) {
    let output = Command::new(bins::bin("mcp-fleet"))
        .args(["topics", "create"])
        .args(arguments)
        .env("KAFKA_BROKERS", &env.brokers)
        .env("KAFKA_TOPIC", topic)
        .output()
        .expect("mcp-fleet");
    let text = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8_lossy(&text).into_owned())
}

fn wait_for_partitions(env: &Env, topic: &str, partitions: i32) {
    wait::poll_until(&format!("{partitions} partitions of {topic}"), wait::LONG, || {
        (topics::partitions(&env.brokers, topic) == partitions).then_some(())
    });
}

/// The number of topics that exist beside the jobs topic.
fn companions(env: &Env, topic: &str) -> usize {
    let Topics { jobs: _, events, dlq, delayed, control, pauses, claims, audit } =
        Topics::of(topic);
    let names = [events, dlq, delayed, control, pauses, claims, audit];
    names.iter().filter(|name| topics::partitions(&env.brokers, name) > 0).count()
}

#[test]
fn a_topic_with_fewer_partitions_grows_or_the_command_fails() {
    let Some(env) = Env::apache_kafka() else { return };
    let topic = bins::unique("growing");
    topics::create(&env.brokers, &[(&topic, 12)]);

    let (is_ok, text) = create_topics(env, &topic, &["--partitions", "20"]);
    assert!(!is_ok && text.contains("--grow"), "{text}");
    assert_eq!(topics::partitions(&env.brokers, &topic), 12, "nothing has changed");
    assert_eq!(companions(env, &topic), 0, "nothing was created");

    let (is_ok, text) = create_topics(env, &topic, &["--partitions", "20", "--grow"]);
    assert!(is_ok && text.contains(&format!("grown    {topic} (20 partitions)")), "{text}");
    wait_for_partitions(env, &topic, 20);
    assert_eq!(companions(env, &topic), 7);

    let (is_ok, text) = create_topics(env, &topic, &["--partitions", "12"]);
    assert!(is_ok && text.contains("it keeps them"), "{text}");
    assert_eq!(topics::partitions(&env.brokers, &topic), 20);
}

#[test]
fn a_compacted_topic_is_refused_before_anything_changes() {
    let Some(env) = Env::apache_kafka() else { return };
    let topic = bins::unique("compacting");
    topics::create(&env.brokers, &[(&topic, 12)]);
    topics::set(&env.brokers, &topic, "cleanup.policy", "compact");

    let grow = ["--partitions", "20", "--grow"];
    let (is_ok, text) = create_topics(env, &topic, &grow);
    assert!(!is_ok && text.contains("is compacted"), "{text}");
    assert_eq!(topics::partitions(&env.brokers, &topic), 12, "it has not grown");
    assert_eq!(companions(env, &topic), 0, "nothing was created");

    let (is_ok, text) =
        create_topics(env, &topic, &[&grow[..], &["--allow-compacted-topic"]].concat());
    assert!(is_ok, "{text}");
    wait_for_partitions(env, &topic, 20);
}

//! Recreated topics, renamed groups, and offsets that an operator moves: a record is identified by
//! its log and its offset, and is never skipped because another log had a record at that offset.

#![expect(clippy::expect_used, reason = "a panic is the report of a test")]

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use fleet_job::{
    event::{JobEvent, JobState},
    topics::Topics,
};
use fleet_tests::{
    Env, Fleet, fleet, http, topics,
    topics::{Outgoing, Record},
    wait,
};
use serde_json::json;

/// Makes tests that run only on Apache Kafka, because the embedded broker has no topic ids.
macro_rules! on_kafka {
    ($($test:ident),+ $(,)?) => {
        mod apache_kafka {
            $(#[test]
            fn $test() {
                if let Some(env) = fleet_tests::Env::apache_kafka() {
                    super::$test(env);
                }
            })+
        }
    };
}

on_kafka!(
    a_topic_is_recreated_while_a_worker_reads_it,
    a_topic_without_records_is_recreated_at_once,
    a_topic_without_records_is_recreated_after_a_while,
    a_topic_is_recreated_while_no_worker_runs,
    offsets_are_moved_by_an_operator,
    a_group_is_renamed_with_its_offsets,
    a_compacted_topic_is_refused,
    new_partitions_are_read_soon,
);

fn job(id: &str) -> Outgoing {
    let job = json!({"jobID": id, "jobType": "tool-call",
        "payload": {"tool": "file_read", "arguments": {"path": "hello.txt"}}});
    Outgoing::value(job.to_string())
}

fn jobs(name: &str, count: usize) -> Vec<Outgoing> {
    (0..count).map(|n| job(&format!("{name}-{n}"))).collect()
}

/// The names of the jobs that have succeeded, once for each success.
fn succeeded(fleet: &Fleet<'_>) -> Vec<String> {
    let events = topics::read(&fleet.env.brokers, &Topics::of(&*fleet.topic).events);
    let events = events.iter().filter_map(|record: &Record| {
        serde_json::from_slice::<JobEvent>(record.content.value.as_deref().unwrap_or_default()).ok()
    });
    events.filter(|event| event.state == JobState::Succeeded).map(|event| event.job_id).collect()
}

fn wait_for(fleet: &Fleet<'_>, name: &str, count: usize) {
    wait::poll_until_ok(&format!("{count} jobs {name}-…"), wait::LONG, || {
        let ended: BTreeSet<_> = succeeded(fleet).into_iter().collect();
        let missing: Vec<_> =
            (0..count).map(|n| format!("{name}-{n}")).filter(|id| !ended.contains(id)).collect();
        if missing.is_empty() { Ok(()) } else { Err(missing) }
    });
}

/// The first records of the new topic are not taken for those of the old one, and reading doesn't
/// start at the end of the old one, whether the new topic has fewer or more records.
fn a_topic_is_recreated_while_a_worker_reads_it(env: &Env) {
    let mut fleet = Fleet::new(env, "remade", 1);
    fleet.start_file_server();
    fleet.start_worker();
    topics::produce(&env.brokers, &fleet.topic, jobs("old", 20));
    wait_for(&fleet, "old", 20);

    topics::make_again(&env.brokers, &fleet.topic, 1);
    topics::produce(&env.brokers, &fleet.topic, jobs("more", 60));
    wait_for(&fleet, "more", 60);

    topics::make_again(&env.brokers, &fleet.topic, 1);
    topics::produce(&env.brokers, &fleet.topic, jobs("fewer", 9));
    wait_for(&fleet, "fewer", 9);

    let log = fleet.workers[0].process.log();
    assert!(log.contains("made again since the last commit"), "{log}");
    fleet.stop_workers();
    let committed = topics::committed(&env.brokers, &fleet.group, &fleet.topic, 1);
    assert_eq!(
        committed,
        [Some(9)],
        "the frontier of the old topics is not committed for the new one"
    );
}

/// How soon jobs of a new topic run under a worker that read the old one.
const READ_AGAIN: Duration = Duration::from_secs(30);

/// Nothing has been read or committed of the old topic, so no offset goes back and the group keeps
/// none.
fn a_topic_without_records_is_recreated_at_once(env: &Env) {
    for round in 0..4 {
        let name = format!("remade-empty-{round}");
        let mut fleet = Fleet::new(env, &name, 6);
        fleet.start_file_server();
        fleet.start_worker();

        for _ in 0..2 {
            topics::make_again(&env.brokers, &fleet.topic, 6);
        }
        run_soon(&fleet, "new");

        fleet.stop_workers();
    }
}

/// The worker reports that the topic is gone before it is created again.
fn a_topic_without_records_is_recreated_after_a_while(env: &Env) {
    for round in 0..4 {
        let name = format!("remade-later-{round}");
        let mut fleet = Fleet::new(env, &name, 6);
        fleet.start_file_server();
        let worker = fleet.start_worker().address;

        topics::delete(&env.brokers, &fleet.topic);
        wait::poll_until_ok("the worker to miss its topic", wait::LONG, || {
            match http::get(worker, "/ready").expect("the worker's answer") {
                (503, why) if why.contains("does not exist") => Ok(()),
                other => Err(other),
            }
        });
        topics::create(&env.brokers, &[(&fleet.topic, 6)]);
        run_soon(&fleet, "new");

        fleet.stop_workers();
    }
}

/// Submits jobs to all partitions, waits until they have run, and checks how long that took and
/// that the worker gets ready.
fn run_soon(fleet: &Fleet<'_>, name: &str) {
    let begin = Instant::now();
    let keyed = (0..20).map(|n| job(&format!("{name}-{n}")).key(format!("{n}")));
    topics::produce(&fleet.env.brokers, &fleet.topic, keyed.collect());
    wait_for(fleet, name, 20);
    assert!(begin.elapsed() < READ_AGAIN, "{:?}", begin.elapsed());

    // The other member of the group may be joining it again.
    wait::poll_until_ok("a worker that is ready", wait::LONG, || {
        match http::get(fleet.workers[0].address, "/ready").expect("the worker's answer") {
            (200, _) => Ok(()),
            other => Err(other),
        }
    });
}

/// The broker may keep the old topic's offset, or a worker that has not noticed may commit it
/// again.
fn a_topic_is_recreated_while_no_worker_runs(env: &Env) {
    let mut fleet = Fleet::new(env, "remade-idle", 1);
    fleet.start_file_server();
    fleet.start_worker();
    topics::produce(&env.brokers, &fleet.topic, jobs("old", 20));
    wait_for(&fleet, "old", 20);
    fleet.stop_workers();
    let (offset, metadata) =
        topics::commit_of(&env.brokers, &fleet.group, &fleet.topic, 0).expect("a commit");
    assert_eq!(offset, 20);

    topics::make_again(&env.brokers, &fleet.topic, 1);
    topics::produce(&env.brokers, &fleet.topic, jobs("new", 30));
    topics::commit(&env.brokers, &fleet.group, &fleet.topic, 0, offset, &metadata);
    fleet.start_worker();
    wait_for(&fleet, "new", 30);
    assert!(fleet.workers[0].process.log().contains("made again since the last commit"));

    fleet.stop_workers();
}

/// Moved back: the following jobs run again. Moved forward: the jobs between don't run. Moved
/// beyond the end: all jobs run. Each case is logged.
fn offsets_are_moved_by_an_operator(env: &Env) {
    let mut fleet = Fleet::new(env, "moved", 1);
    fleet.start_file_server();
    fleet.start_worker();
    topics::produce(&env.brokers, &fleet.topic, jobs("job", 10));
    wait_for(&fleet, "job", 10);
    fleet.stop_workers();
    let (_, metadata) =
        topics::commit_of(&env.brokers, &fleet.group, &fleet.topic, 0).expect("a commit");

    // Each case: the new offset, the metadata that tools leave, the jobs that run, and what the
    // worker logs.
    let steps = [
        (7, "", 7..10, "carries no metadata"),
        (4, metadata.as_str(), 4..10, "somebody has moved the committed offset"),
        (500, "", 0..10, "ends below the committed offset"),
    ];
    for (offset, metadata, again, words) in steps {
        let before = succeeded(&fleet);
        topics::commit(&env.brokers, &fleet.group, &fleet.topic, 0, offset, metadata);
        fleet.start_worker();
        let more = wait::poll_until(&format!("the jobs {again:?} once more"), wait::LONG, || {
            let mut more = succeeded(&fleet);
            for id in &before {
                more.swap_remove(more.iter().position(|other| other == id)?);
            }
            more.sort();
            (more.len() >= again.len()).then_some(more)
        });
        assert_eq!(more, again.map(|n| format!("job-{n}")).collect::<Vec<_>>(), "from {offset}");
        fleet.workers[0].process.says(words, wait::LONG);
        fleet.stop_workers();
    }

    topics::produce(&env.brokers, &fleet.topic, jobs("skipped", 5));
    topics::commit(&env.brokers, &fleet.group, &fleet.topic, 0, 15, "");
    topics::produce(&env.brokers, &fleet.topic, jobs("last", 1));
    fleet.start_worker();
    wait_for(&fleet, "last", 1);
    fleet.stop_workers();
    assert!(
        !succeeded(&fleet).iter().any(|id| id.starts_with("skipped")),
        "skipped jobs must not run"
    );
}

/// Jobs in the delayed topic belong to the group that wrote them or, if it has no members, to the
/// group that has taken over its offsets.
fn a_group_is_renamed_with_its_offsets(env: &Env) {
    let mut fleet = Fleet::new(env, "renamed", 1);
    let delayed = Topics::of(&*fleet.topic).delayed;
    topics::create(&env.brokers, &[(&delayed, 6)]);
    fleet.start_file_server();
    fleet.worker_env("MCP_MAX_PARK", "1s");
    fleet.start_worker();
    let due = fleet::now().plus(Duration::from_secs(15));
    let far = (0..6).map(|n| {
        let job = json!({"jobID": format!("far-{n}"), "jobType": "tool-call", "notBefore": due.to_string(),
            "payload": {"tool": "file_read", "arguments": {"path": "hello.txt"}}});
        Outgoing::value(job.to_string())
    });
    topics::produce(&env.brokers, &fleet.topic, far.collect());
    wait::poll_until("all jobs in the delayed topic", wait::LONG, || {
        let committed = topics::committed(&env.brokers, &fleet.group, &fleet.topic, 1);
        (topics::read(&env.brokers, &delayed).len() >= 6 && committed == [Some(6)]).then_some(())
    });
    fleet.stop_workers();

    let renamed = format!("{}-renamed", fleet.group);
    for (topic, partitions) in [(&fleet.topic, 1), (&delayed, 6)] {
        for partition in 0..partitions {
            if let Some((offset, metadata)) =
                topics::commit_of(&env.brokers, &fleet.group, topic, partition)
            {
                topics::commit(&env.brokers, &renamed, topic, partition, offset, &metadata);
            }
        }
    }
    fleet.group = renamed;
    fleet.start_worker();
    wait_for(&fleet, "far", 6);
    assert!(fleet.workers[0].process.log().contains("taken over"));

    fleet.stop_workers();
}

/// A compacted topic can lose jobs before any worker has read them, so a worker reads it only if it
/// is told to.
fn a_compacted_topic_is_refused(env: &Env) {
    let mut fleet = Fleet::new(env, "compacted", 1);
    fleet.start_file_server();
    topics::set(&env.brokers, &fleet.topic, "cleanup.policy", "compact");
    let mut worker = fleet.launch_worker();
    let status = worker.process.wait(wait::LONG);
    let log = worker.process.log();
    assert!(!status.success() && log.contains("is compacted (cleanup.policy)"), "{status}: {log}");

    fleet.worker_env("MCP_ALLOW_COMPACTED_TOPIC", "true");
    fleet.start_worker();
    topics::produce(&env.brokers, &fleet.topic, vec![job("job-0").key("k")]);
    wait_for(&fleet, "job", 1);
    assert!(fleet.workers[0].process.log().contains("the topic is compacted"));

    fleet.stop_workers();
}

/// When a topic grows, a worker reads its new partitions within ten seconds.
fn new_partitions_are_read_soon(env: &Env) {
    const SOON: Duration = Duration::from_secs(10);

    let mut fleet = Fleet::new(env, "grown", 1);
    fleet.start_file_server();
    fleet.start_worker();
    topics::produce(&env.brokers, &fleet.topic, jobs("before", 1));
    wait_for(&fleet, "before", 1);

    topics::grow(&env.brokers, &fleet.topic, 4);
    let begin = fleet::now();
    let keyed = (0..20).map(|n| job(&format!("after-{n}")).key(format!("{n}")));
    topics::produce(&env.brokers, &fleet.topic, keyed.collect());
    wait_for(&fleet, "after", 20);

    // The first event of a job shows when its partition was read.
    let mut first_events = BTreeMap::new();
    for record in topics::read(&env.brokers, &Topics::of(&*fleet.topic).events) {
        let value = record.content.value.as_deref().unwrap_or_default();
        let Ok(event) = serde_json::from_slice::<JobEvent>(value) else { continue };
        let at = record.timestamp.expect("a timestamp");
        let first = first_events.entry(event.job_id).or_insert(at);
        *first = at.min(*first);
    }
    let last_read = first_events.into_values().max().expect("the events");
    let took = last_read - begin.as_millis();
    assert!(u128::try_from(took).is_ok_and(|ms| ms <= SOON.as_millis()), "{took} ms");

    fleet.stop_workers();
}

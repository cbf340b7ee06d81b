//! The features of a broker that the fleet needs, tested on every broker: the embedded broker has
//! to behave like Apache Kafka.

#![expect(clippy::expect_used, reason = "a panic is the report of a test")]

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use fleet_tests::{
    Env, bins,
    kafka::{self, Cluster},
    on_every_broker,
    proxy::Network,
    topics::{self, Outgoing},
    wait,
};
use rdkafka::{
    ClientConfig, Message as _, Offset, TopicPartitionList,
    consumer::{BaseConsumer, CommitMode, Consumer as _},
};

on_every_broker!(
    records_come_back_as_they_went_in,
    commits_keep_offset_and_metadata,
    a_stale_generation_can_not_commit,
    members_share_partitions_and_take_over,
    records_arrive_without_waiting_for_the_poll_interval,
);

/// A test of the harness itself: clients that connect through a proxy only learn of brokers'
/// addresses behind proxies, so they can't bypass a cut.
#[test]
fn clients_can_not_bypass_a_cut() {
    if !kafka::available() {
        return;
    }

    let cluster = Cluster::start(1);
    let nodes = || topics::nodes(&cluster.proxied);
    assert_eq!(nodes(), Ok(1));

    for how in [Network::Refused, Network::Silent] {
        cluster.network(how);
        assert!(nodes().is_err(), "{how:?}");
        cluster.network(Network::Up);
        wait::poll_until("the network", wait::LONG, || nodes().ok());
    }
}

const TIMEOUT: Duration = Duration::from_secs(20);

fn records_come_back_as_they_went_in(env: &Env) {
    let topic = bins::unique("bytes");
    topics::create(&env.brokers, &[(&topic, 3)]);
    let mut records = vec![
        Outgoing::value("v").key("k").header("a", "1").header("a", "2"),
        Outgoing::value(""),
        Outgoing { key: Some(b"tombstone".to_vec()), ..Outgoing::default() },
        Outgoing::value([0, 255, 254])
            .key([0xff, 0])
            .header("bytes", (0..=255).collect::<Vec<u8>>()),
        Outgoing::value(vec![b'x'; 3 << 20]).key("large"),
    ];
    records[0].headers.push(("none".into(), None));
    records.extend((0..500).map(|n| Outgoing::value(format!("{n}")).key(format!("{}", n % 7))));
    let mut written = topics::produce(&env.brokers, &topic, records);
    written.sort_by_key(|record| (record.partition, record.offset));
    let read = topics::read(&env.brokers, &topic);
    assert_eq!(read.len(), written.len());

    for (written, read) in written.iter().zip(&read) {
        assert_eq!((written.partition, written.offset), (read.partition, read.offset));
        assert!(written.content == read.content, "{written:?} came back as {read:?}");
        assert!(
            read.timestamp >= written.timestamp,
            "{:?} before {:?}",
            read.timestamp,
            written.timestamp
        );
    }
}

fn commits_keep_offset_and_metadata(env: &Env) {
    let topic = bins::unique("commits");
    topics::create(&env.brokers, &[(&topic, 2)]);
    topics::produce(
        &env.brokers,
        &topic,
        (0..10).map(|n| Outgoing::value(format!("{n}"))).collect(),
    );
    let consumer = consumer(env, &topic);
    let mut commit = TopicPartitionList::new();
    for (partition, metadata) in [(0, "x".repeat(4096)), (1, "{\"v\":1}".into())] {
        commit.add_partition_offset(&topic, partition, Offset::Offset(1)).expect("a partition");
        commit.find_partition(&topic, partition).expect("it").set_metadata(metadata);
    }

    consumer.commit(&commit, CommitMode::Sync).expect("a commit");
    let mut asked = TopicPartitionList::new();
    asked.add_partition_range(&topic, 0, 1);
    let committed = consumer.committed_offsets(asked, TIMEOUT).expect("committed offsets");
    for partition in [0, 1] {
        let expected = commit.find_partition(&topic, partition).expect("it");
        let found = committed.find_partition(&topic, partition).expect("it");
        assert_eq!(found.offset(), expected.offset());
        assert_eq!(found.metadata(), expected.metadata());
    }

    assert_eq!(topics::committed(&env.brokers, "nobody", &topic, 2), [None, None]);
}

fn a_stale_generation_can_not_commit(env: &Env) {
    let topic = bins::unique("fence");
    topics::create(&env.brokers, &[(&topic, 1)]);
    topics::produce(&env.brokers, &topic, vec![Outgoing::value("1")]);
    let member = consumer(env, &topic);
    member.subscribe(&[&topic]).expect("a subscription");
    wait::poll_until("an assignment", TIMEOUT, || poll(&member, &mut BTreeSet::new(), 1));

    // The commit comes from outside, while the group has members.
    let outsider = consumer(env, &topic);
    let mut commit = TopicPartitionList::new();
    commit.add_partition_offset(&topic, 0, Offset::Offset(1)).expect("a partition");
    outsider.commit(&commit, CommitMode::Sync).expect_err("a commit from outside of a live group");
    member.commit(&commit, CommitMode::Sync).expect("a commit of the member");
}

fn members_share_partitions_and_take_over(env: &Env) {
    const PARTITIONS: i32 = 6;
    let topic = bins::unique("members");
    topics::create(&env.brokers, &[(&topic, PARTITIONS)]);
    let mut members = vec![consumer(env, &topic), consumer(env, &topic), consumer(env, &topic)];
    let mut seen = BTreeSet::new();
    for count in 1..=members.len() {
        members[count - 1].subscribe(&[&topic]).expect("a subscription");
        poll_until_shared(&members[..count], &mut seen, PARTITIONS);
    }
    assert_eq!(topics::members(&env.brokers, &topic), 3);

    let first = topics::produce(
        &env.brokers,
        &topic,
        (0..60).map(|n| Outgoing::value(format!("{n}"))).collect(),
    );
    wait::poll_until("60 records", TIMEOUT, || {
        members.iter().for_each(|member| _ = poll(member, &mut seen, 0));
        (seen.len() == first.len()).then_some(())
    });

    // One member leaves in order, and the others take over its partitions.
    drop(members.remove(0));
    poll_until_shared(&members, &mut seen, PARTITIONS);
    assert_eq!(topics::members(&env.brokers, &topic), 2);
    topics::produce(
        &env.brokers,
        &topic,
        (0..60).map(|n| Outgoing::value(format!("{n}"))).collect(),
    );
    wait::poll_until("120 records", TIMEOUT, || {
        members.iter().for_each(|member| _ = poll(member, &mut seen, 0));
        (seen.len() == 120).then_some(())
    });
}

/// Fetches wait for records, and return as soon as one arrives rather than when the wait is over.
fn records_arrive_without_waiting_for_the_poll_interval(env: &Env) {
    let topic = bins::unique("latency");
    topics::create(&env.brokers, &[(&topic, 1)]);
    let mut config = config(env, &topic);
    let consumer: BaseConsumer =
        config.set("fetch.wait.max.ms", "5000").create().expect("a consumer");
    let mut assignment = TopicPartitionList::new();
    assignment.add_partition_offset(&topic, 0, Offset::Beginning).expect("a partition");
    consumer.assign(&assignment).expect("an assignment");
    for _ in 0..5 {
        topics::produce(&env.brokers, &topic, vec![Outgoing::value("now")]);
        let begin = Instant::now();
        let message = consumer.poll(TIMEOUT).expect("a record").expect("no error");
        assert_eq!(message.payload(), Some(b"now".as_slice()));
        // A broker that sleeps through its wait would take at least half of the five seconds.
        assert!(begin.elapsed() < Duration::from_secs(2), "{:?}", begin.elapsed());
    }
}

fn config(env: &Env, group: &str) -> ClientConfig {
    let mut config = ClientConfig::new();
    config
        .set("bootstrap.servers", &env.brokers)
        .set("group.id", group)
        .set("enable.auto.commit", "false")
        .set("auto.offset.reset", "earliest")
        .set("partition.assignment.strategy", "cooperative-sticky")
        .set("session.timeout.ms", "6000")
        .set("heartbeat.interval.ms", "500")
        .set("log_level", "2");
    config
}

fn consumer(env: &Env, group: &str) -> BaseConsumer {
    config(env, group).create().expect("a consumer")
}

/// Polls once, records what arrived, and returns whether this many partitions are assigned.
fn poll(consumer: &BaseConsumer, seen: &mut BTreeSet<(i32, i64)>, partitions: usize) -> Option<()> {
    if let Some(message) = consumer.poll(Duration::from_millis(20)) {
        let message = message.expect("no error");
        assert!(
            seen.insert((message.partition(), message.offset())),
            "delivered twice: {message:?}"
        );
        let mut commit = TopicPartitionList::new();
        let next = Offset::Offset(message.offset() + 1);
        commit
            .add_partition_offset(message.topic(), message.partition(), next)
            .expect("a partition");
        // Between two generations, a commit is refused; the next commit includes the record.
        consumer.commit(&commit, CommitMode::Async).expect("a commit under way");
    }
    (consumer.assignment().expect("an assignment").count() == partitions).then_some(())
}

/// Polls until each partition is assigned to one member, and the shares are as even as possible.
fn poll_until_shared(members: &[BaseConsumer], seen: &mut BTreeSet<(i32, i64)>, partitions: i32) {
    let fair = usize::try_from(partitions).expect("a small number").div_ceil(members.len());
    wait::poll_until_ok("a fair share for everybody", TIMEOUT, || {
        let mut owned = Vec::new();
        for member in members {
            _ = poll(member, seen, 0);
            let assignment = member.assignment().expect("an assignment");
            owned.push(assignment.elements().iter().map(|at| at.partition()).collect::<Vec<_>>());
        }
        let mut all: Vec<_> = owned.iter().flatten().copied().collect();
        all.sort_unstable();
        let fair = owned.iter().all(|owned| owned.len() <= fair);
        if fair && all.into_iter().eq(0..partitions) { Ok(()) } else { Err(owned) }
    });
}

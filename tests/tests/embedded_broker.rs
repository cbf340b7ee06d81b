//! The embedded broker alone: requests of clients that the storage engine below it would not
//! survive.

#![expect(clippy::expect_used, reason = "a panic is the report of a test")]

use std::{
    ffi::OsStr, fs, os::unix::ffi::OsStrExt as _, path::Path, process::Command, time::Duration,
};

use fleet_tests::{
    bins,
    brokers::start_embedded,
    process::{self, Process},
    topics::{self, Outgoing},
    wait,
};
use futures::executor::block_on;
use nix::sys::signal::Signal;
use rdkafka::{
    ClientConfig, Offset, TopicPartitionList,
    admin::{AdminClient, AdminOptions},
    client::DefaultClientContext,
    error::KafkaError,
    producer::{FutureProducer, FutureRecord},
    types::RDKafkaErrorCode,
};

const TIMEOUT: Duration = Duration::from_secs(20);

/// After a record has timed out, librdkafka raises the epoch of its producer without asking the
/// broker.
#[test]
fn a_producer_goes_on_after_its_records_have_timed_out() {
    let directory = scratch();
    let (mut broker, brokers) = start_embedded(&directory, "127.0.0.1:0");
    topics::create(&brokers, &[("outage", 1)]);
    let producer = producer(&brokers);
    send(&producer, "before").expect("a broker that answers");
    let mut acknowledged = vec!["before".to_owned()];

    for round in 0..2 {
        // A broker that only begins to stop could still acknowledge the record.
        broker.freeze();
        let lost = send(&producer, "into the outage");
        broker.signal(Signal::SIGCONT);
        assert_eq!(
            lost.expect_err("no broker answers").rdkafka_error_code(),
            Some(RDKafkaErrorCode::MessageTimedOut)
        );
        acknowledged.push(send_until_acknowledged(&producer, &format!("after {round}")));
    }

    // The broker remembers the producer after it has gone.
    broker.kill();
    let (mut broker, brokers) = start_embedded(&directory, &brokers);
    acknowledged.push(send_until_acknowledged(&producer, "after the restart"));
    let texts: Vec<_> = topics::read(&brokers, "outage").iter().map(topics::Record::text).collect();
    for text in acknowledged {
        assert_eq!(texts.iter().filter(|found| **found == text).count(), 1, "{text}: {texts:?}");
    }
    assert!(broker.stop(TIMEOUT).success());
}

/// `DeleteRecords` would stop the engine, so the request must never reach it.
#[test]
fn an_api_that_is_not_served_is_refused() {
    let directory = scratch();
    let (mut broker, brokers) = start_embedded(&directory, "127.0.0.1:0");
    topics::create(&brokers, &[("kept", 1)]);
    topics::produce(&brokers, "kept", vec![Outgoing::value("v")]);
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", &brokers);
    let admin: AdminClient<DefaultClientContext> = config.create().expect("an admin client");
    let mut offsets = TopicPartitionList::new();
    offsets.add_partition_offset("kept", 0, Offset::Offset(1)).expect("a partition");
    let options = AdminOptions::new().request_timeout(Some(TIMEOUT));
    let refused = block_on(admin.delete_records(&offsets, &options));
    let refused =
        refused.map(|deleted| deleted.elements().iter().all(|element| element.error().is_ok()));
    assert!(!matches!(refused, Ok(true)), "{refused:?}");
    assert_eq!(topics::read(&brokers, "kept").len(), 1);
    assert_still_there(&mut broker);
    assert!(broker.stop(TIMEOUT).success());
}

/// Acknowledged records can be read whatever their codec, and no batch hides another.
#[test]
fn records_of_every_codec_are_served() {
    let directory = scratch();
    let (mut broker, brokers) = start_embedded(&directory, "127.0.0.1:0");
    topics::create(&brokers, &[("codecs", 1)]);
    let codecs = ["none", "gzip", "snappy", "lz4", "zstd"];
    for codec in codecs {
        let mut config = ClientConfig::new();
        config
            .set("bootstrap.servers", &brokers)
            .set("compression.type", codec)
            .set("linger.ms", "50");
        let producer: FutureProducer = config.create().expect("a producer");
        // The text must be compressible, or librdkafka would send it uncompressed.
        let texts: Vec<_> = (0..3).map(|n| format!("{codec} {n} {}", "x".repeat(1000))).collect();
        let sent = texts.iter().map(|text| {
            let record = FutureRecord::<str, str>::to("codecs").payload(text);
            producer.send(record, TIMEOUT)
        });
        for acknowledged in block_on(futures::future::join_all(sent)) {
            acknowledged.expect("an acknowledgement");
        }
    }

    let found = topics::read(&brokers, "codecs");
    let texts: Vec<_> = found.iter().map(topics::Record::text).collect();
    for codec in codecs {
        let of_codec = texts.iter().filter(|text| text.starts_with(codec)).count();
        assert_eq!(of_codec, 3, "{codec}: {} records in all", texts.len());
    }
    assert_still_there(&mut broker);
    assert!(broker.stop(TIMEOUT).success());
}

/// The engine takes its path from a URL, in which a space or a `#` is something else.
#[test]
fn directories_may_have_any_name() {
    let directory = scratch();
    let odd = OsStr::from_bytes(b"a b#c?d%20e&f=g:h\xc3\xbc\xff'\"$");
    let (data, temporary) = (directory.join("data").join(odd), directory.join(odd));
    fs::create_dir_all(&temporary).expect("a directory");

    let start = |data: Option<&Path>| {
        let ready = directory.join(bins::unique("ready"));
        let mut command = Command::new(bins::bin("mcp-fleet-broker"));
        command.args(["--listen=127.0.0.1:0", "--ready-file"]).arg(&ready);
        command.env("TMPDIR", &temporary);
        if let Some(data) = data {
            command.arg("--data-dir").arg(data);
        }
        let mut broker = Process::start("mcp-fleet-broker", &directory, command);
        let read = || fs::read_to_string(&ready).ok();
        let brokers = broker.wait_until("the ready file", TIMEOUT, read);
        (broker, brokers.trim().to_owned())
    };

    let (mut broker, brokers) = start(Some(&data));
    topics::create(&brokers, &[("kept", 1)]);
    topics::produce(&brokers, "kept", vec![Outgoing::value("v")]);
    broker.kill();
    assert!(data.join("broker.db").is_file());
    let (mut broker, brokers) = start(Some(&data));
    assert_eq!(topics::read(&brokers, "kept").len(), 1);
    assert!(broker.stop(TIMEOUT).success());

    let (mut broker, brokers) = start(None);
    topics::create(&brokers, &[("kept", 1)]);
    assert!(broker.stop(TIMEOUT).success());
    let left = fs::read_dir(&temporary).expect("the directory").count();
    assert_eq!(left, 0, "the temporary directory is gone");
}

/// `mcp-fleet broker` was the only way to start the broker, and scripts use it.
#[test]
fn the_command_becomes_the_program() {
    let directory = scratch();
    let ready = directory.join("ready");
    let mut command = Command::new(bins::bin("mcp-fleet"));
    command.args(["broker", "--listen", "127.0.0.1:0", "--ready-file"]).arg(&ready);
    let mut broker = Process::start("mcp-fleet", &directory, command);
    let brokers = broker.wait_until("the ready file", TIMEOUT, || fs::read_to_string(&ready).ok());

    topics::create(brokers.trim(), &[("by-command", 1)]);
    let program = fs::read_link(format!("/proc/{}/exe", broker.pid())).expect("a program");
    assert_eq!(program, bins::bin("mcp-fleet-broker"));
    assert!(broker.stop(TIMEOUT).success());
}

fn assert_still_there(broker: &mut Process) {
    assert!(broker.is_running(), "{}", broker.log());
    assert!(!broker.log().contains("panicked"), "{}", broker.log());
}

fn scratch() -> std::path::PathBuf {
    let directory = bins::scratch("own-broker");
    process::remove_at_exit(Path::new(&directory));
    directory
}

fn producer(brokers: &str) -> FutureProducer {
    let mut config = ClientConfig::new();
    config
        .set("bootstrap.servers", brokers)
        .set("enable.idempotence", "true")
        .set("message.timeout.ms", "1500")
        .set("socket.timeout.ms", "1000")
        .set("reconnect.backoff.max.ms", "500")
        .set("log_level", "2");
    config.create().expect("a producer")
}

/// Sends until a record is acknowledged, and returns its text. A record that timed out may have been
/// written nevertheless, so each attempt has its own text.
fn send_until_acknowledged(producer: &FutureProducer, text: &str) -> String {
    let mut attempts = 0;
    wait::poll_until_ok(text, TIMEOUT, || {
        attempts += 1;
        let text = format!("{text}, attempt {attempts}");
        send(producer, &text).map(|()| text)
    })
}

fn send(producer: &FutureProducer, text: &str) -> Result<(), KafkaError> {
    let record = FutureRecord::<str, str>::to("outage").payload(text);
    block_on(producer.send(record, TIMEOUT)).map(|_| ()).map_err(|(error, _)| error)
}

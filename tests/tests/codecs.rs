//! Which Kafka client reads what with which codec: every client writes a record with every codec
//! that it has, and every client reads all of them.

#![expect(clippy::expect_used, reason = "a panic is the report of a test")]

use std::{collections::BTreeSet, process::Command, thread};

use fleet_tests::{Env, bins, go, kafka, node, on_every_broker, python::Python, topics};

on_every_broker!(every_client_reads_what_all_clients_have_written);

const CODECS: [&str; 5] = ["none", "gzip", "snappy", "lz4", "zstd"];

struct Client {
    name: &'static str,
    /// The codecs that it can write.
    writes: &'static [&'static str],
    command: fn() -> Option<Command>,
}

const CLIENTS: [Client; 5] = [
    Client { name: "java", writes: &CODECS, command: kafka::codecs },
    Client { name: "kafka-python", writes: &CODECS, command: || python("kafka-python") },
    // librdkafka, as in the workers.
    Client { name: "confluent-kafka", writes: &CODECS, command: || python("confluent-kafka") },
    Client {
        name: "kafkajs",
        writes: &["none", "gzip"],
        command: || node::kafka_script("codecs.mjs"),
    },
    Client { name: "franz-go", writes: &CODECS, command: || go::codecs().map(Command::new) },
];

fn python(client: &str) -> Option<Command> {
    let mut command = Python::kafka()?.script("codecs.py");
    command.arg(client);
    Some(command)
}

/// The reader, the codec and the writer of a record.
type Cell = (&'static str, &'static str, &'static str);

fn every_client_reads_what_all_clients_have_written(env: &Env) {
    let prefix = bins::unique("codecs");
    let names = CODECS.map(|codec| format!("{prefix}-{codec}"));
    topics::create(&env.brokers, &names.each_ref().map(|name| (name.as_str(), 1)));
    // Programs that are missing here are left out, with a warning.
    let clients: Vec<_> = CLIENTS.iter().filter(|client| (client.command)().is_some()).collect();

    run_all(&clients, |client| {
        vec![env.brokers.clone(), "produce".to_owned(), prefix.clone(), client.writes.join(",")]
    });

    let wanted: Vec<_> = CODECS
        .iter()
        .map(|codec| format!("{codec}={}", writers(&clients, codec).count()))
        .collect();
    let outputs = run_all(&clients, |_| {
        vec![env.brokers.clone(), "consume".to_owned(), prefix.clone(), wanted.join(",")]
    });

    let mut missing = BTreeSet::new();
    for (reader, output) in clients.iter().zip(outputs) {
        for codec in CODECS {
            for writer in writers(&clients, codec) {
                let line = format!("{codec} {}", writer.name);
                match output.lines().filter(|found| *found == line).count() {
                    1 => {}
                    0 => drop(missing.insert((reader.name, codec, writer.name))),
                    count => panic!("{} has read {line} {count} times", reader.name),
                }
            }
        }
    }
    assert_eq!(missing, unreadable(env, &clients));
}

/// The clients that can write this codec.
fn writers<'a>(
    clients: &'a [&'static Client],
    codec: &'a str,
) -> impl Iterator<Item = &'static Client> + use<'a> {
    clients.iter().copied().filter(move |client| client.writes.contains(&codec))
}

/// What a client cannot read by design: kafkajs has no other codecs, and Apache Kafka hands out
/// what it was given.
fn unreadable(env: &Env, clients: &[&'static Client]) -> BTreeSet<Cell> {
    if env.keeps_plain_records() || !clients.iter().any(|client| client.name == "kafkajs") {
        return BTreeSet::new();
    }
    let others = ["snappy", "lz4", "zstd"].into_iter().flat_map(|codec| {
        writers(clients, codec).map(move |writer| ("kafkajs", codec, writer.name))
    });
    others.collect()
}

/// Runs all clients at once, and returns their outputs.
fn run_all(clients: &[&'static Client], arguments: impl Fn(&Client) -> Vec<String>) -> Vec<String> {
    thread::scope(|scope| {
        let running: Vec<_> = clients
            .iter()
            .map(|client| {
                let mut command = (client.command)().expect("a client that was there before");
                command.args(arguments(client));
                scope.spawn(move || {
                    let output = command.output().expect("a program that starts");
                    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
                    assert!(output.status.success(), "{}: {errors}", client.name);
                    String::from_utf8(output.stdout).expect("text")
                })
            })
            .collect();
        running.into_iter().map(|client| client.join().expect("a client that ran")).collect()
    })
}

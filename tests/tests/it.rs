//! The tests with processes, except the chaos suite. They are one program, so that they share
//! brokers and wait at the same time; `scripts/test -p fleet-tests --test it kill::` runs those of
//! `kill.rs`.

mod broker;
mod cancel;
mod closed_stderr;
mod codecs;
mod completions;
mod compose;
mod conformance;
mod console;
mod create_topics;
mod cut;
mod delayed;
mod demo;
mod dev;
mod dlq;
mod embedded_broker;
mod fair_share;
mod groups;
mod inspection;
mod jobs;
mod keda;
mod kill;
mod logins;
mod logs;
mod manifests;
mod members;
mod moments;
mod monitoring;
mod operator;
mod outages;
mod pauses;
mod pins;
mod pipeline;
mod popular;
mod progress;
mod readiness;
mod registry;
mod replicas;
mod rest;
mod rolling;
mod rounds;
mod secured;
mod shared_ledger;
mod signed;
mod stale;
mod third_party;
mod traces;
mod upstream_tokens;
mod views;

/// The tests of a file without a `mod` line would never run, and nothing would say so.
#[test]
fn every_file_of_this_directory_is_a_module() {
    let directory = fleet_tests::bins::repository().join("tests/tests");
    let root = include_str!("it.rs");
    let files = std::fs::read_dir(directory).expect("the directory of tests").map(|file| {
        let path = file.expect("a file").path();
        path.file_stem().expect("a name").to_str().expect("a name in UTF-8").to_owned()
    });

    let forgotten: Vec<_> = files
        .filter(|name| !["it", "chaos"].contains(&name.as_str()))
        .filter(|name| !root.lines().any(|line| line == format!("mod {name};")))
        .collect();

    assert!(forgotten.is_empty(), "no `mod` in it.rs for {forgotten:?}");
}

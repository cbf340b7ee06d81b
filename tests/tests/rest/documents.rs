//! The documents: valid by the tools of those who define them, the same as in the repository, and
//! true.

use std::{fs, process::Command};

use fleet_tests::{Env, bins, node, process::Process, python::Python, rest::get, wait};

use crate::start;

/// The same in every run.
const SEED: &str = "20261121";
/// How many examples for each operation and phase.
const EXAMPLES: &str = "30";

#[test]
fn the_openapi_document_is_valid() {
    let Some(python) = Python::schemathesis() else { return };
    let mut command = Command::new(python.interpreter());
    command
        .args(["-m", "openapi_spec_validator"])
        .arg(bins::repository().join("schemas/openapi.json"));
    run("openapi-spec-validator", command, "OK");
}

#[test]
fn the_asyncapi_document_is_valid() {
    let Some(mut command) = node::script("asyncapi.mjs") else { return };
    command.arg(bins::repository().join("schemas/asyncapi.json"));
    run("asyncapi-parser", command, "7 channels, 7 operations");
}

fn run(name: &str, command: Command, says: &str) {
    let directory = bins::scratch(name);
    fleet_tests::process::remove_at_exit(&directory);
    let mut process = Process::start(name, &directory, command);
    let status = process.wait(wait::LONG);
    let said = process.log();
    assert!(status.success() && said.contains(says), "{status}\n{said}");
}

/// schemathesis makes requests from the document, good ones and bad ones, and judges the answers;
/// what it is told beside the document, `tests/python/schemathesis.toml` says.
#[test]
fn the_server_does_what_the_openapi_document_says() {
    let Some(env) = Env::apache_kafka() else { return };
    let Some(python) = Python::schemathesis() else { return };
    let (mut fleet, server) = start(env, "schemathesis");
    // Jobs end, so that streams of them do.
    fleet.start_worker();
    let repository = bins::repository();
    let served = get(server.address, "/openapi.json");
    let written =
        fs::read_to_string(repository.join("schemas/openapi.json")).expect("the document");
    assert_eq!((served.status, &served.text), (200, &written));
    let mut command = Command::new(python.interpreter());
    command
        .args(["-m", "schemathesis.cli", "--config-file"])
        .arg(repository.join("tests/python/schemathesis.toml"));
    command.arg("run").arg(format!("http://{}/openapi.json", server.address));
    command
        .args(["--seed", SEED, "--max-examples", EXAMPLES, "--no-color"])
        .current_dir(&fleet.directory);
    let mut process = Process::start("schemathesis", &fleet.directory, command);
    let status = process.wait(wait::LONG * 2);
    let said = process.log();
    assert!(status.success(), "{status}\n{said}");
    // Its own count, so that a run that tests nothing does not pass.
    for phase in ["Examples", "Coverage", "Fuzzing", "Stateful"] {
        assert!(said.contains(phase), "{phase}:\n{said}");
    }
    drop(server);
}

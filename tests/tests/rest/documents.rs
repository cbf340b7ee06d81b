//! The API documents: valid according to the official tools, equal to those in the repository, and
//! correct.

use std::{fs, process::Command};

use fleet_tests::{Env, bins, node, process::Process, python::Python, rest::get, wait};

use super::start;

/// The seed, which is the same in every run.
const SEED: &str = "20261121";
/// The number of examples for each operation and phase.
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
    run("asyncapi-parser", command, "9 channels, 9 operations");
}

fn run(name: &str, command: Command, says: &str) {
    let directory = bins::scratch(name);
    fleet_tests::process::remove_at_exit(&directory);
    let mut process = Process::start(name, &directory, command);
    let status = process.wait(wait::LONG);
    let output = process.log();
    assert!(status.success() && output.contains(says), "{status}\n{output}");
}

/// schemathesis makes valid and invalid requests from the document, and checks the responses;
/// `tests/python/schemathesis.toml` has its configuration.
#[test]
fn the_server_behaves_as_the_openapi_document_describes() {
    let Some(env) = Env::apache_kafka() else { return };
    let Some(python) = Python::schemathesis() else { return };
    let (mut fleet, server) = start(env, "schemathesis");

    // The jobs end, so that their streams end.
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
    let status = process.wait(wait::LONG * 4);
    let output = process.log();
    assert!(status.success(), "{status}\n{output}");

    // Check its own count, so that a run that tests nothing doesn't pass.
    for phase in ["Examples", "Coverage", "Fuzzing", "Stateful"] {
        assert!(output.contains(phase), "{phase}:\n{output}");
    }
    drop(server);
}

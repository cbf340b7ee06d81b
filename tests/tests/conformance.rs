//! The official conformance suite against the real server, for both eras of the protocol, with no failure expected.

use fleet_tests::{
    fleet::{ServerOptions, Standalone},
    http, node,
    process::Process,
    wait,
};
use serde_json::{Value, json};

const REVISIONS: [&str; 2] = ["2026-07-28", "2025-11-25"];

#[test]
fn the_server_passes_every_scored_scenario() {
    if node::conformance().is_none() {
        return;
    }
    // The scenarios of 2025-11-25 in which the server asks the client something need a session.
    let args = vec!["--conformance".to_owned(), "--legacy-sessions".to_owned()];
    let server = Standalone::start_with("conformance", ServerOptions { args, ..ServerOptions::default() });
    for revision in REVISIONS {
        let Some(mut suite) = node::conformance() else { return };
        let results = server.directory.join(revision);
        suite
            .args(["server", "--requirements", revision, "--url"])
            .arg(format!("http://{}/mcp", server.service.address))
            .arg("-o")
            .arg(&results)
            .current_dir(&server.directory);
        let mut suite = Process::start("conformance", &server.directory, suite);
        let status = suite.wait(wait::LONG);
        let said = suite.log();
        assert!(status.success(), "{revision}: {status}\n{said}");
        // The suite's own count, so that a run that tests nothing does not pass.
        let scenarios = std::fs::read_dir(&results).expect("the results").count();
        assert!(scenarios >= 30, "{revision}: only {scenarios} scenarios ran:\n{said}");
    }
}

/// Nothing of the suite's is offered to people.
#[test]
fn without_the_flag_there_are_no_fixtures() {
    let server = Standalone::start("no-fixtures");
    let address = server.service.address;
    let list = |method: &str, field: &str| -> Vec<Value> {
        let request = json!({"jsonrpc": "2.0", "id": 1, "method": method});
        let (status, answer) = http::post(address, "/message", &request).expect("an answer of the server");
        assert_eq!(status, 200, "{answer}");
        answer["result"][field].as_array().cloned().expect("a list")
    };
    let tools = list("tools/list", "tools");
    assert!(!tools.is_empty());
    for tool in tools {
        assert!(!tool["name"].to_string().contains("test"), "{tool}");
    }
    assert_eq!(list("prompts/list", "prompts"), [] as [Value; 0]);
    assert_eq!(list("resources/list", "resources"), [] as [Value; 0]);
}

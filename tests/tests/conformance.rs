//! The official conformance suite against the real server, for both eras of the protocol. No
//! failures are expected.

use fleet_tests::{
    fleet::{Fleet, ServerOptions, Standalone},
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

    // The configuration is the default one; the flag only adds what the scenarios need.
    let args = vec!["--conformance".to_owned()];
    let server =
        Standalone::start_with("conformance", ServerOptions { args, ..ServerOptions::default() });
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
        let output = suite.log();
        assert!(status.success(), "{revision}: {status}\n{output}");
        // Check the suite's own count, so that a run that tests nothing doesn't pass.
        let scenarios = std::fs::read_dir(&results).expect("the results").count();
        assert!(scenarios >= 30, "{revision}: only {scenarios} scenarios ran:\n{output}");
    }
}

/// The scenarios of tasks, except that of status notifications, which the suite skips.
const TASK_SCENARIOS: [&str; 9] = [
    "tasks-lifecycle",
    "tasks-capability-negotiation",
    "tasks-wire-fields",
    "tasks-request-state-removal",
    "tasks-mrtr-input",
    "tasks-request-headers",
    "tasks-dispatch-and-envelope",
    "tasks-required-task-error",
    "tasks-mrtr-composition",
];

/// Tasks are jobs, so they need a broker and a worker.
#[test]
fn tasks_pass_their_scenarios() {
    if node::conformance().is_none() {
        return;
    }
    let Some(env) = fleet_tests::Env::apache_kafka() else { return };
    let mut fleet = Fleet::new(env, "conformance-tasks", 2);
    fleet.create_control_topic();
    let options =
        ServerOptions { args: vec!["--conformance".to_owned()], ..ServerOptions::default() };
    fleet.start_server(&fleet.with_jobs(options));
    fleet.start_worker();
    let mut failed = Vec::new();
    for scenario in TASK_SCENARIOS {
        let Some(mut suite) = node::conformance() else { return };
        suite
            .args(["server", "--scenario", scenario, "--url"])
            .arg(format!("{}/mcp", fleet.server_url));
        suite.arg("-o").arg(fleet.directory.join(scenario)).current_dir(&fleet.directory);
        let mut suite = Process::start("conformance", &fleet.directory, suite);
        let status = suite.wait(wait::LONG);
        if !status.success() {
            failed.push(format!("{scenario}: {status}\n{}", suite.log()));
        }
    }
    assert!(failed.is_empty(), "{}", failed.join("\n"));
}

/// The scenarios that apply to a worker, which calls tools. It doesn't answer questions, authorize
/// itself in a browser or resume a broken stream.
const CLIENT_SCENARIOS: [(&str, &str); 10] = [
    ("2025-11-25", "initialize"),
    ("2025-11-25", "tools_call"),
    ("2026-07-28", "tools_call"),
    ("2026-07-28", "request-metadata"),
    ("2026-07-28", "http-standard-headers"),
    ("2026-07-28", "http-custom-headers"),
    ("2026-07-28", "http-invalid-tool-headers"),
    ("2026-07-28", "json-schema-ref-no-deref"),
    ("2025-11-25", "auth/client-credentials-basic"),
    ("2025-11-25", "auth/client-credentials-jwt"),
];

#[test]
fn the_workers_client_passes_its_scenarios() {
    let directory = fleet_tests::bins::scratch("conformance-client");
    fleet_tests::process::remove_at_exit(&directory);
    for (revision, scenario) in CLIENT_SCENARIOS {
        let Some(mut suite) = node::conformance() else { return };
        suite
            .args(["client", "--scenario", scenario, "--spec-version", revision, "--command"])
            .arg(env!("CARGO_BIN_EXE_conformance_client"))
            .current_dir(&directory);
        let mut suite = Process::start("conformance", &directory, suite);
        let status = suite.wait(wait::LONG);
        assert!(status.success(), "{scenario} of {revision}: {status}\n{}", suite.log());
    }
}

/// The suite's fixtures are not offered to users.
#[test]
fn without_the_flag_there_are_no_fixtures() {
    let server = Standalone::start("no-fixtures");
    let address = server.service.address;
    let list = |method: &str, field: &str| -> Vec<Value> {
        let request = json!({"jsonrpc": "2.0", "id": 1, "method": method});
        let (status, answer) =
            http::post(address, "/message", &request).expect("an answer of the server");
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

//! Third-party programs: MCP servers from npm and PyPI, hosted by jobs, and the official Python
//! client with our server.

use fleet_job::event::JobState;
use fleet_tests::{
    Env, Fleet,
    fleet::{ServerOptions, Standalone},
    node, on_every_broker,
    process::Process,
    python::Python,
    wait,
};
use serde_json::{Value, json};

on_every_broker!(
    a_server_from_npm_is_hosted,
    a_server_from_pypi_is_hosted,
    fastmcp_drives_our_tasks
);

/// fastmcp with its tasks extra, on two replicas.
fn fastmcp_drives_our_tasks(env: &Env) {
    let Some(python) = Python::get() else { return };
    let mut fleet = Fleet::new(env, "fastmcp-tasks", 2);
    fleet.create_control_topic();
    let options =
        ServerOptions { args: vec!["--conformance".to_owned()], ..ServerOptions::default() };
    fleet.start_server(&fleet.with_jobs(options.clone()));
    let other = fleet.start_replica(options);
    fleet.start_worker();
    let mut command = python.script("tasks.py");
    command.arg(format!("{}/mcp", fleet.server_url)).arg(format!("http://{}/mcp", other.address));
    let mut client = Process::start("fastmcp-tasks", &fleet.directory, command);
    let status = client.wait(wait::LONG);
    let output = client.log();
    assert!(status.success() && output.contains("a task is cancelled"), "{status}\n{output}");

    fleet.stop_workers();
}

fn a_server_from_npm_is_hosted(env: &Env) {
    let Some(script) = node::server_everything() else { return };
    let script = script.display().to_string();
    let results = host_and_call(
        env,
        "everything",
        &["node", &script, "stdio"],
        &[
            json!({"tool": "echo", "arguments": {"message": "hello from a job"}}),
            json!({"tool": "get-sum", "arguments": {"a": 4700, "b": 11}}),
        ],
    );

    assert!(results[0].contains("hello from a job"), "{}", results[0]);
    assert!(results[1].contains("4711"), "{}", results[1]);
}

fn a_server_from_pypi_is_hosted(env: &Env) {
    let Some(python) = Python::get() else { return };
    let interpreter = python.interpreter().display().to_string();
    let argv = [interpreter.as_str(), "-m", "mcp_server_time", "--local-timezone", "UTC"];
    let results = host_and_call(
        env,
        "time",
        &argv,
        &[json!({"tool": "convert_time", "arguments":
        {"source_timezone": "Europe/Berlin", "time": "12:00", "target_timezone": "Asia/Tokyo"}})],
    );
    assert!(results[0].contains("Asia/Tokyo"), "{}", results[0]);
}

/// Hosts a server by a `server-init` job, calls its tools by `tool-call` jobs, and returns the
/// results as text.
fn host_and_call(env: &Env, name: &str, argv: &[&str], calls: &[Value]) -> Vec<String> {
    let mut fleet = Fleet::new(env, name, 2);
    fleet
        .start_server(&ServerOptions { allowed: vec![argv.join(" ")], ..ServerOptions::default() });
    fleet.start_worker();
    let config = json!({"mcpServers": {name: {"command": argv[0], "args": argv[1..]}}});
    let init = fleet.submit_job(
        &json!({"jobID": "init", "jobType": "server-init", "payload": config.to_string()}),
    );
    fleet.wait_for_all();
    let calls: Vec<_> = (0..)
        .zip(calls)
        .map(|(n, call)| {
            let mut payload = call.clone();
            payload["server"] = name.into();
            fleet.submit_job(
                &json!({"jobID": format!("call-{n}"), "jobType": "tool-call", "payload": payload}),
            )
        })
        .collect();
    let account = fleet.settle(0);
    for record in calls.iter().chain([&init]) {
        let event = account.of(record);
        assert_eq!(event.state, JobState::Succeeded, "{event:?}");
    }
    calls
        .iter()
        .map(|call| account.of(call).result.as_ref().map(Value::to_string).unwrap_or_default())
        .collect()
}

/// The client lists and calls our tools in both eras of the protocol. It needs no broker.
#[test]
fn the_python_client_lists_and_calls_our_tools() {
    let Some(python) = Python::get() else { return };
    let mut server = Standalone::start("python-client");
    for mode in ["auto", "legacy"] {
        let mut command = python.script("client.py");
        command.arg(format!("http://{}/mcp", server.service.address)).arg(mode);
        let mut client = Process::start("python-client", &server.directory, command);
        let status = client.wait(wait::LONG);
        let output = client.log();
        assert!(status.success(), "{mode}: {status}\n{output}");
        for part in ["tool file_read", "tool server_initialize", "hello, fleet", "error True"] {
            assert!(output.contains(part), "{mode}: no {part:?} in\n{output}");
        }
    }

    assert!(server.service.process.is_running());
}

/// Popular libraries list and call tools of a hosted program and of a hosted HTTP server, in both
/// eras.
#[test]
fn client_libraries_call_through_the_gateway() {
    let (Some(script), Some(python), Some(langchain)) =
        (node::server_everything(), Python::get(), Python::langchain())
    else {
        return;
    };
    let upstream = Standalone::start("gateway-upstream");
    let remote = upstream.service.address.to_string();
    let everything = ["node".to_owned(), script.display().to_string(), "stdio".to_owned()];
    let gateway = Standalone::start_with(
        "gateway-clients",
        ServerOptions {
            allowed: vec![everything.join(" ")],
            env: vec![("MCP_ALLOWED_REMOTES".to_owned(), remote.clone())],
            ..ServerOptions::default()
        },
    );
    for (name, config) in [
        ("everything", json!({"command": "node", "args": everything[1..]})),
        ("http", json!({"type": "http", "url": format!("http://{remote}/mcp")})),
    ] {
        let hosted =
            gateway.service.call("server_initialize", &json!({"name": name, "config": config}));
        assert_ne!(hosted["result"]["isError"], json!(true), "{hosted}");
    }
    for (client, python) in
        [("mcp", &python), ("mcp-legacy", &python), ("fastmcp", &python), ("langchain", &langchain)]
    {
        for [tool, arguments, expected] in [
            ["everything__echo", r#"{"message": "through the gateway"}"#, "through the gateway"],
            ["http__file_read", r#"{"path": "hello.txt"}"#, "hello, fleet"],
        ] {
            let mut command = python.script("balanced.py");
            command.arg(format!("http://{}/mcp", gateway.service.address));
            command.args([client, "10", tool, arguments, expected]);
            let mut process = Process::start("gateway-client", &gateway.directory, command);
            let status = process.wait(wait::LONG);
            let output = process.log();
            assert!(
                status.success() && output.contains("answered 10 "),
                "{client}, {tool}: {status}\n{output}"
            );
        }
    }
}

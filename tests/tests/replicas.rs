//! Replicas of the server behind a balancer of connections, with popular client libraries.
//!
//! Every request has a connection of its own, so the requests of a session, and even of a single
//! call of langchain, go to all replicas in turn. Each library makes a few calls;
//! `FLEET_REPLICA_CALLS` sets another number.

use std::env;

use fleet_tests::{
    fleet::{ServerOptions, Standalone},
    http,
    process::Process,
    proxy::Proxy,
    python::Python,
    wait,
};
use serde_json::{Value, json};

const CALLS: &str = "FLEET_REPLICA_CALLS";

/// Three replicas with sessions, and the balancer in front of them.
fn replicas(name: &str) -> (Vec<Standalone>, Proxy) {
    let sessions = vec![("MCP_LEGACY_SESSIONS".to_owned(), "true".to_owned())];
    let options = ServerOptions { env: sessions, ..ServerOptions::default() };
    let servers: Vec<_> = (0..3).map(|_| Standalone::start_with(name, options.clone())).collect();
    let proxy = Proxy::balance(servers.iter().map(|server| server.service.address));
    (servers, proxy)
}

/// Lets a library make its calls.
fn call(name: &str, python: Option<Python>, client: &str, few: u32) {
    let Some(python) = python else { return };
    let asked = env::var(CALLS).ok().map(|calls| {
        calls.parse::<u32>().unwrap_or_else(|error| panic!("{CALLS}={calls}: {error}"))
    });
    let calls = asked.unwrap_or(few);
    let (servers, proxy) = replicas(name);
    let mut command = python.script("balanced.py");
    command.arg(format!("http://{}/mcp", proxy.address)).args([client, &calls.to_string()]);
    let mut process = Process::start(name, &servers[0].directory, command);

    // Expect at least ten calls per second, on any machine.
    let status = process.wait(wait::LONG + std::time::Duration::from_secs(u64::from(calls / 10)));
    let output = process.log();
    assert!(
        status.success() && output.contains(&format!("answered {calls} ")),
        "{client}: {status}\n{output}"
    );
    if asked.is_some() {
        fleet_tests::loud(&format!("{client}: {}", output.lines().last().unwrap_or_default()));
    }
    for server in &servers {
        let share =
            http::metric(server.service.address, "mcp_server_tool_calls_total").unwrap_or_default();
        let fair = f64::from(calls) / 3.0;
        assert!(
            share > fair / 3.0,
            "a replica has answered only {share} of {calls} calls, so this run proves nothing"
        );
    }
}

#[test]
fn the_official_client_is_served_by_all_replicas() {
    call("replicas-mcp", Python::get(), "mcp", 100);
}

#[test]
fn the_official_client_with_a_session_is_served_by_all_replicas() {
    call("replicas-legacy", Python::get(), "mcp-legacy", 100);
}

#[test]
fn fastmcp_is_served_by_all_replicas() {
    call("replicas-fastmcp", Python::get(), "fastmcp", 100);
}

/// langchain opens a session for every call.
#[test]
fn langchain_is_served_by_all_replicas() {
    call("replicas-langchain", Python::langchain(), "langchain", 30);
}

#[test]
fn the_official_client_speaks_the_transport_of_2024() {
    let Some(python) = Python::get() else { return };
    let server = Standalone::start("sse-client");
    let mut command = python.script("sse.py");
    command.arg(format!("http://{}/sse", server.service.address));
    let mut client = Process::start("sse-client", &server.directory, command);
    let status = client.wait(wait::LONG);
    let output = client.log();
    assert!(status.success(), "{status}\n{output}");

    for part in ["tool server_initialize", "hello, fleet", "error False"] {
        assert!(output.contains(part), "no {part:?} in\n{output}");
    }
}

#[test]
fn a_server_of_the_official_library_that_speaks_the_transport_of_2024_is_hosted() {
    let Some(python) = Python::get() else { return };
    let remotes = vec![("MCP_ALLOWED_REMOTES".to_owned(), "127.0.0.1".to_owned())];
    let options = ServerOptions { env: remotes, ..ServerOptions::default() };
    let server = Standalone::start_with("sse-server", options);
    let ready = server.directory.join("ready");
    let mut command = python.script("sse_server.py");
    command.arg(&ready);
    let mut old = Process::start("sse-server", &server.directory, command);
    let address =
        old.wait_until("the ready file", wait::LONG, || std::fs::read_to_string(&ready).ok());
    let call = |tool: &str, arguments: Value| server.service.call(tool, &arguments);
    let config = json!({"type": "sse", "url": format!("http://{address}/sse")});
    let hosted = call("server_initialize", json!({"name": "old", "config": config}));
    assert_eq!(hosted["result"]["structuredContent"]["transport"], "sse", "{hosted}");

    let answer = call("old__double", json!({"number": 21})).to_string();
    assert!(answer.contains("twice is 42"), "{answer}");

    // The server stops, and its status shows that.
    drop(old);
    let lost = call("old__double", json!({"number": 21}));
    assert_eq!(lost["error"]["code"], json!(-32603), "{lost}");
}

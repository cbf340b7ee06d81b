//! What the logs contain, and what they must never contain.

use std::process::Stdio;

use crate::common::{ANSWER_TEXT, PATIENCE, command, legacy_server, script, tree};
use serde_json::{Value, json};
use tokio::io::AsyncReadExt;

/// The log of a server with this filter that has served all kinds of requests, with secrets in all
/// places.
async fn log_of_a_busy_server(rust_log: Option<&str>) -> String {
    let tree = tree();
    let program = script(
        tree.dir.path(),
        "server",
        &legacy_server("work", &format!("text=secret-result; {ANSWER_TEXT}")),
    );
    let ready = tree.dir.path().join("ready");
    let mut command = command(&["--port", "0", "--root", tree.root.to_str().unwrap()]);
    command.args([
        "--allow-command",
        &program,
        "--allow-env",
        "KEY",
        "--allow-remote",
        "127.0.0.1",
    ]);
    command.arg("--ready-file").arg(&ready).stderr(Stdio::piped());
    match rust_log {
        Some(filter) => command.env("RUST_LOG", filter),
        None => command.env_remove("RUST_LOG"),
    };
    let mut process = command.spawn().unwrap();
    let mut stderr = process.stderr.take().unwrap();
    let log = tokio::spawn(async move {
        let mut text = Vec::new();
        stderr.read_to_end(&mut text).await.unwrap();
        String::from_utf8_lossy(&text).into_owned()
    });
    let address = crate::common::eventually("the server to listen", async || {
        std::fs::read_to_string(&ready).ok().map(|text| text.trim().to_owned())
    })
    .await;
    let http = reqwest::Client::builder().no_proxy().build().unwrap();
    let post = async |path: &str, method: &str, params: Value, version: &str| {
        let name = params["name"].as_str().unwrap_or("none").to_owned();
        let body = json!({"jsonrpc": "2.0", "id": 1, "method": method, "params": params});
        let request =
            http.post(format!("http://{address}{path}")).header("content-type", "application/json");
        let request = request.header("accept", "application/json, text/event-stream");
        let request = request
            .header("authorization", "Bearer secret-token")
            .header("cookie", "secret-cookie");
        let request = request.header("mcp-method", method).header("mcp-name", name);
        let request = request.header("mcp-protocol-version", version).body(body.to_string());
        request.send().await.unwrap().text().await.unwrap()
    };
    let legacy = "2025-11-25";
    let config = json!({"command": program, "env": {"KEY": "secret-env"}});
    let hosted = json!({"name": "server_initialize", "arguments": {"name": "x", "config": config}});
    let answer = post("/message", "tools/call", hosted, legacy).await;
    assert!(answer.contains("x__work"), "{answer}");

    let remote = json!({"url": "http://127.0.0.1:1/mcp?key=secret-query", "headers": {"x-key": "secret-header"}});
    let remote = json!({"name": "server_initialize", "arguments": {"name": "y", "config": remote}});
    post("/message", "tools/call", remote, legacy).await;
    let modern = json!({"io.modelcontextprotocol/protocolVersion": "2026-07-28", "io.modelcontextprotocol/clientCapabilities": {}});
    for name in ["x__work", "file_read", "no-such-tool"] {
        let arguments = json!({"path": "secret-argument"});
        let plain = json!({"name": name, "arguments": arguments});
        post("/message", "tools/call", plain.clone(), legacy).await;
        post("/mcp", "tools/call", plain, legacy).await;
        let params = json!({"name": name, "arguments": arguments, "_meta": modern});
        post("/mcp", "tools/call", params, "2026-07-28").await;
    }

    // A session, and malformed requests.
    let hello = json!({"protocolVersion": legacy, "capabilities": {}, "clientInfo": {"name": "t", "version": "1"}});
    post("/mcp", "initialize", hello, legacy).await;
    post("/message", "tools/call", json!({"name": 1, "arguments": "secret-garbage"}), legacy).await;
    post("/mcp", "tools/call", json!({"name": 1, "arguments": "secret-garbage"}), legacy).await;
    crate::common::signal(process.id().unwrap(), nix::sys::signal::Signal::SIGTERM);
    tokio::time::timeout(PATIENCE, process.wait()).await.unwrap().unwrap();
    log.await.unwrap()
}

#[tokio::test]
async fn no_level_writes_secrets_or_payloads() {
    for filter in ["debug", "trace"] {
        let log = log_of_a_busy_server(Some(filter)).await;
        assert!(log.contains("listening"), "{log}");
        for line in log.lines() {
            assert!(!line.contains("secret"), "{filter}: {line}");
        }
    }

    // A filter that names rmcp shows messages, but still no credentials.
    let log = log_of_a_busy_server(Some("rmcp=trace")).await;
    assert!(log.contains("secret-argument"), "this test would see nothing");

    for line in log.lines() {
        assert!(!line.contains("secret-token") && !line.contains("secret-cookie"), "{line}");
    }
}

#[tokio::test]
async fn the_ordinary_log_has_no_noise() {
    let log = log_of_a_busy_server(None).await;
    assert!(log.contains("listening"), "{log}");
    for line in log.lines() {
        assert!(!line.contains("rmcp"), "{line}");
        // The only warning is about the unreachable server.
        assert!(
            !line.contains(" WARN ") && !line.contains(" ERROR ") || line.contains("server=\"y\""),
            "{line}"
        );
    }
}

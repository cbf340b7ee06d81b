//! The audit log in a file: what has a record, and what is not done without one.

use std::path::Path;

use fleet_access::digest_arguments;
use reqwest::StatusCode;
use serde_json::{Value, json};

use crate::{
    access::{Keys, list_tools, refused_start},
    apps::scripted,
    common::{Server, eventually},
};

/// `root` may do everything, and everybody else nothing. The arguments of `query` are recorded.
const RULES: &str = "
    [[rule]]
    name = 'root'
    effect = 'allow'
    principals = ['key:root']
    actions = ['*']

    [[limit]]
    name = 'rarely'
    per = 'principal'
    tools = ['rare']
    rate = '1/h'

    [[audit.values]]
    tools = ['query']
";

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";

/// A server with three tools and a prompt.
fn program(dir: &Path) -> String {
    let schema = json!({"type": "object"});
    let tool = |name: &str| json!({"name": name, "inputSchema": schema});
    let tools = ["query", "rare", "fails"].map(tool);
    let message = json!({"role": "user", "content": {"type": "text", "text": "hello"}});
    scripted(
        dir,
        "a",
        &json!({"tools": {}, "prompts": {}}),
        &[
            ("tools/list", json!({ "tools": tools })),
            ("tools/call", json!({"content": [{"type": "text", "text": "done"}]})),
            ("prompts/list", json!({"prompts": [{"name": "greet"}]})),
            ("prompts/get", json!({ "messages": [message] })),
        ],
    )
}

async fn send(server: &Server, key: &str, method: &str, params: Value) -> (StatusCode, Value) {
    let body = json!({"jsonrpc": "2.0", "id": 1, "method": method, "params": params});
    let request = server.http.post(server.url("/message")).bearer_auth(key).json(&body);
    let request = request.header("traceparent", format!("00-{TRACE}-00f067aa0ba902b7-01"));
    let response = request.send().await.unwrap();
    (response.status(), response.json().await.unwrap())
}

async fn call(server: &Server, key: &str, tool: &str, arguments: Value) -> (StatusCode, Value) {
    send(server, key, "tools/call", json!({"name": tool, "arguments": arguments})).await
}

/// Waits until the log has so many records.
async fn records(path: &Path, count: usize) -> Vec<Value> {
    eventually(&format!("{count} audit records"), async || {
        let text = std::fs::read_to_string(path).ok()?;
        let lines: Vec<_> =
            text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
        (lines.len() >= count).then_some(lines)
    })
    .await
}

/// What a record says in short: outcome, action, server and tool or prompt, rule, code, principal.
fn brief(record: &Value) -> [&str; 6] {
    let text = |value: &'static str| record.pointer(value).and_then(Value::as_str);
    [
        text("/outcome").unwrap(),
        text("/action").unwrap(),
        text("/resource/tool").or(text("/resource/prompt")).unwrap_or_default(),
        text("/rule").unwrap_or_default(),
        text("/code").unwrap_or_default(),
        text("/principal/subject").unwrap_or_default(),
    ]
}

#[tokio::test]
async fn what_is_done_and_what_is_refused_has_one_record() {
    let dir = tempfile::tempdir().unwrap();
    let (program, path) = (program(dir.path()), dir.path().join("audit.jsonl"));
    let mut keys = Keys::new();
    let [root, mute] = ["root", "mute"].map(|id| keys.add(id, id));
    keys.set_policy(RULES);
    let more = ["--allow-command", &program, "--audit-file", path.to_str().unwrap()];
    let server = keys.start_server_with(&more).await;

    let hosted = json!({"name": "a", "config": {"command": program, "env": {"X": "s3cret"}}});
    // The policy allows no such variable.
    call(&server, &root, "server_initialize", hosted).await;
    let hosted = json!({"name": "a", "config": {"command": program}});
    call(&server, &root, "server_initialize", hosted).await;

    let arguments = json!({"sql": "select 1", "password": "hunter2"});
    call(&server, &root, "a__query", arguments.clone()).await;
    for _ in 0..2 {
        call(&server, &root, "a__rare", json!({"sql": "never recorded"})).await;
    }
    call(&server, &mute, "a__query", json!({})).await;
    send(&server, &root, "prompts/get", json!({"name": "a__greet"})).await;
    send(&server, &root, "tools/list", json!({})).await;
    let wrong = format!("Bearer {}x", &root[..root.len() - 1]);
    assert_eq!(list_tools(&server, &[&wrong]).await.status(), StatusCode::UNAUTHORIZED);
    let missing = server.http.get(server.url("/metrics")).bearer_auth(&mute);
    assert_eq!(missing.send().await.unwrap().status(), StatusCode::FORBIDDEN);

    let records = records(&path, 9).await;
    let found: Vec<_> = records.iter().map(brief).collect();
    let no_rule = "default:no-rule";
    let expected = [
        ["failed", "servers.administer", "server_initialize", "root", "", "root"],
        ["succeeded", "servers.administer", "server_initialize", "root", "", "root"],
        ["succeeded", "tools.call", "query", "root", "", "root"],
        ["succeeded", "tools.call", "rare", "root", "", "root"],
        ["refused", "tools.call", "rare", "rarely", "FLEET-RATE-LIMITED", "root"],
        ["refused", "tools.call", "query", no_rule, "FLEET-DENIED", "mute"],
        ["succeeded", "prompts.get", "greet", "root", "", "root"],
        ["refused", "authenticate", "", "", "FLEET-BAD-CREDENTIALS", ""],
        ["refused", "metrics.read", "", no_rule, "FLEET-DENIED", "mute"],
    ];
    assert_eq!(found, expected);

    let query = &records[2];
    assert_eq!(query["resource"]["server"], "a");
    assert_eq!((&query["peer"], &query["traceId"]), (&json!("127.0.0.1"), &json!(TRACE)));
    assert_eq!(query["argumentsDigest"], digest_arguments(arguments.as_object().unwrap()));
    assert_eq!(query["arguments"], json!({"sql": "select 1", "password": "[redacted]"}));
    assert_eq!(records[7]["peer"], "127.0.0.1");

    let text = std::fs::read_to_string(&path).unwrap();
    for secret in ["hunter2", "s3cret", "never recorded", &root[8..]] {
        assert!(!text.contains(secret), "{secret} is in {text}");
    }
}

#[tokio::test]
async fn nothing_is_done_that_a_required_log_cannot_record() {
    let dir = tempfile::tempdir().unwrap();
    let program = program(dir.path());
    let mut keys = Keys::new();
    let root = keys.add("root", "root");
    // Every write to it fails for want of space.
    let more = ["--allow-command", &program, "--audit", "required", "--audit-file", "/dev/full"];
    let server = keys.start_server_with(&more).await;

    let hosted = json!({"name": "a", "config": {"command": program}});
    let request = json!({
        "jsonrpc": "2.0", "id": 1, "method": "tools/call",
        "params": {"name": "server_initialize", "arguments": hosted},
    });
    let request = server.http.post(server.url("/message")).bearer_auth(&root).json(&request);
    let response = request.send().await.unwrap();
    assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(response.headers()["retry-after"], "5");
    let answer: Value = response.json().await.unwrap();
    let data = &answer["error"]["data"];
    // A job waits for it, and spends no attempt.
    assert_eq!(
        (&data["reason"], &data["code"]),
        (&json!("server-busy"), &json!("FLEET-AUDIT-UNAVAILABLE"))
    );
    assert!(!answer.to_string().contains("/dev/full"), "callers need not know where: {answer}");

    // Every call of a tool has a record, and lists have none. Nothing was hosted.
    let (_, listed) = call(&server, &root, "server_list", json!({})).await;
    assert_eq!(listed["error"]["data"]["code"], "FLEET-AUDIT-UNAVAILABLE", "{listed}");
    let (status, tools) = send(&server, &root, "tools/list", json!({})).await;
    assert_eq!(status, StatusCode::OK);
    assert!(!tools.to_string().contains("a__query"), "{tools}");

    // The beginning of each call, and the record of its refusal.
    eventually("the gaps to be counted", async || {
        let metrics = server.http.get(server.url("/metrics")).bearer_auth(&root);
        let metrics = metrics.send().await.unwrap().text().await.unwrap();
        metrics.contains("mcp_server_audit_gaps_total{sink=\"file\"} 4").then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_required_log_needs_a_place() {
    let text = refused_start(&["--audit", "required"]).await;
    assert!(text.contains("MCP_AUDIT_FILE") && text.contains("KAFKA_BROKERS"), "{text}");
    let text = refused_start(&["--audit", "on", "--audit-file", "/proc/none/audit"]).await;
    assert!(text.contains("could not open the audit log /proc/none/audit"), "{text}");
}

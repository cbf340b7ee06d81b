//! The server while the shared registry is unreachable. `tests/tests/registry.rs` has the tests
//! with a broker.

use serde_json::json;

use crate::common::{ANSWER_TEXT, Server, legacy_server, script};

#[tokio::test]
async fn a_server_without_its_registry_is_not_ready_and_shares_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let program =
        script(dir.path(), "server", &legacy_server("work", &format!("text=done; {ANSWER_TEXT}")));

    // Nothing listens on port 1.
    let brokers = [("KAFKA_BROKERS", "127.0.0.1:1"), ("RUST_LOG", "error")];
    let args = ["--allow-command", &program, "--allow-env", "API_KEY", "--expand-env", "API_KEY"];
    let server = Server::start_with(&args, &brokers).await;
    let ready = server.http.get(server.url("/ready")).send().await.unwrap();
    assert_eq!(ready.status(), 503);
    let ready = ready.text().await.unwrap();
    assert!(ready.contains("reading the registry from Kafka at `127.0.0.1:1`"), "{ready}");
    assert_eq!(server.http.get(server.url("/health")).send().await.unwrap().status(), 200);

    // The calls themselves are valid, so jobs wait.
    let waits = async |tool: &str, arguments: serde_json::Value| {
        let answer = server.call_raw(tool, arguments).await;
        let error = &answer["error"];
        assert_eq!(
            (&error["code"], &error["data"]["reason"]),
            (&json!(-32603), &json!("server-unavailable"))
        );
        assert_eq!(error["data"]["server"], "x", "{answer}");
        assert!(error["data"]["retryAfterMs"].as_u64().is_some_and(|ms| ms > 0), "{answer}");
        assert!(error["message"].as_str().unwrap().contains("has not been read yet"), "{answer}");
    };
    waits("server_initialize", json!({"name": "x", "config": {"command": program}})).await;
    waits("server_remove", json!({"name": "x"})).await;
    waits("x__work", json!({})).await;
    let prompt = server.request("prompts/get", json!({"name": "x__ask"})).await;
    assert_eq!(prompt["error"]["data"]["reason"], "server-unavailable", "{prompt}");

    let secret = json!({"command": program, "env": {"API_KEY": "hunter2"}});
    let (message, is_final) = server.initialize_error("x", secret).await;
    assert!(
        is_final && message.contains("`env.API_KEY`") && !message.contains("hunter2"),
        "{message}"
    );

    let remote = json!({"url": "https://mcp.example.com/mcp?key=hunter2"});
    let (message, is_final) = server.initialize_error("x", remote).await;
    assert!(is_final && message.contains("`url.key`") && !message.contains("hunter2"), "{message}");
    assert_eq!(server.call_ok("server_list", json!({})).await, json!({"servers": []}));

    let status = server.terminate().await;
    assert!(status.success(), "{status}");
}

#[tokio::test]
async fn a_server_without_kafka_is_ready_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let program =
        script(dir.path(), "server", &legacy_server("work", &format!("text=done; {ANSWER_TEXT}")));
    let server = Server::start(&["--allow-command", &program, "--allow-env", "API_KEY"]).await;

    // A server that is not hosted is unknown, so a retry can't help.
    let unknown = server.call_raw("x__work", json!({})).await["error"].clone();
    assert_eq!(
        (&unknown["code"], &unknown["data"]["reason"]),
        (&json!(-32602), &json!("unknown-server"))
    );
    assert!(
        unknown["message"].as_str().unwrap().contains("no MCP server named `x` is hosted"),
        "{unknown}"
    );

    // Values that stay in this process need not be references.
    server.initialize("x", json!({"command": program, "env": {"API_KEY": "hunter2"}})).await;
    let pid = server.status("x").await["pid"].clone();
    let called = server.call("x__work", json!({})).await;
    assert_eq!(called["content"][0]["text"], "done", "{called}");
    assert_eq!(server.status("x").await["pid"], pid, "it was started once");
    assert_eq!(server.call_ok("server_remove", json!({"name": "x"})).await["removed"], json!(true));
    assert_eq!(server.call_ok("server_list", json!({})).await, json!({"servers": []}));
}

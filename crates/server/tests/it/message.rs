//! `POST /message` and the plain endpoints of the real binary.

use crate::common::{Server, tree};
use serde_json::{Value, json};

#[tokio::test]
async fn requests_are_answered_without_a_handshake() {
    let server = Server::start(&[]).await;
    assert_eq!(server.request("ping", json!({})).await["result"], json!({}));

    let listed = server.request("tools/list", json!({})).await;
    let names = server.tool_names().await;
    assert_eq!(names, ["server_initialize", "server_list", "server_remove", "server_status"]);
    assert!(listed["result"].get("resultType").is_none(), "the older shape: {listed}");

    let initialize = &listed["result"]["tools"][0];
    assert_eq!(initialize["inputSchema"]["type"], "object");
    assert_eq!(initialize["outputSchema"]["type"], "object");
    assert_eq!(initialize["annotations"]["idempotentHint"], json!(true));

    let params = json!({"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "t", "version": "1"}});
    let initialized = server.request("initialize", params).await;
    assert_eq!(initialized["result"]["protocolVersion"], "2025-06-18");
    assert_eq!(initialized["result"]["serverInfo"]["name"], "mcp-fleet");

    let discovered = server.request("server/discover", json!({})).await;
    let versions = discovered["result"]["supportedVersions"].as_array().unwrap();
    assert!(versions.contains(&json!("2026-07-28")), "{discovered}");

    let meta = json!({"io.modelcontextprotocol/protocolVersion": "2026-07-28", "io.modelcontextprotocol/clientCapabilities": {}});
    let modern = server.request("tools/list", json!({ "_meta": meta })).await;
    assert_eq!(modern["result"]["resultType"], "complete");
    assert_eq!(modern["result"]["cacheScope"], "private");

    assert_eq!(server.call_ok("server_list", json!({})).await, json!({"servers": []}));
}

#[tokio::test]
async fn malformed_requests_get_json_rpc_errors() {
    let server = Server::start(&[]).await;
    let check = async |body: &str, status: u16, code: i64, id: Value| {
        let (got, answer) = server.post(body.to_owned()).await;
        assert_eq!(got, status, "{body}: {answer}");
        assert_eq!(answer["error"]["code"], json!(code), "{body}: {answer}");
        assert_eq!(answer["id"], id, "{body}: {answer}");
    };
    check("{", 400, -32700, Value::Null).await;
    check("[]", 400, -32600, Value::Null).await;
    check("3", 400, -32600, Value::Null).await;
    check(r#"{"id":1,"method":"ping"}"#, 400, -32600, json!(1)).await;
    check(r#"{"jsonrpc":"2.0","id":{},"method":"ping"}"#, 400, -32600, Value::Null).await;
    check(r#"{"jsonrpc":"2.0","id":1,"method":2}"#, 400, -32600, json!(1)).await;
    check(r#"{"jsonrpc":"2.0","id":1,"result":{}}"#, 400, -32600, Value::Null).await;
    check(
        r#"{"jsonrpc":"2.0","id":"a","method":"tools/call","params":[]}"#,
        400,
        -32602,
        json!("a"),
    )
    .await;
    check(
        r#"{"jsonrpc":"2.0","id":"a","method":"tools/call","params":{"name":1}}"#,
        200,
        -32602,
        json!("a"),
    )
    .await;
    check(
        r#"{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"nope"}}"#,
        200,
        -32602,
        json!(1),
    )
    .await;
    check(
        r#"{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"a__b"}}"#,
        200,
        -32602,
        json!(1),
    )
    .await;
    check(r#"{"jsonrpc":"2.0","id":1,"method":"no/such"}"#, 200, -32601, json!(1)).await;
    let unknown = r#"{"jsonrpc":"2.0","id":1,"method":"tools/list","params":{"_meta":{"io.modelcontextprotocol/protocolVersion":"1999-01-01","io.modelcontextprotocol/clientCapabilities":{}}}}"#;
    check(unknown, 200, -32022, json!(1)).await;

    let (message, is_final) = server.call_error("server_status", json!({"nam": "x"})).await;
    assert!(is_final && message.contains("nam"), "{message}");

    let (status, body) =
        server.post(r#"{"jsonrpc":"2.0","method":"notifications/initialized"}"#).await;
    assert_eq!((status, body), (202, json!("")));

    let (status, _) = server.post(vec![b' '; 5 * 1024 * 1024]).await;
    assert_eq!(status, 413);
    let chunks =
        futures::stream::iter((0..12).map(|_| Ok::<_, std::io::Error>(vec![b' '; 1024 * 1024])));
    let (status, _) = server.post(reqwest::Body::wrap_stream(chunks)).await;
    assert_eq!(status, 413, "without a length");

    let plain = server.http.post(server.url("/message")).body("{}").send().await.unwrap();
    assert_eq!(plain.status().as_u16(), 415);
    let get = server.http.get(server.url("/message")).send().await.unwrap();
    assert_eq!(get.status().as_u16(), 405);
}

#[tokio::test]
async fn errors_repeat_only_a_little_of_the_request() {
    let server = Server::start(&[]).await;
    let long = "x".repeat(1 << 20);
    for (method, params) in [
        ("tools/call", json!({"name": long, "arguments": {}})),
        ("tools/call", json!({"name": format!("a__{long}"), "arguments": {}})),
        ("tools/call", json!({"name": "server_status", "arguments": {"name": long}})),
        (
            "tools/call",
            json!({"name": "server_initialize", "arguments": {"name": long, "config": {"command": "x"}}}),
        ),
        (
            "tools/call",
            json!({"name": "server_initialize", "arguments": {"name": "s", "config": {"command": long}}}),
        ),
        ("prompts/get", json!({ "name": long })),
        ("resources/read", json!({ "uri": long })),
        ("resources/subscribe", json!({ "uri": long })),
        (&long, json!({})),
    ] {
        let answer = server.request(method, params).await.to_string();
        assert!(answer.len() < 20_000, "{} bytes: {}", answer.len(), &answer[..500]);
        assert!(answer.contains("error") || answer.contains("isError"), "{answer}");
    }
}

#[tokio::test]
async fn headers_that_contradict_the_body_are_refused() {
    let server = Server::start(&[]).await;
    let send = async |path: &str, headers: &[(&str, &str)]| {
        let request = server.http.post(server.url(path)).header("content-type", "application/json");
        let request = request.header("accept", "application/json, text/event-stream");
        let request =
            headers.iter().fold(request, |request, (name, value)| request.header(*name, *value));
        let body = r#"{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"server_list","arguments":{}}}"#;
        request.body(body).send().await.unwrap().status().as_u16()
    };
    for path in ["/message", "/mcp"] {
        assert_eq!(
            send(path, &[("mcp-method", "tools/call"), ("mcp-name", "server_list")]).await,
            200,
            "{path}"
        );
        assert_eq!(send(path, &[("mcp-name", "server_status")]).await, 400, "{path}");
        assert_eq!(send(path, &[("mcp-method", "tools/list")]).await, 400, "{path}");
        assert_eq!(
            send(path, &[("host", "localhost"), ("host", "evil.example")]).await,
            400,
            "{path}"
        );
    }
}

#[tokio::test]
async fn foreign_hosts_and_origins_are_refused() {
    let args = ["--allowed-hosts", "mcp.internal", "--allowed-origins", "https://app.example.com"];
    let server = Server::start(&args).await;
    let check = async |path: &str, header: &str, value: &str, refused: bool| {
        let request = server.http.post(server.url(path)).header("content-type", "application/json");
        let request =
            request.header("accept", "application/json, text/event-stream").header(header, value);
        let status = request
            .body(r#"{"jsonrpc":"2.0","id":1,"method":"ping"}"#)
            .send()
            .await
            .unwrap()
            .status();
        assert_eq!(status.as_u16() == 403, refused, "{path} {header}: {value} gave {status}");
    };
    for path in ["/message", "/mcp"] {
        check(path, "host", "evil.example", true).await;
        check(path, "host", "mcp.internal:8080", false).await;
        check(path, "origin", "https://evil.example", true).await;
        check(path, "origin", "null", true).await;
        check(path, "origin", "https://app.example.com", false).await;
    }
}

#[tokio::test]
async fn health_readiness_and_metrics_are_served() {
    let tree = tree();
    let server = Server::start(&["--root", tree.root.to_str().unwrap()]).await;
    server.call_ok("file_list", json!({})).await;
    let get = async |path: &str, host: &str| {
        let response = server.http.get(server.url(path)).header("host", host).send().await.unwrap();
        (response.status().as_u16(), response.text().await.unwrap())
    };
    assert_eq!(get("/health", "any.host").await.0, 200);
    assert_eq!(get("/ready", "any.host").await.0, 200);
    assert_eq!(get("/metrics", "any.host").await.0, 403, "a name that was rebound to this address");

    let (status, metrics) = get("/metrics", "10.1.2.3:8080").await;
    assert_eq!(status, 200);
    let line = r#"mcp_server_tool_calls_total{kind="own",outcome="ok"} 1"#;
    assert!(metrics.contains(line), "{metrics}");
    assert!(server.terminate().await.success());
}

//! Repeats of a job's call over every transport, with the real binary and a scripted server behind
//! it.

use crate::common::{ANSWER_TEXT, Server, legacy_server, script, tree};
use serde_json::{Value, json};

/// A hosted tool `x__work` that answers with the number of its calls.
struct Counting {
    server: Server,
    _dir: tempfile::TempDir,
}

impl Counting {
    async fn start(args: &[&str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("calls");
        let failure =
            r#"printf '{"jsonrpc":"2.0","id":%s,"result":{"content":[],"isError":true}}\n' "$id""#;
        let on_call = format!(
            "echo >> {log}; text=$(wc -l < {log}); case \"$line\" in *'\"please\":\"fail\"'*) {failure} ;; *) {ANSWER_TEXT} ;; esac",
            log = log.display()
        );
        let program = script(dir.path(), "server", &legacy_server("work", &on_call));
        let server = Server::start(&[&["--allow-command", program.as_str()], args].concat()).await;
        server.initialize("x", json!({"command": program})).await;
        Self { server, _dir: dir }
    }

    /// Calls the tool; returns the text, and whether it was remembered.
    async fn call(&self, job: &str, arguments: Value) -> (String, bool) {
        let result = self.post("/message", &request("x__work", job, arguments), &[]).await;
        (
            result["content"][0]["text"].as_str().unwrap_or("failed").trim().to_owned(),
            is_repeated(&result),
        )
    }

    async fn post(&self, path: &str, body: &Value, headers: &[(&str, &str)]) -> Value {
        let mut request =
            self.server.http.post(self.server.url(path)).header("content-type", "application/json");
        request = request.header("accept", "application/json, text/event-stream");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let answer = request.body(body.to_string()).send().await.unwrap().text().await.unwrap();
        let answer: Value = serde_json::from_str(&answer).unwrap_or(Value::String(answer));
        assert!(answer["result"].is_object(), "{answer}");
        answer["result"].clone()
    }
}

fn request(tool: &str, job: &str, arguments: Value) -> Value {
    let meta = json!({"io.mcp-fleet/jobId": job, "io.mcp-fleet/idempotencyKey": job, "io.mcp-fleet/attempt": 1});
    let params = json!({"name": tool, "arguments": arguments, "_meta": meta});
    json!({"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params})
}

fn is_repeated(result: &Value) -> bool {
    result["_meta"]["io.mcp-fleet/repeated"] == json!(true)
}

fn is(text: &str, repeated: bool) -> (String, bool) {
    (text.to_owned(), repeated)
}

#[tokio::test]
async fn a_repeat_is_answered_without_calling_the_tool() {
    let tools = Counting::start(&[]).await;
    assert_eq!(tools.call("a", json!({"x": 1, "y": 2})).await, is("1", false));
    assert_eq!(tools.call("a", json!({"y": 2, "x": 1})).await, is("1", true));
    assert_eq!(tools.call("a", json!({"x": 2})).await, is("2", false));
    assert_eq!(tools.call("b", json!({"x": 1, "y": 2})).await, is("3", false));

    // A failed call runs again each time.
    assert_eq!(tools.call("c", json!({"please": "fail"})).await, is("failed", false));
    assert_eq!(tools.call("c", json!({"please": "fail"})).await, is("failed", false));
    assert_eq!(tools.call("c", json!({})).await, is("6", false));

    // Calls without a job are not remembered.
    for count in ["7", "8"] {
        let result = tools.server.call("x__work", json!({})).await;
        assert_eq!(result["content"][0]["text"].as_str().unwrap().trim(), count);
    }

    let metrics = tools
        .server
        .http
        .get(tools.server.url("/metrics"))
        .send()
        .await
        .unwrap()
        .text()
        .await
        .unwrap();
    assert!(metrics.contains("mcp_server_repeats_answered_total 1\n"), "{metrics}");

    let bytes =
        metrics.lines().find_map(|line| line.strip_prefix("mcp_server_repeat_memory_bytes "));
    assert!(bytes.unwrap().parse::<f64>().unwrap() > 4.0 * 256.0, "{metrics}");
}

#[tokio::test]
async fn transports_and_eras_share_one_memory_but_credentials_do_not() {
    for sessions in [&[][..], &["--legacy-sessions=false"]] {
        let tools = Counting::start(sessions).await;
        let plain = request("x__work", "a", json!({}));
        let first = tools.post("/message", &plain, &[]).await;
        let modern = {
            let mut body = plain.clone();
            let meta = body["params"]["_meta"].as_object_mut().unwrap();
            meta.insert("io.modelcontextprotocol/protocolVersion".to_owned(), json!("2026-07-28"));
            meta.insert("io.modelcontextprotocol/clientCapabilities".to_owned(), json!({}));
            body
        };
        let version = [
            ("mcp-protocol-version", "2026-07-28"),
            ("mcp-method", "tools/call"),
            ("mcp-name", "x__work"),
        ];
        let answers = [
            tools.post("/message", &modern, &[]).await,
            tools.post("/mcp", &modern, &version).await,
        ];
        for mut answer in answers {
            assert!(is_repeated(&answer), "{answer}");
            assert_eq!(answer["resultType"], "complete");
            answer["_meta"].as_object_mut().unwrap().remove("io.mcp-fleet/repeated");
            assert_eq!(answer["content"], first["content"]);
        }
        let mine = [("authorization", "Bearer mine")];
        assert!(
            !is_repeated(&tools.post("/message", &plain, &mine).await),
            "somebody else's result"
        );
        assert!(is_repeated(&tools.post("/message", &plain, &mine).await));
        let both = [&version[..], &mine].concat();
        assert!(
            is_repeated(&tools.post("/mcp", &modern, &both).await),
            "the same caller on another transport"
        );
        if sessions.is_empty() {
            let legacy = [("mcp-protocol-version", "2025-11-25")];
            assert!(is_repeated(&tools.post("/mcp", &plain, &legacy).await));
        }
    }
}

#[tokio::test]
async fn calls_that_must_run_are_not_answered_from_memory() {
    let tree = tree();
    let tools = Counting::start(&["--root", tree.root.to_str().unwrap()]).await;
    for (tool, arguments, remembered) in
        [("server_status", json!({}), false), ("file_read", json!({"path": "hello.txt"}), true)]
    {
        let body = request(tool, "a", arguments);
        assert!(!is_repeated(&tools.post("/message", &body, &[]).await), "{tool}");
        assert_eq!(is_repeated(&tools.post("/message", &body, &[]).await), remembered, "{tool}");
    }
    let off = Counting::start(&["--repeat-window", "0"]).await;
    assert_eq!(off.call("a", json!({})).await, is("1", false));
    assert_eq!(off.call("a", json!({})).await, is("2", false));

    let small = Counting::start(&["--repeat-max-bytes", "1KiB"]).await;
    assert_eq!(small.call("a", json!({})).await, is("1", false));
    assert_eq!(small.call("a", json!({})).await, is("2", false));
}

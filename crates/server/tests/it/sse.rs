//! The transport of 2024, without a client library: a stream for answers, and POST requests.

use std::time::Duration;

use futures::{Stream, StreamExt};
use serde_json::{Value, json};

use crate::common::{
    ANSWER_TEXT, PATIENCE, Server, eventually, is_alive, legacy_server, script, tree,
};

/// An open stream.
struct Client {
    http: reqwest::Client,
    endpoint: String,
    events: std::pin::Pin<Box<dyn Stream<Item = (String, String)> + Send>>,
}

impl Client {
    async fn connect(server: &Server) -> Self {
        let response = server.http.get(server.url("/sse")).send().await.unwrap();
        assert_eq!(response.status(), 200);
        assert_eq!(response.headers()["content-type"], "text/event-stream");
        assert_eq!(response.headers()["x-accel-buffering"], "no");
        let mut events = Box::pin(events(response));
        let (name, path) = next(&mut events).await;
        assert_eq!(name, "endpoint");
        assert!(path.starts_with("/message?sessionId="), "{path}");
        Self { http: server.http.clone(), endpoint: server.url(&path), events }
    }

    /// Opens a stream and completes the handshake.
    async fn initialized(server: &Server) -> Self {
        let mut client = Self::connect(server).await;
        let params = json!({"protocolVersion": "2024-11-05", "capabilities": {}, "clientInfo": {"name": "t", "version": "1"}});
        let answer = client.ask(0, "initialize", params).await;
        assert_eq!(answer["result"]["protocolVersion"], "2024-11-05", "{answer}");
        client.post(json!({"jsonrpc": "2.0", "method": "notifications/initialized"})).await;
        client
    }

    async fn post(&self, message: Value) {
        let response = self.http.post(&self.endpoint).json(&message).send().await.unwrap();
        assert_eq!(response.status(), 202, "{message}");
    }

    async fn ask(&mut self, id: u32, method: &str, params: Value) -> Value {
        self.post(json!({"jsonrpc": "2.0", "id": id, "method": method, "params": params})).await;
        let (name, data) = next(&mut self.events).await;
        assert_eq!(name, "message");
        let answer: Value = serde_json::from_str(&data).unwrap();
        assert_eq!(answer["id"], json!(id), "{answer}");
        answer
    }
}

async fn next(events: &mut (impl Stream<Item = (String, String)> + Unpin)) -> (String, String) {
    tokio::time::timeout(PATIENCE, events.next()).await.expect("an event").expect("an open stream")
}

/// The names and data of the events of a stream.
fn events(response: reqwest::Response) -> impl Stream<Item = (String, String)> {
    let chunks = Box::pin(response.bytes_stream());
    futures::stream::unfold((chunks, String::new()), |(mut chunks, mut text)| async move {
        loop {
            if let Some((event, rest)) = text.split_once("\n\n") {
                let field = |name: &str| {
                    event
                        .lines()
                        .find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
                        .map(str::to_owned)
                };
                let found = field("event").zip(field("data"));
                text = rest.to_owned();
                match found {
                    Some(found) => return Some((found, (chunks, text))),
                    None => continue,
                }
            }
            text += std::str::from_utf8(&chunks.next().await?.ok()?).unwrap();
        }
    })
}

#[tokio::test]
async fn posted_messages_are_answered_on_the_stream() {
    let tree = tree();
    let server = Server::start(&["--root", tree.root.to_str().unwrap()]).await;
    let mut client = Client::initialized(&server).await;
    let mut other = Client::initialized(&server).await;
    for client in [&mut client, &mut other] {
        let listed = client.ask(1, "tools/list", json!({})).await;
        assert!(listed["result"]["tools"].as_array().unwrap().len() >= 7, "{listed}");
        let params = json!({"name": "file_read", "arguments": {"path": "hello.txt"}});
        let read = client.ask(2, "tools/call", params).await;
        assert_eq!(read["result"]["structuredContent"]["size"], json!(13), "{read}");
        let unknown = client.ask(3, "no/such", json!({})).await;
        assert_eq!(unknown["error"]["code"], json!(-32601), "{unknown}");
    }

    // Without a session, `/message` answers directly.
    assert_eq!(server.request("ping", json!({})).await["result"], json!({}));
}

#[tokio::test]
async fn messages_that_can_not_be_answered_are_refused() {
    let server = Server::start(&[]).await;
    let client = Client::initialized(&server).await;
    let ping = json!({"jsonrpc": "2.0", "id": 1, "method": "ping"});
    let check = async |request: reqwest::RequestBuilder, expected: u16| {
        assert_eq!(request.send().await.unwrap().status().as_u16(), expected);
    };
    let http = &server.http;
    check(http.post(server.url("/message?sessionId=nobody")).json(&ping), 404).await;
    check(http.post(&client.endpoint).body(ping.to_string()), 415).await;
    check(http.post(&client.endpoint).header("content-type", "application/json").body("{"), 400)
        .await;
    check(http.get(server.url("/sse")).header("host", "evil.example"), 403).await;
    check(http.get(server.url("/sse")).header("origin", "https://evil.example"), 403).await;
    check(http.post(&client.endpoint).header("origin", "https://evil.example").json(&ping), 403)
        .await;
    let endpoint = client.endpoint.clone();
    drop(client);
    eventually("the end of the stream", || async {
        let response = http.post(&endpoint).json(&ping).send().await.unwrap();
        (response.status() == 404).then_some(())
    })
    .await;
}

#[tokio::test]
async fn calls_end_with_the_client_and_streams_with_the_server() {
    let dir = tempfile::tempdir().unwrap();
    let started = dir.path().join("started");
    let cancelled = dir.path().join("cancelled");

    // The scripted server reads a cancellation like any other line.
    let body = legacy_server("work", &format!("touch {}", started.display())).replace(
        "case \"$line\" in",
        &format!("case \"$line\" in\n*cancelled*) touch {} ;;", cancelled.display()),
    );
    let program = script(dir.path(), "server", &body);
    let server = Server::start(&["--allow-command", &program, "--drain-timeout-ms", "100"]).await;
    server.initialize("x", json!({"command": program})).await;
    let client = Client::initialized(&server).await;
    client
        .post(json!({"jsonrpc": "2.0", "id": 5, "method": "tools/call", "params": {"name": "x__work"}}))
        .await;
    eventually("the call", || async { started.exists().then_some(()) }).await;
    drop(client);
    eventually("the cancellation", || async { cancelled.exists().then_some(()) }).await;

    let mut client = Client::initialized(&server).await;
    let pid = server.process.id().unwrap();
    let status = server.terminate().await;
    assert!(status.success(), "{status}");
    assert!(!is_alive(pid));

    let end = tokio::time::timeout(Duration::from_secs(5), client.events.next()).await;
    assert_eq!(end.expect("the end of the stream"), None);
}

#[tokio::test]
async fn progress_is_on_the_stream_before_the_result() {
    let dir = tempfile::tempdir().unwrap();
    let on_call = format!(
        r#"token=$(printf '%s' "$line" | sed -n 's/.*"progressToken":\([0-9]*\).*/\1/p')
        printf '{{"jsonrpc":"2.0","method":"notifications/progress","params":{{"progressToken":%s,"progress":1}}}}\n' "$token"
        text=done; {ANSWER_TEXT}"#
    );
    let program = script(dir.path(), "server", &legacy_server("work", &on_call));
    let server = Server::start(&["--allow-command", &program]).await;
    server.initialize("x", json!({"command": program})).await;
    let mut client = Client::initialized(&server).await;
    let params = json!({"name": "x__work", "_meta": {"progressToken": "mine"}});
    client.post(json!({"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params})).await;
    let (_, progress) = next(&mut client.events).await;
    let progress: Value = serde_json::from_str(&progress).unwrap();
    assert_eq!(progress["params"]["progressToken"], "mine", "{progress}");

    let (_, result) = next(&mut client.events).await;
    assert!(result.contains("done"), "{result}");
}

#[tokio::test]
async fn servers_of_this_transport_are_hosted() {
    let tree = tree();
    let args = ["--root", tree.root.to_str().unwrap(), "--drain-timeout-ms", "100"];
    let upstream = Server::start(&args).await;
    let server = Server::start(&["--allow-remote", "127.0.0.1"]).await;
    let config = json!({"type": "sse", "url": upstream.url("/sse")});
    let hosted = server.initialize("old", config.clone()).await;
    assert_eq!(
        (&hosted["transport"], &hosted["protocolVersion"]),
        (&json!("sse"), &json!("2025-11-25"))
    );

    let calls = (0..20).map(|_| server.call_ok("old__file_read", json!({"path": "hello.txt"})));
    for read in futures::future::join_all(calls).await {
        assert_eq!(read["size"], json!(13));
    }

    // The gateway notices that the server has stopped.
    upstream.terminate().await;
    eventually("the end of the connection", || async {
        (server.status("old").await["state"] == "failed").then_some(())
    })
    .await;
    let (message, _) = server.initialize_error("old", config).await;
    assert!(message.contains("could not open") || message.contains("stream"), "{message}");
}

#[tokio::test]
async fn servers_of_this_transport_are_subject_to_policy() {
    let upstream = Server::start(&[]).await;
    let server = Server::start(&["--allow-remote", "127.0.0.1"]).await;
    let check = async |url: String, word: &str| {
        let (message, _) = server.initialize_error("old", json!({"type": "sse", "url": url})).await;
        assert!(message.contains(word), "{url}: {message}");
    };
    check(upstream.url("/sse").replace("127.0.0.1", "localhost"), "not").await;
    check(upstream.url("/health"), "not an event stream").await;
    check(upstream.url("/nowhere"), "404").await;
}

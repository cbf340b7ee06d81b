//! Children that start slowly. The limit is 6 s in most tests here, so that `initialize` is sent
//! after 2 s of silence; the state machine's own tests show that nothing else depends on the length
//! of the limit.

use std::path::Path;

use rmcp::{
    ClientHandler, RoleClient,
    model::{
        CallToolRequest, CallToolRequestParams, ClientRequest, ProgressNotificationParam,
        ProtocolVersion, ServerResult,
    },
    service::{
        ClientLifecycleMode, NotificationContext, PeerRequestOptions, serve_client_with_lifecycle,
    },
    transport::StreamableHttpClientTransport,
};
use serde_json::{Value, json};
use tokio::sync::mpsc;

use crate::common::{ANSWER_TEXT, Server, legacy_server, modern_server, script};

const LIMIT: &str = "6000";
const DISCOVER: &str = "*'\"server/discover\"'*)";

fn answer() -> String {
    format!("text=done; {ANSWER_TEXT}")
}

/// A server that logs each of its starts, and then runs `before` before it reads anything.
fn slow(dir: &Path, before: &str, body: &str) -> String {
    script(dir, "server", &format!("echo start >> \"$(dirname \"$0\")/starts\"\n{before}\n{body}"))
}

fn starts(dir: &Path) -> usize {
    std::fs::read_to_string(dir.join("starts")).unwrap().lines().count()
}

/// A legacy server that doesn't answer `server/discover` at all.
fn silent() -> String {
    let body = legacy_server("work", &answer());
    let lines = body.lines().map(|line| match line.trim_start().starts_with(DISCOVER) {
        true => format!("{DISCOVER} ;;"),
        false => line.to_owned(),
    });
    lines.collect::<Vec<_>>().join("\n")
}

/// Hosts a server with this beginning and body, and expects one process of this revision.
async fn check_hosting(before: &str, body: &str, version: &str) {
    check_hosting_with(&["--handshake-timeout-ms", LIMIT], before, body, version).await;
}

/// The same with these arguments of our server.
async fn check_hosting_with(arguments: &[&str], before: &str, body: &str, version: &str) {
    let dir = tempfile::tempdir().unwrap();
    let program = slow(dir.path(), before, body);
    let server = Server::start(&[&["--allow-command", &program], arguments].concat()).await;
    let hosted = server.initialize("x", json!({"command": program})).await;
    assert_eq!(hosted["protocolVersion"], version, "{hosted}");
    let called = server.call("x__work", json!({})).await;
    assert_eq!(called["content"][0]["text"], "done", "{called}");
    assert_eq!(starts(dir.path()), 1, "one child");
}

#[tokio::test]
async fn a_modern_server_may_be_slow() {
    check_hosting("sleep 1", &modern_server("work", &answer()), "2026-07-28").await;
}

/// The server gets `initialize` before it answers `server/discover`, and refuses it.
#[tokio::test]
async fn a_late_answer_of_a_modern_server_counts() {
    check_hosting("sleep 3", &modern_server("work", &answer()), "2026-07-28").await;
}

#[tokio::test]
async fn a_legacy_server_may_be_slow_and_refuse() {
    check_hosting("sleep 3", &legacy_server("work", &answer()), "2025-06-18").await;
}

#[tokio::test]
async fn a_legacy_server_may_be_slow_and_silent() {
    check_hosting("sleep 3", &silent(), "2025-06-18").await;
}

/// A third of the default limit is 10 s, which is also as long as rmcp would wait by itself.
#[tokio::test]
async fn a_start_may_take_longer_than_ten_seconds_by_default() {
    let (modern, silent) = (modern_server("work", &answer()), silent());
    tokio::join!(
        check_hosting_with(&[], "sleep 12", &modern, "2026-07-28"),
        check_hosting_with(&[], "sleep 12", &silent, "2025-06-18"),
    );
}

#[tokio::test]
async fn output_before_the_first_answer_is_ignored() {
    check_hosting("echo 'Welcome!'; echo '[INFO] ready'; sleep 1", &silent(), "2025-06-18").await;
}

#[tokio::test]
async fn a_server_that_exits_is_reported_and_not_restarted_after_an_answer() {
    let dir = tempfile::tempdir().unwrap();
    let body = legacy_server("work", &answer());
    let dies = "*'\"initialize\"'*) echo 'the licence has expired' >&2; exit 7 ;;";
    let lines =
        body.lines().map(|line| match line.trim_start().starts_with("*'\"initialize\"'*)") {
            true => dies,
            false => line,
        });
    let program = slow(dir.path(), "sleep 1", &lines.collect::<Vec<_>>().join("\n"));
    let server =
        Server::start(&["--allow-command", &program, "--handshake-timeout-ms", LIMIT]).await;
    let (message, is_final) = server.initialize_error("x", json!({"command": program})).await;
    assert!(!is_final && message.contains("exited with status 7"), "{message}");
    assert!(message.contains("the licence has expired"), "{message}");
    assert_eq!(
        starts(dir.path()),
        1,
        "it has refused `server/discover` and died of something else"
    );
}

#[tokio::test]
async fn a_server_that_is_too_slow_is_stopped_once_with_the_awaited_step() {
    let dir = tempfile::tempdir().unwrap();
    let program = slow(dir.path(), "echo 'resolving packages' >&2; sleep 60", "");
    let server =
        Server::start(&["--allow-command", &program, "--handshake-timeout-ms", "1500"]).await;
    let (message, is_final) = server.initialize_error("x", json!({"command": program})).await;
    assert!(!is_final && message.contains("not finished within 1500 ms"), "{message}");

    for part in ["an answer to `server/discover` or `initialize`", "resolving packages"] {
        assert!(message.contains(part), "{message}");
    }
    assert_eq!(starts(dir.path()), 1);
}

struct Listener(mpsc::UnboundedSender<ProgressNotificationParam>);

impl ClientHandler for Listener {
    async fn on_progress(
        &self,
        news: ProgressNotificationParam,
        _context: NotificationContext<RoleClient>,
    ) {
        self.0.send(news).unwrap();
    }
}

/// Jobs request progress like this.
#[tokio::test]
async fn progress_of_a_slow_start_quotes_the_childs_output() {
    let dir = tempfile::tempdir().unwrap();
    let before = "echo 'Downloading 17 packages' >&2; while [ ! -e \"$(dirname \"$0\")/go\" ]; do sleep 0.1; done";
    let program = slow(dir.path(), before, &legacy_server("work", &answer()));
    let server = Server::start(&["--allow-command", &program]).await;

    let (sender, mut received) = mpsc::unbounded_channel();
    let transport = StreamableHttpClientTransport::from_uri(server.url("/mcp"));
    let modern =
        ClientLifecycleMode::Discover { preferred_versions: vec![ProtocolVersion::V_2026_07_28] };
    let client = serve_client_with_lifecycle(Listener(sender), transport, modern).await.unwrap();
    let Value::Object(arguments) = json!({"name": "x", "config": {"command": program}}) else {
        panic!()
    };
    let call = CallToolRequestParams::new("server_initialize").with_arguments(arguments);
    let request = ClientRequest::CallToolRequest(CallToolRequest::new(call));
    let handle =
        client.send_request_with_option(request, PeerRequestOptions::no_options()).await.unwrap();

    let mut last = 0.0;
    for _ in 0..2 {
        let news =
            tokio::time::timeout(crate::common::PATIENCE, received.recv()).await.unwrap().unwrap();
        let message = news.message.unwrap_or_default();
        assert!(
            message.contains("`server/discover`") && message.contains("Downloading 17 packages"),
            "{message}"
        );
        assert!(
            news.progress > last && news.total == Some(30.0),
            "{} {:?}",
            news.progress,
            news.total
        );
        last = news.progress;
    }

    // `server_status` shows it, too.
    let status = server.status("x").await;
    assert_eq!(
        (&status["state"], &status["stderrTail"]),
        (&json!("starting"), &json!("Downloading 17 packages"))
    );

    std::fs::write(dir.path().join("go"), "").unwrap();
    let ServerResult::CallToolResult(result) = handle.await_response().await.unwrap() else {
        panic!()
    };
    assert_ne!(result.is_error, Some(true), "{result:?}");
}

/// The start was abandoned, for example because its job was cancelled. The server is known, so
/// calls to it wait, but must not wait for ever.
#[tokio::test]
async fn the_next_call_makes_an_abandoned_start() {
    let dir = tempfile::tempdir().unwrap();
    let before = "while [ ! -e \"$(dirname \"$0\")/go\" ]; do sleep 0.1; done";
    let program = slow(dir.path(), before, &legacy_server("work", &answer()));
    let server = Server::start(&["--allow-command", &program]).await;
    let arguments = json!({"name": "x", "config": {"command": program}});
    let params = json!({"name": "server_initialize", "arguments": arguments});
    let body = json!({"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params});
    let request = server.http.post(server.url("/message")).json(&body);
    request.timeout(std::time::Duration::from_secs(1)).send().await.unwrap_err();
    assert_eq!(starts(dir.path()), 1);

    std::fs::write(dir.path().join("go"), "").unwrap();
    let called = server.call("x__work", json!({})).await;
    assert_eq!(called["content"][0]["text"], "done", "{called}");
}

//! Sessions and streams belong to the principal that opened them.

use fleet_job::time::Timestamp;
use reqwest::{Method, RequestBuilder, Response, StatusCode};
use serde_json::{Value, json};

use crate::{
    access::Keys,
    common::{PATIENCE, Server, eventually, patient},
    issuer::seconds_from_now,
};

/// A caller with a key.
struct Caller<'a> {
    server: &'a Server,
    key: &'a str,
}

impl Caller<'_> {
    fn request(&self, method: Method, path: &str) -> RequestBuilder {
        self.server.http.request(method, self.server.url(path)).bearer_auth(self.key)
    }

    /// A request to `/mcp` in a session.
    fn in_session(&self, method: Method, session: &str) -> RequestBuilder {
        let accept = match method {
            Method::GET => "text/event-stream",
            _ => "application/json, text/event-stream",
        };
        self.request(method, "/mcp")
            .header("accept", accept)
            .header("mcp-session-id", session)
            .header("mcp-protocol-version", "2025-06-18")
    }

    async fn post(&self, session: &str, message: &Value) -> Response {
        self.in_session(Method::POST, session).json(message).send().await.unwrap()
    }

    /// Begins a session; returns its id.
    async fn initialize(&self) -> String {
        let params = json!({"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "t", "version": "1"}});
        let initialize =
            json!({"jsonrpc": "2.0", "id": 0, "method": "initialize", "params": params});
        let request = self.request(Method::POST, "/mcp").json(&initialize);
        let request = request.header("accept", "application/json, text/event-stream");
        let response = request.send().await.unwrap();
        assert_eq!(response.status(), StatusCode::OK);
        response.headers()["mcp-session-id"].to_str().unwrap().to_owned()
    }
}

/// Reads a stream until it contains `text`; returns what it has read.
async fn read_until(response: &mut Response, text: &str) -> String {
    let mut found = String::new();
    while !found.contains(text) {
        let chunk = tokio::time::timeout(PATIENCE, response.chunk()).await.expect("an event");
        let chunk = chunk.unwrap().unwrap_or_else(|| panic!("the stream ended after {found}"));
        found += std::str::from_utf8(&chunk).unwrap();
    }
    found
}

fn call(id: u32, tool: &str, arguments: &Value) -> Value {
    let params = json!({"name": tool, "arguments": arguments});
    json!({"jsonrpc": "2.0", "id": id, "method": "tools/call", "params": params})
}

fn list(id: u32) -> Value {
    json!({"jsonrpc": "2.0", "id": id, "method": "tools/list"})
}

#[tokio::test]
async fn a_session_is_not_there_for_another_principal() {
    let dir = tempfile::tempdir().unwrap();
    let program = patient(dir.path(), "server");
    let mut keys = Keys::new();
    let [first, second, other] = [("a-1", "alice"), ("a-2", "alice"), ("b", "bob")]
        .map(|(id, subject)| keys.add(id, subject));
    let server = keys.start_server_with(&["--allow-command", &program]).await;
    let [alice, alice_again, bob] =
        [&first, &second, &other].map(|key| Caller { server: &server, key });

    let session = alice.initialize().await;
    let arguments = json!({"name": "x", "config": {"command": program}});
    let hosted = alice.post(&session, &call(1, "server_initialize", &arguments)).await;
    assert_eq!(hosted.status(), StatusCode::OK);
    hosted.text().await.unwrap();
    let mut answer = alice.post(&session, &call(2, "x__work", &json!({}))).await;
    assert_eq!(answer.status(), StatusCode::OK);
    eventually("the call", async || dir.path().join("begun").exists().then_some(())).await;

    let expect_absent = async |request: RequestBuilder, what: &str| {
        let status = request.send().await.unwrap().status();
        assert_eq!(status, StatusCode::NOT_FOUND, "{what}");
    };
    let get = || bob.in_session(Method::GET, &session);
    expect_absent(get(), "the stream of the session").await;
    for event in ["0", "0/0", "1/0"] {
        expect_absent(get().header("last-event-id", event), event).await;
    }
    let cancel =
        json!({"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": 2}});
    for message in [&list(3), &call(4, "file_list", &json!({})), &cancel] {
        expect_absent(bob.in_session(Method::POST, &session).json(message), "a message").await;
    }
    // The answer to a deletion is the same whether there was a session or not.
    let deletion = bob.in_session(Method::DELETE, &session).send().await.unwrap();
    assert_eq!(deletion.status(), StatusCode::NO_CONTENT);

    std::fs::write(dir.path().join("go"), "").unwrap();
    read_until(&mut answer, "done").await;
    // A new key of the same subject keeps the session.
    for caller in [&alice, &alice_again] {
        let listed = caller.post(&session, &list(5)).await;
        assert_eq!(listed.status(), StatusCode::OK);
        assert!(listed.text().await.unwrap().contains("x__work"));
    }

    let deletion = alice_again.in_session(Method::DELETE, &session).send().await.unwrap();
    assert_eq!(deletion.status(), StatusCode::NO_CONTENT);
    assert_eq!(alice.post(&session, &list(6)).await.status(), StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn only_the_principal_that_opened_a_stream_posts_to_it() {
    let mut keys = Keys::new();
    let [first, second, other] = [("a-1", "alice"), ("a-2", "alice"), ("b", "bob")]
        .map(|(id, subject)| keys.add(id, subject));
    let server = keys.start_server().await;
    let [alice, alice_again, bob] =
        [&first, &second, &other].map(|key| Caller { server: &server, key });

    let mut stream = alice.request(Method::GET, "/sse").send().await.unwrap();
    let endpoint = read_until(&mut stream, "\n\n").await;
    let endpoint = endpoint.split_once("data: ").unwrap().1.trim().to_owned();

    let ping = |id: &str| json!({"jsonrpc": "2.0", "id": id, "method": "ping"});
    let post = async |caller: &Caller<'_>, message: Value| {
        let request = caller.request(Method::POST, &endpoint).json(&message);
        request.send().await.unwrap().status()
    };
    let cancel =
        json!({"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": 1}});
    for message in [ping("of-bob"), cancel] {
        assert_eq!(post(&bob, message).await, StatusCode::NOT_FOUND);
    }

    let params = json!({"protocolVersion": "2024-11-05", "capabilities": {}, "clientInfo": {"name": "t", "version": "1"}});
    let initialize = json!({"jsonrpc": "2.0", "id": 0, "method": "initialize", "params": params});
    assert_eq!(post(&alice, initialize).await, StatusCode::ACCEPTED);
    let initialized = json!({"jsonrpc": "2.0", "method": "notifications/initialized"});
    assert_eq!(post(&alice, initialized).await, StatusCode::ACCEPTED);
    assert_eq!(post(&alice_again, ping("of-alice")).await, StatusCode::ACCEPTED);
    let answers = read_until(&mut stream, "of-alice").await;
    assert!(!answers.contains("of-bob"), "{answers}");
}

/// Reads a stream to its end.
async fn expect_end(mut stream: Response, what: &str) {
    let end = async { while let Ok(Some(_)) = stream.chunk().await {} };
    tokio::time::timeout(PATIENCE, end).await.unwrap_or_else(|_| panic!("{what} goes on"));
}

#[tokio::test]
async fn streams_end_with_the_key_that_opened_them() {
    let dir = tempfile::tempdir().unwrap();
    let program = patient(dir.path(), "server");
    let mut keys = Keys::new();
    let [revoked, kept] = [("a-1", "alice"), ("a-2", "alice")].map(|(id, by)| keys.add(id, by));
    let server = keys.start_server_with(&["--allow-command", &program]).await;
    let alice = Caller { server: &server, key: &kept };

    let session = alice.initialize().await;
    let arguments = json!({"name": "x", "config": {"command": program}});
    let hosted = alice.post(&session, &call(1, "server_initialize", &arguments)).await;
    hosted.text().await.unwrap();

    let expires = Timestamp::from_millis_clamped(seconds_from_now(10) * 1000);
    let expiring = keys.add_until("a-3", "alice", Some(expires));
    let [revoked, expiring] = [&revoked, &expiring].map(|key| Caller { server: &server, key });
    let open = async |caller: &Caller<'_>| {
        let stream = caller.request(Method::GET, "/sse").send().await.unwrap();
        (stream.status() == StatusCode::OK).then_some(stream)
    };
    eventually("the new key", async || open(&expiring).await).await;
    // The call is the first to be checked again, so it has been when the next stream ends.
    let mut answer = expiring.post(&session, &call(2, "x__work", &json!({}))).await;
    let of_expiring = open(&expiring).await.unwrap();
    let of_revoked = open(&revoked).await.unwrap();
    let call_of_revoked = revoked.post(&session, &call(3, "x__work", &json!({}))).await;
    let mut of_kept = open(&alice).await.unwrap();
    for response in [&answer, &call_of_revoked] {
        assert_eq!(response.status(), StatusCode::OK);
    }

    keys.revoke("a-1");
    expect_end(of_revoked, "the stream of a revoked key").await;
    expect_end(call_of_revoked, "the call of a revoked key").await;
    expect_end(of_expiring, "the stream of an expired key").await;
    let again = expiring.request(Method::GET, "/sse").send().await.unwrap();
    assert_eq!(again.status(), StatusCode::UNAUTHORIZED);

    // A call that was running when its key expired is answered, and other keys keep their streams.
    std::fs::write(dir.path().join("go"), "").unwrap();
    read_until(&mut answer, "done").await;
    let endpoint = read_until(&mut of_kept, "\n\n").await;
    let endpoint = endpoint.split_once("data: ").unwrap().1.trim().to_owned();
    let ping = json!({"jsonrpc": "2.0", "id": 1, "method": "ping"});
    let posted = alice.request(Method::POST, &endpoint).json(&ping).send().await.unwrap();
    assert_eq!(posted.status(), StatusCode::ACCEPTED, "the stream is still open");
}

//! Sessions of the older protocol: each replica serves the sessions of all others, and none serves
//! a deleted session.

use serde_json::{Value, json};

use crate::common::{Server, signal};

/// Posts a message to `/mcp`, with or without a session; returns status, session and body.
pub(crate) async fn post(
    server: &Server,
    session: Option<&str>,
    message: Value,
) -> (u16, Option<String>, String) {
    let mut request = server.http.post(server.url("/mcp")).json(&message);
    request = request.header("accept", "application/json, text/event-stream");
    if let Some(session) = session {
        request =
            request.header("mcp-session-id", session).header("mcp-protocol-version", "2025-06-18");
    }
    let response = request.send().await.unwrap();
    let session =
        response.headers().get("mcp-session-id").map(|id| id.to_str().unwrap().to_owned());
    (response.status().as_u16(), session, response.text().await.unwrap())
}

pub(crate) async fn initialize(server: &Server) -> String {
    let params = json!({"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "t", "version": "1"}});
    let (status, session, body) = post(
        server,
        None,
        json!({"jsonrpc": "2.0", "id": 0, "method": "initialize", "params": params}),
    )
    .await;
    assert_eq!(status, 200, "{body}");
    session.expect("a session")
}

fn list(id: u32) -> Value {
    json!({"jsonrpc": "2.0", "id": id, "method": "tools/list"})
}

#[tokio::test]
async fn any_replica_serves_a_session() {
    let one = Server::start(&[]).await;
    let other = Server::start(&[]).await;
    let id = initialize(&one).await;
    let session = Some(id.as_str());
    let initialized = json!({"jsonrpc": "2.0", "method": "notifications/initialized"});
    assert_eq!(post(&other, session, initialized).await.0, 202);

    let requests =
        (1..=10).flat_map(|n| [post(&one, session, list(n)), post(&other, session, list(n + 100))]);
    for (status, _, body) in futures::future::join_all(requests).await {
        assert_eq!(status, 200, "{body}");
        assert!(body.contains("server_initialize"), "{body}");
    }

    let third = Server::start(&[]).await;
    let stream = third.http.get(third.url("/mcp")).header("accept", "text/event-stream");
    let stream = stream.header("mcp-session-id", &id).send().await.unwrap();
    assert_eq!(stream.status(), 200);

    // A killed replica comes back without any memory.
    signal(one.process.id().unwrap(), nix::sys::signal::Signal::SIGKILL);
    let fresh = Server::start(&[]).await;
    assert_eq!(post(&fresh, session, list(1)).await.0, 200);
}

#[tokio::test]
async fn deleted_and_foreign_sessions_are_not_found() {
    let server = Server::start(&[]).await;
    let session = initialize(&server).await;
    assert_eq!(post(&server, Some(&session), list(1)).await.0, 200);
    let delete = server.http.delete(server.url("/mcp")).header("mcp-session-id", &session);
    assert!(delete.send().await.unwrap().status().is_success());
    assert_eq!(post(&server, Some(&session), list(2)).await.0, 404);

    for foreign in
        ["x", "5f0f4d5c-9c6e-4c7f-8a43-0a0a8d5f6a11", &session.replace(char::is_numeric, "a")]
    {
        assert_eq!(post(&server, Some(foreign), list(3)).await.0, 404, "{foreign}");
    }
}

/// Scripts post a single request without a handshake.
#[tokio::test]
async fn a_request_without_a_session_is_served_without_one() {
    let server = Server::start(&[]).await;
    let (status, session, body) = post(&server, None, list(1)).await;
    assert_eq!((status, session), (200, None), "{body}");
    assert!(body.contains("server_initialize"), "{body}");
}

//! Legacy servers that forget their sessions and say so in every way seen in practice.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use axum::Json;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use fleet_job::outcome::ErrorKind;
use fleet_job::outcome::FailureClass::{Permanent, Retry, Unavailable};
use fleet_mcp_client::{Era, McpClient};
use serde_json::{Value, json};

use crate::support::{Seen, Server, client, expect, result, rpc_error, server, succeeds, text};

/// How a server answers a call.
type Work = fn(&Seen) -> Response;

/// How a server refuses a session that it does not know.
type Refuse = fn(&Seen) -> Response;

fn answered(status: u16, body: impl IntoResponse) -> Response {
    (StatusCode::from_u16(status).unwrap(), body).into_response()
}

/// A legacy server that knows only the session since its last restart.
struct Legacy {
    server: Server,
    life: Arc<AtomicUsize>,
}

impl Legacy {
    /// Refuses unknown sessions with `refuse` and answers calls with `work`.
    async fn start(refuse: Refuse, work: Work) -> Self {
        let life = Arc::new(AtomicUsize::new(0));
        let current = life.clone();
        let server = server(move |seen| {
            let session = format!("session-{}", current.load(Ordering::SeqCst));
            let named = seen.headers.get("mcp-session-id").and_then(|id| id.to_str().ok());
            match seen.method() {
                "initialize" => {
                    let answer = json!({"protocolVersion": "2025-06-18", "capabilities": {}});
                    ([("mcp-session-id", session)], Json(result(seen.id(), answer))).into_response()
                }
                _ if named.is_some_and(|named| named != session) => refuse(&seen),
                _ if named.is_none() => answered(400, "no session"),
                method if method.starts_with("notifications/") => {
                    StatusCode::ACCEPTED.into_response()
                }
                "tools/call" => work(&seen),
                _ => Json(result(seen.id(), json!({}))).into_response(),
            }
        })
        .await;
        Self { server, life }
    }

    fn restart(&self) {
        self.life.fetch_add(1, Ordering::SeqCst);
    }

    fn client(&self) -> McpClient {
        client([&self.server.url], |config| config.era = Era::Legacy)
    }
}

fn works(seen: &Seen) -> Response {
    Json(result(seen.id(), text("done"))).into_response()
}

const WAYS: [(&str, Refuse); 14] = [
    ("404", |_| answered(404, "")),
    ("404 as specified", |_| {
        answered(404, Json(rpc_error(&Value::Null, -32001, "Session not found")))
    }),
    ("400 of the TypeScript SDK", |_| {
        answered(
            400,
            Json(rpc_error(&Value::Null, -32000, "Bad Request: No valid session ID provided")),
        )
    }),
    ("400 of the Python SDK", |_| {
        answered(
            400,
            Json(rpc_error(&json!("server-error"), -32600, "Bad Request: No valid session ID")),
        )
    }),
    ("400 as text", |_| answered(400, "Invalid or missing session ID")),
    ("401 of rmcp before 0.13", |_| answered(401, "Unauthorized: Session not found")),
    ("403", |_| answered(403, "Forbidden")),
    ("422", |_| answered(422, "Unprocessable Entity: Expected initialize request")),
    ("503 with JSON-RPC", |_| {
        answered(503, Json(rpc_error(&Value::Null, -32001, "unknown session")))
    }),
    ("400 with -32602", |seen| {
        answered(400, Json(rpc_error(seen.id(), -32602, "Invalid session ID")))
    }),
    ("200 with -32602", |seen| {
        answered(200, Json(rpc_error(seen.id(), -32602, "Invalid session ID")))
    }),
    ("200 with -32000", |seen| answered(200, Json(rpc_error(seen.id(), -32000, "No session")))),
    ("200 with -32603", |seen| answered(200, Json(rpc_error(seen.id(), -32603, "No session")))),
    ("500 with -32603", |seen| answered(500, Json(rpc_error(seen.id(), -32603, "No session")))),
];

#[tokio::test]
async fn a_forgotten_session_is_renewed_however_the_server_says_so() {
    for (way, refuse) in WAYS {
        let legacy = Legacy::start(refuse, works).await;
        let client = legacy.client();
        succeeds(&client).await;
        for handshakes in 2..4 {
            legacy.restart();
            let calls = (0..10).map(|_| succeeds(&client));
            futures::future::join_all(calls).await;
            assert_eq!(legacy.server.count("initialize"), handshakes, "{way}");
        }
        legacy.restart();
        client.probe().await.unwrap();
        assert_eq!(legacy.server.count("initialize"), 4, "{way}");
    }
}

#[tokio::test]
async fn a_call_that_may_have_run_is_not_sent_again_but_the_next_call_succeeds() {
    for status in [500, 503] {
        let refuse: Refuse = if status == 500 {
            |_| answered(500, "KeyError: 'session'")
        } else {
            |_| answered(503, "unknown session")
        };
        let legacy = Legacy::start(refuse, works).await;
        let client = legacy.client();
        succeeds(&client).await;
        legacy.restart();
        let calls = legacy.server.count("tools/call");
        expect(&client, Retry, ErrorKind::Http).await;
        assert_eq!(legacy.server.count("tools/call"), calls + 1);
        succeeds(&client).await;
        assert_eq!(legacy.server.count("initialize"), 2);
    }
}

#[tokio::test]
async fn errors_of_a_live_session_cost_no_session() {
    let works: [(Work, _, _); 3] = [
        (
            |seen| Json(rpc_error(seen.id(), -32602, "bad arguments")).into_response(),
            Permanent,
            -32602,
        ),
        (
            |seen| answered(400, Json(rpc_error(seen.id(), -32602, "bad arguments"))),
            Permanent,
            -32602,
        ),
        (|seen| Json(rpc_error(seen.id(), -32603, "it broke")).into_response(), Retry, -32603),
    ];
    for (work, class, code) in works {
        let legacy = Legacy::start(|_| answered(404, ""), work).await;
        let client = legacy.client();
        for _ in 0..3 {
            assert_eq!(expect(&client, class, ErrorKind::JsonRpc).await.error.code, Some(code));
        }
        assert_eq!((legacy.server.count("initialize"), legacy.server.count("tools/call")), (1, 3));
    }
}

#[tokio::test]
async fn a_refusal_that_a_new_session_does_not_lift_is_the_answer() {
    let legacy = Legacy::start(|_| answered(404, ""), |_| answered(422, "no")).await;
    let client = legacy.client();
    for _ in 0..5 {
        expect(&client, Permanent, ErrorKind::Http).await;
    }
    // The first call was sent again in a new session. From then on the session is checked before it
    // is given up.
    assert_eq!((legacy.server.count("initialize"), legacy.server.count("tools/call")), (2, 6));
    assert_eq!(legacy.server.count("ping"), 4);
}

#[tokio::test]
async fn a_server_that_refuses_the_new_handshake_is_unavailable() {
    static LOCKED: AtomicUsize = AtomicUsize::new(0);
    let server = server(|seen| match seen.method() {
        _ if LOCKED.load(Ordering::SeqCst) == 1 => answered(401, "the token has expired"),
        "initialize" => {
            let answer = json!({"protocolVersion": "2025-06-18", "capabilities": {}});
            ([("mcp-session-id", "s")], Json(result(seen.id(), answer))).into_response()
        }
        "tools/call" => works(&seen),
        _ => StatusCode::ACCEPTED.into_response(),
    })
    .await;
    let client = client([&server.url], |config| config.era = Era::Legacy);
    succeeds(&client).await;

    LOCKED.store(1, Ordering::SeqCst);
    let calls = (0..10).map(|_| expect(&client, Unavailable, ErrorKind::Unauthorized));
    futures::future::join_all(calls).await;

    LOCKED.store(0, Ordering::SeqCst);
    succeeds(&client).await;
}

//! Remote servers of older revisions that restart and forget their sessions, refuse our
//! credentials, or are full.

use std::sync::{
    Arc, Mutex,
    atomic::{AtomicU16, AtomicUsize, Ordering},
};

use axum::{
    Json, Router,
    extract::Request,
    response::{IntoResponse, Response},
};
use http::StatusCode;
use serde_json::{Value, json};
use tokio::{net::TcpListener, runtime::Runtime};

use crate::{
    common::{Server, eventually},
    sessions,
};

/// How a server refuses an unknown session.
type Refuse = fn(&Value) -> Response;

fn answered(status: u16, body: impl IntoResponse) -> Response {
    (StatusCode::from_u16(status).unwrap(), body).into_response()
}

fn rpc_error(id: &Value, code: i64, message: &str) -> Json<Value> {
    Json(json!({"jsonrpc": "2.0", "id": id, "error": {"code": code, "message": message}}))
}

/// A server that knows only the sessions since its last restart.
struct Remote {
    url: String,
    state: Arc<State>,
    /// A runtime of its own, so that the server can be killed with its connections.
    runtime: Option<Runtime>,
}

impl Drop for Remote {
    fn drop(&mut self) {
        self.kill();
    }
}

struct State {
    refuse: Refuse,
    life: AtomicUsize,
    /// The status of every answer, unless it is 0.
    closed: AtomicU16,
    methods: Mutex<Vec<String>>,
    /// The URIs that clients subscribed to, by restart.
    watched: Mutex<Vec<(usize, String)>>,
}

impl Remote {
    fn start(refuse: Refuse) -> Self {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let url = format!("http://{}/mcp", listener.local_addr().unwrap());
        let (life, closed) = (AtomicUsize::new(0), AtomicU16::new(0));
        let (methods, watched) = (Mutex::default(), Mutex::default());
        let state = Arc::new(State { refuse, life, closed, methods, watched });

        let shared = state.clone();
        let app = Router::new().fallback(move |request: Request| answer(shared.clone(), request));
        let runtime = Runtime::new().unwrap();
        runtime
            .spawn(async move { axum::serve(TcpListener::from_std(listener).unwrap(), app).await });
        Self { url, state, runtime: Some(runtime) }
    }

    /// Stops the server with all its connections.
    fn kill(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }

    /// A gateway that hosts this server as `old`.
    async fn hosted(&self) -> Server {
        let server = Server::start(&["--allow-remote", "127.0.0.1"]).await;
        server.initialize("old", json!({"url": self.url})).await;
        server
    }

    fn restart(&self) {
        self.state.life.fetch_add(1, Ordering::SeqCst);
    }

    fn close(&self, status: u16) {
        self.state.closed.store(status, Ordering::SeqCst);
    }

    fn count(&self, method: &str) -> usize {
        self.state.methods.lock().unwrap().iter().filter(|found| *found == method).count()
    }
}

async fn answer(state: Arc<State>, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    if parts.method != http::Method::POST {
        return StatusCode::METHOD_NOT_ALLOWED.into_response();
    }
    let body = axum::body::to_bytes(body, 1 << 20).await.unwrap();
    let message: Value = serde_json::from_slice(&body).unwrap();
    let (id, method) = (&message["id"], message["method"].as_str().unwrap_or_default());
    state.methods.lock().unwrap().push(method.to_owned());

    match state.closed.load(Ordering::SeqCst) {
        0 => {}
        status => {
            return (StatusCode::from_u16(status).unwrap(), [("retry-after", "7")]).into_response();
        }
    }
    let session = format!("session-{}", state.life.load(Ordering::SeqCst));
    let named = parts.headers.get("mcp-session-id").and_then(|id| id.to_str().ok());
    let result = |result: Value| Json(json!({"jsonrpc": "2.0", "id": id, "result": result}));
    match method {
        "server/discover" => answered(400, rpc_error(id, -32601, "unknown method")),
        "initialize" => {
            let answer = json!({"protocolVersion": "2025-06-18", "capabilities": {"tools": {}, "resources": {"subscribe": true}},
                "serverInfo": {"name": "old", "version": "1"}});
            ([("mcp-session-id", session)], result(answer)).into_response()
        }
        _ if named != Some(&session) => (state.refuse)(id),
        "tools/list" => {
            result(json!({"tools": [{"name": "work", "inputSchema": {"type": "object"}}]}))
                .into_response()
        }
        "resources/list" => {
            result(json!({"resources": [{"uri": "memo://today", "name": "today"}]})).into_response()
        }
        "resources/templates/list" => result(json!({"resourceTemplates": []})).into_response(),
        "resources/subscribe" => {
            let uri = message["params"]["uri"].as_str().unwrap_or_default().to_owned();
            state.watched.lock().unwrap().push((state.life.load(Ordering::SeqCst), uri));
            result(json!({})).into_response()
        }
        "tools/call" if message["params"]["arguments"]["bad"] == true => {
            rpc_error(id, -32602, "bad").into_response()
        }
        "tools/call" => {
            result(json!({"content": [{"type": "text", "text": "done"}]})).into_response()
        }
        _ if id.is_null() => StatusCode::ACCEPTED.into_response(),
        _ => result(json!({})).into_response(),
    }
}

const WAYS: [(&str, Refuse); 12] = [
    ("404", |_| answered(404, rpc_error(&Value::Null, -32001, "Session not found"))),
    ("400 of the TypeScript SDK", |_| {
        answered(400, rpc_error(&Value::Null, -32000, "No valid session ID"))
    }),
    ("400 of the Python SDK", |_| {
        answered(400, rpc_error(&json!("server-error"), -32600, "No valid session ID"))
    }),
    ("400 as text", |_| answered(400, "Invalid or missing session ID")),
    ("401 of rmcp before 0.13", |_| answered(401, "Unauthorized: Session not found")),
    ("422", |_| answered(422, "Unprocessable Entity: Expected initialize request")),
    ("503 with JSON-RPC", |_| answered(503, rpc_error(&Value::Null, -32001, "unknown session"))),
    ("400 with -32602", |id| answered(400, rpc_error(id, -32602, "Invalid session ID"))),
    ("200 with -32602", |id| answered(200, rpc_error(id, -32602, "Invalid session ID"))),
    ("200 with -32000", |id| answered(200, rpc_error(id, -32000, "No session"))),
    ("200 with -32603", |id| answered(200, rpc_error(id, -32603, "No session"))),
    ("500 with -32603", |id| answered(500, rpc_error(id, -32603, "No session"))),
];

#[tokio::test]
async fn a_remote_server_that_forgot_its_sessions_is_initialized_again_however_it_refuses_them() {
    let check = async |way: &str, refuse: Refuse| {
        let remote = Remote::start(refuse);
        let server = remote.hosted().await;
        let first = remote.count("initialize");
        for round in 1..3 {
            remote.restart();
            let calls = (0..10).map(|_| server.call("old__work", json!({})));
            for result in futures::future::join_all(calls).await {
                assert_eq!(result["content"][0]["text"], "done", "{way}");
            }
            assert_eq!(remote.count("initialize"), first + round, "{way}");
            let status = server.status("old").await;
            assert_eq!(
                (&status["state"], &status["restarts"]),
                (&json!("running"), &json!(0)),
                "{way}: {status}"
            );
        }
        // Errors in an existing session don't cause a new one.
        let bad = server.call_raw("old__work", json!({"bad": true})).await;
        assert_eq!(bad["error"]["code"], -32602, "{way}: {bad}");
        assert_eq!(remote.count("initialize"), first + 2, "{way}");
    };
    futures::future::join_all(WAYS.map(|(way, refuse)| check(way, refuse))).await;
}

#[tokio::test]
async fn subscriptions_of_clients_are_renewed_in_the_new_session() {
    let remote = Remote::start(|_| answered(404, ""));
    let server = Server::start(&["--allow-remote", "127.0.0.1", "--legacy-sessions"]).await;
    server.initialize("old", json!({"url": remote.url})).await;
    let session = sessions::initialize(&server).await;
    let ask = async |method: &str, params: Value| {
        let body = json!({"jsonrpc": "2.0", "id": 1, "method": method, "params": params});
        let (status, _, answer) = sessions::post(&server, Some(&session), body).await;
        assert_eq!(status, 200, "{answer}");
        answer
    };

    let listed = ask("resources/list", json!({})).await;
    let uri =
        listed.split('"').find(|text| text.contains("memo:")).unwrap_or_else(|| panic!("{listed}"));
    let subscribed = ask("resources/subscribe", json!({ "uri": uri })).await;
    assert!(subscribed.contains("result"), "{subscribed}");

    for life in 0..3 {
        eventually("the subscription to be there in this life", async || {
            let watched = remote.state.watched.lock().unwrap();
            watched.contains(&(life, "memo://today".to_owned())).then_some(())
        })
        .await;
        remote.restart();
        assert_eq!(server.call("old__work", json!({})).await["content"][0]["text"], "done");
    }
}

#[tokio::test]
async fn the_refusal_of_a_remote_server_reaches_the_caller() {
    let remote = Remote::start(|_| answered(404, ""));
    let server = remote.hosted().await;
    let refused = async |status: u16, reason: &str| {
        remote.close(status);
        let answer = server.call_raw("old__work", json!({})).await;
        let data = &answer["error"]["data"];
        assert_eq!(
            (&answer["error"]["code"], &data["reason"]),
            (&json!(-32603), &json!(reason)),
            "{answer}"
        );
        assert_eq!(
            (&data["server"], &data["retryAfterMs"]),
            (&json!("old"), &json!(7000)),
            "{answer}"
        );
    };
    refused(429, "server-busy").await;
    refused(503, "server-busy").await;
    assert_eq!(server.status("old").await["state"], "running");

    for status in [401, 403] {
        refused(status, "upstream-unauthorized").await;
        let status = server.status("old").await;
        assert_eq!(status["state"], "failed", "{status}");
        assert!(status["lastError"].as_str().unwrap().contains("HTTP 40"), "{status}");
    }

    // The breaker opens, and the status says why.
    eventually("the breaker to open", async || {
        let answer = server.call_raw("old__work", json!({})).await;
        assert_eq!(answer["error"]["data"]["reason"], "upstream-unauthorized", "{answer}");
        (server.status("old").await["breaker"]["state"] == "open").then_some(())
    })
    .await;

    remote.close(0);
    eventually("calls to get through", async || {
        server.call_raw("old__work", json!({})).await["result"].is_object().then_some(())
    })
    .await;
    assert_eq!(server.status("old").await["state"], "running");
}

#[tokio::test]
async fn a_remote_server_that_refuses_our_credentials_at_its_start_is_waited_for() {
    let remote = Remote::start(|_| answered(404, ""));
    let server = Server::start(&["--allow-remote", "127.0.0.1"]).await;
    let arguments = json!({"name": "old", "config": {"type": "http", "url": remote.url}});

    for status in [401, 403] {
        remote.close(status);
        let answer = server.call_raw("server_initialize", arguments.clone()).await;
        let (code, data) = (&answer["error"]["code"], &answer["error"]["data"]);
        assert_eq!(
            (code, &data["reason"], &data["server"]),
            (&json!(-32603), &json!("upstream-unauthorized"), &json!("old")),
            "{status}: {answer}"
        );
        assert!(data["retryAfterMs"].as_u64().is_some_and(|wait| wait > 0), "{answer}");
    }

    remote.close(0);
    server.call_ok("server_initialize", arguments).await;
    assert_eq!(server.call("old__work", json!({})).await["content"][0]["text"], "done");
}

#[tokio::test]
async fn a_stopped_remote_server_is_unavailable_at_once() {
    let mut remote = Remote::start(|_| answered(404, ""));
    let server = remote.hosted().await;
    remote.kill();
    let answer = eventually("the connection to be refused", async || {
        let answer = server.call_raw("old__work", json!({})).await;
        (answer["error"]["data"]["reason"] != "connection-lost" && answer["error"].is_object())
            .then_some(answer)
    })
    .await;
    let data = &answer["error"]["data"];
    assert_eq!(
        (&data["reason"], &data["server"]),
        (&json!("server-unavailable"), &json!("old")),
        "{answer}"
    );
    assert!(data["retryAfterMs"].as_u64().is_some_and(|wait| wait > 0), "{answer}");

    let status = server.status("old").await;
    assert_eq!(status["state"], "failed", "{status}");
}

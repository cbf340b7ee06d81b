//! Servers of the revisions before 2026-07-28: recognizing them, handshake, and sessions.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use axum::Json;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use fleet_job::outcome::ErrorKind;
use fleet_job::outcome::FailureClass::{Permanent, Retry, Unavailable};
use fleet_mcp_client::{Era, ToolCall};
use serde_json::{Map, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::support::{
    Seen, Server, call, client, discovered, expect, raw, read_request, result, rpc_error, server,
    succeeds, text, until, write_json,
};

/// A legacy server that forgets its sessions when `epoch` changes.
fn answer(seen: &Seen, epoch: usize) -> Response {
    let session = format!("session-{epoch}");
    let known = seen.headers.get("mcp-session-id").is_some_and(|id| *id == session);
    let version =
        seen.headers.get("mcp-protocol-version").is_some_and(|version| version == "2025-06-18");
    match seen.method() {
        "initialize" => {
            assert_eq!(seen.body["params"]["protocolVersion"], "2025-11-25");
            let answer = json!({"protocolVersion": "2025-06-18", "capabilities": {}, "serverInfo": {"name": "x"}});
            ([("mcp-session-id", session)], Json(result(seen.id(), answer))).into_response()
        }
        _ if seen.headers.contains_key("mcp-session-id") && !known => {
            StatusCode::NOT_FOUND.into_response()
        }
        _ if !known || !version => (
            StatusCode::BAD_REQUEST,
            Json(rpc_error(&json!(null), -32000, "Bad Request: no valid session")),
        )
            .into_response(),
        method if method.starts_with("notifications/") => StatusCode::ACCEPTED.into_response(),
        "tools/call" => {
            assert!(!seen.body["params"].as_object().unwrap().contains_key("_meta"));
            let body = format!("id: 0\ndata:\n\ndata: {}\n\n", result(seen.id(), text("legacy")));
            ([(header::CONTENT_TYPE, "text/event-stream")], body).into_response()
        }
        _ => Json(result(seen.id(), json!({}))).into_response(),
    }
}

async fn legacy() -> (Server, Arc<AtomicUsize>) {
    let epoch = Arc::new(AtomicUsize::new(0));
    let current = epoch.clone();
    (server(move |seen| answer(&seen, current.load(Ordering::SeqCst))).await, epoch)
}

#[tokio::test]
async fn the_era_is_determined_once() {
    let (server, _) = legacy().await;
    let client = client([&server.url], |config| config.era = Era::Auto);
    for _ in 0..3 {
        assert_eq!(succeeds(&client).await["content"][0]["text"], "legacy");
    }
    let methods = server.methods();
    assert_eq!(methods[..3], ["server/discover", "initialize", "notifications/initialized"]);
    assert_eq!(methods[3..], ["tools/call"; 3]);
    client.probe().await.unwrap();
    assert_eq!(server.count("ping"), 1);
    client.close().await;
    assert_eq!(server.seen().pop().unwrap().http_method, "DELETE");
}

#[tokio::test]
async fn calls_that_start_together_share_one_handshake() {
    let (server, _) = legacy().await;
    let client = client([&server.url], |config| config.era = Era::Legacy);
    let calls: Vec<_> = (0..20)
        .map(|_| {
            let client = client.clone();
            tokio::spawn(async move { succeeds(&client).await })
        })
        .collect();
    for call in calls {
        call.await.unwrap();
    }
    assert_eq!((server.count("initialize"), server.count("server/discover")), (1, 0));
}

#[tokio::test]
async fn a_forgotten_session_is_renewed() {
    let (server, epoch) = legacy().await;
    let client = client([&server.url], |config| config.era = Era::Legacy);
    succeeds(&client).await;
    epoch.store(1, Ordering::SeqCst);
    succeeds(&client).await;
    assert_eq!(server.count("initialize"), 2);
    epoch.store(2, Ordering::SeqCst);
    client.probe().await.unwrap();
    assert_eq!(server.count("initialize"), 3);
}

#[tokio::test]
async fn a_client_that_is_set_to_modern_does_not_fall_back() {
    let (server, _) = legacy().await;
    expect(
        &client([&server.url], |config| config.era = Era::Modern),
        Unavailable,
        ErrorKind::JsonRpc,
    )
    .await;
    assert_eq!(server.methods(), ["server/discover"]);
}

#[tokio::test]
async fn an_answer_that_says_nothing_about_the_era_is_no_reason_to_fall_back() {
    let rows = [(401, Unavailable, ErrorKind::Unauthorized), (503, Retry, ErrorKind::Http)];
    for (code, class, kind) in rows {
        let server = server(move |_| StatusCode::from_u16(code).unwrap().into_response()).await;
        expect(&client([&server.url], |config| config.era = Era::Auto), class, kind).await;
        assert_eq!(server.methods(), ["server/discover"]);
    }
}

#[tokio::test]
async fn an_endpoint_that_speaks_neither_era_is_unavailable() {
    for code in [404, 405, 400] {
        let server = server(move |_| StatusCode::from_u16(code).unwrap().into_response()).await;
        let client = client([&server.url], |config| config.era = Era::Auto);
        let failure = expect(&client, Unavailable, ErrorKind::Http).await;
        assert!(failure.error.message.contains("legacy handshake"), "{failure:?}");
        assert_eq!(server.methods(), ["server/discover", "initialize"]);
    }
}

#[tokio::test]
async fn an_unknown_revision_is_refused() {
    let server = server(|seen| {
        Json(result(seen.id(), json!({"protocolVersion": "1999-01-01", "capabilities": {}})))
            .into_response()
    })
    .await;
    let client = client([&server.url], |config| config.era = Era::Legacy);
    let failure = expect(&client, Unavailable, ErrorKind::Protocol).await;
    assert!(failure.error.message.contains("1999-01-01"), "{failure:?}");
}

#[tokio::test]
async fn a_server_that_is_replaced_by_a_legacy_server_gets_a_new_handshake() {
    let downgraded = Arc::new(AtomicBool::new(false));
    let flag = downgraded.clone();
    let server = server(move |seen| {
        if flag.load(Ordering::SeqCst) {
            let modern =
                seen.headers.get("mcp-protocol-version").is_some_and(|v| v == "2026-07-28");
            if modern {
                let mut error = rpc_error(seen.id(), -32022, "unsupported protocol version");
                error["error"]["data"] = json!({"supported": ["2025-11-25"]});
                return (StatusCode::BAD_REQUEST, Json(error)).into_response();
            }
            return answer(&seen, 0);
        }
        match seen.method() {
            "server/discover" => Json(discovered(seen.id())).into_response(),
            _ => Json(result(seen.id(), text("modern"))).into_response(),
        }
    })
    .await;
    let client = client([&server.url], |config| config.era = Era::Auto);
    assert_eq!(succeeds(&client).await["content"][0]["text"], "modern");
    downgraded.store(true, Ordering::SeqCst);
    assert_eq!(succeeds(&client).await["content"][0]["text"], "legacy");
}

#[tokio::test]
async fn errors_of_a_legacy_server_are_classified_like_any() {
    let server = server(|seen| match seen.method() {
        "tools/call" => Json(rpc_error(seen.id(), -32602, "unknown tool")).into_response(),
        _ => answer(&seen, 0),
    })
    .await;
    let failure = expect(
        &client([&server.url], |config| config.era = Era::Legacy),
        Permanent,
        ErrorKind::JsonRpc,
    )
    .await;
    assert_eq!(failure.error.code, Some(-32602));
}

#[tokio::test]
async fn a_dropped_call_is_cancelled_by_its_id() {
    let (sender, mut cancelled) = tokio::sync::mpsc::unbounded_channel();
    let running = Arc::new(AtomicUsize::new(0));
    let count = running.clone();
    let url = raw(move |mut stream, first| {
        let (sender, count) = (sender.clone(), count.clone());
        Box::pin(async move {
            let mut request = Some(first);
            while let Some(found) = request {
                match found["method"].as_str().unwrap() {
                    "initialize" => {
                        let answer = json!({"protocolVersion": "2025-11-25", "capabilities": {}});
                        write_json(&mut stream, &result(&found["id"], answer)).await;
                    }
                    "tools/call" => {
                        count.fetch_add(1, Ordering::SeqCst);
                        drop(stream.read(&mut [0]).await);
                        return;
                    }
                    method => {
                        sender.send((method.to_owned(), found["params"].clone())).unwrap();
                        stream
                            .write_all(b"HTTP/1.1 202 Accepted\r\ncontent-length: 0\r\n\r\n")
                            .await
                            .unwrap();
                    }
                }
                request = read_request(&mut stream).await;
            }
        })
    })
    .await;
    let client = client(&[url], |config| config.era = Era::Legacy);
    let other = client.clone();
    let task = tokio::spawn(async move { call(&other).await });
    until("the call", || running.load(Ordering::SeqCst) == 1).await;
    task.abort();
    assert_eq!(cancelled.recv().await.unwrap().0, "notifications/initialized");
    let (method, params) = cancelled.recv().await.unwrap();
    assert_eq!((method.as_str(), &params["requestId"]), ("notifications/cancelled", &json!(1)));
    // A deadline also cancels the call.
    let mut late = ToolCall::new("t", Map::new());
    late.timeout = Some(Duration::from_millis(300));
    drop(client.call_tool(late).await);
    assert_eq!(cancelled.recv().await.unwrap().1["requestId"], 2);
}

#[tokio::test]
async fn a_ping_in_the_stream_is_answered() {
    let (sender, mut answers) = tokio::sync::mpsc::unbounded_channel();
    let server = server(move |seen| {
        if seen.method().is_empty() {
            sender.send(seen.body).unwrap();
            return StatusCode::ACCEPTED.into_response();
        }
        if seen.method() != "tools/call" {
            return answer(&seen, 0);
        }
        let ping = json!({"jsonrpc": "2.0", "id": "p", "method": "ping"});
        let sample =
            json!({"jsonrpc": "2.0", "id": "s", "method": "sampling/createMessage", "params": {}});
        let body = format!(
            "data: {ping}\n\ndata: {sample}\n\ndata: {}\n\n",
            result(seen.id(), text("ok"))
        );
        ([(header::CONTENT_TYPE, "text/event-stream")], body).into_response()
    })
    .await;
    succeeds(&client([&server.url], |config| config.era = Era::Legacy)).await;
    assert_eq!(answers.recv().await.unwrap(), json!({"jsonrpc": "2.0", "id": "p", "result": {}}));
    assert_eq!(answers.recv().await.unwrap()["error"]["code"], -32601);
}

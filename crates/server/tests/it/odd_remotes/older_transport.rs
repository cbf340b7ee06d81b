//! Remote servers with unusual answers over the transport of 2024, HTTP with SSE.

use std::sync::{Arc, Mutex};

use axum::{
    body::{Body, Bytes},
    response::IntoResponse,
};
use futures::{StreamExt, channel::mpsc};
use http::StatusCode;
use serde_json::{Value, json};

use super::{Remote, Seen, UNREADABLE, ends_at_once, gateway, refused_revision, typed};

#[tokio::test]
async fn a_refused_revision_is_replaced_over_the_older_transport_too() {
    let server = gateway().await;
    for (name, kind) in [("typed", json!("sse")), ("untyped", Value::Null)] {
        let remote = over_sse(405, |seen| {
            refused_revision(seen).map(|refusal| format!("data: {refusal}\n\n"))
        })
        .await;
        let mut config = json!({"url": remote.url});
        if kind.is_string() {
            config["type"] = kind;
        }
        let hosted = server.initialize(name, config).await;
        let found = (&hosted["transport"], &hosted["protocolVersion"]);
        assert_eq!(found, (&json!("sse"), &json!("2025-06-18")), "{hosted}");
    }
}

/// A server of the transport of 2024 that answers a request with the event that `event` returns,
/// or like a plain one if that is `None`, and POST requests of other transports with `status`.
async fn over_sse(
    status: u16,
    event: impl Fn(&Seen) -> Option<String> + Clone + Send + Sync + 'static,
) -> Remote {
    let stream: Arc<Mutex<Option<mpsc::UnboundedSender<String>>>> = Arc::default();
    let status = StatusCode::from_u16(status).unwrap();
    Remote::start(move |seen| {
        if !seen.is_post {
            let (sender, events) = mpsc::unbounded();
            sender.unbounded_send("event: endpoint\ndata: /post\n\n".to_owned()).unwrap();
            *stream.lock().unwrap() = Some(sender);
            let events = events.map(|event| Ok::<_, std::io::Error>(Bytes::from(event)));
            return Some(typed("text/event-stream; charset=utf-8", Body::from_stream(events)));
        }
        if seen.path != "/post" {
            let error =
                json!({"jsonrpc": "2.0", "id": null, "error": {"code": -32000, "message": "no"}});
            return Some((status, axum::Json(error)).into_response());
        }

        let plain = || seen.plain().map(|answer| format!("event: message\ndata: {answer}\n\n"));
        if let Some(event) = event(seen).or_else(plain) {
            stream.lock().unwrap().as_ref().unwrap().unbounded_send(event).unwrap();
        }
        Some(StatusCode::ACCEPTED.into_response())
    })
    .await
}

/// Like [`over_sse`], with `event` in answer to calls. `ID` in it is the id of the call.
async fn calls_over_sse(event: String) -> Remote {
    over_sse(405, move |seen| {
        let is_call = seen.method() == "tools/call";
        is_call.then(|| event.replace("ID", &seen.body["id"].to_string()))
    })
    .await
}

#[tokio::test]
async fn a_url_without_a_type_may_belong_to_the_older_transport() {
    let server = gateway().await;
    let check = async |status: u16| {
        let name = format!("s{status}");
        let remote = over_sse(status, |_| None).await;
        let hosted = server.initialize(&name, json!({"url": remote.url})).await;
        assert_eq!(hosted["transport"], "sse", "{hosted}");
        let result = server.call(&format!("{name}__work"), json!({})).await;
        assert_eq!(result["content"][0]["text"], "done", "{result}");
        // A configured type is not questioned.
        let typed = json!({"type": "http", "url": remote.url});
        let (message, _) = server.initialize_error(&format!("{name}-typed"), typed).await;
        assert!(message.contains(&format!("HTTP {status}")), "{message}");
    };
    futures::future::join_all([400, 404, 405].map(check)).await;

    // Other refusals don't lead to the older transport.
    let remote = over_sse(500, |_| None).await;
    let (message, _) = server.initialize_error("broken", json!({"url": remote.url})).await;
    assert!(message.contains("-32000") && !message.contains("SSE"), "{message}");
}

/// The call would otherwise wait for its timeout, since the stream stays open.
#[tokio::test]
async fn an_unreadable_answer_ends_the_call_over_the_older_transport_too() {
    let server = gateway().await;
    let check = async |number: usize, event: String, quoted: &str| {
        let name = format!("s{number}");
        let remote = calls_over_sse(event).await;
        server.initialize(&name, json!({"type": "sse", "url": remote.url})).await;
        ends_at_once(&server, &name, quoted).await;
        assert_eq!(remote.count("tools/call"), 1, "{name}");
    };
    let written = UNREADABLE.iter().map(|(written, quoted)| {
        (format!(r#"data: {{"jsonrpc":"2.0","id":ID,{written}}}"#), *quoted)
    });
    let others = [
        (r#"data: {"jsonrpc":"2.0","id":"ID","result":"boom"}"#, "boom"),
        (r#"data: {"jsonrpc":"2.0","id":null,"error":"boom"}"#, "boom"),
        (r#"data: {"jsonrpc":"2.0","result":{"content":[]}}"#, "which request"),
        (r#"data: {"jsonrpc":"2.0","id":ID,"resul"#, "resul"),
        ("data: {broken", "{broken"),
        ("event: error\ndata: overloaded", "overloaded"),
    ];
    let cases = written.chain(others.map(|(event, quoted)| (event.to_owned(), quoted)));
    let all = cases
        .enumerate()
        .map(|(number, (event, quoted))| check(number, format!("{event}\n\n"), quoted));
    futures::future::join_all(all).await;
}

#[tokio::test]
async fn an_answer_is_found_over_the_older_transport_too() {
    let server = gateway().await;
    let check = async |number: usize, event: &str, expected: Value| {
        let name = format!("s{number}");
        let remote = calls_over_sse(format!("{event}\n\n")).await;
        server.initialize(&name, json!({"type": "sse", "url": remote.url})).await;
        let answer = server.call_raw(&format!("{name}__work"), json!({})).await;
        let found = answer["error"].get("code").unwrap_or(&answer["result"]["structuredContent"]);
        assert_eq!(*found, expected, "{event}: {answer}");
    };
    const RESULT: &str = r#""result":{"content":[],"structuredContent":{"v":NaN}}"#;
    let events = [
        (format!(r#"data: {{"jsonrpc":"2.0","id":"ID",{RESULT}}}"#), json!({"v": null})),
        (format!(r#"data: [{{"jsonrpc":"2.0","id":ID,{RESULT}}}]"#), json!({"v": null})),
        (
            format!("event: result\ndata: {{\"jsonrpc\":\"2.0\",\"id\":ID,{RESULT}}}"),
            json!({"v": null}),
        ),
        (
            r#"data: {"jsonrpc":"2.0","id":null,"error":{"code":-32000,"message":"boom"}}"#
                .to_owned(),
            json!(-32000),
        ),
    ];
    let all = events
        .iter()
        .enumerate()
        .map(|(number, (event, expected))| check(number, event, expected.clone()));
    futures::future::join_all(all).await;
}

//! The table of outcomes over HTTP, row by row, and the form of the requests.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::support::{
    call, client, discovered, expect, failure, modern, result, rpc_error, server, succeeds, text,
};
use axum::Json;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use fleet_job::outcome::ErrorKind;
use fleet_job::outcome::FailureClass::{self, Held, Permanent, Retry, Unavailable};
use fleet_job::outcome::{Outcome, WaitReason};
use fleet_mcp_client::{ClientConfig, Input, McpClient, Progress, Secret, ToolCall};
use serde_json::{Map, json};

fn status(code: u16) -> StatusCode {
    StatusCode::from_u16(code).unwrap()
}

async fn check_status(code: u16, class: FailureClass, kind: ErrorKind) {
    let server = modern(move |_| (status(code), "the reason").into_response()).await;
    let failure = expect(&client([&server.url], |_| {}), class, kind).await;
    assert_eq!(failure.error.code, Some(i64::from(code)));
    assert_eq!(server.count("tools/call"), 1, "HTTP {code} was tried again");
}

#[tokio::test]
async fn http_statuses() {
    for code in [401, 403] {
        check_status(code, Unavailable, ErrorKind::Unauthorized).await;
    }
    check_status(429, Held(WaitReason::RateLimited), ErrorKind::Http).await;
    for code in [408, 425, 500, 502, 503, 504] {
        check_status(code, Retry, ErrorKind::Http).await;
    }
    for code in [400, 404, 413, 415, 422] {
        check_status(code, Permanent, ErrorKind::Http).await;
    }
}

#[tokio::test]
async fn redirects_are_not_followed() {
    let target = modern(|seen| Json(result(seen.id(), text("followed"))).into_response()).await;
    let location = target.url.clone();
    let from =
        modern(move |_| axum::response::Redirect::temporary(&location).into_response()).await;
    let failure = expect(&client([&from.url], |_| {}), Unavailable, ErrorKind::Http).await;
    assert!(failure.error.message.contains(&target.url), "{failure:?}");
    assert!(target.seen().is_empty());
}

#[tokio::test]
async fn json_rpc_errors() {
    for (http, code, class) in [
        (200, -32700, Permanent),
        (200, -32600, Permanent),
        (404, -32601, Permanent),
        (400, -32602, Permanent),
        (400, -32020, Permanent),
        (400, -32021, Permanent),
        (400, -32022, Permanent),
        (200, -32603, Retry),
        (500, -32603, Retry),
        (200, -32000, Retry),
        (200, 42, Retry),
    ] {
        let answer = move |seen: crate::support::Seen| {
            (status(http), Json(rpc_error(seen.id(), code, "the reason")))
        };
        let server = modern(move |seen| answer(seen).into_response()).await;
        let failure = expect(&client([&server.url], |_| {}), class, ErrorKind::JsonRpc).await;
        assert_eq!(failure.error.code, Some(code));
        assert!(failure.error.message.contains("the reason"), "{failure:?}");
    }
}

#[tokio::test]
async fn retry_after_is_reported() {
    let server = modern(|_| (status(429), [(header::RETRY_AFTER, "7")]).into_response()).await;
    assert_eq!(
        failure(&client(&[server.url], |_| {})).await.retry_after,
        Some(Duration::from_secs(7))
    );
    let server = modern(|_| {
        (status(503), [(header::RETRY_AFTER, "Sun, 31 Dec 2400 00:00:00 GMT")]).into_response()
    })
    .await;
    assert_eq!(
        failure(&client(&[server.url], |_| {})).await.retry_after,
        Some(Duration::from_secs(86400))
    );
}

#[tokio::test]
async fn a_tool_reports_an_error() {
    for (meta, class) in [(json!({}), Retry), (json!({"io.mcp-fleet/final": true}), Permanent)] {
        let answer = json!({"isError": true, "_meta": meta, "content": [{"type": "text", "text": "disk full"}]});
        let expected = answer.clone();
        let server =
            modern(move |seen| Json(result(seen.id(), answer.clone())).into_response()).await;
        let failure = expect(&client(&[server.url], |_| {}), class, ErrorKind::Tool).await;
        assert_eq!(failure.error.message, "disk full");
        assert_eq!(failure.error.data, Some(expected));
    }
}

#[tokio::test]
async fn answers_that_do_not_follow_the_protocol() {
    fn json_text(text: &'static str) -> Response {
        ([(header::CONTENT_TYPE, "application/json")], text).into_response()
    }
    fn events(text: &'static str) -> Response {
        ([(header::CONTENT_TYPE, "text/event-stream")], text).into_response()
    }
    type Answer = fn() -> Response;
    // Each answer is complete, so the tool may have run and would give the same answer again.
    let rows: [Answer; 17] = [
        || json_text("garbage"),
        || json_text(r#"{"jsonrpc":"2.0","id":999,"result":{}}"#),
        || json_text(r#"{"jsonrpc":"2.0","result":{}}"#),
        || json_text(r#"[{"jsonrpc":"2.0"}]"#),
        || json_text(r#"{"jsonrpc":"2.0","id":"#),
        || json_text(""),
        || events("data: <p>garbage</p>\n\n"),
        || events("data: {broken\n\n"),
        || events("event: error\ndata: overloaded\n\n"),
        || events("data: {\"jsonrpc\":\"2.0\",\"id\":999,\"result\":{}}\n\n"),
        || events("<h1>Welcome</h1>"),
        || ([(header::CONTENT_ENCODING, "br")], "x").into_response(),
        || ([(header::CONTENT_ENCODING, "gzip")], "x").into_response(),
        || axum::response::Html("<h1>Welcome</h1>").into_response(),
        || StatusCode::ACCEPTED.into_response(),
        || StatusCode::NO_CONTENT.into_response(),
        || StatusCode::OK.into_response(),
    ];
    for answer in rows {
        let server = modern(move |_| answer()).await;
        let client = client([&server.url], |_| {});
        let failure = expect(&client, Permanent, ErrorKind::Protocol).await;
        assert_eq!(failure.error.data, Some(json!({"reason": "unreadable-answer"})), "{failure:?}");
        assert_eq!(server.count("tools/call"), 1, "{failure:?}");
    }
    // A stream that ends without an answer counts as a lost connection. Events that cannot be meant
    // as the answer, or that others follow, are not answers.
    let rows: [Answer; 4] = [
        || events(": hi\n\n"),
        || events("data: ping\n\n"),
        || events("data: garbage\n\n"),
        || events("data: {\"level\":\"info\"}\n\nevent: ping\ndata: 1\n\n"),
    ];
    for answer in rows {
        let server = modern(move |_| answer()).await;
        expect(&client(&[server.url], |_| {}), Retry, ErrorKind::ConnectionLost).await;
    }
    // These answer this call, so the tool may have run.
    for answer in [r#""result":3"#, r#""error":{"code":"x"}"#, r#""outcome":1"#] {
        let server = modern(move |seen| {
            let body = format!(r#"{{"jsonrpc":"2.0","id":{},{answer}}}"#, seen.id());
            ([(header::CONTENT_TYPE, "application/json")], body).into_response()
        })
        .await;
        expect(&client(&[server.url], |_| {}), Permanent, ErrorKind::Protocol).await;
    }
    for kind in ["input_required", "task", "novel"] {
        let server = modern(move |seen| {
            Json(result(seen.id(), json!({"resultType": kind}))).into_response()
        })
        .await;
        expect(&client(&[server.url], |_| {}), Permanent, ErrorKind::Protocol).await;
    }
}

#[tokio::test]
async fn an_endpoint_that_is_not_an_mcp_server_is_unavailable() {
    // The handshake notices it from the start.
    let server = server(|_| status(404).into_response()).await;
    let client = client([&server.url], |_| {});
    expect(&client, Unavailable, ErrorKind::Http).await;
    assert_eq!(server.count("tools/call"), 0);
    assert_eq!(client.probe().await.unwrap_err().class, Unavailable);
}

#[tokio::test]
async fn an_endpoint_that_stops_being_an_mcp_server_is_unavailable() {
    let found = Arc::new(AtomicBool::new(false));
    let gone = server(move |seen| {
        if seen.method() == "server/discover" && !found.swap(true, Ordering::SeqCst) {
            return Json(discovered(seen.id())).into_response();
        }
        status(404).into_response()
    })
    .await;
    expect(&client([&gone.url], |_| {}), Unavailable, ErrorKind::Http).await;
    assert_eq!(gone.methods(), ["server/discover", "tools/call", "server/discover"]);
}

#[tokio::test]
async fn requests_have_the_form_that_the_protocol_requires() {
    let server = modern(|seen| Json(result(seen.id(), text("ok"))).into_response()).await;
    let client = client([&server.url], |config| {
        config.bearer_token = Some("t0ken".into());
        config.headers = vec![("x-tenant".to_owned(), Secret::new("acme"))];
    });
    let mut call = ToolCall::new("süß", json!({"a": [1]}).as_object().unwrap().clone());
    call.meta.insert("io.mcp-fleet/jobId".to_owned(), "job-1".into());
    assert!(matches!(client.call_tool(call).await, Outcome::Succeeded(_)));
    let seen = server.seen().pop().unwrap();
    for (name, value) in [
        ("accept", "application/json, text/event-stream"),
        ("content-type", "application/json"),
        ("authorization", "Bearer t0ken"),
        ("x-tenant", "acme"),
        ("mcp-protocol-version", "2026-07-28"),
        ("mcp-method", "tools/call"),
        ("mcp-name", "=?base64?c8O8w58=?="),
    ] {
        assert_eq!(seen.headers[name], value, "{name}");
    }
    let params = &seen.body["params"];
    assert_eq!(params["name"], "süß");
    assert_eq!(params["arguments"], json!({"a": [1]}));
    assert_eq!(params["_meta"]["io.mcp-fleet/jobId"], "job-1");
    assert_eq!(params["_meta"]["io.modelcontextprotocol/protocolVersion"], "2026-07-28");
    assert_eq!(params["_meta"]["io.modelcontextprotocol/clientCapabilities"], json!({}));
    assert_eq!(params["_meta"]["io.modelcontextprotocol/clientInfo"]["name"], "mcp-fleet");
    assert_eq!(params["_meta"].get("progressToken"), None);
}

#[tokio::test]
async fn progress_is_reported_before_the_answer() {
    let server = modern(|seen| {
        let token = &seen.body["params"]["_meta"]["progressToken"];
        let news = |progress: i64| {
            json!({"jsonrpc": "2.0", "method": "notifications/progress",
                   "params": {"progressToken": token, "progress": progress, "total": 2, "message": "going"}})
        };
        let answer = result(seen.id(), text("done"));
        let body = format!(
            ": hello\n\ndata: {}\n\nevent: message\ndata: {}\n\ndata: {answer}\n\n",
            news(1),
            news(2)
        );
        ([(header::CONTENT_TYPE, "text/event-stream")], body).into_response()
    })
    .await;
    let (sender, receiver) = tokio::sync::watch::channel(None);
    let mut call = ToolCall::new("t", Map::new());
    call.progress = Some(sender);
    let outcome = client(&[server.url], |_| {}).call_tool(call).await;
    assert!(matches!(outcome, Outcome::Succeeded(_)), "{outcome:?}");
    let newest = Progress { progress: 2.0, total: Some(2.0), message: Some("going".to_owned()) };
    assert_eq!(*receiver.borrow(), Some(newest), "nobody has looked at the first");
}

/// The rounds of a task: the request tells what the tool may ask for, and the tool's question is
/// returned as a result.
#[tokio::test]
async fn a_call_with_input_gets_the_question() {
    let server = modern(|seen| {
        let question =
            json!({"resultType": "input_required", "inputRequests": {"name": {}}, "requestState": "s"});
        let answer =
            if seen.body["params"].get("requestState").is_some() { text("thanks") } else { question };
        Json(result(seen.id(), answer)).into_response()
    })
    .await;
    let client = client([&server.url], |_| {});
    let mut call = ToolCall::new("t", Map::new());
    let capabilities =
        json!({"elicitation": {}, "extensions": {"io.modelcontextprotocol/tasks": {}}});
    let mut input = Input {
        client_capabilities: capabilities.as_object().unwrap().clone(),
        ..Input::default()
    };
    call.input = Some(input.clone());
    let first = client.call_tool(call.clone()).await;
    assert!(
        matches!(&first, Outcome::Succeeded(result) if result["resultType"] == "input_required"),
        "{first:?}"
    );
    input.request_state = Some("s".to_owned());
    input.responses.insert("name".to_owned(), json!({"action": "accept"}));
    call.input = Some(input);
    let second = client.call_tool(call).await;
    assert!(
        matches!(&second, Outcome::Succeeded(result) if result["resultType"] == "complete"),
        "{second:?}"
    );
    let params = &server.seen().pop().unwrap().body["params"];
    let declared = &params["_meta"]["io.modelcontextprotocol/clientCapabilities"];
    assert_eq!(declared, &json!({"elicitation": {}, "extensions": {}}));
    assert_eq!(params["inputResponses"]["name"]["action"], "accept");
}

#[tokio::test]
async fn tools_are_listed_over_all_pages() {
    let server = modern(|seen| {
        let page = match seen.body["params"]["cursor"].as_str() {
            None => json!({"tools": [{"name": "a"}], "nextCursor": "2"}),
            Some("2") => json!({"tools": [{"name": "b"}, {"name": "c"}], "nextCursor": "3"}),
            Some(_) => json!({"tools": [{"name": "d"}]}),
        };
        Json(result(seen.id(), page)).into_response()
    })
    .await;
    let tools = client(&[server.url], |_| {}).list_tools().await.unwrap();
    let names: Vec<_> = tools.iter().map(|tool| tool["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["a", "b", "c", "d"]);
}

#[tokio::test]
async fn endless_pages_are_an_error() {
    let server = modern(|seen| {
        let next =
            seen.body["params"]["cursor"].as_str().map_or(0, |cursor| cursor.parse().unwrap()) + 1;
        let tools = json!([{"name": format!("t{next}")}]);
        Json(result(seen.id(), json!({"tools": tools, "nextCursor": next.to_string()})))
            .into_response()
    })
    .await;
    let failure = client(&[server.url], |_| {}).list_tools().await.unwrap_err();
    assert_eq!((failure.class, failure.error.kind), (Permanent, ErrorKind::Protocol));
}

/// Two cursors in turn, or a new one with each page and nothing else.
#[tokio::test]
async fn pages_that_repeat_end_the_list() {
    let check = async |cursor: fn(i64) -> i64| {
        let server = modern(move |seen| {
            let asked = seen.body["params"]["cursor"].as_str();
            let next = asked.map_or(1, |asked| cursor(asked.parse().unwrap()));
            let page = json!({"tools": [{"name": "a"}], "nextCursor": next.to_string()});
            Json(result(seen.id(), page)).into_response()
        })
        .await;
        let tools = client([&server.url], |_| {}).list_tools().await.unwrap();
        assert_eq!(tools, [json!({"name": "a"})]);
        assert_eq!(server.count("tools/list"), 2);
    };
    check(|asked| 3 - asked).await;
    check(|asked| asked + 1).await;
}

#[tokio::test]
async fn argument_headers_are_learned_when_a_server_requires_them() {
    let server = modern(|seen| match seen.method() {
        "tools/list" => {
            let schema =
                json!({"properties": {"region": {"type": "string", "x-mcp-header": "Region"}}});
            Json(result(seen.id(), json!({"tools": [{"name": "t", "inputSchema": schema}]})))
                .into_response()
        }
        _ if seen.headers.get("mcp-param-region").is_some_and(|value| value == "eu") => {
            Json(result(seen.id(), text("ok"))).into_response()
        }
        _ => (status(400), Json(rpc_error(seen.id(), -32020, "missing Mcp-Param-Region")))
            .into_response(),
    })
    .await;
    let client = client([&server.url], |_| {});
    for _ in 0..2 {
        let arguments = json!({"region": "eu"}).as_object().unwrap().clone();
        let outcome = client.call_tool(ToolCall::new("t", arguments)).await;
        assert!(matches!(outcome, Outcome::Succeeded(_)), "{outcome:?}");
    }
    assert_eq!(
        server.methods(),
        ["server/discover", "tools/call", "tools/list", "tools/call", "tools/call"]
    );
}

#[tokio::test]
async fn secrets_do_not_appear_in_outcomes() {
    let server = modern(|_| status(401).into_response()).await;
    let url = server.url.replace("http://", "http://user:hunter2@");
    let authorized = client(&[format!("{url}/mcp?key=hunter2")], |_| {});
    assert!(!format!("{:?} {authorized:?}", call(&authorized).await).contains("hunter2"));
    let refused = crate::support::nobody().await.replace("http://", "http://user:hunter2@");
    let mut config = ClientConfig::new(ClientConfig::parse_urls(&refused).unwrap());
    config.bearer_token = None;
    let outcome = call(&McpClient::new(config).unwrap()).await;
    assert!(!format!("{outcome:?}").contains("hunter2"), "{outcome:?}");
}

#[tokio::test]
async fn credentials_in_a_url_are_sent_but_a_token_takes_precedence() {
    let server = modern(|seen| Json(result(seen.id(), text("ok"))).into_response()).await;
    let url = server.url.replace("http://", "http://user:hunter2@");
    for (token, expected) in [(None, "Basic dXNlcjpodW50ZXIy"), (Some("t0ken"), "Bearer t0ken")] {
        let mut config = ClientConfig::new(ClientConfig::parse_urls(&url).unwrap());
        config.bearer_token = token.map(|token| token.to_owned().into());
        succeeds(&McpClient::new(config).unwrap()).await;
        let seen = server.seen();
        assert_eq!(seen.last().unwrap().headers["authorization"], expected);
    }
}

#[tokio::test]
async fn a_token_can_be_replaced_while_the_client_is_in_use() {
    let server = modern(|seen| Json(result(seen.id(), text("ok"))).into_response()).await;
    let client = client([&server.url], |config| config.bearer_token = Some("first".into()));
    let sent = async || {
        succeeds(&client).await;
        let seen = server.seen().pop().unwrap();
        seen.headers.get("authorization").map(|value| value.to_str().unwrap().to_owned())
    };

    assert_eq!(sent().await.as_deref(), Some("Bearer first"));
    client.clone().replace_bearer_token(Some("second".into())).unwrap();
    assert_eq!(sent().await.as_deref(), Some("Bearer second"));
    client.replace_bearer_token(Some("two\nlines".into())).unwrap_err();
    assert_eq!(sent().await.as_deref(), Some("Bearer second"));
    client.replace_bearer_token(None).unwrap();
    assert_eq!(sent().await, None);
}

#[tokio::test]
async fn a_probe_succeeds_if_an_endpoint_answers() {
    let server = modern(|seen| Json(result(seen.id(), text("ok"))).into_response()).await;
    let probed = client(&[crate::support::nobody().await, server.url.clone()], |_| {});
    probed.probe().await.unwrap();
    probed.probe().await.unwrap();
    succeeds(&probed).await;
    let failure = client(&[crate::support::nobody().await], |_| {}).probe().await.unwrap_err();
    assert_eq!((failure.class, failure.error.kind), (Unavailable, ErrorKind::Connect));
}

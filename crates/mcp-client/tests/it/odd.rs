//! Servers with quirks in their answers. The gateway reads answers with the same crate
//! (`fleet-wire`).

use axum::Json;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use fleet_job::outcome::ErrorKind;
use fleet_job::outcome::FailureClass::Permanent;
use fleet_mcp_client::Era;
use serde_json::{Value, json};

use crate::support::{Seen, client, expect, modern, result, server, succeeds, text};

fn gzip(bytes: &[u8]) -> Vec<u8> {
    use std::io::Write as _;
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn typed(kind: &'static str, body: impl Into<axum::body::Body>) -> Response {
    ([(header::CONTENT_TYPE, kind)], body.into()).into_response()
}

/// The answer to a request, with the quirk.
fn answer(quirk: &str, seen: &Seen) -> Response {
    let id = seen.id();
    let plain = result(id, text("done"));
    let with = |member: &str, value: Value| {
        let mut message = json!({"jsonrpc": "2.0", "id": id});
        message[member] = value;
        Json(message).into_response()
    };
    let written = |result: &str| {
        typed("application/json", format!(r#"{{"jsonrpc":"2.0","id":{id},"result":{result}}}"#))
    };
    match quirk {
        "upper" => typed("Application/JSON;Charset=UTF-8", plain.to_string()),
        "json-rpc" => typed("application/json-rpc; charset=utf-8", plain.to_string()),
        "no-type" => typed("", plain.to_string()),
        "text" => typed("text/plain", plain.to_string()),
        "bom" => typed("application/json", format!("\u{feff}{plain}")),
        "array" => {
            Json(json!([{"jsonrpc": "2.0", "method": "notifications/x"}, plain])).into_response()
        }
        "error-null" => {
            let mut message = plain;
            message["error"] = Value::Null;
            Json(message).into_response()
        }
        "gzip" => {
            let encoded = gzip(plain.to_string().as_bytes());
            (
                [(header::CONTENT_TYPE, "application/json"), (header::CONTENT_ENCODING, "gzip")],
                encoded,
            )
                .into_response()
        }
        "nested" => Json(json!([[plain]])).into_response(),
        "string" => Json(json!(plain.to_string())).into_response(),
        "lines" => {
            let note = json!({"jsonrpc": "2.0", "method": "notifications/x"});
            typed("application/x-ndjson", format!("{note}\n{plain}\n"))
        }
        "utf-16" => {
            let units: Vec<u8> =
                plain.to_string().encode_utf16().flat_map(u16::to_le_bytes).collect();
            typed("application/json; charset=utf-16", [b"\xff\xfe".as_slice(), &units].concat())
        }
        "unlabelled-gzip" => typed("application/json", gzip(plain.to_string().as_bytes())),
        "event-named" => typed("text/event-stream", format!("event: result\ndata: {plain}\n\n")),
        "json-as-events" => typed("text/event-stream", plain.to_string()),
        "events-as-json" => typed("application/json", format!("data: {plain}\n\n")),
        "status-500" => (StatusCode::INTERNAL_SERVER_ERROR, Json(plain)).into_response(),
        "status-400" => (StatusCode::BAD_REQUEST, Json(plain)).into_response(),
        "many-headers" => {
            let mut response = Json(plain).into_response();
            for number in 0..150 {
                let name = header::HeaderName::try_from(format!("x-{number}")).unwrap();
                response.headers_mut().insert(name, header::HeaderValue::from_static("v"));
            }
            response
        }
        "no-blank-line" => typed("text/event-stream", format!("event: message\ndata: {plain}\n")),
        "moved" if seen.path != "/mcp/" => {
            (StatusCode::TEMPORARY_REDIRECT, [(header::LOCATION, "/mcp/")]).into_response()
        }
        "moved" => Json(plain).into_response(),
        "nan" => written(r#"{"resultType":"complete","content":[],"structuredContent":{"v":NaN}}"#),
        "surrogate" => written(r#"{"content":[{"type":"text","text":"\ud83d"}]}"#),
        "error-text" => with("error", json!("boom")),
        "code-text" => with("error", json!({"code": "E_FAIL", "message": "boom"})),
        "no-message" => with("error", json!({"code": -32000})),
        "bare" => with("result", json!("boom")),
        "deep" => written(&format!("{}{}", "[".repeat(200), "]".repeat(200))),
        "huge" => written(r#"{"structuredContent":{"v":1e400},"content":[]}"#),
        other => panic!("no quirk {other}"),
    }
}

#[tokio::test]
async fn answers_with_quirks_are_read() {
    for quirk in [
        "upper",
        "json-rpc",
        "no-type",
        "text",
        "bom",
        "array",
        "error-null",
        "gzip",
        "no-blank-line",
        "moved",
        "nan",
        "surrogate",
        "nested",
        "string",
        "lines",
        "utf-16",
        "unlabelled-gzip",
        "event-named",
        "json-as-events",
        "events-as-json",
        "status-500",
        "status-400",
        "many-headers",
    ] {
        let server = modern(move |seen| answer(quirk, &seen)).await;
        let found = succeeds(&client([&server.url], |_| {})).await;
        assert!(found["content"].is_array(), "{quirk}: {found}");
    }
}

/// The tool has run and would give the same answer again.
#[tokio::test]
async fn unreadable_answers_are_final_and_explained() {
    for (quirk, named) in [
        ("error-text", "boom"),
        ("code-text", "E_FAIL"),
        ("no-message", "-32000"),
        ("bare", "boom"),
        ("deep", "recursion limit"),
    ] {
        let server = modern(move |seen| answer(quirk, &seen)).await;
        let failure = expect(&client([&server.url], |_| {}), Permanent, ErrorKind::Protocol).await;
        assert!(failure.error.message.contains(named), "{quirk}: {failure:?}");
        assert_eq!(server.count("tools/call"), 1, "{quirk}");
    }
}

/// A number that does not fit into a double is passed on as written.
#[tokio::test]
async fn a_number_that_is_too_large_is_passed_on() {
    let server = modern(|seen| answer("huge", &seen)).await;
    let found = succeeds(&client([&server.url], |_| {})).await;
    assert!(found.to_string().contains(r#"{"v":1e+400}"#), "{found}");
}

#[tokio::test]
async fn an_unknown_encoding_is_named() {
    let server = modern(|seen| {
        let body = result(seen.id(), text("done")).to_string();
        ([(header::CONTENT_TYPE, "application/json"), (header::CONTENT_ENCODING, "br")], body)
            .into_response()
    })
    .await;
    let failure = crate::support::failure(&client([&server.url], |_| {})).await;
    assert!(failure.error.message.contains("encoded as br"), "{failure:?}");
}

#[tokio::test]
async fn an_error_status_counts_however_its_body_is_encoded() {
    let server = modern(|_| {
        (StatusCode::UNAUTHORIZED, [(header::CONTENT_ENCODING, "br")], "not text").into_response()
    })
    .await;
    let failure = crate::support::failure(&client([&server.url], |_| {})).await;
    assert!(!failure.class.spends_attempt(), "{failure:?}");
}

fn initialized(seen: &Seen, version: &str) -> Response {
    let info = json!({"name": "odd", "version": "1"});
    Json(result(
        seen.id(),
        json!({"protocolVersion": version, "capabilities": {}, "serverInfo": info}),
    ))
    .into_response()
}

/// All requests of a session follow the redirect, including notifications and the end.
#[tokio::test]
async fn a_redirect_of_a_legacy_server_is_followed() {
    let server = server(|seen| match seen.method() {
        _ if seen.path != "/mcp/" => {
            (StatusCode::PERMANENT_REDIRECT, [(header::LOCATION, "/mcp/")]).into_response()
        }
        "initialize" => initialized(&seen, "2025-06-18"),
        "notifications/initialized" => StatusCode::ACCEPTED.into_response(),
        "server/discover" => StatusCode::NOT_FOUND.into_response(),
        _ => Json(result(seen.id(), text("done"))).into_response(),
    })
    .await;
    succeeds(&client([&server.url], |config| config.era = Era::Auto)).await;
}

/// The server refuses our revision and lists those that it supports.
#[tokio::test]
async fn after_a_refused_revision_one_from_the_list_is_tried() {
    let server = server(|seen| match seen.method() {
        "initialize" if seen.body["params"]["protocolVersion"] == "2025-06-18" => {
            initialized(&seen, "2025-06-18")
        }
        "initialize" | "server/discover" => {
            let data = json!({"supported": ["2025-06-18"]});
            let error = json!({"code": -32022, "message": "unsupported", "data": data});
            Json(json!({"jsonrpc": "2.0", "id": seen.id(), "error": error})).into_response()
        }
        "notifications/initialized" => StatusCode::ACCEPTED.into_response(),
        _ => Json(result(seen.id(), text("done"))).into_response(),
    })
    .await;
    succeeds(&client([&server.url], |config| config.era = Era::Auto)).await;
    assert_eq!(server.count("initialize"), 2);
}

/// Some older servers do not answer methods that they do not know.
#[tokio::test]
async fn silence_to_discover_is_followed_by_initialize() {
    let server = crate::support::silent_server(|seen| match seen.method() {
        "server/discover" => None,
        "initialize" => Some(initialized(&seen, "2025-06-18")),
        "notifications/initialized" => Some(StatusCode::ACCEPTED.into_response()),
        _ => Some(Json(result(seen.id(), text("done"))).into_response()),
    })
    .await;
    let quick = client([&server.url], |config| {
        config.era = Era::Auto;
        config.handshake_timeout = std::time::Duration::from_secs(3);
    });
    succeeds(&quick).await;
}

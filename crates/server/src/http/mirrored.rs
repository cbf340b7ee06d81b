//! Checks the headers `Mcp-Method` and `Mcp-Name`, which mirror parts of a request's body.
//!
//! Proxies route and allow requests by these headers without reading the body, so a header that
//! contradicts the body could get a request past a proxy. rmcp checks the headers only for requests
//! of the newest revision. A missing header can't mislead a proxy and is left to rmcp.

use axum::{
    body::{Body, to_bytes},
    extract::Request,
    http::{HeaderMap, HeaderName, Method, StatusCode},
    middleware::Next,
    response::{IntoResponse as _, Response},
};
use base64::{Engine as _, prelude::BASE64_STANDARD};
use fleet_job::size::clipped;
use rmcp::model::ErrorCode;
use serde_json::{Value, json};

use super::MAX_BODY;

const METHOD: HeaderName = HeaderName::from_static("mcp-method");
const NAME: HeaderName = HeaderName::from_static("mcp-name");
/// The longest part of a value that an error repeats, in bytes.
const SHOWN: usize = 128;

/// Refuses a request whose headers contradict its body. The body is already in memory.
pub(super) async fn check_headers(request: Request, next: Next) -> Response {
    let headers = request.headers();
    let is_mirrored = headers.contains_key(METHOD) || headers.contains_key(NAME);
    if request.method() != Method::POST || !is_mirrored {
        return next.run(request).await;
    }

    let (parts, body) = request.into_parts();
    let Ok(body) = to_bytes(body, MAX_BODY).await else {
        return StatusCode::PAYLOAD_TOO_LARGE.into_response();
    };

    if let Err(why) = check_against_body(&parts.headers, &body) {
        tracing::warn!(why, "refused a request whose headers contradict its body");
        let error = json!({ "code": ErrorCode::HEADER_MISMATCH, "message": why });
        let answer = json!({ "jsonrpc": "2.0", "id": id_of(&body), "error": error });
        return (StatusCode::BAD_REQUEST, axum::Json(answer)).into_response();
    }

    next.run(Request::from_parts(parts, Body::from(body))).await
}

/// The parameter that `Mcp-Name` mirrors, if the method has one.
fn mirrored_parameter(method: &str) -> Option<&'static str> {
    match method {
        "tools/call" | "prompts/get" => Some("name"),
        "resources/read" | "resources/subscribe" | "resources/unsubscribe" => Some("uri"),
        "tasks/get" | "tasks/update" | "tasks/cancel" => Some("taskId"),
        _ => None,
    }
}

/// Returns an error if a header contradicts the body. Bodies that are not a message with a method
/// are left to the handler, which refuses them.
fn check_against_body(headers: &HeaderMap, body: &[u8]) -> Result<(), String> {
    let (method, name) = (single_value(headers, &METHOD)?, single_value(headers, &NAME)?);

    // Read the body as leniently as the handler does: the last of several equal keys counts, and
    // other members don't matter.
    let message: Value = serde_json::from_slice(body).unwrap_or_default();
    let Some(called) = message["method"].as_str() else { return Ok(()) };

    if let Some(sent) = method
        && sent != called
    {
        return Err(mismatch(&METHOD, &sent, called));
    }

    let named = mirrored_parameter(called).and_then(|key| message["params"][key].as_str());
    if let (Some(sent), Some(named)) = (name, named) {
        let sent =
            decode_value(&sent).ok_or_else(|| format!("the {NAME} header is not valid Base64"))?;
        if sent != named {
            return Err(mismatch(&NAME, &sent, named));
        }
    }

    Ok(())
}

fn mismatch(header: &HeaderName, sent: &str, body: &str) -> String {
    let (sent, body) = (clipped(sent, SHOWN), clipped(body, SHOWN));
    format!("the {header} header is `{sent}`, but the body has `{body}`; they must be equal")
}

/// The value of a header that may occur only once.
fn single_value(headers: &HeaderMap, name: &HeaderName) -> Result<Option<String>, String> {
    let mut values = headers.get_all(name).iter();
    let Some(value) = values.next() else { return Ok(None) };

    if values.next().is_some() {
        return Err(format!("more than one {name} header; send only one"));
    }
    let text =
        value.to_str().map_err(|_| format!("the {name} header contains non-ASCII characters"))?;
    Ok(Some(text.to_owned()))
}

/// Decodes a value that is written as `=?base64?…?=` because HTTP doesn't allow it as it is.
fn decode_value(value: &str) -> Option<String> {
    match value.strip_prefix("=?base64?").and_then(|value| value.strip_suffix("?=")) {
        Some(inner) => String::from_utf8(BASE64_STANDARD.decode(inner).ok()?).ok(),
        None => Some(value.to_owned()),
    }
}

/// The id of the refused request.
fn id_of(body: &[u8]) -> Value {
    let message: Value = serde_json::from_slice(body).unwrap_or_default();
    message.get("id").filter(|id| id.is_string() || id.is_i64()).cloned().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use axum::{Router, middleware::from_fn, routing::post};
    use tower::ServiceExt as _;

    use super::*;

    #[tokio::test]
    async fn a_header_that_contradicts_the_body_is_refused() {
        let router =
            Router::new().route("/message", post(async || "in")).layer(from_fn(check_headers));
        let call = r#"{"id":7,"method":"tools/call","params":{"name":"deploy"}}"#;
        let twice =
            r#"{"id":7,"method":"tools/list","method":"tools/call","params":{"name":"deploy"}}"#;
        let odd =
            r#"{"id":7,"method":"tools/call","params":{"name":"deploy","uri":7,"taskId":[]}}"#;
        let read = r#"{"id":7,"method":"resources/read","params":{"uri":"größe"}}"#;
        for (headers, body, status) in [
            (&[][..], call, 200),
            (&[("mcp-method", "tools/call"), ("mcp-name", "deploy")], call, 200),
            (&[("mcp-method", "tools/list")], call, 400),
            (&[("mcp-name", "status")], call, 400),
            (&[("mcp-name", "deploy"), ("mcp-name", "deploy")], call, 400),
            (&[("mcp-method", "tools/list")], twice, 400),
            (&[("mcp-name", "status")], odd, 400),
            (
                &[("mcp-method", "tools/list")],
                r#"{"id":7,"method":"tools/call","params":null}"#,
                400,
            ),
            (&[("mcp-name", "=?base64?Z3LDtsOfZQ==?=")], read, 200),
            (&[("mcp-name", "=?base64?%?=")], read, 400),
            (&[("mcp-name", "x")], r#"{"id":7,"method":"tools/list"}"#, 200),
            (&[("mcp-method", "tools/call")], "{", 200),
        ] {
            let request =
                headers.iter().fold(http::Request::post("/message"), |request, (name, value)| {
                    request.header(*name, *value)
                });
            let request = request.body(Body::from(body)).unwrap();
            let answer = router.clone().oneshot(request).await.unwrap();
            assert_eq!(answer.status(), status, "{headers:?} {body}");
            if status == 400 {
                let answer = to_bytes(answer.into_body(), 1_000).await.unwrap();
                let answer: Value = serde_json::from_slice(&answer).unwrap();
                assert_eq!((&answer["error"]["code"], &answer["id"]), (&json!(-32020), &json!(7)));
            }
        }
    }

    #[test]
    fn a_refusal_is_short() {
        let body =
            json!({"method": "tools/call", "params": {"name": "x".repeat(1 << 20)}}).to_string();
        let headers = HeaderMap::from_iter([(NAME, "y".repeat(1000).parse().unwrap())]);
        let why = check_against_body(&headers, body.as_bytes()).unwrap_err();
        assert!(why.len() < 400, "{why}");
    }
}

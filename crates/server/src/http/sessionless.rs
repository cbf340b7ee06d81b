//! Requests of older protocol revisions that belong to no session.
//!
//! A client that wants a session begins with `initialize` and names the session from then on. A
//! script that posts a single `tools/call` does neither, and rmcp refuses such requests if sessions
//! are enabled. This layer serves them as if sessions were disabled.

use axum::{
    body::{Body, to_bytes},
    extract::{Request, State},
    http::{HeaderName, Method, StatusCode},
    middleware::Next,
    response::{IntoResponse as _, Response},
};
use serde::Deserialize;

use super::{MAX_BODY, McpService};

const SESSION_ID: HeaderName = HeaderName::from_static("mcp-session-id");

#[derive(Deserialize)]
struct Message<'a> {
    #[serde(borrow)]
    method: std::borrow::Cow<'a, str>,
}

/// Serves a request without a session if it neither begins nor names one. The body is already in
/// memory.
pub(super) async fn serve_without_session(
    State(stateless): State<McpService>,
    request: Request,
    next: Next,
) -> Response {
    if request.method() != Method::POST || request.headers().contains_key(SESSION_ID) {
        return next.run(request).await;
    }

    let (parts, body) = request.into_parts();
    let Ok(body) = to_bytes(body, MAX_BODY).await else {
        return StatusCode::PAYLOAD_TOO_LARGE.into_response();
    };
    let begins_session = begins_session(&body);
    let request = Request::from_parts(parts, Body::from(body));
    if begins_session {
        next.run(request).await
    } else {
        stateless.handle(request).await.into_response()
    }
}

fn begins_session(body: &[u8]) -> bool {
    serde_json::from_slice::<Message<'_>>(body).is_ok_and(|message| message.method == "initialize")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_initialize_begins_a_session() {
        let check = |body: &str, expected: bool| {
            assert_eq!(begins_session(body.as_bytes()), expected, "{body}")
        };
        check(r#"{"jsonrpc":"2.0","id":1,"method":"initialize","params":{}}"#, true);
        check(r#"{"jsonrpc":"2.0","id":1,"method":"init\u0069alize"}"#, true);
        check(r#"{"jsonrpc":"2.0","method":"notifications/initialized"}"#, false);
        check(
            r#"{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"initialize"}}"#,
            false,
        );
        check("initialize", false);
    }
}

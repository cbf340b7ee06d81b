//! Adds the `Mcp-Name` header to requests about tasks that lack it.
//!
//! SEP-2663 requires the header to repeat `params.taskId`, for proxies that route by it. Some
//! client libraries leave it out (the official Python library 2.3.0 with fastmcp's tasks). A
//! missing header can't mislead a proxy, so it is filled in from the body. A header that
//! contradicts the body is still refused.

use axum::{
    body::{Body, to_bytes},
    extract::Request,
    http::{HeaderName, HeaderValue, StatusCode},
    middleware::Next,
    response::{IntoResponse as _, Response},
};
use serde::Deserialize;

use super::MAX_BODY;

const METHOD: HeaderName = HeaderName::from_static("mcp-method");
const NAME: HeaderName = HeaderName::from_static("mcp-name");

#[derive(Deserialize)]
struct TaskRequest {
    params: Params,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Params {
    task_id: String,
}

/// Adds the header if it is missing. The body is already in memory.
pub(super) async fn fill_in_name(request: Request, next: Next) -> Response {
    let headers = request.headers();
    let method = headers.get(METHOD).and_then(|method| method.to_str().ok());
    if headers.contains_key(NAME) || !method.is_some_and(|method| method.starts_with("tasks/")) {
        return next.run(request).await;
    }

    let (mut parts, body) = request.into_parts();
    let Ok(body) = to_bytes(body, MAX_BODY).await else {
        return StatusCode::PAYLOAD_TOO_LARGE.into_response();
    };
    let task = serde_json::from_slice::<TaskRequest>(&body).ok();
    if let Some(name) = task.and_then(|request| HeaderValue::from_str(&request.params.task_id).ok())
    {
        parts.headers.insert(NAME, name);
    }
    next.run(Request::from_parts(parts, Body::from(body))).await
}

#[cfg(test)]
mod tests {
    use axum::{Router, http::HeaderMap, middleware::from_fn, routing::post};
    use tower::ServiceExt as _;

    use super::*;

    #[tokio::test]
    async fn only_a_missing_name_is_filled_in() {
        let name = async |headers: HeaderMap, body: String| {
            let name = headers.get(NAME).map(|name| name.to_str().unwrap().to_owned());
            format!("{} {}", name.unwrap_or_default(), body.len())
        };
        let router = Router::new().route("/mcp", post(name)).layer(from_fn(fill_in_name));
        let body = r#"{"method":"tasks/get","params":{"taskId":"abc"}}"#;
        for (headers, body, expected) in [
            (&[("mcp-method", "tasks/get")][..], body, "abc 48"),
            (&[("mcp-method", "tasks/get"), ("mcp-name", "x")], body, "x 48"),
            (&[("mcp-method", "tools/call")], body, " 48"),
            (&[("mcp-method", "tasks/get")], "{}", " 2"),
            (&[], body, " 48"),
        ] {
            let mut request = http::Request::post("/mcp");
            for (name, value) in headers {
                request = request.header(*name, *value);
            }
            let request = request.body(Body::from(body)).unwrap();
            let answer = router.clone().oneshot(request).await.unwrap();
            let answer = to_bytes(answer.into_body(), 1_000).await.unwrap();
            assert_eq!(answer, expected, "{headers:?}");
        }
    }
}

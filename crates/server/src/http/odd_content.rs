//! Restores content items that rmcp can't represent in HTTP responses.

use axum::{
    body::{Body, Bytes},
    extract::Request,
    middleware::Next,
    response::Response,
};
use fleet_hosting::kept_items::restore_text;
use http::{HeaderValue, header};
use http_body_util::BodyExt as _;

/// The layer above every route that answers calls. Each event is one frame of its stream; other
/// responses are completely in memory.
pub(super) async fn restore_items(request: Request, next: Next) -> Response {
    let response = next.run(request).await;
    match kind_of(&response) {
        BodyKind::Events => {
            response.map(|body| Body::new(body.map_frame(|frame| frame.map_data(restore_data))))
        }
        BodyKind::Json => restore_json(response).await,
        BodyKind::Other => response,
    }
}

enum BodyKind {
    Events,
    Json,
    Other,
}

fn kind_of(response: &Response) -> BodyKind {
    let content_type =
        response.headers().get(header::CONTENT_TYPE).map_or(&b""[..], HeaderValue::as_bytes);
    if content_type.starts_with(b"text/event-stream") {
        BodyKind::Events
    } else if content_type.starts_with(b"application/json") {
        BodyKind::Json
    } else {
        BodyKind::Other
    }
}

async fn restore_json(response: Response) -> Response {
    let (mut head, body) = response.into_parts();
    let body = match axum::body::to_bytes(body, usize::MAX).await {
        Ok(body) => restore_data(body),
        Err(error) => {
            tracing::warn!(%error, "could not read the body of a response; sending it empty");
            Bytes::new()
        }
    };
    head.headers.remove(header::CONTENT_LENGTH);
    Response::from_parts(head, Body::from(body))
}

fn restore_data(data: Bytes) -> Bytes {
    restore_text(&data).map_or(data, Bytes::from)
}

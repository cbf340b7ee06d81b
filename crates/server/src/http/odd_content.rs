//! Puts content items that rmcp can't hold back into the answers that leave by HTTP.

use axum::{
    body::{Body, Bytes},
    extract::Request,
    middleware::Next,
    response::Response,
};
use fleet_hosting::kept_items::restore_text;
use http::{HeaderValue, header};
use http_body_util::BodyExt as _;

/// The layer over every route that answers calls. An event is one frame of its stream, and other
/// answers are in memory as a whole.
pub(super) async fn put_back(request: Request, next: Next) -> Response {
    let response = next.run(request).await;
    match kind(&response) {
        Kind::Events => {
            response.map(|body| Body::new(body.map_frame(|frame| frame.map_data(restored))))
        }
        Kind::Json => whole(response).await,
        Kind::Other => response,
    }
}

enum Kind {
    Events,
    Json,
    Other,
}

fn kind(response: &Response) -> Kind {
    let content_type =
        response.headers().get(header::CONTENT_TYPE).map_or(&b""[..], HeaderValue::as_bytes);
    if content_type.starts_with(b"text/event-stream") {
        Kind::Events
    } else if content_type.starts_with(b"application/json") {
        Kind::Json
    } else {
        Kind::Other
    }
}

async fn whole(response: Response) -> Response {
    let (mut head, body) = response.into_parts();
    let body = match axum::body::to_bytes(body, usize::MAX).await {
        Ok(body) => restored(body),
        Err(error) => {
            tracing::warn!(%error, "could not read an answer of our own");
            Bytes::new()
        }
    };
    head.headers.remove(header::CONTENT_LENGTH);
    Response::from_parts(head, Body::from(body))
}

fn restored(data: Bytes) -> Bytes {
    restore_text(&data).map_or(data, Bytes::from)
}

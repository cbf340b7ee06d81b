//! What is done with every request, whatever it asks for: its credentials stay out of logs, and it
//! is counted.

use std::time::Instant;

use axum::{
    extract::Request,
    http::{Method, header},
    middleware::Next,
    response::Response,
};
use fleet_jobs::rest;
use fleet_ops::http::CREDENTIALS;

use super::card;
use crate::metrics::HTTP_DURATION;

/// Marks credentials, so that whoever writes the headers into a log, at whatever level, writes
/// `Sensitive` and not the value.
pub(super) async fn mark_credentials(mut request: Request, next: Next) -> Response {
    for name in &CREDENTIALS {
        if let header::Entry::Occupied(mut entry) = request.headers_mut().entry(name) {
            entry.iter_mut().for_each(|value| value.set_sensitive(true));
        }
    }
    next.run(request).await
}

/// Measures requests by path and answer.
pub(super) async fn measure_request(request: Request, next: Next) -> Response {
    let path = match request.uri().path() {
        path if path.starts_with("/message") => "/message",
        path if path.starts_with("/sse") => "/sse",
        card::CARD => card::CARD,
        card::CATALOG => card::CATALOG,
        // Labels are bounded: never an id.
        path => rest::label(path).unwrap_or("/mcp"),
    };
    // What is no method of HTTP has one name, whatever it is.
    let method = match *request.method() {
        Method::GET => "GET",
        Method::POST => "POST",
        Method::DELETE => "DELETE",
        Method::HEAD => "HEAD",
        Method::OPTIONS => "OPTIONS",
        _ => "_OTHER",
    };

    let started = Instant::now();
    let response = next.run(request).await;
    let labels = [
        ("http_request_method", method.to_owned()),
        ("http_route", path.to_owned()),
        ("http_response_status_code", response.status().as_str().to_owned()),
    ];
    metrics::histogram!(HTTP_DURATION.name, &labels).record(started.elapsed());
    response
}

//! Layers for all requests: they keep credentials out of logs and measure the requests.

use std::time::Instant;

use axum::{
    extract::Request,
    http::{Method, header},
    middleware::Next,
    response::Response,
};
use fleet_jobs::rest;
use fleet_ops::http::CREDENTIALS;

use super::{card, views::view_in_path};
use crate::{access::metadata, metrics::HTTP_DURATION};

/// Marks credentials as sensitive, so that any log of the headers shows `Sensitive` instead of
/// their values.
pub(super) async fn mark_credentials(mut request: Request, next: Next) -> Response {
    for name in &CREDENTIALS {
        if let header::Entry::Occupied(mut entry) = request.headers_mut().entry(name) {
            entry.iter_mut().for_each(|value| value.set_sensitive(true));
        }
    }
    next.run(request).await
}

/// Measures the time of a request, by method, route and status.
pub(super) async fn measure_request(request: Request, next: Next) -> Response {
    let path = match request.uri().path() {
        path if path.starts_with("/message") => "/message",
        path if path.starts_with("/sse") => "/sse",
        "/" => "/",
        path if path.starts_with("/console") => "/console",
        card::CARD => card::CARD,
        card::CATALOG => card::CATALOG,
        path if path.starts_with(metadata::ROOT_METADATA) => metadata::ROOT_METADATA,
        path if view_in_path(path).is_some() => "/mcp/{view}",
        // Labels are bounded, so they never contain an id.
        path => rest::path_label(path).unwrap_or("/mcp"),
    };

    // All unknown methods share one label.
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

//! Jobs over plain HTTP, for people without an MCP client.
//!
//! [`routes`] is one table of operations. The router and the OpenAPI document are both made from it, so there is no path
//! without a description and no description without a path.

use std::sync::Arc;

use axum::{
    Router,
    extract::{DefaultBodyLimit, Request},
    http::{Method, Uri},
    middleware::from_fn_with_state,
    response::{IntoResponse as _, Response},
};
use bytes::Bytes;
use fleet_job::topics::DEFAULT_REGISTRY_TOPIC;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use crate::{config::ServerConfig, jobs::Jobs};

mod asyncapi;
mod handlers;
mod openapi;
mod params;
mod problem;
mod routes;
mod sse;

pub(super) use problem::translate;
pub(super) use routes::label;

use problem::{Kind, Problem};

/// What the operations share.
#[derive(Clone)]
struct Api {
    jobs: Option<Jobs>,
    /// Places for open streams.
    streams: Arc<Semaphore>,
    /// Ends streams and waits.
    stop: CancellationToken,
    openapi: Bytes,
    asyncapi: Bytes,
}

/// The routes. Where there are no jobs, those of jobs say so.
pub(super) fn router(jobs: Option<Jobs>, config: &ServerConfig, stop: CancellationToken) -> Router {
    let topics = jobs.as_ref().map(|jobs| jobs.topics().clone()).unwrap_or_default();
    let registry =
        config.registry.as_ref().map_or(DEFAULT_REGISTRY_TOPIC, |registry| registry.topic.as_str());
    let api = Api {
        // Streams must not keep a server that is told to stop from stopping.
        stop: jobs.as_ref().map_or(stop, Jobs::stopped),
        jobs,
        streams: Arc::new(Semaphore::new(sse::MAX_STREAMS)),
        openapi: text(&openapi::document()).into(),
        asyncapi: text(&asyncapi::document(&topics, registry)).into(),
    };
    let mut router = Router::new();
    for operation in routes::operations() {
        let known = operation.params;
        router =
            router.route(operation.path, operation.handler.layer(from_fn_with_state(known, params::check)));
    }
    router
        .method_not_allowed_fallback(method_not_allowed)
        .fallback(no_such_path)
        // Bodies are read, and bounded, before they come here.
        .layer(DefaultBodyLimit::disable())
        .with_state(api)
}

async fn method_not_allowed(method: Method, uri: Uri) -> Response {
    let detail = format!("{} does not take {method}; `Allow` says what it takes", uri.path());
    Problem::new(Kind::MethodNotAllowed, detail).into_response()
}

async fn no_such_path(request: Request) -> Response {
    let path: String = request.uri().path().chars().take(256).collect();
    let detail = format!("there is nothing at {path}; GET /openapi.json says what there is");
    Problem::new(Kind::NoSuchPath, detail).into_response()
}

/// A document as it is served and stands in `schemas/`.
fn text(document: &serde_json::Value) -> String {
    // A value can't fail to become text.
    let mut text = serde_json::to_string_pretty(document).unwrap_or_default();
    text.push('\n');
    text
}

#[cfg(test)]
mod tests {
    use fleet_job::topics::Topics;

    use super::*;

    /// The documents in `schemas/` are those of the code.
    #[test]
    fn the_documents_are_those_of_the_code() {
        let directory = concat!(env!("CARGO_MANIFEST_DIR"), "/../../schemas");
        let asyncapi = asyncapi::document(&Topics::default(), DEFAULT_REGISTRY_TOPIC);
        for (name, document) in [("openapi.json", openapi::document()), ("asyncapi.json", asyncapi)] {
            let path = std::path::Path::new(directory).join(name);
            let expected = text(&document);
            if std::env::var_os("UPDATE_SCHEMAS").is_some() {
                std::fs::write(&path, &expected).unwrap();
            }
            let found = std::fs::read_to_string(&path).unwrap_or_default();
            assert!(
                found == expected,
                "schemas/{name} differs from the code: run UPDATE_SCHEMAS=1 cargo test -p mcp-server --lib documents"
            );
        }
    }
}

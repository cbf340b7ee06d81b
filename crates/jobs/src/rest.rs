//! The REST interface to jobs, for clients that don't speak MCP.
//!
//! `routes` is one table of operations, from which both the router and the OpenAPI document are
//! made. So every path is documented, and every documented path exists.

use std::sync::Arc;

use axum::{
    Router,
    extract::{DefaultBodyLimit, Request},
    http::{Method, Uri},
    middleware::from_fn_with_state,
    response::{IntoResponse as _, Response},
};
use bytes::Bytes;
use fleet_job::topics::Topics;
use schemars::Schema;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use crate::Jobs;

mod asyncapi;
mod handlers;
mod openapi;
mod params;
mod problem;
mod routes;
mod sse;

pub use problem::translate_errors;
pub use routes::path_label;

use problem::{Problem, ProblemKind};

/// The state that all operations share.
#[derive(Clone)]
struct Api {
    jobs: Option<Jobs>,
    /// Permits for open streams.
    streams: Arc<Semaphore>,
    /// Ends open streams and waiting requests.
    stop: CancellationToken,
    openapi: Bytes,
    asyncapi: Bytes,
}

/// The registry topic, for the AsyncAPI document.
#[derive(Debug, Clone)]
pub struct RegistryTopic {
    /// The topic's name.
    pub name: String,
    /// The schema of its records.
    pub schema: Schema,
}

/// Returns the file names and texts of the OpenAPI and AsyncAPI documents.
pub fn documents(topics: &Topics, registry: &RegistryTopic) -> [(&'static str, String); 2] {
    [
        ("openapi.json", to_text(&openapi::build_document())),
        ("asyncapi.json", to_text(&asyncapi::build_document(topics, registry))),
    ]
}

/// Builds the router of the REST interface. Without the job service, every operation on jobs
/// answers that jobs are off.
pub fn router(jobs: Option<Jobs>, registry: &RegistryTopic, stop: CancellationToken) -> Router {
    let topics = jobs.as_ref().map(|jobs| jobs.topics().clone()).unwrap_or_default();
    let [openapi, asyncapi] = documents(&topics, registry).map(|(_, text)| text.into());
    let api = Api {
        // Streams end when the server is told to stop, since they would keep it running.
        stop: jobs.as_ref().map_or(stop, Jobs::stop_token),
        jobs,
        streams: Arc::new(Semaphore::new(sse::MAX_STREAMS)),
        openapi,
        asyncapi,
    };
    let mut router = Router::new();
    for operation in routes::operations() {
        let known = operation.params;
        router = router.route(
            operation.path,
            operation.handler.layer(from_fn_with_state(known, params::check_query)),
        );
    }
    router
        .method_not_allowed_fallback(method_not_allowed)
        .fallback(no_such_path)
        // Bodies have been read and bounded before.
        .layer(DefaultBodyLimit::disable())
        .with_state(api)
}

async fn method_not_allowed(method: Method, uri: Uri) -> Response {
    let path = uri.path();
    let detail = format!("{path} does not support {method}; see the `Allow` header");
    Problem::new(ProblemKind::MethodNotAllowed, detail).into_response()
}

async fn no_such_path(request: Request) -> Response {
    let path: String = request.uri().path().chars().take(256).collect();
    let detail = format!("{path} does not exist; GET /openapi.json lists all paths");
    Problem::new(ProblemKind::NoSuchPath, detail).into_response()
}

/// Returns the text of a document, as it is served and stored in `schemas/`.
fn to_text(document: &serde_json::Value) -> String {
    // A JSON value always serializes.
    let mut text = serde_json::to_string_pretty(document).unwrap_or_default();
    text.push('\n');
    text
}

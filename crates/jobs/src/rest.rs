//! Jobs over plain HTTP, for people without an MCP client.
//!
//! `routes` is one table of operations. The router and the OpenAPI document are both made from it,
//! so there is no path without a description and no description without a path.

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

/// The registry topic as the AsyncAPI document describes it.
#[derive(Debug, Clone)]
pub struct RegistryTopic {
    /// The topic's name.
    pub name: String,
    /// The schema of its records.
    pub schema: Schema,
}

/// The file names and texts of the OpenAPI and the AsyncAPI document.
pub fn documents(topics: &Topics, registry: &RegistryTopic) -> [(&'static str, String); 2] {
    [
        ("openapi.json", to_text(&openapi::build_document())),
        ("asyncapi.json", to_text(&asyncapi::build_document(topics, registry))),
    ]
}

/// The routes of the REST interface. Without jobs, every operation on jobs answers that there are
/// none.
pub fn router(jobs: Option<Jobs>, registry: &RegistryTopic, stop: CancellationToken) -> Router {
    let topics = jobs.as_ref().map(|jobs| jobs.topics().clone()).unwrap_or_default();
    let [openapi, asyncapi] = documents(&topics, registry).map(|(_, text)| text.into());
    let api = Api {
        // Streams must not keep a server that is told to stop from stopping.
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
        // Bodies are read, and bounded, before they come here.
        .layer(DefaultBodyLimit::disable())
        .with_state(api)
}

async fn method_not_allowed(method: Method, uri: Uri) -> Response {
    let detail = format!("{} does not take {method}; `Allow` says what it takes", uri.path());
    Problem::new(ProblemKind::MethodNotAllowed, detail).into_response()
}

async fn no_such_path(request: Request) -> Response {
    let path: String = request.uri().path().chars().take(256).collect();
    let detail = format!("there is nothing at {path}; GET /openapi.json says what there is");
    Problem::new(ProblemKind::NoSuchPath, detail).into_response()
}

/// A document as it is served and stands in `schemas/`.
fn to_text(document: &serde_json::Value) -> String {
    // A value can't fail to become text.
    let mut text = serde_json::to_string_pretty(document).unwrap_or_default();
    text.push('\n');
    text
}

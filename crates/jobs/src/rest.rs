//! The REST interface to jobs, for clients that don't speak MCP.
//!
//! `routes` is one table of operations, from which both the router and the OpenAPI document are
//! made. So every path is documented, and every documented path exists. The server extends the
//! table by operations that are not about jobs.

use std::sync::Arc;

use axum::{
    Router,
    extract::{DefaultBodyLimit, Request, State},
    http::{Method, Uri},
    middleware::{Next, from_fn_with_state},
    response::{IntoResponse as _, Response},
};
use bytes::Bytes;
use fleet_access::{Action, Asker, Context, Resource};
use fleet_job::topics::Topics;
use fleet_ops::{clock, http::content_length};
use schemars::Schema;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use crate::Jobs;

mod approvals;
mod asyncapi;
mod bulk;
mod dead_letters;
mod export;
mod fleet;
mod handlers;
mod inspection;
mod openapi;
mod operation;
mod params;
mod pauses;
mod problem;
mod routes;
mod sse;

pub use handlers::{parse_body, require_json};
pub use operation::{Answer, Operation, RequestBody, SchemaOf, schema_of};
pub use params::{Param, ParamLocation, Parameters};
pub use problem::{Problem, ProblemKind, translate_errors};
pub use routes::path_label;

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

/// Returns the file names and texts of the OpenAPI and AsyncAPI documents. The first one describes
/// the operations on jobs and `more`.
pub fn documents(
    topics: &Topics,
    registry: &RegistryTopic,
    more: &[Operation],
) -> [(&'static str, String); 2] {
    [
        ("openapi.json", to_text(&openapi::build_document(more))),
        ("asyncapi.json", to_text(&asyncapi::build_document(topics, registry))),
    ]
}

/// Builds the router of the REST interface, with the operations on jobs and `more`. Without the job
/// service, every operation on jobs answers that jobs are off.
pub fn router(
    jobs: Option<Jobs>,
    registry: &RegistryTopic,
    more: Vec<Operation>,
    stop: CancellationToken,
) -> Router {
    let topics = jobs.as_ref().map(|jobs| jobs.topics().clone()).unwrap_or_default();
    let [openapi, asyncapi] = documents(&topics, registry, &more).map(|(_, text)| text.into());
    let api = Api {
        // Streams end when the server is told to stop, since they would keep it running.
        stop: jobs.as_ref().map_or(stop, Jobs::stop_token),
        jobs,
        streams: Arc::new(Semaphore::new(sse::MAX_STREAMS)),
        openapi,
        asyncapi,
    };
    let mut router = Router::new();
    for operation in routes::operations().into_iter().chain(more) {
        let handler = operation
            .handler
            .layer(from_fn_with_state(operation.params, params::check_query))
            .layer(from_fn_with_state(operation.action, check_right));
        router = router.route(operation.path, handler);
    }
    router
        .method_not_allowed_fallback(method_not_allowed)
        .fallback(no_such_path)
        // Bodies have been read and bounded before.
        .layer(DefaultBodyLimit::disable())
        .with_state(api)
}

/// Refuses a request if the caller may not do what it asks for with any job at all, or not now.
async fn check_right(State(action): State<Action>, request: Request, next: Next) -> Response {
    // The layer in front of every route says who asks.
    let Some(asker) = request.extensions().get::<Asker>() else {
        let detail = "nobody was authenticated for this request";
        return Problem::new(ProblemKind::Internal, detail).into_response();
    };
    if asker.may_ever(action) {
        // A submission is counted call by call, and administration under the name of its server.
        if matches!(action, Action::SubmitJob | Action::AdministerServers) {
            return next.run(request).await;
        }
        let bytes = content_length(request.headers()).unwrap_or(0);
        let admitted = asker.admit(action, &Resource::default(), bytes, clock::monotonic());
        return match admitted {
            // Its slots are free again when the answer begins.
            Ok(_admitted) => next.run(request).await,
            Err(reached) => Problem::limited(&reached).into_response(),
        };
    }

    match asker.check(action, &Resource::default(), &Context::default()) {
        // The rights have changed in between.
        Ok(_) => next.run(request).await,
        Err(decision) => {
            let detail = decision.message(action.as_str()).unwrap_or_default();
            Problem::denied(decision, detail).into_response()
        }
    }
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

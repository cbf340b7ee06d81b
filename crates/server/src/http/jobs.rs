//! Jobs over plain HTTP, for people without an MCP client.

use axum::{
    Json, Router,
    extract::{Path, State},
    http::{HeaderMap, StatusCode},
    response::{IntoResponse, Response},
    routing::get,
};
use tokio_util::sync::CancellationToken;

use crate::jobs::Jobs;

/// The routes, where there are jobs.
pub(super) fn router(jobs: Option<Jobs>, _stop: CancellationToken) -> Router {
    let Some(jobs) = jobs else { return Router::new() };
    Router::new().route("/jobs/{id}", get(show)).with_state(jobs)
}

async fn show(State(jobs): State<Jobs>, headers: HeaderMap, Path(id): Path<String>) -> Response {
    match jobs.get(&id, &jobs.caller(Some(&headers))).await {
        Ok(job) => Json(job).into_response(),
        Err(error) => (StatusCode::NOT_FOUND, error.to_string()).into_response(),
    }
}

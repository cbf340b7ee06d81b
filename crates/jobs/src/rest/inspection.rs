//! The handlers of operations that look into jobs and run them again.

use axum::{
    Json,
    body::Bytes,
    http::HeaderMap,
    response::{IntoResponse, Response},
};
use fleet_job::trace::TraceContext;

use super::{
    handlers::{ApiClient, check_idempotency_key, parse_body, submitted},
    params::{IDEMPOTENCY_KEY, JobId, header_text},
    problem::{Problem, ProblemKind},
};
use crate::RunRequest;

/// `GET /job-counts`.
pub(super) async fn count_jobs(client: ApiClient) -> Result<Response, Problem> {
    Ok(Json(client.jobs.counts(&client.caller).await?).into_response())
}

/// `GET /jobs/{id}/envelope`.
pub(super) async fn show_envelope(
    client: ApiClient,
    JobId(id): JobId,
) -> Result<Response, Problem> {
    Ok(Json(client.jobs.record(&id, &client.caller).await?).into_response())
}

/// `GET /jobs/{id}/history`.
pub(super) async fn show_history(client: ApiClient, JobId(id): JobId) -> Result<Response, Problem> {
    Ok(Json(client.jobs.history(&id, &client.caller).await?).into_response())
}

/// `POST /jobs/{id}/runs`.
pub(super) async fn run_again(
    client: ApiClient,
    JobId(id): JobId,
    headers: HeaderMap,
    body: Bytes,
) -> Result<Response, Problem> {
    let mut run = parse_run(&headers, &body)?;
    if let Some(key) = header_text(&headers, IDEMPOTENCY_KEY)? {
        check_idempotency_key(key)?;
        run.idempotency_key.get_or_insert_with(|| key.to_owned());
    }

    let trace = TraceContext::find(|name| header_text(&headers, name).ok()?);
    let jobs = client.jobs.run_again(&id, run, &client.caller, &trace).await?;
    Ok(submitted(jobs))
}

/// Reads what a run does differently; nothing if there is no body.
fn parse_run(headers: &HeaderMap, body: &[u8]) -> Result<RunRequest, Problem> {
    if body.is_empty() {
        return Ok(RunRequest::default());
    }
    parse_body(headers, body, ("the run", ProblemKind::BadJob))
}

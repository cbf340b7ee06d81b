//! The handlers of operations on all jobs that match a filter.

use axum::{
    Json,
    http::HeaderMap,
    response::{IntoResponse, Response},
};
use fleet_job::trace::TraceContext;

use super::{
    handlers::ApiClient,
    params::{Parameters, header_text},
    problem::Problem,
};
use crate::BulkAction;

/// `POST /job-cancellations`.
pub(super) async fn cancel_jobs(
    client: ApiClient,
    parameters: Parameters,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let action = BulkAction::Cancel { reason: parameters.reason()? };
    operate(client, action, &parameters, &headers).await
}

/// `POST /job-runs`.
pub(super) async fn run_jobs(
    client: ApiClient,
    parameters: Parameters,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let operation = parameters.operation()?;
    let operation = operation.unwrap_or_else(|| uuid::Uuid::now_v7().to_string());
    operate(client, BulkAction::Run { operation }, &parameters, &headers).await
}

async fn operate(
    client: ApiClient,
    action: BulkAction,
    parameters: &Parameters,
    headers: &HeaderMap,
) -> Result<Response, Problem> {
    let (jobs, query) = (&client.jobs, parameters.filter()?);
    let report = match parameters.is_dry_run()? {
        true => jobs.preview_bulk(&action, query, &client.caller).await?,
        false => {
            let trace = TraceContext::find(|name| header_text(headers, name).ok()?);
            jobs.step_bulk(&action, query, &client.caller, &trace).await?
        }
    };
    Ok(Json(report).into_response())
}

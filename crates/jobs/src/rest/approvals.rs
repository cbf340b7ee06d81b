//! The handler of decisions about jobs that await approval.

use axum::{
    Json,
    body::Bytes,
    http::HeaderMap,
    response::{IntoResponse, Response},
};
use schemars::JsonSchema;
use serde::Deserialize;

use super::{
    handlers::{ApiClient, parse_body},
    params::JobId,
    problem::{Problem, ProblemKind},
};
use crate::Verdict;

/// A decision about a job that awaits approval.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(title = "Decision")]
pub(super) struct DecisionRequest {
    /// Whether the job may run. If not, it ends as `cancelled`.
    approve: bool,
    /// Why, for people; at most 1 KiB is kept.
    #[serde(default)]
    #[schemars(length(max = 1024))]
    reason: Option<String>,
}

/// `POST /jobs/{id}/decision`.
pub(super) async fn decide_job(
    client: ApiClient,
    JobId(id): JobId,
    headers: HeaderMap,
    body: Bytes,
) -> Result<Response, Problem> {
    let asked = ("the decision", ProblemKind::BadRequest);
    let DecisionRequest { approve, reason } = parse_body(&headers, &body, asked)?;
    let verdict = Verdict { approves: approve, reason };
    Ok(Json(client.jobs.decide_approval(&id, &client.caller, verdict).await?).into_response())
}

//! The handlers of operations on pauses.

use axum::{
    Json,
    body::Bytes,
    extract::{FromRequestParts, Path},
    http::{HeaderMap, StatusCode, request::Parts},
    response::{IntoResponse, Response},
};
use fleet_job::envelope::MAX_ID_BYTES;

use super::{
    handlers::{ApiClient, parse_body},
    problem::{Problem, ProblemKind},
};

/// `GET /pauses`.
pub(super) async fn list_pauses(client: ApiClient) -> Result<Response, Problem> {
    Ok(Json(client.jobs.pauses(&client.caller).await?).into_response())
}

/// `POST /pauses`.
pub(super) async fn pause_jobs(
    client: ApiClient,
    headers: HeaderMap,
    body: Bytes,
) -> Result<Response, Problem> {
    let request = parse_body(&headers, &body, ("the pause", ProblemKind::BadPause))?;
    let pause = client.jobs.pause_jobs(request, &client.caller).await?;
    Ok((StatusCode::CREATED, Json(pause)).into_response())
}

/// `DELETE /pauses/{id}`.
pub(super) async fn resume_jobs(
    client: ApiClient,
    PauseId(id): PauseId,
) -> Result<Response, Problem> {
    Ok(Json(client.jobs.resume_jobs(&id, &client.caller).await?).into_response())
}

/// The id of a pause in a path.
#[derive(Debug)]
pub(super) struct PauseId(String);

impl<S: Send + Sync> FromRequestParts<S> for PauseId {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let id = Path::<String>::from_request_parts(parts, state).await;
        let Path(id) = id.map_err(|error| Problem::parameter("id", error.body_text()))?;
        if !(1..=MAX_ID_BYTES).contains(&id.len()) || id.chars().any(char::is_control) {
            let why = format!("must be 1 to {MAX_ID_BYTES} bytes without control characters");
            return Err(Problem::parameter("id", why));
        }
        Ok(Self(id))
    }
}

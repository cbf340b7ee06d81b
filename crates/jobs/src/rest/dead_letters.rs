//! The handlers of operations on dead letters.

use axum::{
    Json,
    response::{IntoResponse, Response},
};

use super::{
    handlers::ApiClient,
    params::{LetterId, Parameters},
    problem::Problem,
};

/// `GET /dead-letters`.
pub(super) async fn list_letters(
    client: ApiClient,
    parameters: Parameters,
) -> Result<Response, Problem> {
    let (filter, keep) = (parameters.letters()?, parameters.listed_letters()?);
    Ok(Json(client.jobs.dead_letters(filter, keep, &client.caller).await?).into_response())
}

/// `GET /dead-letters/{id}`.
pub(super) async fn show_letter(
    client: ApiClient,
    LetterId(place): LetterId,
) -> Result<Response, Problem> {
    Ok(Json(client.jobs.dead_letter(place, &client.caller).await?).into_response())
}

/// `POST /dead-letters/replays`.
pub(super) async fn replay_letters(
    client: ApiClient,
    parameters: Parameters,
) -> Result<Response, Problem> {
    let request = parameters.replay()?;
    Ok(Json(client.jobs.replay_dead_letters(request, &client.caller).await?).into_response())
}

/// `DELETE /dead-letters`.
pub(super) async fn purge_letters(
    client: ApiClient,
    parameters: Parameters,
) -> Result<Response, Problem> {
    let (before, dry_run) = (parameters.purged()?, parameters.is_dry_run()?);
    let purged = client.jobs.purge_dead_letters(before, dry_run, &client.caller).await?;
    Ok(Json(purged).into_response())
}

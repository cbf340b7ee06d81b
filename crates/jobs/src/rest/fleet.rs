//! The handlers of operations on the fleet.

use axum::{
    Json,
    response::{IntoResponse, Response},
};

use super::{handlers::ApiClient, problem::Problem};

/// `GET /workers`.
pub(super) async fn list_workers(client: ApiClient) -> Result<Response, Problem> {
    Ok(Json(client.jobs.workers(&client.caller).await?).into_response())
}

/// `GET /lag`.
pub(super) async fn show_lag(client: ApiClient) -> Result<Response, Problem> {
    Ok(Json(client.jobs.lag(&client.caller).await?).into_response())
}

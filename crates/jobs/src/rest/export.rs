//! The handler of exports.

use std::io;

use axum::{
    body::{Body, Bytes},
    extract::State,
    http::{HeaderValue, header},
    response::{IntoResponse, Response},
};
use fleet_job::export::ExportFormat;
use fleet_ops::errors::chain;
use futures::stream::unfold;
use tokio::sync::OwnedSemaphorePermit;
use tokio_util::sync::CancellationToken;

use super::{Api, handlers::ApiClient, params::Parameters, problem::Problem, sse::acquire_permit};
use crate::{Export, JobsError};

/// `GET /job-exports`.
pub(super) async fn export_jobs(
    State(api): State<Api>,
    client: ApiClient,
    parameters: Parameters,
) -> Result<Response, Problem> {
    let format = parameters.format()?;
    let export = client.jobs.export(parameters.filter()?.filter, &client.caller)?;
    let permit = acquire_permit(&api.streams)?;

    let lines = Lines {
        export,
        format,
        header: Some(format.header()),
        stop: api.stop.clone(),
        _permit: permit,
    };
    let attachment = match format {
        ExportFormat::Jsonl => "attachment; filename=\"jobs.jsonl\"",
        ExportFormat::Csv => "attachment; filename=\"jobs.csv\"",
    };
    let headers = [
        (header::CONTENT_TYPE, HeaderValue::from_static(format.media_type())),
        (header::CONTENT_DISPOSITION, HeaderValue::from_static(attachment)),
        (header::CACHE_CONTROL, HeaderValue::from_static("no-store")),
    ];
    Ok((headers, Body::from_stream(unfold(Some(lines), next_line))).into_response())
}

/// The lines of an export, made as the client takes them.
struct Lines {
    export: Export,
    format: ExportFormat,
    /// What the file begins with, until it is sent.
    header: Option<Vec<u8>>,
    stop: CancellationToken,
    _permit: OwnedSemaphorePermit,
}

/// Returns the next lines. After an error, the connection is closed without the end of the body, so
/// that no client takes a part for the whole.
async fn next_line(lines: Option<Lines>) -> Option<(Result<Bytes, io::Error>, Option<Lines>)> {
    let mut lines = lines?;
    if let Some(header) = lines.header.take()
        && !header.is_empty()
    {
        return Some((Ok(header.into()), Some(lines)));
    }

    let next = tokio::select! {
        next = lines.export.next() => next,
        () = lines.stop.cancelled() => {
            return Some((Err(io::Error::other("the server is stopping")), None));
        }
    };
    match next {
        Ok(Some(job)) => Some((Ok(lines.format.line(&job).into()), Some(lines))),
        Ok(None) => None,
        Err(error) => {
            report(&error);
            Some((Err(io::Error::other(error)), None))
        }
    }
}

fn report(error: &JobsError) {
    tracing::warn!(error = chain(error), "an export of jobs has ended early");
}

//! `job_wait`: waits for the end of a job, for a limited time.

use std::{sync::Arc, time::Duration};

use fleet_job::view::JobView;
use fleet_jobs::{Caller, Jobs, JobsError};
use rmcp::{RoleServer, model::ProgressNotificationParam, service::RequestContext};
use schemars::JsonSchema;
use serde::Deserialize;

use crate::toolkit::{Effect, ToolFailure, ToolSpec};

/// The tool's entry in the tool list.
pub const SPEC: ToolSpec = ToolSpec {
    name: "job_wait",
    title: "Wait for a job",
    description: "Waits for a job to end, for at most timeoutMs (30 s by default), and returns \
                  its current state, with the result if there is one. Sends progress \
                  notifications if the request has a progress token. Call it again if the job has \
                  not ended.",
    effect: Effect::ReadOnly,
};

/// The longest wait, in milliseconds.
const MAX_WAIT_MS: u64 = 300_000;
const DEFAULT_WAIT_MS: u64 = 30_000;

/// The job to wait for, and the longest wait.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Args {
    /// The job's id.
    #[serde(rename = "jobID")]
    job_id: String,
    /// The longest time to wait, in milliseconds.
    #[serde(rename = "timeoutMs", default)]
    #[schemars(range(min = 0, max = 300_000))]
    timeout_ms: Option<u64>,
}

/// Waits for the end of a job.
///
/// # Errors
///
/// Returns an error if the caller has no such job, or if `timeoutMs` is too large.
pub async fn job_wait(
    jobs: Arc<Jobs>,
    context: RequestContext<RoleServer>,
    args: Args,
) -> Result<JobView, ToolFailure> {
    let ms = args.timeout_ms.unwrap_or(DEFAULT_WAIT_MS);
    if ms > MAX_WAIT_MS {
        return Err(ToolFailure::permanent(format!(
            "`timeoutMs` is {ms}; it must be at most {MAX_WAIT_MS}"
        )));
    }

    let caller = super::caller_of(&jobs, &context)?;
    let limit = Duration::from_millis(ms);
    let cancelled = context.ct.clone();
    tokio::select! {
        job = wait_for_end(&jobs, &context, &caller, args.job_id, limit) => {
            job.map_err(|error| super::failure_of(&context, error))
        }
        () = cancelled.cancelled() => {
            Err(ToolFailure::transient("the wait was cancelled; the job was not"))
        }
    }
}

async fn wait_for_end(
    jobs: &Jobs,
    context: &RequestContext<RoleServer>,
    caller: &Caller,
    job_id: String,
    limit: Duration,
) -> Result<JobView, JobsError> {
    let mut watch = jobs.watch(&job_id, caller);
    let mut job = watch.next().await?;
    let deadline = tokio::time::Instant::now() + limit;
    let mut reported = 0.0;
    while !job.is_terminal() {
        let progress = job.event.progress.as_ref();
        // MCP requires progress to increase, but each attempt starts from zero.
        if let (Some(token), Some(progress)) = (context.meta.get_progress_token(), progress)
            && progress.progress > reported
        {
            reported = progress.progress;
            let mut news = ProgressNotificationParam::new(token, progress.progress);
            news.total = progress.total;
            news.message.clone_from(&progress.message);
            // A client that has left only misses progress.
            _ = context.peer.notify_progress(news).await;
        }

        match tokio::time::timeout_at(deadline, watch.next()).await {
            Ok(next) => job = next?,
            Err(_) => break,
        }
    }

    Ok(job)
}

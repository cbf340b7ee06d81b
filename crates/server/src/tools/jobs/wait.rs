//! `job_wait`: waits for a job, for a while.

use std::{sync::Arc, time::Duration};

use fleet_job::view::JobView;
use fleet_jobs::{Caller, Jobs, JobsError};
use rmcp::{RoleServer, model::ProgressNotificationParam, service::RequestContext};
use schemars::JsonSchema;
use serde::Deserialize;

use crate::toolkit::{Effect, ToolFailure, ToolSpec};

/// The tool's place in the list.
pub const SPEC: ToolSpec = ToolSpec {
    name: "job_wait",
    title: "Wait for a job",
    description: "Waits until a job has ended, at most for timeoutMs (30 s where it is not given), and returns it as it is \
                  then, with its result where there is one. Sends progress meanwhile to who asks for it. Call it again \
                  while the job has not ended.",
    effect: Effect::ReadOnly,
};

/// The longest wait, in milliseconds.
const MAX_WAIT_MS: u64 = 300_000;
const DEFAULT_WAIT_MS: u64 = 30_000;

/// Which job, and how long.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Args {
    /// The job's id.
    #[serde(rename = "jobID")]
    job_id: String,
    /// How long to wait, in milliseconds.
    #[serde(rename = "timeoutMs", default)]
    #[schemars(range(min = 0, max = 300_000))]
    timeout_ms: Option<u64>,
}

/// The tool.
///
/// # Errors
///
/// Where there is no such job for this caller, or the wait is too long.
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
    let caller = super::caller_of(&jobs, &context);
    let cancelled = context.ct.clone();
    tokio::select! {
        job = wait_for_end(&jobs, &context, &caller, args.job_id, Duration::from_millis(ms)) => job.map_err(super::failure_of),
        () = cancelled.cancelled() => Err(ToolFailure::transient("the wait was cancelled; the job was not")),
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
        // Progress must grow; it begins anew with an attempt.
        if let (Some(token), Some(progress)) = (context.meta.get_progress_token(), progress)
            && progress.progress > reported
        {
            reported = progress.progress;
            let mut news = ProgressNotificationParam::new(token, progress.progress);
            news.total = progress.total;
            news.message.clone_from(&progress.message);
            // Who does not listen any more loses nothing but progress.
            _ = context.peer.notify_progress(news).await;
        }
        match tokio::time::timeout_at(deadline, watch.next()).await {
            Ok(next) => job = next?,
            Err(_) => break,
        }
    }
    Ok(job)
}

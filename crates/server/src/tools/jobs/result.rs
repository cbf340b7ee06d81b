//! `job_result`: the result of a job.

use std::sync::Arc;

use fleet_job::view::JobView;
use fleet_jobs::Jobs;
use rmcp::{RoleServer, service::RequestContext};

use super::status::Args;
use crate::toolkit::{Effect, ToolFailure, ToolSpec};

/// The tool's entry in the tool list.
pub const SPEC: ToolSpec = ToolSpec {
    name: "job_result",
    title: "Get the result of a job",
    description: "Returns the outcome of a job that has ended: the tool's `result`, or the \
                  `error`. Fails if the job has not ended yet; use job_wait to wait for it.",
    effect: Effect::ReadOnly,
};

/// Returns the outcome of a job that has ended.
///
/// # Errors
///
/// Returns an error if the caller has no such job, or if the job has not ended.
pub async fn job_result(
    jobs: Arc<Jobs>,
    context: RequestContext<RoleServer>,
    args: Args,
) -> Result<JobView, ToolFailure> {
    let caller = super::caller_of(&jobs, &context)?;
    let job = jobs
        .get(&args.job_id, &caller)
        .await
        .map_err(|error| super::failure_of(&context, error))?;
    if !job.is_terminal() {
        return Err(ToolFailure::transient(format!(
            "{}; use job_wait to wait for it",
            job.summary()
        )));
    }
    Ok(job)
}

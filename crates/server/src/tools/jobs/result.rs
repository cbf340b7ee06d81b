//! `job_result`: what a job came to.

use std::sync::Arc;

use fleet_job::view::JobView;
use fleet_jobs::Jobs;
use rmcp::{RoleServer, service::RequestContext};

use super::status::Args;
use crate::toolkit::{Effect, ToolFailure, ToolSpec};

/// The tool's place in the list.
pub const SPEC: ToolSpec = ToolSpec {
    name: "job_result",
    title: "Result of a job",
    description: "Returns what a job that has ended came to: `result` with what the tool returned, or `error` with what \
                  went wrong. A job that has not ended is an error; wait for it with job_wait.",
    effect: Effect::ReadOnly,
};

/// The tool.
///
/// # Errors
///
/// Where there is no such job for this caller, or it has not ended.
pub async fn job_result(
    jobs: Arc<Jobs>,
    context: RequestContext<RoleServer>,
    args: Args,
) -> Result<JobView, ToolFailure> {
    let caller = super::caller_of(&jobs, &context);
    let job = jobs.get(&args.job_id, &caller).await.map_err(super::failure_of)?;
    if !job.is_terminal() {
        return Err(ToolFailure::transient(format!(
            "{}; wait for it with job_wait",
            job.summary()
        )));
    }
    Ok(job)
}

//! `job_status`: the status of a job.

use std::sync::Arc;

use fleet_job::view::JobView;
use fleet_jobs::Jobs;
use rmcp::{RoleServer, service::RequestContext};
use schemars::JsonSchema;
use serde::Deserialize;

use crate::toolkit::{Effect, ToolFailure, ToolSpec};

/// The tool's entry in the tool list.
pub const SPEC: ToolSpec = ToolSpec {
    name: "job_status",
    title: "Get the status of a job",
    description: "Returns a job's state (queued, running, retrying, succeeded, failed, cancelled, \
                  expired), attempts, progress and error, without its result. Use job_result to \
                  get the result.",
    effect: Effect::ReadOnly,
};

/// The job to look up.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Args {
    /// The job's id.
    #[serde(rename = "jobID")]
    pub(super) job_id: String,
}

/// Returns the status of a job.
///
/// # Errors
///
/// Returns an error if the caller has no such job.
pub async fn job_status(
    jobs: Arc<Jobs>,
    context: RequestContext<RoleServer>,
    args: Args,
) -> Result<JobView, ToolFailure> {
    let caller = super::caller_of(&jobs, &context)?;
    let job = jobs
        .get(&args.job_id, &caller)
        .await
        .map_err(|error| super::failure_of(&context, error))?;
    Ok(job.without_result())
}

//! `job_status`: how a job is.

use std::sync::Arc;

use fleet_job::view::JobView;
use fleet_jobs::Jobs;
use rmcp::{RoleServer, service::RequestContext};
use schemars::JsonSchema;
use serde::Deserialize;

use crate::toolkit::{Effect, ToolFailure, ToolSpec};

/// The tool's place in the list.
pub const SPEC: ToolSpec = ToolSpec {
    name: "job_status",
    title: "Status of a job",
    description: "Says how a job is: its state (queued, running, retrying, succeeded, failed, cancelled, expired), attempts, \
                  progress and error. The result is left out; job_result has it.",
    effect: Effect::ReadOnly,
};

/// Which job.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Args {
    /// The job's id.
    #[serde(rename = "jobID")]
    pub(super) job_id: String,
}

/// The tool.
///
/// # Errors
///
/// Where there is no such job for this caller.
pub async fn job_status(
    jobs: Arc<Jobs>,
    context: RequestContext<RoleServer>,
    args: Args,
) -> Result<JobView, ToolFailure> {
    let caller = super::caller_of(&jobs, &context);
    let job = jobs.get(&args.job_id, &caller).await.map_err(super::failure_of)?;
    Ok(job.without_result())
}

//! `job_cancel`: a job that is not wanted any more.

use std::{sync::Arc, time::Duration};

use fleet_job::view::Cancellation;
use fleet_jobs::Jobs;
use rmcp::{RoleServer, service::RequestContext};
use schemars::JsonSchema;
use serde::Deserialize;

use crate::toolkit::{Effect, ToolFailure, ToolSpec};

/// The tool's place in the list.
pub const SPEC: ToolSpec = ToolSpec {
    name: "job_cancel",
    title: "Cancel a job",
    description: "Cancels a job: one that waits never starts, the call of one that runs is cancelled. `outcome` says what \
                  that came to: cancelled, too-late (the job had come to another end), or requested (it has not ended yet).",
    effect: Effect::IdempotentRemoval,
};

/// How long to wait for the job to end.
const WAIT: Duration = Duration::from_secs(5);

/// Which job.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Args {
    /// The job's id.
    #[serde(rename = "jobID")]
    job_id: String,
    /// Why, for people.
    #[serde(default)]
    reason: Option<String>,
}

/// The tool.
///
/// # Errors
///
/// Where there is no such job for this caller, or Kafka does not take the wish.
pub async fn job_cancel(
    jobs: Arc<Jobs>,
    context: RequestContext<RoleServer>,
    args: Args,
) -> Result<Cancellation, ToolFailure> {
    let caller = super::caller_of(&jobs, &context);
    let cancelled = jobs.cancel(&args.job_id, &caller, args.reason.as_deref(), WAIT).await;
    cancelled.map_err(super::failure_of)
}

//! `job_cancel`: cancels a job.

use std::{sync::Arc, time::Duration};

use fleet_job::view::Cancellation;
use fleet_jobs::Jobs;
use rmcp::{RoleServer, service::RequestContext};
use schemars::JsonSchema;
use serde::Deserialize;

use crate::toolkit::{Effect, ToolFailure, ToolSpec};

/// The tool's entry in the tool list.
pub const SPEC: ToolSpec = ToolSpec {
    name: "job_cancel",
    title: "Cancel a job",
    description: "Cancels a job. A waiting job never starts; a running job's call is cancelled. \
                  `outcome` is `cancelled`, `too-late` (the job had already ended otherwise) or \
                  `requested` (the job has not ended yet).",
    effect: Effect::IdempotentRemoval,
};

/// The longest time to wait for the job to end.
const WAIT: Duration = Duration::from_secs(5);

/// The job to cancel.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Args {
    /// The job's id.
    #[serde(rename = "jobID")]
    job_id: String,
    /// The reason, for people.
    #[serde(default)]
    reason: Option<String>,
}

/// Cancels a job, and waits briefly for its end.
///
/// # Errors
///
/// Returns an error if the caller has no such job, or if the cancel request can't be written.
pub async fn job_cancel(
    jobs: Arc<Jobs>,
    context: RequestContext<RoleServer>,
    args: Args,
) -> Result<Cancellation, ToolFailure> {
    let caller = super::caller_of(&jobs, &context)?;
    let cancelled = jobs.cancel(&args.job_id, &caller, args.reason.as_deref(), WAIT).await;
    cancelled.map_err(|error| super::failure_of(&context, error))
}

//! `job_submit`: submits jobs.

use std::sync::Arc;

use fleet_job::{trace::TraceContext, view::SubmittedJobs};
use fleet_jobs::{JobRequest, Jobs, request::BadRequest};
use rmcp::{RoleServer, service::RequestContext};
use schemars::JsonSchema;
use serde::Deserialize;

use crate::toolkit::{Effect, ToolFailure, ToolSpec};

/// The tool's entry in the tool list.
pub const SPEC: ToolSpec = ToolSpec {
    name: "job_submit",
    title: "Submit jobs",
    description: "Submits one job or many, and returns their ids without waiting for them to run. \
                  A job durably calls a tool or a batch of tools: it is retried and survives \
                  restarts. Follow it with job_status, job_wait and job_result. An idempotencyKey \
                  prevents submitting the same job twice.",
    effect: Effect::Change,
};

/// The fields of one job, or many jobs in `jobs`.
#[derive(Debug, Deserialize, JsonSchema)]
pub struct Args {
    /// Up to 1,000 jobs. If it is missing, the other fields describe one job.
    #[serde(default)]
    #[schemars(length(min = 1, max = 1000))]
    jobs: Option<Vec<JobRequest>>,
    /// The fields of one job.
    #[serde(flatten)]
    job: JobRequest,
}

/// Submits jobs for the caller.
///
/// # Errors
///
/// Returns an error if a job is invalid or can't be written.
pub async fn job_submit(
    jobs: Arc<Jobs>,
    context: RequestContext<RoleServer>,
    args: Args,
) -> Result<SubmittedJobs, ToolFailure> {
    let requests = match args.jobs {
        None => vec![args.job],
        Some(many) if args.job == JobRequest::default() => many,
        Some(_) => {
            let both =
                BadRequest("give either `jobs` or the fields of one job, not both".to_owned());
            return Err(super::failure_of(&context, both.into()));
        }
    };

    let caller = super::caller_of(&jobs, &context)?;
    let trace = TraceContext::of_meta(&context.meta);
    let jobs = jobs
        .submit(requests, &caller, &trace)
        .await
        .map_err(|error| super::failure_of(&context, error))?;
    Ok(SubmittedJobs { jobs })
}

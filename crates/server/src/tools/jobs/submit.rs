//! `job_submit`: puts jobs on the queue.

use std::sync::Arc;

use fleet_job::{trace::TraceContext, view::SubmittedJobs};
use fleet_jobs::{JobRequest, Jobs, request::BadRequest};
use rmcp::{RoleServer, service::RequestContext};
use schemars::JsonSchema;
use serde::Deserialize;

use crate::toolkit::{Effect, ToolFailure, ToolSpec};

/// The tool's place in the list.
pub const SPEC: ToolSpec = ToolSpec {
    name: "job_submit",
    title: "Submit jobs",
    description: "Puts one job or many on the queue and returns their ids at once. A job calls a tool, or a batch of \
                  tools, later and durably: it is retried, survives restarts, and can be asked for with job_status, \
                  job_wait and job_result. With an idempotencyKey the same job is not submitted twice.",
    effect: Effect::Change,
};

/// One job (its fields), or many (`jobs`).
#[derive(Debug, Deserialize, JsonSchema)]
pub struct Args {
    /// Many jobs, at most 1,000. Without it the other fields are one job.
    #[serde(default)]
    #[schemars(length(min = 1, max = 1000))]
    jobs: Option<Vec<JobRequest>>,
    /// One job.
    #[serde(flatten)]
    job: JobRequest,
}

/// The tool.
///
/// # Errors
///
/// Where a job is not acceptable, or can't be written.
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
            return Err(super::failure_of(both.into()));
        }
    };
    let caller = super::caller_of(&jobs, &context);
    let trace = TraceContext::of_meta(&context.meta);
    let jobs = jobs.submit(requests, &caller, &trace).await.map_err(super::failure_of)?;
    Ok(SubmittedJobs { jobs })
}

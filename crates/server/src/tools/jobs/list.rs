//! `job_list`: many jobs.

use std::sync::Arc;

use fleet_job::{event::JobState, time::Timestamp, view::JobList};
use fleet_jobs::{JobFilter, Jobs};
use rmcp::{RoleServer, service::RequestContext};
use schemars::JsonSchema;
use serde::Deserialize;

use crate::toolkit::{Effect, ToolFailure, ToolSpec};

/// The tool's place in the list.
pub const SPEC: ToolSpec = ToolSpec {
    name: "job_list",
    title: "List jobs",
    description: "Lists jobs, those that were submitted last first, without their results. Filters by state, type, tool, \
                  tenant and time. `nextCursor` is the `cursor` of the next page.",
    effect: Effect::ReadOnly,
};

/// Which jobs.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Args {
    /// In one of these states.
    #[serde(default)]
    states: Vec<JobState>,
    /// `tool-call`, `tool-batch` or `server-init`.
    #[serde(default)]
    job_type: Option<String>,
    /// That call this tool.
    #[serde(default)]
    tool: Option<String>,
    /// Of this tenant.
    #[serde(default)]
    tenant: Option<String>,
    /// Submitted at this time or later.
    #[serde(default)]
    since: Option<Timestamp>,
    /// Submitted before this time.
    #[serde(default)]
    until: Option<Timestamp>,
    /// The most jobs on a page; 50 where it is not given.
    #[serde(default)]
    #[schemars(range(min = 1, max = 500))]
    limit: Option<usize>,
    /// Where the page before ended.
    #[serde(default)]
    cursor: Option<String>,
}

/// The tool.
///
/// # Errors
///
/// Where the cursor is none, or the ledger can't say.
pub async fn job_list(
    jobs: Arc<Jobs>,
    context: RequestContext<RoleServer>,
    args: Args,
) -> Result<JobList, ToolFailure> {
    let Args { states, job_type, tool, tenant, since, until, limit, cursor } = args;
    let filter = JobFilter { states, job_type, tool, tenant, since, until, limit, cursor };
    let query = filter.query().map_err(|error| super::failure(error.into()))?;
    jobs.list(query, &super::caller(&jobs, &context)).await.map_err(super::failure)
}

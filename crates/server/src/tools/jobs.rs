//! The `job_*` tools: jobs for all clients, whether they support tasks or not.

use std::sync::Arc;

use fleet_jobs::{Caller, Jobs, JobsError};
use http::request::Parts;
use rmcp::{RoleServer, service::RequestContext};

use crate::toolkit::{ToolFailure, Toolkit};

pub mod cancel;
pub mod list;
pub mod result;
pub mod status;
pub mod submit;
pub mod wait;

/// The toolkit of the `job_*` tools.
pub fn toolkit(jobs: Jobs) -> Toolkit<Jobs> {
    Toolkit::new(Arc::new(jobs))
        .always_runs()
        .with(&submit::SPEC, submit::job_submit)
        .with(&status::SPEC, status::job_status)
        .with(&result::SPEC, result::job_result)
        .with(&wait::SPEC, wait::job_wait)
        .with(&cancel::SPEC, cancel::job_cancel)
        .with(&list::SPEC, list::job_list)
}

fn caller_of(jobs: &Jobs, context: &RequestContext<RoleServer>) -> Caller {
    jobs.caller(context.extensions.get::<Parts>())
}

fn failure_of(error: JobsError) -> ToolFailure {
    let message = error.to_string();
    if error.is_retryable() {
        ToolFailure::transient(message)
    } else {
        ToolFailure::permanent(message)
    }
}

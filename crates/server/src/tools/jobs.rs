//! The `job_*` tools: jobs for all clients, whether they support tasks or not.

use std::sync::Arc;

use fleet_access::Action;
use fleet_hosting::{Fleet, apps};
use fleet_job::tool_name;
use fleet_jobs::{Caller, Jobs, JobsError, ResolvedTool, ToolResolver};
use http::request::Parts;
use rmcp::{RoleServer, service::RequestContext};

use crate::{
    gateway::asking_in,
    provider::ToolRight,
    toolkit::{ToolFailure, Toolkit},
};

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
        .with_right(&submit::SPEC, ToolRight::OnJobs(Action::SubmitJob))
        .with(&status::SPEC, status::job_status)
        .with_right(&status::SPEC, ToolRight::OnJobs(Action::ReadJob))
        .with(&result::SPEC, result::job_result)
        .with_right(&result::SPEC, ToolRight::OnJobs(Action::ReadJob))
        .with(&wait::SPEC, wait::job_wait)
        .with_right(&wait::SPEC, ToolRight::OnJobs(Action::ReadJob))
        .with(&cancel::SPEC, cancel::job_cancel)
        .with_right(&cancel::SPEC, ToolRight::OnJobs(Action::CancelJob))
        .with(&list::SPEC, list::job_list)
        .with_right(&list::SPEC, ToolRight::OnJobs(Action::ReadJob))
}

fn caller_of(jobs: &Jobs, context: &RequestContext<RoleServer>) -> Result<Caller, ToolFailure> {
    let asking = asking_in(context).map_err(ToolFailure::refused)?;
    let headers = context.extensions.get::<Parts>().map(|parts| &parts.headers);
    // Those of a worker say nothing about whose job it presents.
    let headers = headers.filter(|_| !asking.asker().is_presented());
    Ok(jobs.caller(headers, asking.asker()))
}

/// The failure that an error of the job service is in a call with this context.
fn failure_of(context: &RequestContext<RoleServer>, error: JobsError) -> ToolFailure {
    match (&error, asking_in(context)) {
        (JobsError::Denied { action, decision }, Ok(asking)) => {
            return ToolFailure::refused(asking.refuse(*action, decision));
        }
        (JobsError::Limited(reached), Ok(asking)) => {
            return ToolFailure::refused(asking.limit(reached, None));
        }
        (JobsError::Unrecorded(gap), Ok(asking)) => {
            return ToolFailure::refused(asking.unrecorded(gap));
        }
        _ => {}
    }
    let message = error.to_string();
    if error.is_retryable() {
        ToolFailure::transient(message)
    } else {
        ToolFailure::permanent(message)
    }
}

/// Finds the tools that jobs name, as the gateway does when it calls them.
pub fn resolver(fleet: Arc<Fleet>) -> ToolResolver {
    Arc::new(move |name, arguments| {
        let routes = fleet.routes();
        // The job of a withheld tool waits.
        let route = routes.known_tool(name);
        let (server, tool) = match route {
            Some(route) => (route.server.as_str(), route.name.as_str()),
            None => tool_name::split(name)?,
        };

        let mut arguments = arguments.clone();
        apps::restore_in_object(server, &mut arguments);
        Some(ResolvedTool {
            server: server.to_owned(),
            tool: tool.to_owned(),
            arguments,
            is_known: route.is_some(),
        })
    })
}

#[cfg(test)]
mod tests {
    use fleet_policy::{Policy, current::CurrentPolicy};
    use serde_json::json;

    use super::*;

    #[test]
    fn arguments_are_restored_even_if_nobody_has_the_tool_now() {
        let resolve = resolver(Fleet::new(CurrentPolicy::new(Policy::default())));
        let arguments = json!({"page": "ui://mcp-fleet/a/ui://page"});
        let arguments = arguments.as_object().unwrap();

        let found = resolve("a__query", arguments).unwrap();
        assert_eq!((found.server.as_str(), found.tool.as_str()), ("a", "query"));
        assert_eq!(found.arguments["page"], "ui://page");
        assert!(!found.is_known);
        assert_eq!(resolve("file_read", arguments), None);
    }
}

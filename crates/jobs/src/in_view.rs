//! Jobs that are submitted in a view: their tools have the names of the view, and must be in it.
//!
//! A job runs later, and not in the view. So names are replaced here by those of the tools that they
//! stand for, what could mean something else when the job runs is refused, and the rules of the view
//! are asked about every call before the job exists.

use fleet_access::{
    Action, Annotations, Arguments, Context, JobRights, Resource, RuleEffect, View,
};
use fleet_job::{
    envelope::{ToolCall, Work},
    size::clipped,
    tool_name,
};
use serde_json::{Map, Value};

use super::{
    Caller, JobsError,
    request::BadRequest,
    rights::{JOB_TOOLS, SERVER_TOOLS, ToolResolver, named_tool},
};

/// The tool that a job calls to host a server.
const SERVER_INITIALIZE: &str = "server_initialize";

/// The longest part of a name that an error repeats, in bytes.
const SHOWN_NAME: usize = 256;

/// Replaces the names of a job's tools.
///
/// # Errors
///
/// Returns an error if the view does not have one of the tools, as if there were none. The refusal
/// is recorded.
pub(crate) fn resolve_names(
    work: &mut Work,
    (caller, view): (&Caller, &View),
    resolve: Option<&ToolResolver>,
) -> Result<(), BadRequest> {
    let calls = match work {
        Work::ToolCall(call) => std::slice::from_mut(call),
        Work::ToolBatch(batch) => &mut batch.calls[..],
        Work::ServerInit(_) if view.has_tool(None, SERVER_INITIALIZE) => return Ok(()),
        Work::ServerInit(config) => {
            record_hidden(caller, (None, SERVER_INITIALIZE), config);
            return Err(unknown_tool(SERVER_INITIALIZE));
        }
    };
    calls.iter_mut().try_for_each(|call| resolve_name(call, (caller, view), resolve))
}

/// Checks a call of a job against what the view of its submitter forbids, since nothing asks the
/// view when the job runs. Returns the rule of the view that wants the call to be approved first.
///
/// # Errors
///
/// Returns the refusal. A call that needs approval is refused where jobs can't wait for it.
pub(crate) fn check_call(
    caller: &Caller,
    tool: &Resource<'_>,
    arguments: Arguments<'_>,
    jobs: JobRights,
) -> Result<Option<String>, JobsError> {
    let context = Context { arguments, ..Context::default() };
    let Some(restriction) = caller.restriction(Action::CallTool, tool, &context) else {
        return Ok(None);
    };
    if restriction.verdict == RuleEffect::Approve && jobs == JobRights::OfSubmitters {
        return Ok(Some(restriction.rule.as_str().to_owned()));
    }
    Err(caller.refuse(Action::CallTool, tool, restriction, arguments))
}

/// Checks that a job may host a server by what the view of its submitter forbids, as
/// [`check_call`] does.
///
/// # Errors
///
/// As [`check_call`].
pub(crate) fn check_hosting(
    caller: &Caller,
    (name, config): (&str, Option<&Value>),
    jobs: JobRights,
) -> Result<Option<String>, JobsError> {
    if caller.view().is_none() {
        return Ok(None);
    }
    let members = [("name", Some(&Value::from(name))), ("config", config)]
        .map(|(member, value)| value.map(|value| (member.to_owned(), value.clone())));
    let arguments: Map<_, _> = members.into_iter().flatten().collect();
    let tool = Resource::tool(None, SERVER_INITIALIZE, Annotations::default());
    check_call(caller, &tool, Arguments::Known(&arguments), jobs)
}

fn resolve_name(
    call: &mut ToolCall,
    (caller, view): (&Caller, &View),
    resolve: Option<&ToolResolver>,
) -> Result<(), BadRequest> {
    let called = call.exposed_name();
    if let Some((server, tool)) = view.target(&called) {
        (call.server, call.tool) = (server.map(str::to_owned), tool.to_owned());
    } else {
        let found = resolve.and_then(|resolve| resolve(&called, &call.arguments));
        let named = match &found {
            Some(found) if found.is_known => (Some(found.server.as_str()), found.tool.as_str()),
            _ => named_tool(call),
        };
        // It may come to stand for a tool that the view does not have.
        let is_certain =
            found.as_ref().is_some_and(|found| found.is_known) || !tool_name::is_ambiguous(&called);
        let is_possible =
            call.server.as_deref().is_none_or(|server| tool_name::check_server(server).is_ok());

        if !is_certain || !is_possible || !view.admits(&called, named.0, named.1) {
            record_hidden(caller, named, &call.arguments);
            return Err(unknown_tool(&called));
        }
    }

    // They answer by whoever calls them and where, and a job does not call them in the view.
    let is_own = |prefix| call.server.is_none() && call.tool.starts_with(prefix);
    if is_own(SERVER_TOOLS) || is_own(JOB_TOOLS) {
        let tool = clipped(&called, SHOWN_NAME);
        return Err(BadRequest(format!(
            "a job that is submitted in a view can't call `{tool}`; call it directly"
        )));
    }
    Ok(())
}

fn record_hidden(
    caller: &Caller,
    (server, tool): (Option<&str>, &str),
    arguments: &Map<String, Value>,
) {
    let resource = Resource::tool(server, tool, Annotations::default());
    caller.record_hidden(Action::SubmitJob, &resource, Arguments::Known(arguments));
}

fn unknown_tool(name: &str) -> BadRequest {
    BadRequest(format!("unknown tool `{}`", clipped(name, SHOWN_NAME)))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use fleet_access::{AccessPolicy, Asker, CurrentRights, Principal};
    use serde_json::{Value, json};

    use super::*;
    use crate::{Caller, JobRequest, ResolvedTool};

    const VIEW: &str = "
        [[view.v.select]]
        servers = ['crm', '']
        hide = ['delete', 'ns/delete', 'server_initialize']
        [[view.v.select]]
        servers = ['q*']
        hide = ['admin*']
        [[view.v.tool]]
        server = 'crm'
        tool = 'get'
        as = 'find'
        [[view.v.tool]]
        tool = 'job_list'
        as = 'mine'
    ";

    /// The tools of a job once their names are resolved. The server `crm` has `ns/delete` now.
    fn resolve(job: Value) -> Result<Vec<String>, String> {
        let rights = CurrentRights::new(AccessPolicy::parse(VIEW, None).unwrap().into_rights());
        let asker = Asker::new(Arc::new(Principal::local()), rights);
        let view = asker.enter_view("v").unwrap().view().unwrap();
        let caller = Caller::new(None, None, asker);
        let request: JobRequest = serde_json::from_value(job).unwrap();
        let mut work = request.prepare(&caller, || "j".to_owned()).unwrap().envelope.work;

        let resolver: ToolResolver = Arc::new(|name, arguments| {
            (name == tool_name::exposed("crm", "ns/delete")).then(|| ResolvedTool {
                server: "crm".to_owned(),
                tool: "ns/delete".to_owned(),
                arguments: arguments.clone(),
                is_known: true,
            })
        });
        resolve_names(&mut work, (&caller, &view), Some(&resolver))
            .map_err(|error| error.to_string())?;
        let calls = match work {
            Work::ToolCall(call) => vec![call],
            Work::ToolBatch(batch) => batch.calls,
            Work::ServerInit(_) => Vec::new(),
        };
        Ok(calls.iter().map(ToolCall::exposed_name).collect())
    }

    #[test]
    fn names_of_the_view_become_those_of_the_tools() {
        for (job, expected) in [
            (json!({"tool": "find"}), &["crm__get"][..]),
            (json!({"tool": "crm__list"}), &["crm__list"]),
            (json!({"server": "crm", "tool": "list"}), &["crm__list"]),
            (json!({"tool": "file_read"}), &["file_read"]),
            (
                json!({"calls": [{"tool": "find"}, {"tool": "crm__list"}]}),
                &["crm__get", "crm__list"],
            ),
            (json!({"jobType": "tool-call", "payload": "{\"tool\":\"find\"}"}), &["crm__get"]),
        ] {
            assert_eq!(resolve(job.clone()).unwrap(), expected, "{job}");
        }
    }

    #[test]
    fn no_spelling_reaches_a_tool_that_the_view_does_not_have() {
        let shortened = tool_name::exposed("crm", "ns/delete");
        let (_, own) = tool_name::split(&shortened).unwrap();
        for job in [
            json!({"tool": "crm__delete"}),
            json!({"server": "crm", "tool": "delete"}),
            json!({"tool": "crm__get"}),
            json!({"server": "crm", "tool": "get"}),
            json!({"tool": shortened}),
            json!({"server": "crm", "tool": "ns/delete"}),
            json!({"server": "crm", "tool": own}),
            // Their tools are not known here.
            json!({"tool": tool_name::exposed("crm", "ns/drop")}),
            json!({"server": "crm", "tool": "ns/drop"}),
            json!({"tool": "crm___x"}),
            // It is called as the tool `admin__drop` of `q`.
            json!({"server": "q__admin", "tool": "drop"}),
            // The view has no tool that hosts servers.
            json!({"mcpServers": {"crm": {"command": "x"}}}),
            json!({"tool": "db__query"}),
            json!({"server": "db", "tool": "query"}),
            json!({"calls": [{"tool": "find"}, {"tool": "db__query"}]}),
            json!({"jobType": "tool-call", "payload": {"server": "db", "tool": "query"}}),
        ] {
            let refusal = resolve(job.clone()).unwrap_err();
            assert!(refusal.contains("unknown tool `"), "{job}: {refusal}");
        }
    }

    #[test]
    fn a_job_can_not_call_what_answers_differently_outside_of_the_view() {
        for tool in ["job_submit", "mine", "server_status", "server_list"] {
            let refusal = resolve(json!({"tool": tool, "arguments": {"tool": "db__query"}}));
            let expected = format!("a job that is submitted in a view can't call `{tool}`");
            assert!(refusal.unwrap_err().contains(&expected), "{tool}");
        }
    }
}

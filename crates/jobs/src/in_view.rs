//! Jobs that are submitted in a view: their tools have the names of the view, and must be in it.
//!
//! A job runs later, and not in the view. So names are replaced here by those of the tools that they
//! stand for, and what could mean something else when the job runs is refused.

use fleet_access::View;
use fleet_job::{
    envelope::{ToolCall, Work},
    size::clipped,
    tool_name,
};

use super::{
    request::BadRequest,
    rights::{JOB_TOOLS, SERVER_TOOLS, ToolResolver, named_tool},
};

/// The longest part of a name that an error repeats, in bytes.
const SHOWN_NAME: usize = 256;

/// Replaces the names of a job's tools.
///
/// # Errors
///
/// Returns an error if the view does not have one of the tools, as if there were none.
pub(crate) fn resolve_names(
    work: &mut Work,
    view: &View,
    resolve: Option<&ToolResolver>,
) -> Result<(), BadRequest> {
    let calls = match work {
        Work::ToolCall(call) => std::slice::from_mut(call),
        Work::ToolBatch(batch) => &mut batch.calls[..],
        // The right to host a server in a view is decided on by the server's name.
        Work::ServerInit(_) => return Ok(()),
    };
    calls.iter_mut().try_for_each(|call| resolve_name(call, view, resolve))
}

fn resolve_name(
    call: &mut ToolCall,
    view: &View,
    resolve: Option<&ToolResolver>,
) -> Result<(), BadRequest> {
    let called = call.exposed_name();
    if let Some((server, tool)) = view.target(&called) {
        (call.server, call.tool) = (server.map(str::to_owned), tool.to_owned());
    } else {
        let found = resolve.and_then(|resolve| resolve(&called, &call.arguments));
        let (server, tool) = match &found {
            Some(found) if found.is_known => (Some(found.server.as_str()), found.tool.as_str()),
            // It may come to stand for a tool that the view does not have.
            _ if tool_name::is_ambiguous(&called) => return Err(unknown_tool(&called)),
            _ => named_tool(call),
        };
        if !view.admits(&called, server, tool) {
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
        hide = ['delete', 'ns/delete']
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
        resolve_names(&mut work, &view, Some(&resolver)).map_err(|error| error.to_string())?;
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

//! What a job does, as far as the right to submit it goes.

use fleet_access::{Action, Annotations, Arguments, Context, Resource};
use fleet_job::{
    envelope::{Envelope, ToolCall, Work},
    mcp_servers::McpServers,
    tool_name,
};

use super::{Caller, JobsError, request::BadRequest};

/// Checks that the caller may submit a job: each of its calls, and each server that it hosts.
///
/// # Errors
///
/// Returns the refusal of the first call or server that the caller may not use.
pub(crate) fn check_submission(caller: &Caller, envelope: &Envelope) -> Result<(), JobsError> {
    let tenant = envelope.tenant.as_deref();
    let check = |action, resource: Resource<'_>, arguments| {
        let context = Context { arguments, ..Context::default() };
        caller.check(action, &resource, &context)
    };

    let calls = match &envelope.work {
        Work::ToolCall(call) => std::slice::from_ref(call),
        Work::ToolBatch(batch) => &batch.calls[..],
        Work::ServerInit(config) => {
            let servers = McpServers::from_value(&config.clone().into());
            let servers = servers.map_err(|error| BadRequest(error.to_string()))?;
            for name in servers.servers.keys() {
                let server = Resource { server: Some(name), tenant, ..Resource::default() };
                check(Action::SubmitJob, server, Arguments::None)?;
                check(Action::AdministerServers, server, Arguments::None)?;
            }
            return Ok(());
        }
    };

    for call in calls {
        let (server, tool) = named_tool(call);
        let resource = Resource { tenant, ..Resource::tool(server, tool, Annotations::default()) };
        check(Action::SubmitJob, resource, Arguments::Known(&call.arguments))?;
    }
    Ok(())
}

/// The server of a call and the tool's own name, as far as the call itself tells them.
fn named_tool(call: &ToolCall) -> (Option<&str>, &str) {
    match (&call.server, tool_name::split(&call.tool)) {
        (Some(server), _) => (Some(server), &call.tool),
        (None, Some((server, tool))) => (Some(server), tool),
        (None, None) => (None, &call.tool),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use fleet_access::{AccessPolicy, Asker, CurrentRights, Principal, PrincipalKind, Rights, Via};
    use serde_json::{Value, json};

    use super::*;

    /// Whether a principal of the tenant `a` may submit a job under these rules.
    fn may_submit(rules: &str, job: Value) -> Result<(), String> {
        let policy = AccessPolicy::parse(rules, None).unwrap();
        let rights = CurrentRights::new(Rights { rules: policy.rules, limits: policy.limits });
        let via = Via::Key { id: "k".to_owned() };
        let mut principal = Principal::new("keys", "ci", PrincipalKind::Service, via);
        principal.tenant = Some("a".to_owned());

        let asker = Asker::new(Arc::new(principal), rights);
        let caller = Caller::new(Some("ci".to_owned()), None, asker);
        let request: crate::JobRequest = serde_json::from_value(job).unwrap();
        let prepared = request.prepare(&caller, || "j".to_owned()).unwrap();
        check_submission(&caller, &prepared.envelope).map_err(|error| error.to_string())
    }

    const DB: &str = "
        [[rule]]
        name = 'db'
        effect = 'allow'
        principals = ['anyone']
        actions = ['jobs.submit']
        servers = ['db']
        tools = ['query']
    ";

    #[test]
    fn every_call_needs_a_rule() {
        for job in [
            json!({"server": "db", "tool": "query"}),
            json!({"tool": "db__query"}),
            json!({"calls": [{"tool": "db__query"}, {"server": "db", "tool": "query"}]}),
        ] {
            assert_eq!(may_submit(DB, job.clone()), Ok(()), "{job}");
        }
        for job in [
            json!({"tool": "query"}),
            json!({"server": "db", "tool": "db__query"}),
            json!({"server": "db", "tool": "drop"}),
            json!({"calls": [{"tool": "db__query"}, {"tool": "db__drop"}]}),
            json!({"mcpServers": {"db": {"command": "x"}}}),
        ] {
            let refusal = may_submit(DB, job.clone()).unwrap_err();
            assert!(refusal.contains("jobs.submit") && refusal.contains("FLEET-DENIED"), "{job}");
        }
    }

    #[test]
    fn hosting_a_server_takes_the_right_to_administer_it() {
        let submit = "[[rule]]\nname='s'\neffect='allow'\nprincipals=['anyone']\n\
                      actions=['jobs.submit']\n";
        let administer = "[[rule]]\nname='a'\neffect='allow'\nprincipals=['anyone']\n\
                          actions=['servers.administer']\nservers=['db']\n";
        let job = || json!({"mcpServers": {"db": {"command": "x"}}});
        let refusal = may_submit(submit, job()).unwrap_err();
        assert!(refusal.contains("servers.administer"), "{refusal}");
        assert_eq!(may_submit(&[submit, administer].concat(), job()), Ok(()));
    }

    #[test]
    fn a_job_belongs_to_the_tenant_of_its_submitter() {
        let job = |tenant: &str| json!({"tool": "db__query", "tenant": tenant});
        assert_eq!(may_submit(DB, job("a")), Ok(()));
        let refusal = may_submit(DB, job("b")).unwrap_err();
        assert!(refusal.contains("jobs.submit"), "{refusal}");
    }
}

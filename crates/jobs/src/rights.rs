//! What a job does, as far as the right to submit it goes.
//!
//! A worker runs the job with rights of its own. So what the job does must be decided before, about
//! the very tool that the server will find: names are resolved as the server resolves them, and
//! names that can't be resolved now are decided on only if they can't stand for another tool later.

use std::{borrow::Cow, sync::Arc};

use fleet_access::{
    Action, Annotations, Arguments, Context, Decision, JobRights, OpenRecord, Resource, RuleEffect,
};
use fleet_job::{
    envelope::{Envelope, ToolCall, Work},
    mcp_servers::McpServers,
    size, tool_name,
};
use fleet_ops::clock;
use serde_json::{Map, Value};

use super::{Caller, JobsError, in_view, request::BadRequest};

/// Begins the names of the server's own tools about hosted servers.
pub(crate) const SERVER_TOOLS: &str = "server_";
/// Begins the names of the server's own tools about jobs.
pub(crate) const JOB_TOOLS: &str = "job_";

/// Finds the tool of a hosted server by the name that clients see; `None` if the name is not that of
/// a hosted server's tool.
pub type ToolResolver =
    Arc<dyn Fn(&str, &Map<String, Value>) -> Option<ResolvedTool> + Send + Sync>;

/// A tool of a hosted server, with the arguments of a call. If it is not known now, server and tool
/// are what the name tells.
#[derive(Debug, Clone, PartialEq)]
pub struct ResolvedTool {
    /// The server.
    pub server: String,
    /// The tool's name there.
    pub tool: String,
    /// The arguments as the tool will get them.
    pub arguments: Map<String, Value>,
    /// Whether the server has the tool now.
    pub is_known: bool,
}

/// What a job is allowed to do, as the audit log has it.
#[derive(Debug)]
pub(crate) struct AllowedJob {
    /// The decision about its first call or server.
    decision: Decision,
    /// The server of all its calls, if it is the same.
    server: Option<String>,
    /// The tool of all its calls, if it is the same.
    tool: Option<String>,
    /// The rule that wants one of its calls to be approved first.
    pub(crate) approval: Option<String>,
}

impl AllowedJob {
    /// The same without what another call of the job does not share.
    fn shared_with(mut self, other: &Self) -> Self {
        if self.approval.is_none() {
            self.approval.clone_from(&other.approval);
        }
        let is_one = (&self.server, &self.tool) == (&other.server, &other.tool);
        if is_one { self } else { Self { server: None, tool: None, ..self } }
    }

    /// Begins the record of the submission in the audit log.
    ///
    /// # Errors
    ///
    /// Returns an error if it can't be recorded and must be.
    pub(crate) async fn begin_record(
        &self,
        caller: &Caller,
        envelope: &Envelope,
    ) -> Result<OpenRecord, JobsError> {
        if !caller.is_audited() {
            return Ok(OpenRecord::default());
        }
        let resource = Resource {
            server: self.server.as_deref(),
            tool: self.tool.as_deref(),
            tenant: envelope.tenant.as_deref(),
            ..Resource::default()
        };
        let arguments = arguments_of(&envelope.work);
        let caller = caller.about_job(&envelope.job_id);
        let arguments = Arguments::Known(&arguments);
        caller.begin_record(Action::SubmitJob, &resource, &self.decision, arguments).await
    }
}

/// What tells a job from another one with the same tool.
fn arguments_of(work: &Work) -> Cow<'_, Map<String, Value>> {
    match work {
        Work::ServerInit(config) => Cow::Borrowed(config),
        Work::ToolCall(call) => Cow::Borrowed(&call.arguments),
        Work::ToolBatch(batch) => match serde_json::to_value(batch) {
            Ok(Value::Object(object)) => Cow::Owned(object),
            _ => Cow::default(),
        },
    }
}

/// Checks that the caller may submit a job: each of its calls, and each server that it hosts.
///
/// # Errors
///
/// Returns the refusal of the first call or server that the caller may not use, or the limit that
/// it meets.
pub(crate) fn check_submission(
    caller: &Caller,
    envelope: &Envelope,
    resolve: Option<&ToolResolver>,
    jobs: JobRights,
) -> Result<AllowedJob, JobsError> {
    let tenant = envelope.tenant.as_deref();
    let calls = match &envelope.work {
        Work::ToolCall(call) => std::slice::from_ref(call),
        Work::ToolBatch(batch) => &batch.calls[..],
        Work::ServerInit(config) => {
            let servers = McpServers::from_value(&config.clone().into());
            let servers = servers.map_err(|error| BadRequest(error.to_string()))?;
            let mut bytes = size::json_bytes(config);
            return check_all(servers.servers.keys().map(|name| {
                let server = Resource { server: Some(name), tenant, ..Resource::default() };
                let submit = check(caller, Action::SubmitJob, &server, Arguments::None, jobs)?;
                let host =
                    check(caller, Action::AdministerServers, &server, Arguments::None, jobs)?;
                let entry = config.get("mcpServers").and_then(|servers| servers.get(name));
                let in_view = in_view::check_hosting(caller, (name, entry), jobs)?;
                admit(caller, &server, std::mem::take(&mut bytes))?;
                let approval = submit.approval.or(host.approval).or(in_view);
                let (decision, server) = (submit.decision, Some(name.clone()));
                Ok(AllowedJob { decision, server, tool: None, approval })
            }));
        }
    };
    check_all(calls.iter().map(|call| check_call(caller, call, tenant, resolve, jobs)))
}

/// What all of these parts of a job are allowed as.
fn check_all(
    mut parts: impl Iterator<Item = Result<AllowedJob, JobsError>>,
) -> Result<AllowedJob, JobsError> {
    // The request was refused before if there is none.
    let none = || BadRequest("the job does nothing".to_owned());
    let first = parts.next().ok_or_else(none)??;
    parts.try_fold(first, |allowed, part| Ok(allowed.shared_with(&part?)))
}

fn check_call(
    caller: &Caller,
    call: &ToolCall,
    tenant: Option<&str>,
    resolve: Option<&ToolResolver>,
    jobs: JobRights,
) -> Result<AllowedJob, JobsError> {
    let exposed = call.exposed_name();
    let resolved = resolve.and_then(|resolve| resolve(&exposed, &call.arguments));
    let arguments = resolved.as_ref().map_or(&call.arguments, |found| &found.arguments);
    let (server, tool) = match &resolved {
        Some(found) if found.is_known => (Some(found.server.as_str()), found.tool.as_str()),
        _ => {
            check_name(caller, call)?;
            named_tool(call)
        }
    };

    let resource = Resource { tenant, ..Resource::tool(server, tool, Annotations::default()) };
    let known = Arguments::Known(arguments);
    let Allowed { decision, mut approval } =
        check(caller, Action::SubmitJob, &resource, known, jobs)?;
    if jobs == JobRights::OfSubmitters && approval.is_none() {
        // The call is decided on when it runs; whether it has to be approved first is better known
        // now.
        let call = caller.decide_call(&resource, known);
        approval = (call.verdict == RuleEffect::Approve).then(|| call.rule.as_str().to_owned());
    }
    approval = approval.or(in_view::check_call(caller, &resource, known, jobs)?);

    // Our own tools would do these with the rights of the worker, if jobs are not signed.
    if server.is_none() && tool.starts_with(SERVER_TOOLS) {
        let named = arguments.get("name").and_then(Value::as_str);
        let resource = Resource { server: named, ..Resource::default() };
        let host = check(caller, Action::AdministerServers, &resource, Arguments::None, jobs)?;
        approval = approval.or(host.approval);
    }
    if jobs == JobRights::OfWorkers && server.is_none() && tool.starts_with(JOB_TOOLS) {
        let any = Resource { tenant, ..Resource::default() };
        check(caller, Action::ActAs, &any, Arguments::None, jobs)?;
    }
    admit(caller, &resource, size::json_bytes(&call.arguments))?;
    let (server, tool) = (server.map(str::to_owned), Some(tool.to_owned()));
    Ok(AllowedJob { decision, server, tool, approval })
}

/// Refuses a name that may come to stand for another tool than the one that is decided on, from
/// callers who have more rights with some tools than with others.
fn check_name(caller: &Caller, call: &ToolCall) -> Result<(), JobsError> {
    let (is_possible, spelled) = match &call.server {
        Some(server) => {
            (tool_name::check_server(server).is_ok(), format!("{server}__{}", call.tool))
        }
        None => (true, call.tool.clone()),
    };
    if caller.is_verified() && (!is_possible || tool_name::is_ambiguous(&spelled)) {
        let tool: String = spelled.chars().take(SHOWN_NAME).collect();
        return Err(BadRequest(format!(
            "`{tool}` may be the changed name of another tool, and its server is not hosted here \
             now; submit the job once it is"
        ))
        .into());
    }
    Ok(())
}

/// The longest part of a name that an error repeats, in characters.
const SHOWN_NAME: usize = 128;

/// A part of a job that may be submitted.
struct Allowed {
    decision: Decision,
    /// The rule that wants it to be approved first.
    approval: Option<String>,
}

/// Checks a part of a job. Something that needs approval may be submitted if a job can wait for it,
/// which only signed jobs can: whoever approves it must be known when it runs.
fn check(
    caller: &Caller,
    action: Action,
    resource: &Resource<'_>,
    arguments: Arguments<'_>,
    jobs: JobRights,
) -> Result<Allowed, JobsError> {
    let context = Context { arguments, ..Context::default() };
    if jobs == JobRights::OfSubmitters {
        let decision = caller.decide_with(action, resource, &context);
        if decision.verdict == RuleEffect::Approve {
            let approval = Some(decision.rule.as_str().to_owned());
            return Ok(Allowed { decision, approval });
        }
    }
    let decision = caller.check(action, resource, &context)?;
    Ok(Allowed { decision, approval: None })
}

fn admit(caller: &Caller, resource: &Resource<'_>, bytes: u64) -> Result<(), JobsError> {
    // Its slots are for what runs, and the job runs later.
    caller.admit(Action::SubmitJob, resource, bytes, clock::monotonic()).map(drop)
}

/// The server of a call and the tool's own name, as far as the call itself tells them.
pub(crate) fn named_tool(call: &ToolCall) -> (Option<&str>, &str) {
    match (&call.server, tool_name::split(&call.tool)) {
        (Some(server), _) => (Some(server), &call.tool),
        (None, Some((server, tool))) => (Some(server), tool),
        (None, None) => (None, &call.tool),
    }
}

#[cfg(test)]
mod tests {
    use fleet_access::{AccessPolicy, Asker, CurrentRights, Principal, PrincipalKind, Via};
    use serde_json::json;

    use super::*;

    /// Whether a principal of the tenant `a` may submit a job under these rules.
    fn may_submit(rules: &str, job: Value) -> Result<(), String> {
        may_submit_where(JobRights::OfWorkers, rules, job)
    }

    fn may_submit_where(jobs: JobRights, rules: &str, job: Value) -> Result<(), String> {
        submit_where(jobs, rules, None, job).map(drop)
    }

    /// The rule that wants the job to be approved first, if the principal may submit it in a view.
    fn submit_where(
        jobs: JobRights,
        rules: &str,
        view: Option<&str>,
        job: Value,
    ) -> Result<Option<String>, String> {
        let policy = AccessPolicy::parse(rules, None).unwrap();
        let rights = CurrentRights::new(policy.into_rights());
        let via = Via::Key { id: "k".to_owned() };
        let mut principal = Principal::new("keys", "ci", PrincipalKind::Service, via);
        principal.tenant = Some("a".to_owned());

        let mut asker = Asker::new(Arc::new(principal), rights);
        if let Some(view) = view {
            asker = asker.enter_view(view).unwrap();
        }
        let caller = Caller::new(Some("ci".to_owned()), None, asker);
        let request: crate::JobRequest = serde_json::from_value(job).unwrap();
        let prepared = request.prepare(&caller, || "j".to_owned()).unwrap();
        check_submission(&caller, &prepared.envelope, Some(&resolver()), jobs)
            .map(|allowed| allowed.approval)
            .map_err(|error| error.to_string())
    }

    /// A server `db` with the tool `ns/drop`, whose offered name is another.
    fn resolver() -> ToolResolver {
        Arc::new(|name, arguments| {
            (name == tool_name::exposed("db", "ns/drop")).then(|| ResolvedTool {
                server: "db".to_owned(),
                tool: "ns/drop".to_owned(),
                arguments: arguments.clone(),
                is_known: true,
            })
        })
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
    fn no_spelling_of_a_tool_evades_a_rule() {
        let rules = "[[rule]]\nname='all'\neffect='allow'\nprincipals=['anyone']\n\
                     actions=['jobs.submit']\n\
                     [[rule]]\nname='no'\neffect='deny'\nprincipals=['anyone']\n\
                     actions=['jobs.submit']\ntools=['ns/*']\n";
        let shortened = tool_name::exposed("db", "ns/drop");
        let (_, own) = tool_name::split(&shortened).unwrap();
        for job in [
            json!({"server": "db", "tool": "ns/drop"}),
            json!({"tool": shortened}),
            json!({"server": "db", "tool": own}),
        ] {
            let refusal = may_submit(rules, job.clone()).unwrap_err();
            assert!(refusal.contains("(rule no)"), "{job}: {refusal}");
        }
        // Their servers are not known here.
        for job in [
            json!({"tool": tool_name::exposed("q", "ns/drop")}),
            json!({"server": "q__admin", "tool": "drop"}),
            json!({"tool": "a___x"}),
        ] {
            let refusal = may_submit(rules, job.clone()).unwrap_err();
            assert!(refusal.contains("not hosted here"), "{job}: {refusal}");
        }
        for job in [json!({"tool": "q__query"}), json!({"server": "q", "tool": "ns.query"})] {
            assert_eq!(may_submit(rules, job.clone()), Ok(()), "{job}");
        }
    }

    #[test]
    fn a_job_lends_nobody_the_rights_of_its_worker() {
        let submit = "[[rule]]\nname='s'\neffect='allow'\nprincipals=['anyone']\n\
                      actions=['jobs.submit']\n";
        for tool in ["server_initialize", "server_remove", "server_status"] {
            let job = json!({"tool": tool, "arguments": {"name": "db"}});
            let refusal = may_submit(submit, job).unwrap_err();
            assert!(refusal.contains("servers.administer"), "{tool}: {refusal}");
        }
        let refusal = may_submit(submit, json!({"tool": "job_cancel"})).unwrap_err();
        assert!(refusal.contains("act-as"), "{refusal}");
        assert_eq!(may_submit(submit, json!({"tool": "file_read"})), Ok(()));

        // A signed job does it with the rights of its submitter, which are decided on then.
        let signed =
            |tool: &str| may_submit_where(JobRights::OfSubmitters, submit, json!({"tool": tool}));
        assert_eq!(signed("job_cancel"), Ok(()));
        assert!(signed("server_remove").is_err());
    }

    /// When the job runs, nothing asks the view.
    #[test]
    fn a_job_can_not_evade_the_rules_of_the_view_it_is_submitted_in() {
        let rule = |name: &str, effect: &str, tool: &str| {
            format!(
                "[[view.desk.rule]]\nname='{name}'\neffect='{effect}'\nprincipals=['anyone']\n\
                 actions=['tools.call']\ntools=['{tool}']\n"
            )
        };
        let rules = [
            "[[rule]]\nname='s'\neffect='allow'\nprincipals=['anyone']\n\
             actions=['jobs.submit', 'servers.administer', 'tools.call']\n\
             [[view.desk.select]]\nservers=['*', '']\n"
                .to_owned(),
            rule("never", "deny", "query"),
            rule("no hosts", "deny", "server_initialize"),
            rule("ask", "approve", "merge"),
        ]
        .concat();
        let submit = |jobs, view, job: &Value| submit_where(jobs, &rules, view, job.clone());
        let both = [JobRights::OfWorkers, JobRights::OfSubmitters];

        for (job, rule) in [
            (json!({"server": "db", "tool": "query"}), "view:desk/never"),
            (json!({"tool": "db__query"}), "view:desk/never"),
            (json!({"calls": [{"tool": "db__list"}, {"tool": "db__query"}]}), "view:desk/never"),
            (json!({"mcpServers": {"db": {"command": "x"}}}), "view:desk/no hosts"),
        ] {
            for jobs in both {
                let refusal = submit(jobs, Some("desk"), &job).unwrap_err();
                let named = format!("(rule {rule})");
                assert!(refusal.contains("tools.call") && refusal.contains(&named), "{refusal}");
                assert_eq!(submit(jobs, None, &job), Ok(None), "{job}");
            }
        }

        let merge = json!({"calls": [{"tool": "db__list"}, {"tool": "db__merge"}]});
        let waiting = submit(JobRights::OfSubmitters, Some("desk"), &merge);
        assert_eq!(waiting, Ok(Some("view:desk/ask".to_owned())));
        let refusal = submit(JobRights::OfWorkers, Some("desk"), &merge).unwrap_err();
        assert!(refusal.contains("view:desk/ask") && refusal.contains("APPROVAL"), "{refusal}");
        for jobs in both {
            assert_eq!(submit(jobs, Some("desk"), &json!({"tool": "db__list"})), Ok(None));
        }
    }

    #[test]
    fn a_limit_counts_every_call_of_a_job() {
        let rules = "[[rule]]\nname='s'\neffect='allow'\nprincipals=['anyone']\n\
                     actions=['jobs.submit']\n\
                     [[limit]]\nname='few'\nper='principal'\nactions=['jobs.submit']\n\
                     tools=['query']\nrate='2/h'\n";
        let job = |calls: usize| json!({"calls": vec![json!({"tool": "db__query"}); calls]});
        assert_eq!(may_submit(rules, job(2)), Ok(()));
        let refusal = may_submit(rules, job(3)).unwrap_err();
        assert!(refusal.contains("few") && refusal.contains("FLEET-RATE-LIMITED"), "{refusal}");
    }

    #[test]
    fn a_job_belongs_to_the_tenant_of_its_submitter() {
        let job = |tenant: &str| json!({"tool": "db__query", "tenant": tenant});
        assert_eq!(may_submit(DB, job("a")), Ok(()));
        let refusal = may_submit(DB, job("b")).unwrap_err();
        assert!(refusal.contains("jobs.submit"), "{refusal}");
    }
}

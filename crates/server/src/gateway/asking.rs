//! Who asks the gateway, and what they may do.
//!
//! Every method of the protocol begins with [`Gateway::asked_by`] and a check of what it does. Lists
//! have only what their reader may use: the same decision, with arguments that are not yet known.

use std::{sync::LazyLock, time::Duration};

use fleet_access::{
    Action, AdmittedCall, Annotations, Arguments, Asker, AuditGap, AuditOutcome, Context, Decision,
    LimitReached, OpenRecord, Resource, RuleName,
};
use fleet_codes::Code;
use fleet_hosting::routes::{Route, Routes, split_named};
use fleet_job::{meta, tool_name, trace::TraceContext};
use fleet_ops::{clock, http::content_length};
use http::request::Parts;
use rmcp::{
    RoleServer,
    model::{
        CallToolResponse, ErrorCode, ErrorData, JsonObject, Prompt, ResourceTemplate, Tool,
        ToolAnnotations,
    },
    service::RequestContext,
};
use serde_json::{Value, json};

use super::{Gateway, traces};
use crate::{
    access::RefusalNote,
    provider::{Provider, ToolRight},
};

mod errors;

use errors::{limit_error, refusal_error, refused_worker_error, unauthenticated};

/// When to try again what could not be recorded.
const RECORD_AGAIN: Duration = Duration::from_secs(5);

/// Somebody who asks, and where to note a refusal that has an HTTP status.
#[derive(Debug, Clone)]
pub(crate) struct Asking {
    asker: Asker,
    note: Option<RefusalNote>,
    /// How long somebody may take to approve what is asked for, if it can wait for that.
    approval_ttl: Option<Duration>,
}

/// What a call of a tool is allowed as.
#[derive(Debug)]
pub(super) struct AllowedCall {
    action: Action,
    /// The hosted server that one of our own tools changes.
    administered: Option<String>,
    decision: Decision,
}

impl Gateway {
    /// The same gateway for the one client of a transport that authenticates nobody, such as
    /// standard input.
    #[must_use]
    pub fn for_client(&self, asker: Asker) -> Self {
        Self { client: Some(asker), ..self.clone() }
    }

    /// Who sends a request.
    ///
    /// # Errors
    ///
    /// Returns a refusal if nobody was authenticated for it.
    pub(crate) fn asked_by(
        &self,
        context: &RequestContext<RoleServer>,
    ) -> Result<Asking, ErrorData> {
        // A session that is restored has its asker without an HTTP request.
        let of_http = context.extensions.get::<Parts>().map(|parts| &parts.extensions);
        let asker = match of_http {
            Some(extensions) => extensions.get::<Asker>(),
            None => context.extensions.get::<Asker>(),
        };
        let asker = asker.or(self.client.as_ref()).ok_or_else(unauthenticated)?;
        let note = of_http.and_then(|extensions| extensions.get::<RefusalNote>());
        let asker = asker.from_origin(|origin| {
            origin.job_id = traces::job_id(context).map(str::to_owned);
            if let Some(trace) = TraceContext::of_meta(&context.meta).trace_id() {
                origin.trace_id = Some(trace.to_owned());
            }
        });
        // Jobs can wait for approval, and nobody else can.
        let signed_jobs = self.inner.signed_jobs.get().filter(|_| asker.is_presented());
        let approval_ttl = signed_jobs.map(|signed_jobs| signed_jobs.approval_ttl);
        Ok(Asking { asker, note: note.cloned(), approval_ttl })
    }

    /// Checks that the sender of a request may do something.
    ///
    /// # Errors
    ///
    /// Returns the refusal.
    pub(crate) fn check(
        &self,
        context: &RequestContext<RoleServer>,
        action: Action,
        resource: &Resource<'_>,
    ) -> Result<Asking, ErrorData> {
        let asking = self.asked_by(context)?;
        asking.check(action, resource)?;
        Ok(asking)
    }
}

impl Asking {
    /// Somebody who asks by REST, where problems tell of refusals.
    pub(crate) fn by_rest(asker: Asker) -> Self {
        Self { asker, note: None, approval_ttl: None }
    }

    /// Who asks.
    pub(crate) fn asker(&self) -> &Asker {
        &self.asker
    }

    /// Checks something that has no arguments, and counts it.
    ///
    /// # Errors
    ///
    /// Returns the refusal, or the limit that is met.
    pub(crate) fn check(&self, action: Action, resource: &Resource<'_>) -> Result<(), ErrorData> {
        self.allow_now(action, resource).map(drop)
    }

    /// Checks something, counts it, and begins its record in the audit log, in which its arguments
    /// are seen.
    ///
    /// # Errors
    ///
    /// Returns the refusal, the limit that is met, or an error if it can't be recorded and must be.
    pub(super) async fn begin(
        &self,
        action: Action,
        resource: &Resource<'_>,
        arguments: Option<&JsonObject>,
    ) -> Result<OpenRecord, ErrorData> {
        let decision = self.allow_now(action, resource)?;
        let arguments = arguments.map_or(Arguments::None, Arguments::Known);
        self.begin_record(action, resource, &decision, arguments).await
    }

    fn allow_now(&self, action: Action, resource: &Resource<'_>) -> Result<Decision, ErrorData> {
        let decision = self.allow(action, resource, Arguments::None)?;
        // Only calls of tools last long enough to hold slots.
        drop(self.admit(action, resource, 0)?);
        Ok(decision)
    }

    /// Checks a call of a tool of a hosted server.
    ///
    /// # Errors
    ///
    /// Returns the refusal.
    pub(super) fn check_hosted_call(
        &self,
        server: Option<&str>,
        tool: &str,
        annotations: Annotations,
        arguments: Option<&JsonObject>,
    ) -> Result<AllowedCall, ErrorData> {
        let resource = Resource::tool(server, tool, annotations);
        let decision = self.allow(Action::CallTool, &resource, known(arguments))?;
        Ok(AllowedCall::of_tool(decision))
    }

    /// Checks a call of a tool of our own. Returns nothing for one about jobs, whose service records
    /// what is done.
    ///
    /// # Errors
    ///
    /// Returns the refusal.
    pub(super) fn check_own_call(
        &self,
        provider: &dyn Provider,
        tool: &str,
        arguments: Option<&JsonObject>,
    ) -> Result<Option<AllowedCall>, ErrorData> {
        let right = provider.right(tool);
        let annotations = match right {
            ToolRight::Call(annotations) => annotations,
            ToolRight::OnServer(_) | ToolRight::OnJobs(_) => Annotations::default(),
        };
        let call = Resource::tool(None, tool, annotations);
        let decision = self.decide(Action::CallTool, &call, known(arguments));

        match right {
            // A rule that names the tool itself counts in any case.
            _ if is_denied_by_file(&decision) => {}
            ToolRight::Call(_) => {}
            ToolRight::OnServer(action) => {
                let named = arguments.and_then(|arguments| arguments.get("name")?.as_str());
                let server = Resource { server: named, ..Resource::default() };
                let decision = self.allow_now(action, &server)?;
                let administered = named.map(str::to_owned);
                return Ok(Some(AllowedCall { action, administered, decision }));
            }
            // Submissions are counted call by call, by the service.
            ToolRight::OnJobs(Action::SubmitJob) if self.asker.may_ever(Action::SubmitJob) => {
                return Ok(None);
            }
            ToolRight::OnJobs(action) if self.asker.may_ever(action) => {
                return self.admit(action, &Resource::default(), 0).map(|_| None);
            }
            ToolRight::OnJobs(action) => {
                return self.check(action, &Resource::default()).map(|()| None);
            }
        }

        if decision.is_allowed() {
            return Ok(Some(AllowedCall::of_tool(decision)));
        }
        self.asker.record_refusal(Action::CallTool, &call, &decision, known(arguments));
        Err(self.refuse(Action::CallTool, &decision))
    }

    /// Begins the record of a call that is allowed.
    ///
    /// # Errors
    ///
    /// Returns an error if it can't be recorded and must be.
    pub(super) async fn begin_call(
        &self,
        allowed: &AllowedCall,
        tool: &Resource<'_>,
        arguments: Option<&JsonObject>,
    ) -> Result<OpenRecord, ErrorData> {
        let AllowedCall { action, administered, decision } = allowed;
        let resource = Resource { server: administered.as_deref().or(tool.server), ..*tool };
        self.begin_record(*action, &resource, decision, known(arguments)).await
    }

    async fn begin_record(
        &self,
        action: Action,
        resource: &Resource<'_>,
        decision: &Decision,
        arguments: Arguments<'_>,
    ) -> Result<OpenRecord, ErrorData> {
        let begun = self.asker.begin_record(action, resource, decision, arguments).await;
        begun.map_err(|gap| self.unrecorded(&gap))
    }

    /// The error for what can't be recorded and must be.
    pub(crate) fn unrecorded(&self, gap: &AuditGap) -> ErrorData {
        if let Some(note) = &self.note {
            note.note_unrecorded(RECORD_AGAIN);
        }
        let data = json!({
            // A job waits, since it is no fault of its own.
            "reason": "server-busy",
            "code": gap.code().as_str(),
            "retryAfterMs": u64::try_from(RECORD_AGAIN.as_millis()).unwrap_or(u64::MAX),
        });
        ErrorData::new(ErrorCode::INTERNAL_ERROR, gap.to_string(), Some(data))
    }

    /// The error for a worker that may not act for others. Its jobs wait, since they are no fault of
    /// its own.
    pub(super) fn refuse_worker(&self, again: Duration) -> ErrorData {
        if let Some(note) = &self.note {
            note.note_forbidden();
        }
        refused_worker_error(again)
    }

    /// Lets a call of a tool in if no limit is met.
    ///
    /// # Errors
    ///
    /// Returns the error that tells when to call again.
    pub(super) fn admit_call(
        &self,
        tool: &Resource<'_>,
        context: &RequestContext<RoleServer>,
    ) -> Result<AdmittedCall, ErrorData> {
        let parts = context.extensions.get::<Parts>();
        let bytes = parts.and_then(|parts| content_length(&parts.headers)).unwrap_or(0);
        self.admit(Action::CallTool, tool, bytes)
    }

    fn admit(
        &self,
        action: Action,
        resource: &Resource<'_>,
        bytes: u64,
    ) -> Result<AdmittedCall, ErrorData> {
        let admitted = self.asker.admit(action, resource, bytes, clock::monotonic());
        admitted.map_err(|reached| self.limit(&reached, resource.server))
    }

    /// The error for what met a limit.
    pub(crate) fn limit(&self, reached: &LimitReached, server: Option<&str>) -> ErrorData {
        if let Some(note) = &self.note {
            note.note_limit(reached.retry_after);
        }
        limit_error(reached, server)
    }

    /// Whether a call of a tool by this name could be allowed, if nobody knows the tool yet. Its
    /// server is looked for, or started, for nobody else.
    pub(super) fn could_call_unknown(&self, name: &str) -> bool {
        let is_ambiguous = tool_name::is_ambiguous(name);
        match tool_name::split(name) {
            Some((server, tool)) => {
                self.asker.could_call(Some(server), (!is_ambiguous).then_some(tool))
            }
            None => self.asker.could_call(None, Some(name)),
        }
    }

    /// Removes from the error for a call that can't be made now what the caller may not know: only
    /// callers that may administer a server see what it has written.
    pub(super) fn shown(&self, mut error: ErrorData, name: &str) -> ErrorData {
        let Some((server, _)) = tool_name::split(name) else { return error };
        let Some(data) = error.data.as_mut().and_then(Value::as_object_mut) else { return error };
        let is_withheld =
            data.get("code").and_then(Value::as_str) == Some(fleet_codes::TOOL_WITHHELD.as_str());
        if data.contains_key("retryAfterMs") && !is_withheld && !self.administers(server) {
            data.shift_remove("stderrTail");
            error.message = format!("server `{server}` is not available").into();
        }
        error
    }

    /// What a call of a tool that nobody has now is allowed as, by its name; `None` if it is not,
    /// which is recorded.
    pub(super) fn allowed_call(
        &self,
        server: Option<&str>,
        tool: &str,
        arguments: Option<&JsonObject>,
    ) -> Option<AllowedCall> {
        let resource = Resource::tool(server, tool, Annotations::default());
        let context = Context { arguments: known(arguments), ..Context::default() };
        let decision = self.asker.check(Action::CallTool, &resource, &context);
        decision.ok().map(AllowedCall::of_tool)
    }

    /// Whether a list shows a tool of our own.
    pub(super) fn sees_own_tool(&self, provider: &dyn Provider, tool: &str) -> bool {
        let see = |annotations| {
            let resource = Resource::tool(None, tool, annotations);
            self.decide(Action::CallTool, &resource, Arguments::NotYetKnown)
        };
        match provider.right(tool) {
            _ if self.presents_jobs() => !is_denied_by_file(&see(Annotations::default())),
            ToolRight::Call(annotations) => see(annotations).is_visible(),
            ToolRight::OnServer(action) | ToolRight::OnJobs(action) => {
                self.asker.may_ever(action) && !is_denied_by_file(&see(Annotations::default()))
            }
        }
    }

    /// Whether a list shows a tool of a hosted server.
    pub(crate) fn sees_tool(&self, route: &Route<Tool>) -> bool {
        let annotations = annotations_of(route.listed.annotations.as_ref());
        let resource = Resource::tool(Some(&route.server), &route.name, annotations);
        let decision = self.decide(Action::CallTool, &resource, Arguments::NotYetKnown);
        let may_call =
            decision.is_visible() || (self.presents_jobs() && !is_denied_by_file(&decision));
        may_call && self.name_of(route).is_some()
    }

    /// Whether the caller makes the calls of others' jobs. It has to know what tools want of their
    /// callers, although it may call none for itself. Jobs are not called in a view.
    fn presents_jobs(&self) -> bool {
        let any = (&Resource::default(), &Context::default());
        !self.asker.is_presented()
            && self.asker.view_name().is_none()
            && self.asker.decide(Action::ActAs, any.0, any.1).is_allowed()
    }

    /// Whether a list shows a prompt of a hosted server.
    pub(crate) fn sees_prompt(&self, route: &Route<Prompt>) -> bool {
        self.sees(Action::GetPrompt, &prompt_of(Some(&route.server), &route.name))
    }

    /// Whether a list shows a resource of a hosted server.
    pub(crate) fn sees_resource(&self, route: &Route<rmcp::model::Resource>) -> bool {
        self.sees(Action::ReadResource, &resource_of(Some(&route.server), &route.name))
    }

    /// Whether a list shows a template of a hosted server. Rules see the template in place of a
    /// URI.
    pub(crate) fn sees_template(&self, route: &Route<ResourceTemplate>) -> bool {
        self.sees(Action::ReadResource, &resource_of(Some(&route.server), &route.name))
    }

    /// Whether the caller may know that a server is hosted, and in which state: it may if it may use
    /// one of the server's tools, or administer the server.
    pub(crate) fn sees_server(&self, server: &str, routes: &Routes) -> bool {
        let whole = Resource { server: Some(server), ..Resource::default() };
        self.administers(server)
            || self.sees(Action::CallTool, &whole)
            || routes.tools_of(server).any(|route| self.sees_tool(route))
    }

    /// Whether the caller may administer a server, and know everything about it.
    pub(crate) fn administers(&self, server: &str) -> bool {
        let whole = Resource { server: Some(server), ..Resource::default() };
        self.sees(Action::AdministerServers, &whole)
    }

    /// Whether a list shows what a hosted server offers under this URI.
    pub(super) fn sees_uri(&self, server: &str, offered: &str) -> bool {
        let own = split_named(offered).map_or(offered, |(_, own)| own);
        self.sees(Action::ReadResource, &resource_of(Some(server), own))
    }

    /// Whether what an action is about may be shown.
    pub(super) fn sees(&self, action: Action, resource: &Resource<'_>) -> bool {
        self.decide(action, resource, Arguments::NotYetKnown).is_visible()
    }

    fn decide(
        &self,
        action: Action,
        resource: &Resource<'_>,
        arguments: Arguments<'_>,
    ) -> Decision {
        self.asker.decide(action, resource, &Context { arguments, ..Context::default() })
    }

    /// Decides about something that is to be done now, and records a refusal.
    fn allow(
        &self,
        action: Action,
        resource: &Resource<'_>,
        arguments: Arguments<'_>,
    ) -> Result<Decision, ErrorData> {
        let context = Context { arguments, ..Context::default() };
        let decision = self.asker.check(action, resource, &context);
        decision.map_err(|decision| self.refuse(action, &decision))
    }

    /// The error for what a decision does not allow.
    pub(crate) fn refuse(&self, action: Action, decision: &Decision) -> ErrorData {
        if let (Some(note), false) = (&self.note, decision.scopes.is_empty()) {
            note.note_scopes(&decision.scopes);
        }
        refusal_error(action, decision, self.approval_ttl)
    }
}

impl AllowedCall {
    fn of_tool(decision: Decision) -> Self {
        Self { action: Action::CallTool, administered: None, decision }
    }
}

/// Ends the record of something with its result, which it returns.
pub(super) fn end_record<T>(
    record: OpenRecord,
    result: Result<T, ErrorData>,
) -> Result<T, ErrorData> {
    match &result {
        Ok(_) => record.end(AuditOutcome::Succeeded, None),
        Err(error) => record.end(AuditOutcome::Failed, code_of(error)),
    }
    result
}

/// Ends the record of a call. One that has become a job ends with the record of the job's call.
pub(super) fn end_call_record(
    mut record: OpenRecord,
    result: Result<CallToolResponse, ErrorData>,
) -> Result<CallToolResponse, ErrorData> {
    match &result {
        Ok(CallToolResponse::Task(task)) => {
            let job_id = task.meta.as_ref().and_then(|meta| meta.get(meta::JOB_ID)?.as_str());
            job_id.into_iter().for_each(|id| record.set_job(id));
            record.end(AuditOutcome::Started, None);
        }
        Ok(CallToolResponse::Complete(answer)) if answer.is_error == Some(true) => {
            record.end(AuditOutcome::Failed, None);
        }
        _ => return end_record(record, result),
    }
    result
}

/// The stable code that an error carries. Hosted servers may write anything there.
fn code_of(error: &ErrorData) -> Option<&'static str> {
    let code = error.data.as_ref()?.get("code")?.as_str()?;
    fleet_codes::find(code).map(Code::as_str)
}

/// Who asks in a call of one of our own tools. The gateway has put it there.
///
/// # Errors
///
/// Returns a refusal if nobody was authenticated.
pub(crate) fn asking_in(context: &RequestContext<RoleServer>) -> Result<Asking, ErrorData> {
    context.extensions.get::<Asking>().cloned().ok_or_else(unauthenticated)
}

/// Whether a rule or view of the policy file denies something. Without a rule, something else may allow it.
fn is_denied_by_file(decision: &Decision) -> bool {
    !decision.is_allowed() && matches!(decision.rule, RuleName::File(_))
}

/// The hints of a tool's annotations.
pub(crate) fn annotations_of(hints: Option<&ToolAnnotations>) -> Annotations {
    hints.map_or_else(Annotations::default, |hints| Annotations {
        read_only: hints.read_only_hint,
        destructive: hints.destructive_hint,
        idempotent: hints.idempotent_hint,
        open_world: hints.open_world_hint,
    })
}

/// A prompt, as decisions see it.
pub(super) fn prompt_of<'a>(server: Option<&'a str>, prompt: &'a str) -> Resource<'a> {
    Resource { server, prompt: Some(prompt), ..Resource::default() }
}

/// A resource, as decisions see it.
pub(super) fn resource_of<'a>(server: Option<&'a str>, uri: &'a str) -> Resource<'a> {
    Resource { server, uri: Some(uri), ..Resource::default() }
}

fn known(arguments: Option<&JsonObject>) -> Arguments<'_> {
    static EMPTY: LazyLock<JsonObject> = LazyLock::new(JsonObject::new);
    Arguments::Known(arguments.unwrap_or(&EMPTY))
}

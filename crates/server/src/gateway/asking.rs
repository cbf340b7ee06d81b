//! Who asks the gateway, and what they may do.
//!
//! Every method of the protocol begins with [`Gateway::asked_by`] and a check of what it does. Lists
//! have only what their reader may use: the same decision, with arguments that are not yet known.

use std::sync::LazyLock;

use fleet_access::{
    Action, AdmittedCall, Annotations, Arguments, Asker, Context, Decision, LimitReached, Resource,
    RuleName,
};
use fleet_hosting::routes::{Route, Routes, split_named};
use fleet_job::tool_name;
use fleet_ops::{clock, http::content_length};
use http::request::Parts;
use rmcp::{
    RoleServer,
    model::{ErrorCode, ErrorData, JsonObject, Prompt, ResourceTemplate, Tool, ToolAnnotations},
    service::RequestContext,
};
use serde_json::{Value, json};

use super::Gateway;
use crate::{
    access::RefusalNote,
    provider::{Provider, ToolRight},
};

/// Somebody who asks, and where to note a refusal that has an HTTP status.
#[derive(Debug, Clone)]
pub(crate) struct Asking {
    asker: Asker,
    note: Option<RefusalNote>,
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
        Ok(Asking { asker: asker.clone(), note: note.cloned() })
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
        self.refuse_unless_allowed(action, self.decide(action, resource, Arguments::None))?;
        // Only calls of tools last long enough to hold slots.
        self.admit(action, resource, 0).map(drop)
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
    ) -> Result<(), ErrorData> {
        let resource = Resource::tool(server, tool, annotations);
        let decision = self.decide(Action::CallTool, &resource, known(arguments));
        self.refuse_unless_allowed(Action::CallTool, decision)
    }

    /// Checks a call of a tool of our own.
    ///
    /// # Errors
    ///
    /// Returns the refusal.
    pub(super) fn check_own_call(
        &self,
        provider: &dyn Provider,
        tool: &str,
        arguments: Option<&JsonObject>,
    ) -> Result<(), ErrorData> {
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
                return self.check(action, &Resource { server: named, ..Resource::default() });
            }
            // Submissions are counted call by call, by the service.
            ToolRight::OnJobs(Action::SubmitJob) if self.asker.may_ever(Action::SubmitJob) => {
                return Ok(());
            }
            ToolRight::OnJobs(action) if self.asker.may_ever(action) => {
                return self.admit(action, &Resource::default(), 0).map(drop);
            }
            ToolRight::OnJobs(action) => return self.check(action, &Resource::default()),
        }
        self.refuse_unless_allowed(Action::CallTool, decision)
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
        if data.contains_key("retryAfterMs") && !self.administers(server) {
            data.shift_remove("stderrTail");
            error.message = format!("server `{server}` is not available").into();
        }
        error
    }

    /// Whether a call of a hosted server's tool is allowed.
    pub(super) fn may_call(
        &self,
        server: Option<&str>,
        tool: &str,
        arguments: Option<&JsonObject>,
    ) -> bool {
        let resource = Resource::tool(server, tool, Annotations::default());
        self.decide(Action::CallTool, &resource, known(arguments)).is_allowed()
    }

    /// Whether a list shows a tool of our own.
    pub(super) fn sees_own_tool(&self, provider: &dyn Provider, tool: &str) -> bool {
        let see = |annotations| {
            let resource = Resource::tool(None, tool, annotations);
            self.decide(Action::CallTool, &resource, Arguments::NotYetKnown)
        };
        match provider.right(tool) {
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
        self.sees(Action::CallTool, &resource)
    }

    /// Whether a list shows a prompt of a hosted server.
    pub(super) fn sees_prompt(&self, route: &Route<Prompt>) -> bool {
        self.sees(Action::GetPrompt, &prompt_of(Some(&route.server), &route.name))
    }

    /// Whether a list shows a resource of a hosted server.
    pub(super) fn sees_resource(&self, route: &Route<rmcp::model::Resource>) -> bool {
        self.sees(Action::ReadResource, &resource_of(Some(&route.server), &route.name))
    }

    /// Whether a list shows a template of a hosted server. Rules see the template in place of a
    /// URI.
    pub(super) fn sees_template(&self, route: &Route<ResourceTemplate>) -> bool {
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

    fn refuse_unless_allowed(&self, action: Action, decision: Decision) -> Result<(), ErrorData> {
        if decision.is_allowed() { Ok(()) } else { Err(self.refuse(action, &decision)) }
    }

    /// The error for what a decision does not allow.
    pub(crate) fn refuse(&self, action: Action, decision: &Decision) -> ErrorData {
        if let (Some(note), false) = (&self.note, decision.scopes.is_empty()) {
            note.note_scopes(&decision.scopes);
        }
        refusal_error(action, decision)
    }
}

/// Who asks in a call of one of our own tools. The gateway has put it there.
///
/// # Errors
///
/// Returns a refusal if nobody was authenticated.
pub(crate) fn asking_in(context: &RequestContext<RoleServer>) -> Result<Asking, ErrorData> {
    context.extensions.get::<Asking>().cloned().ok_or_else(unauthenticated)
}

/// Whether a rule of the policy file denies something. Without a rule, something else may allow it.
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

fn refusal_error(action: Action, decision: &Decision) -> ErrorData {
    let message = decision.message(action.as_str()).unwrap_or_default();
    let mut data = json!({
        "reason": decision.reason(),
        "code": decision.code().map(|code| code.as_str()),
        "action": action.as_str(),
        "rule": decision.rule.as_str(),
    });
    if !decision.scopes.is_empty() {
        data["scopes"] = json!(decision.scopes);
    }
    ErrorData::new(ErrorCode::INVALID_REQUEST, message, Some(data))
}

/// The error for a call that met a limit. A job waits until then.
fn limit_error(reached: &LimitReached, server: Option<&str>) -> ErrorData {
    let mut data = json!({
        "reason": "rate-limited",
        "code": reached.code().as_str(),
        "limit": &*reached.limit,
        "retryAfterMs": u64::try_from(reached.retry_after.as_millis()).unwrap_or(u64::MAX),
    });
    if let Some(server) = server {
        data["server"] = server.into();
    }
    ErrorData::new(ErrorCode::INVALID_REQUEST, reached.to_string(), Some(data))
}

/// The error for a request that nobody was authenticated for. Its transport authenticates all, so
/// this is a fault of the server.
fn unauthenticated() -> ErrorData {
    let code = fleet_codes::UNAUTHENTICATED;
    let data = json!({ "reason": "denied", "code": code.as_str() });
    let message = format!("nobody was authenticated for this request [{code}]");
    ErrorData::new(ErrorCode::INVALID_REQUEST, message, Some(data))
}

fn known(arguments: Option<&JsonObject>) -> Arguments<'_> {
    static EMPTY: LazyLock<JsonObject> = LazyLock::new(JsonObject::new);
    Arguments::Known(arguments.unwrap_or(&EMPTY))
}

//! A tool call in the gateway: received once, then run as a task, answered from memory, passed to a
//! provider or forwarded to a hosted server, and recorded when it ends.

use std::{borrow::Cow, sync::Arc, time::Instant};

use fleet_access::{Action, Annotations, OpenRecord, Resource};
use fleet_hosting::{
    apps, forward,
    routes::{Route, Routes, WithheldTool},
};
use fleet_job::{size::clipped, tool_name};
use fleet_ops::trace::Span;
use http::request::Parts;
use rmcp::{
    RoleServer,
    model::{
        CallToolRequest, CallToolRequestParams, CallToolResponse, ClientRequest, ErrorCode,
        ErrorData, JsonObject, Tool,
    },
    service::RequestContext,
};

use super::{
    Asking, Gateway, MAX_NAME, annotations_of,
    asking::{AllowedCall, end_call_record},
    identify_server,
    tally::Tallies,
    traces,
};
use crate::{
    metrics::{OPERATION_DURATION, TOOL_CALLS},
    provider::Provider,
    repeat::Key,
};

/// The outcome of a call that succeeded.
const OK: &str = "ok";

/// A tool call that the gateway has received.
pub(super) struct Invocation<'g> {
    pub(super) params: CallToolRequestParams,
    /// The name that the caller has called. In a view, `params` has the tool's name elsewhere.
    called: Cow<'static, str>,
    /// The request context. Its `_meta` names the span of this call as the parent of everything
    /// that the call leads to.
    pub(super) context: RequestContext<RoleServer>,
    /// The provider that has the tool; `None` if the tool is a hosted server's, or does not exist.
    pub(super) provider: Option<&'g dyn Provider>,
}

/// What is recorded about a call: its span, its metrics, and who answered it.
pub(super) struct CallRecord {
    span: Span,
    log_span: tracing::Span,
    /// The tool's name in metric labels.
    tool: Arc<str>,
    kind: &'static str,
    started: Instant,
    /// The request context of the answer, for [`identify_server`].
    context: RequestContext<RoleServer>,
    tallies: Arc<Tallies>,
}

/// Whose tool a call is for.
enum Target<'g> {
    /// Our own.
    Own(&'g dyn Provider),
    /// A hosted server's.
    Hosted(HostedTool),
    /// Nobody's that could be found now, and why. The call may still become a task that waits, or
    /// be answered from memory.
    Missing(ErrorData),
}

impl Target<'_> {
    /// What limits see of a call of a tool by this name.
    fn resource<'a>(&'a self, name: &'a str) -> Resource<'a> {
        let (server, tool) = match self {
            Self::Own(_) => (None, name),
            Self::Hosted(tool) => (Some(tool.server.as_str()), tool.name.as_str()),
            Self::Missing(_) => split_name(name),
        };
        Resource { server, tool: Some(tool), ..Resource::default() }
    }
}

/// The server and the tool that a name stands for, as far as the name itself tells.
fn split_name(name: &str) -> (Option<&str>, &str) {
    match tool_name::split(name) {
        Some((server, tool)) => (Some(server), tool),
        None => (None, name),
    }
}

/// A tool, as records of refusals have it.
fn call_of<'a>(server: Option<&'a str>, tool: &'a str) -> Resource<'a> {
    Resource::tool(server, tool, Annotations::default())
}

/// A tool of a hosted server.
struct HostedTool {
    server: String,
    /// The tool's name at its server.
    name: String,
    annotations: Annotations,
    /// The arguments as the tool gets them.
    arguments: Option<JsonObject>,
}

impl<'g> Invocation<'g> {
    /// Receives a call and begins its record.
    pub(super) fn receive(
        gateway: &'g Gateway,
        mut params: CallToolRequestParams,
        mut context: RequestContext<RoleServer>,
    ) -> (Self, CallRecord) {
        let called = params.name.clone();
        if let Ok(asking) = gateway.asked_by(&context) {
            asking.leave_view(&mut params.name);
        }

        let span = traces::start_call_span(&params.name, &mut context);
        let provider = gateway.provider_of(&params.name);
        let exists =
            || provider.is_some() || gateway.inner.fleet.routes().tool(&params.name).is_some();

        let record = CallRecord {
            log_span: span.log(traces::job_id(&context)),
            span,
            tool: gateway.inner.labels.of(&params.name, exists),
            kind: if provider.is_some() { "own" } else { "hosted" },
            started: Instant::now(),
            context: context.clone(),
            tallies: gateway.inner.tallies.clone(),
        };
        (Self { params, called, context, provider }, record)
    }

    /// The key under which the result may be remembered; `None` if the call must always run.
    fn repeat_key(&self) -> Option<Key> {
        if self.provider.is_some_and(Provider::always_runs) {
            return None;
        }
        let parts = self.context.extensions.get::<Parts>();
        Key::of(&self.params, &self.context.meta, parts)
    }
}

impl CallRecord {
    /// The span of the call's log lines.
    pub(super) fn log_span(&self) -> tracing::Span {
        self.log_span.clone()
    }

    /// Completes the result, and records how the call ended in its span and in the metrics.
    pub(super) fn finish(
        self,
        mut result: Result<CallToolResponse, ErrorData>,
    ) -> Result<CallToolResponse, ErrorData> {
        if let Ok(CallToolResponse::Complete(result)) = &mut result {
            identify_server(&self.context, &mut result.meta);
        }

        let outcome = outcome_label(&result);
        record_outcome(&self.span, outcome, &result);
        metrics::counter!(TOOL_CALLS.name, "kind" => self.kind, "outcome" => outcome).increment(1);

        let labels = [
            ("mcp_method_name", "tools/call".to_owned()),
            ("gen_ai_tool_name", self.tool.to_string()),
            ("error_type", if outcome == OK { String::new() } else { outcome.to_owned() }),
        ];
        let took = self.started.elapsed();
        metrics::histogram!(OPERATION_DURATION.name, &labels).record(took);
        self.tallies.add(&self.tool, outcome != OK, took);
        result
    }
}

impl Gateway {
    /// Runs a call if its sender may make it: as a task if it is to become one, else at once.
    pub(super) async fn invoke(
        &self,
        mut invocation: Invocation<'_>,
    ) -> Result<CallToolResponse, ErrorData> {
        self.act_for_submitter(&invocation.params, &mut invocation.context)?;
        let asking = self.asked_by(&invocation.context)?;
        let (target, allowed) = self.check_call(&asking, &invocation).await?;
        let resource = target.resource(&invocation.params.name);
        // Its slots are free again when the call has been answered.
        let _admitted = asking.admit_call(&resource, &invocation.context)?;
        let record = match &allowed {
            Some(allowed) => {
                let arguments = invocation.params.arguments.as_ref();
                asking.begin_call(allowed, &resource, arguments).await?
            }
            None => OpenRecord::default(),
        };

        // Our own tools find there who asks.
        invocation.context.extensions.insert(asking);
        end_call_record(record, self.perform(invocation, target).await)
    }

    /// Runs a call that is allowed.
    async fn perform(
        &self,
        invocation: Invocation<'_>,
        target: Target<'_>,
    ) -> Result<CallToolResponse, ErrorData> {
        if let Some(task) = self.start_task(&invocation).await? {
            return Ok(task);
        }

        let repeats = self.inner.repeats.as_ref();
        let Some((repeats, key)) = repeats.zip(invocation.repeat_key()) else {
            return self.run_call(invocation, target).await;
        };

        let cancelled = invocation.context.ct.clone();
        let limit = self.inner.fleet.longest_call(&invocation.params.name);
        let answer =
            repeats.answer(key, limit, &cancelled, self.run_call(invocation, target)).await;
        answer.unwrap_or_else(|error| {
            let data = serde_json::json!({ "reason": error.reason() });
            Err(ErrorData::internal_error(error.to_string(), Some(data)))
        })
    }

    /// Finds the tool of a call, and checks that its sender may call it. Returns what the call is
    /// allowed as, unless what the tool does records that itself.
    ///
    /// # Errors
    ///
    /// Returns the refusal or, if nobody has the tool and its name alone gives no right to call it,
    /// why that is so.
    async fn check_call<'g>(
        &self,
        asking: &Asking,
        invocation: &Invocation<'g>,
    ) -> Result<(Target<'g>, Option<AllowedCall>), ErrorData> {
        let Invocation { params, called, provider, .. } = invocation;
        let arguments = params.arguments.as_ref();
        let unknown = || unknown_tool_with_hint(asking, called, &self.inner.fleet.routes());
        if let Some(provider) = *provider {
            if !asking.means(called, None, &params.name) {
                asking.record_hidden(Action::CallTool, &call_of(None, &params.name));
                return Err(unknown());
            }
            let allowed = asking.check_own_call(provider, &params.name, arguments)?;
            return Ok((Target::Own(provider), allowed));
        }

        // Nobody else learns how the server is, or makes it start.
        let routes = self.inner.fleet.routes();
        let is_known =
            routes.tool(&params.name).is_some() || routes.withheld(&params.name).is_some();
        if !is_known && !asking.could_call_unknown(&params.name) {
            let (server, tool) = split_name(&params.name);
            // The answer is the same as if there were no such tool; the record is not.
            drop(asking.allowed_call(server, tool, arguments));
            return Err(unknown());
        }

        if let Some(withheld) = self.inner.fleet.routes().withheld(&params.name) {
            return check_withheld(asking, invocation, withheld);
        }
        match self.locate_tool(asking, called, &params.name).await {
            Ok(tool) if !asking.means(called, Some(&tool.server), &tool.name) => {
                let hidden = call_of(Some(&tool.server), &tool.name);
                asking.record_hidden(Action::CallTool, &hidden);
                Err(unknown())
            }
            Ok(mut tool) => {
                tool.arguments = arguments.cloned();
                if let Some(arguments) = &mut tool.arguments {
                    apps::restore_in_object(&tool.server, arguments);
                }
                let arguments = tool.arguments.as_ref();
                let allowed = asking.check_hosted_call(
                    Some(&tool.server),
                    &tool.name,
                    tool.annotations,
                    arguments,
                )?;
                Ok((Target::Hosted(tool), Some(allowed)))
            }
            Err(missing) => {
                // This call has started the server, whose tools are known only now.
                if let Some(withheld) = self.inner.fleet.routes().withheld(&params.name) {
                    return check_withheld(asking, invocation, withheld);
                }

                let missing = asking.shown(missing, &params.name);
                let (server, tool) = split_name(&params.name);
                let mut restored = arguments.cloned();
                if let (Some(server), Some(arguments)) = (server, &mut restored) {
                    apps::restore_in_object(server, arguments);
                }
                // It may come to stand for a tool that the caller's rules or view do not have.
                let is_in_view = asking.asker().view_name().is_some();
                let is_limited = asking.asker().principal().is_verified() || is_in_view;
                let is_certain = !(is_limited && tool_name::is_ambiguous(&params.name))
                    && asking.means(called, server, tool);
                if is_in_view && !is_certain {
                    asking.record_hidden(Action::CallTool, &call_of(server, tool));
                    return Err(unknown());
                }
                let allowed = is_certain
                    .then(|| asking.allowed_call(server, tool, restored.as_ref()))
                    .flatten();
                match allowed {
                    Some(allowed) => Ok((Target::Missing(missing), Some(allowed))),
                    None => Err(missing),
                }
            }
        }
    }

    /// Passes a call to the provider or the hosted server that has the tool.
    async fn run_call(
        &self,
        invocation: Invocation<'_>,
        target: Target<'_>,
    ) -> Result<CallToolResponse, ErrorData> {
        let Invocation { mut params, context, .. } = invocation;
        let tool = match target {
            Target::Own(provider) => return provider.call_tool(params, context).await,
            Target::Hosted(tool) => tool,
            Target::Missing(error) => return Err(error),
        };

        let is_repeatable = tool.is_repeatable();
        params.name = tool.name.into();
        params.meta = None;
        params.arguments = tool.arguments;

        let again = is_repeatable.then(|| params.clone());
        match (self.forward_call(&tool.server, params, &context).await, again) {
            (Err(error), Some(params)) if forward::is_lost(&error) => {
                tracing::info!(
                    server = tool.server,
                    tool = %params.name,
                    "lost the hosted server during a repeatable call; calling once more"
                );
                self.forward_call(&tool.server, params, &context).await
            }
            (result, _) => result,
        }
    }

    /// Finds a hosted server's tool by the name that clients see. Starts the server if its tools
    /// are not known yet.
    /// Errors name it as it was called.
    async fn locate_tool(
        &self,
        asking: &Asking,
        called: &str,
        name: &str,
    ) -> Result<HostedTool, ErrorData> {
        if name.len() > MAX_NAME {
            return Err(unknown_tool(called));
        }

        let fleet = &self.inner.fleet;
        if let Some(tool) = fleet.routes().tool(name).map(HostedTool::of) {
            return Ok(tool);
        }

        let Some(server) = tool_name::server_of(name) else {
            return Err(unknown_tool_with_hint(asking, called, &fleet.routes()));
        };
        if !self.find_server(server, called).await? {
            return Err(forward::unknown_server_error(server, called));
        }

        fleet
            .ensure_running(server)
            .await
            .map_err(|error| forward::tool_down_error(called, &error))?;
        let tool = fleet.routes().tool(name).map(HostedTool::of);
        tool.ok_or_else(|| {
            ErrorData::invalid_params(format!("server `{server}` has no tool `{called}`"), None)
        })
    }

    /// Forwards a call to a hosted server, in a span of its own.
    async fn forward_call(
        &self,
        server: &str,
        params: CallToolRequestParams,
        context: &RequestContext<RoleServer>,
    ) -> Result<CallToolResponse, ErrorData> {
        let (span, context) = traces::start_forward_span(server, &params.name, context);
        let request = ClientRequest::CallToolRequest(CallToolRequest::new(params));
        let forwarded = forward::forward(&self.inner.fleet, server, request, &context).await;

        let result = forwarded.and_then(|result| {
            let result = forward::read_tool_result(server, result);
            result.map_err(|error| forward::hide_values(&self.inner.fleet, server, error))
        });
        record_outcome(&span, outcome_label(&result), &result);
        result
    }
}

/// Checks a call of a tool that is withheld, which can be made later.
///
/// # Errors
///
/// Returns the refusal if the caller may not make it, or does not see the tool.
fn check_withheld<'g>(
    asking: &Asking,
    invocation: &Invocation<'g>,
    withheld: &WithheldTool,
) -> Result<(Target<'g>, Option<AllowedCall>), ErrorData> {
    let Invocation { params, called, .. } = invocation;
    let HostedTool { server, name, annotations, .. } = HostedTool::of(&withheld.route);
    if !asking.means(called, Some(&server), &name) {
        asking.record_hidden(Action::CallTool, &call_of(Some(&server), &name));
        return Err(unknown_tool(called));
    }

    let mut arguments = params.arguments.clone();
    arguments.iter_mut().for_each(|arguments| apps::restore_in_object(&server, arguments));
    let allowed =
        asking.check_hosted_call(Some(&server), &name, annotations, arguments.as_ref())?;
    let error = forward::tool_withheld_error(withheld);
    Ok((Target::Missing(name_as_called(error, &withheld.route.listed.name, called)), Some(allowed)))
}

/// Puts the name that was called in the place of the one under which a tool is offered elsewhere.
fn name_as_called(mut error: ErrorData, offered: &str, called: &str) -> ErrorData {
    if offered == called {
        return error;
    }
    error.message = error.message.replace(offered, called).into();
    if let Some(named) = error.data.as_mut().and_then(|data| data.get_mut("server"))
        && named == offered
    {
        *named = called.into();
    }
    error
}

impl HostedTool {
    fn of(route: &Route<Tool>) -> Self {
        Self {
            server: route.server.clone(),
            name: route.name.clone(),
            annotations: annotations_of(route.listed.annotations.as_ref()),
            arguments: None,
        }
    }

    /// Whether the tool is declared read-only or idempotent.
    fn is_repeatable(&self) -> bool {
        let Annotations { read_only, idempotent, .. } = self.annotations;
        [read_only, idempotent].contains(&Some(true))
    }
}

/// How a call ended, as metrics and spans name it.
fn outcome_label(result: &Result<CallToolResponse, ErrorData>) -> &'static str {
    match result {
        Ok(CallToolResponse::Complete(result)) if result.is_error == Some(true) => "tool-error",
        Ok(_) => OK,
        Err(error) if error.code == ErrorCode::INVALID_PARAMS => "invalid",
        Err(_) => "error",
    }
}

/// Records in a span how a call ended. The message of the tool or its server stays out of the span,
/// because it may contain secrets of the caller.
fn record_outcome(
    span: &Span,
    outcome: &'static str,
    result: &Result<CallToolResponse, ErrorData>,
) {
    match result {
        Err(error) => span.fail(outcome, &format!("JSON-RPC error {}", error.code.0)),
        Ok(_) if outcome != OK => span.fail(outcome, "the tool reported an error"),
        Ok(_) => {}
    }
}

fn unknown_tool(name: &str) -> ErrorData {
    ErrorData::invalid_params(format!("unknown tool `{}`", clipped(name, MAX_NAME)), None)
}

/// The most tools that the error for an unknown one names.
const MAX_HINTS: usize = 5;

/// The error for an unknown tool. It names the hosted servers' tools of the same name.
fn unknown_tool_with_hint(asking: &Asking, name: &str, routes: &Routes) -> ErrorData {
    let mut error = unknown_tool(name);
    let visible = routes.tools_called(name).filter(|route| asking.sees_tool(route));
    let names = visible.filter_map(|route| asking.name_of(route));
    let offered: Vec<_> = names.take(MAX_HINTS).map(|name| format!("`{name}`")).collect();
    if !offered.is_empty() {
        let offered = offered.join(", ");
        error.message = format!("{}; hosted servers offer {offered}", error.message).into();
    }
    error
}

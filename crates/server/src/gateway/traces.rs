//! The spans of tool calls, named by OpenTelemetry's conventions for MCP: one where a call comes in, one below it where it is
//! passed on to a hosted server.

use fleet_job::{meta, trace::TraceContext};
use fleet_ops::trace::{Attribute, Span, SpanKind};
use http::request::Parts;
use rmcp::{
    RoleServer,
    model::{CallToolResponse, ErrorData},
    service::RequestContext,
};

use super::OK;

/// Begins the span of a call that has come in. What the caller says in `_meta` goes before what its HTTP client says in
/// headers. From here on, whoever looks into `_meta` finds this span.
pub(super) fn received(tool: &str, context: &mut RequestContext<RoleServer>) -> Span {
    let mut trace = TraceContext::of_meta(&context.meta);
    if trace.parent.is_none()
        && let Some(parts) = context.extensions.get::<Parts>()
    {
        trace = TraceContext::find(|name| parts.headers.get(name)?.to_str().ok());
    }
    let span = Span::start(SpanKind::Server, name(tool), &trace, || {
        let version = context.protocol_version().map(|version| version.to_string());
        let job = |key| {
            context.meta.get(key).map(|value| value.as_str().map_or_else(|| value.to_string(), str::to_owned))
        };
        let more = [
            ("mcp.protocol.version", version),
            ("jsonrpc.request.id", Some(context.id.to_string())),
            ("fleet.job.id", job(meta::JOB_ID)),
            ("fleet.job.attempt", job(meta::ATTEMPT)),
        ];
        let more = more.into_iter().filter_map(|(key, value)| Some((key, value?.into())));
        attributes(tool).into_iter().chain(more).collect::<Vec<Attribute>>()
    });
    span.context().put_into(&mut context.meta);
    span
}

/// Begins the span of a call that is passed on, and returns the context with which that is done.
pub(super) fn passed_on(
    server: &str,
    tool: &str,
    context: &RequestContext<RoleServer>,
) -> (Span, RequestContext<RoleServer>) {
    let span = Span::start(SpanKind::Client, name(tool), &TraceContext::of_meta(&context.meta), || {
        attributes(tool).into_iter().chain([("fleet.upstream", server.to_owned().into())])
    });
    let mut context = context.clone();
    span.context().put_into(&mut context.meta);
    (span, context)
}

/// Says in a span how the call went.
pub(super) fn answered(span: &Span, outcome: &'static str, result: &Result<CallToolResponse, ErrorData>) {
    match result {
        Err(error) => span.fail(outcome, &error.message),
        // What the tool says is the caller's and may be secret.
        Ok(_) if outcome != OK => span.fail("tool_error", "the tool reports an error"),
        Ok(_) => {}
    }
}

/// The job for which a call is made, if it says so.
pub(super) fn job_id(context: &RequestContext<RoleServer>) -> Option<&str> {
    context.meta.get(meta::JOB_ID)?.as_str()
}

fn name(tool: &str) -> String {
    format!("tools/call {tool}")
}

fn attributes(tool: &str) -> [Attribute; 3] {
    [
        ("mcp.method.name", "tools/call".into()),
        ("gen_ai.operation.name", "execute_tool".into()),
        ("gen_ai.tool.name", tool.to_owned().into()),
    ]
}

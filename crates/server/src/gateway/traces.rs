//! The spans of tool calls, named after OpenTelemetry's conventions for MCP: one for a received
//! call, and one below it if the call is forwarded to a hosted server.

use fleet_job::{envelope::MAX_ID_BYTES, meta, trace::TraceContext};
use fleet_ops::trace::{Attribute, Span, SpanKind, Value};
use http::request::Parts;
use rmcp::{RoleServer, service::RequestContext};

/// Begins the span of a received call, and names it in `_meta` as the parent of later spans. A
/// trace context in the caller's `_meta` takes precedence over one in the HTTP headers.
pub(super) fn start_call_span(tool: &str, context: &mut RequestContext<RoleServer>) -> Span {
    let mut trace = TraceContext::of_meta(&context.meta);
    if trace.parent.is_none()
        && let Some(parts) = context.extensions.get::<Parts>()
    {
        trace = TraceContext::find(|name| parts.headers.get(name)?.to_str().ok());
    }
    let span = Span::start(SpanKind::Server, span_name(tool), &trace, || {
        let version = context.protocol_version().map(|version| version.to_string());
        let text =
            |key, value: Option<String>| Some((key, Value::from(clip_text(&value?).to_owned())));
        let attempt = context.meta.get(meta::ATTEMPT).and_then(serde_json::Value::as_i64);
        let more = [
            text("mcp.protocol.version", version),
            text("jsonrpc.request.id", Some(context.id.to_string())),
            text("fleet.job.id", job_id(context).map(str::to_owned)),
            attempt.map(|attempt| ("fleet.job.attempt", attempt.into())),
        ];
        let more = more.into_iter().flatten();
        call_attributes(tool).into_iter().chain(more).collect::<Vec<Attribute>>()
    });
    span.context().put_into(&mut context.meta);
    span
}

/// Begins the span of a call that is forwarded, and returns the context to forward it with.
pub(super) fn start_forward_span(
    server: &str,
    tool: &str,
    context: &RequestContext<RoleServer>,
) -> (Span, RequestContext<RoleServer>) {
    let span = Span::start(
        SpanKind::Client,
        span_name(tool),
        &TraceContext::of_meta(&context.meta),
        || call_attributes(tool).into_iter().chain([("fleet.upstream", server.to_owned().into())]),
    );
    let mut context = context.clone();
    span.context().put_into(&mut context.meta);
    (span, context)
}

/// Returns the job that a call belongs to, according to the caller.
pub(super) fn job_id(context: &RequestContext<RoleServer>) -> Option<&str> {
    context.meta.get(meta::JOB_ID)?.as_str().filter(|id| id.len() <= MAX_ID_BYTES)
}

fn span_name(tool: &str) -> String {
    format!("tools/call {}", clip_text(tool))
}

/// Clips a caller's text to the length of an id, so that spans stay small.
fn clip_text(text: &str) -> &str {
    &text[..text.floor_char_boundary(MAX_ID_BYTES)]
}

fn call_attributes(tool: &str) -> [Attribute; 3] {
    [
        ("mcp.method.name", "tools/call".into()),
        ("gen_ai.operation.name", "execute_tool".into()),
        ("gen_ai.tool.name", clip_text(tool).to_owned().into()),
    ]
}

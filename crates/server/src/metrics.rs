//! The declarations of the server's metrics.

use fleet_ops::metrics::{Kind, Metric, Unit};

/// Durations of HTTP requests, named by OpenTelemetry's convention for HTTP servers.
pub const HTTP_DURATION: Metric = Metric {
    name: "http_server_request_duration_seconds",
    kind: Kind::Histogram,
    unit: Unit::Seconds,
    labels: &["http_request_method", "http_route", "http_response_status_code"],
    help: "Time from an HTTP request to the start of its response.",
};
/// Open sessions.
pub const SESSIONS: Metric = Metric {
    name: "mcp_server_sessions",
    kind: Kind::Gauge,
    unit: Unit::Count,
    labels: &[],
    help: "Sessions of clients of older protocol revisions that this replica serves.",
};
/// Tool calls by outcome.
pub const TOOL_CALLS: Metric = Metric {
    name: "mcp_server_tool_calls_total",
    kind: Kind::Counter,
    unit: Unit::Count,
    labels: &["kind", "outcome"],
    help: "Calls of the server's own tools and of hosted tools: ok, tool-error, invalid, error. \
           Includes repeats that were answered from memory.",
};
/// Durations of tool calls, named by OpenTelemetry's convention for MCP servers.
pub const OPERATION_DURATION: Metric = Metric {
    name: "mcp_server_operation_duration_seconds",
    kind: Kind::Histogram,
    unit: Unit::Seconds,
    labels: &["mcp_method_name", "gen_ai_tool_name", "error_type"],
    help: "Time from a tool call to its result, by tool. `error_type` is empty if the call \
           succeeded. After the first 200 tools, further tools are reported as `_OTHER`.",
};
/// Reloads of the policy file.
pub const POLICY_RELOADS: Metric = Metric {
    name: "mcp_server_policy_reloads_total",
    kind: Kind::Counter,
    unit: Unit::Count,
    labels: &["outcome"],
    help: "Reloads of the policy file: applied, invalid (the previous policy stays in force).",
};
/// Requests whose caller was accepted.
pub const ACCEPTED_REQUESTS: Metric = Metric {
    name: "mcp_server_accepted_requests_total",
    kind: Kind::Counter,
    unit: Unit::Count,
    labels: &["via"],
    help: "Requests whose caller was accepted, by how it proved who it is: key, token, certificate. \
           Not at all: loopback (only this machine can reach the server), open (MCP_ACCESS=open).",
};
/// Requests whose credentials were refused.
pub const REFUSED_REQUESTS: Metric = Metric {
    name: "mcp_server_refused_requests_total",
    kind: Kind::Counter,
    unit: Unit::Count,
    labels: &["fault"],
    help: "Requests whose credentials were refused, by what was wrong with them, such as missing, \
           revoked-key, expired, audience or no-issuer-keys.",
};
/// Calls that workers make for jobs.
pub const PRESENTED_CALLS: Metric = Metric {
    name: "mcp_server_presented_calls_total",
    kind: Kind::Counter,
    unit: Unit::Count,
    labels: &["signature"],
    help: "Calls that workers make for jobs, where jobs are signed: valid, none (the job acts as its \
           topic), or what is wrong with the signature (malformed, unknown-key, forged, \
           other-topic, other-job, other-record, other-call); worker-refused if the worker may not \
           act for others.",
};
/// Reloads of the files about access.
pub const ACCESS_RELOADS: Metric = Metric {
    name: "mcp_server_access_reloads_total",
    kind: Kind::Counter,
    unit: Unit::Count,
    labels: &["outcome"],
    help: "Reloads of keys, pepper, signing keys and policy about access: applied, invalid (the previous state \
           stays in force).",
};
/// Reads of the keys of issuers.
pub const ISSUER_KEY_READS: Metric = Metric {
    name: "mcp_server_issuer_key_reads_total",
    kind: Kind::Counter,
    unit: Unit::Count,
    labels: &["outcome"],
    help: "Reads of the key sets of issuers of access tokens: ok, failed (the keys before stay in \
           use).",
};
/// Repeated calls answered from memory.
pub const REPEATS: Metric = Metric {
    name: "mcp_server_repeats_answered_total",
    kind: Kind::Counter,
    unit: Unit::Count,
    labels: &[],
    help: "Repeated calls of jobs that were answered with the remembered result, without calling \
           the tool.",
};
/// The size of the repeat memory.
pub const REPEAT_BYTES: Metric = Metric {
    name: "mcp_server_repeat_memory_bytes",
    kind: Kind::Gauge,
    unit: Unit::Bytes,
    labels: &[],
    help: "Bytes that remembered results take.",
};

/// Makes gauges visible before their first change.
pub(crate) fn show_gauges() {
    for gauge in [SESSIONS, fleet_hosting::metrics::CHILDREN] {
        metrics::gauge!(gauge.name).increment(0.0);
    }
    let separated = if fleet_launcher::can_separate_children() { 1.0 } else { 0.0 };
    metrics::gauge!(fleet_hosting::metrics::CHILDREN_SEPARATED.name).set(separated);
}

/// The metrics of the server itself.
const TABLE: &[Metric] = &[
    HTTP_DURATION,
    SESSIONS,
    TOOL_CALLS,
    OPERATION_DURATION,
    POLICY_RELOADS,
    ACCEPTED_REQUESTS,
    REFUSED_REQUESTS,
    PRESENTED_CALLS,
    ACCESS_RELOADS,
    ISSUER_KEY_READS,
    REPEATS,
    REPEAT_BYTES,
];

/// All metrics of this binary.
pub const TABLES: [&[Metric]; 5] = [
    TABLE,
    fleet_audit::metrics::TABLE,
    fleet_hosting::metrics::TABLE,
    fleet_jobs::metrics::TABLE,
    fleet_ledger::metrics::TABLE,
];

//! The server's metrics, declared once.

use fleet_ops::metrics::{Kind, Metric, Unit};

/// HTTP requests.
pub const HTTP_REQUESTS: Metric = Metric {
    name: "mcp_server_http_requests_total",
    kind: Kind::Counter,
    unit: Unit::Count,
    labels: &["path", "status"],
    help: "HTTP requests by path and sort of answer.",
};
/// Tool calls.
pub const TOOL_CALLS: Metric = Metric {
    name: "mcp_server_tool_calls_total",
    kind: Kind::Counter,
    unit: Unit::Count,
    labels: &["kind", "outcome"],
    help: "Tool calls, of own and hosted tools: ok, tool-error, invalid, error. Repeats that were answered from memory \
           count too.",
};
/// Time of a tool call.
pub const TOOL_CALL_DURATION: Metric = Metric {
    name: "mcp_server_tool_call_duration_seconds",
    kind: Kind::Histogram,
    unit: Unit::Seconds,
    labels: &["kind"],
    help: "Time from a tool call to its result.",
};
/// Hosted servers.
pub const HOSTED_SERVERS: Metric = Metric {
    name: "mcp_server_hosted_servers",
    kind: Kind::Gauge,
    unit: Unit::Count,
    labels: &["state"],
    help: "Hosted servers by state: starting, running, failed, idle, refused.",
};
/// Restarts of hosted servers.
pub const HOSTED_RESTARTS: Metric = Metric {
    name: "mcp_server_hosted_restarts_total",
    kind: Kind::Counter,
    unit: Unit::Count,
    labels: &[],
    help: "Restarts of hosted servers that had died.",
};
/// Calls of hosted tools.
pub const CALLS_IN_FLIGHT: Metric = Metric {
    name: "mcp_server_hosted_calls_in_flight",
    kind: Kind::Gauge,
    unit: Unit::Count,
    labels: &[],
    help: "Calls of hosted tools that are under way.",
};
/// Calls that were not made.
pub const CALLS_TURNED_AWAY: Metric = Metric {
    name: "mcp_server_hosted_calls_turned_away_total",
    kind: Kind::Counter,
    unit: Unit::Count,
    labels: &["reason"],
    help: "Calls of hosted tools that were not made: breaker-open, queue-full, queue-timeout.",
};
/// Changes of breakers.
pub const BREAKER_CHANGES: Metric = Metric {
    name: "mcp_server_hosted_breaker_changes_total",
    kind: Kind::Counter,
    unit: Unit::Count,
    labels: &["to"],
    help: "How often the breaker of a hosted server changed: open (calls were lost in a row), closed (it answers again).",
};
/// Policy files that were read again.
pub const POLICY_RELOADS: Metric = Metric {
    name: "mcp_server_policy_reloads_total",
    kind: Kind::Counter,
    unit: Unit::Count,
    labels: &["outcome"],
    help: "Changes of the policy file: applied, invalid (the policy before still holds).",
};
/// Repeats answered from memory.
pub const REPEATS: Metric = Metric {
    name: "mcp_server_repeats_answered_total",
    kind: Kind::Counter,
    unit: Unit::Count,
    labels: &[],
    help: "Repeated calls of jobs that were answered with the remembered result, so that no tool ran.",
};
/// Size of what is remembered.
pub const REPEAT_BYTES: Metric = Metric {
    name: "mcp_server_repeat_memory_bytes",
    kind: Kind::Gauge,
    unit: Unit::Bytes,
    labels: &[],
    help: "Bytes of remembered results.",
};

/// Submitted jobs.
pub const JOBS_SUBMITTED: Metric = Metric {
    name: "mcp_server_jobs_submitted_total",
    kind: Kind::Counter,
    unit: Unit::Count,
    labels: &["outcome"],
    help: "Jobs that were submitted through this server: new, existing (a repeat, recognised by its id or key).",
};
/// Jobs in the ledger.
pub const LEDGER_JOBS: Metric = Metric {
    name: "mcp_server_ledger_jobs",
    kind: Kind::Gauge,
    unit: Unit::Count,
    labels: &["state"],
    help: "Jobs in this replica's ledger, by state.",
};
/// Jobs that the ledger has forgotten.
pub const LEDGER_FORGOTTEN: Metric = Metric {
    name: "mcp_server_ledger_forgotten_total",
    kind: Kind::Counter,
    unit: Unit::Count,
    labels: &["what"],
    help: "Jobs that the ledger has forgotten: ended (too long ago, or for want of room), open (for want of room: it is too \
           small for the jobs that are under way).",
};

/// All of them.
pub const TABLE: &[Metric] = &[
    HTTP_REQUESTS,
    TOOL_CALLS,
    TOOL_CALL_DURATION,
    HOSTED_SERVERS,
    HOSTED_RESTARTS,
    CALLS_IN_FLIGHT,
    CALLS_TURNED_AWAY,
    BREAKER_CHANGES,
    POLICY_RELOADS,
    REPEATS,
    REPEAT_BYTES,
    JOBS_SUBMITTED,
    LEDGER_JOBS,
    LEDGER_FORGOTTEN,
];

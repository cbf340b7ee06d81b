//! The server's metrics, declared once.

use fleet_ops::metrics::{Kind, Metric, Unit};

/// HTTP requests; named by OpenTelemetry's convention for HTTP servers.
pub const HTTP_DURATION: Metric = Metric {
    name: "http_server_request_duration_seconds",
    kind: Kind::Histogram,
    unit: Unit::Seconds,
    labels: &["http_request_method", "http_route", "http_response_status_code"],
    help: "Time from an HTTP request to the beginning of its answer.",
};
/// Sessions.
pub const SESSIONS: Metric = Metric {
    name: "mcp_server_sessions",
    kind: Kind::Gauge,
    unit: Unit::Count,
    labels: &[],
    help: "Sessions of the older protocol that this replica serves.",
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
/// Time of a tool call; named by OpenTelemetry's convention for MCP servers.
pub const OPERATION_DURATION: Metric = Metric {
    name: "mcp_server_operation_duration_seconds",
    kind: Kind::Histogram,
    unit: Unit::Seconds,
    labels: &["mcp_method_name", "gen_ai_tool_name", "error_type"],
    help: "Time from a tool call to its result, by tool. `error_type` is empty where it succeeded. Tools beyond the first \
           200 that were called are `_OTHER`.",
};
/// Hosted servers.
pub const HOSTED_SERVERS: Metric = Metric {
    name: "mcp_server_hosted_servers",
    kind: Kind::Gauge,
    unit: Unit::Count,
    labels: &["state"],
    help: "Hosted servers by state: starting, running, failed, idle, refused.",
};
/// Child processes.
pub const CHILDREN: Metric = Metric {
    name: "mcp_server_hosted_children",
    kind: Kind::Gauge,
    unit: Unit::Count,
    labels: &[],
    help: "Processes of hosted servers that run.",
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
/// Writes that the registry has not taken.
pub const REGISTRY_UNWRITTEN: Metric = Metric {
    name: "mcp_server_registry_unwritten",
    kind: Kind::Gauge,
    unit: Unit::Count,
    labels: &[],
    help: "Servers that this replica was told to host or to remove, and that the shared registry has not taken yet.",
};
/// Writes that the registry has refused.
pub const REGISTRY_WRITE_FAILURES: Metric = Metric {
    name: "mcp_server_registry_write_failures_total",
    kind: Kind::Counter,
    unit: Unit::Count,
    labels: &[],
    help: "Writes to the shared registry that failed. Each is repeated until the registry has taken it.",
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

/// Ends of jobs that were written again.
pub const ENDS_RESTATED: Metric = Metric {
    name: "mcp_server_ends_restated_total",
    kind: Kind::Counter,
    unit: Unit::Count,
    labels: &[],
    help: "Ends of jobs that this replica has written again because a stale event stood behind them in the events topic.",
};

/// How far the ledger is behind.
pub const LEDGER_BEHIND: Metric = Metric {
    name: "mcp_server_ledger_behind",
    kind: Kind::Gauge,
    unit: Unit::Count,
    labels: &[],
    help: "Records of the events topic that this replica's ledger has not taken up yet.",
};
/// Length of the dead-letter topic.
pub const DEAD_LETTERS: Metric = Metric {
    name: "mcp_server_dead_letters",
    kind: Kind::Gauge,
    unit: Unit::Count,
    labels: &[],
    help: "Records in the dead-letter topic. Those that were replayed count until they are purged.",
};

/// Makes the gauges visible that count from nothing.
pub(crate) fn begin() {
    for gauge in [SESSIONS, CHILDREN] {
        metrics::gauge!(gauge.name).increment(0.0);
    }
}

/// A thing that is counted in a gauge for as long as it is there.
#[derive(Debug)]
pub(crate) struct Counted(&'static str);

impl Counted {
    pub(crate) fn new(gauge: &Metric) -> Self {
        metrics::gauge!(gauge.name).increment(1.0);
        Self(gauge.name)
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        metrics::gauge!(self.0).decrement(1.0);
    }
}

/// All of them.
pub const TABLE: &[Metric] = &[
    HTTP_DURATION,
    SESSIONS,
    TOOL_CALLS,
    OPERATION_DURATION,
    HOSTED_SERVERS,
    CHILDREN,
    HOSTED_RESTARTS,
    CALLS_IN_FLIGHT,
    CALLS_TURNED_AWAY,
    BREAKER_CHANGES,
    REGISTRY_UNWRITTEN,
    REGISTRY_WRITE_FAILURES,
    POLICY_RELOADS,
    REPEATS,
    REPEAT_BYTES,
    JOBS_SUBMITTED,
    LEDGER_JOBS,
    LEDGER_FORGOTTEN,
    ENDS_RESTATED,
    LEDGER_BEHIND,
    DEAD_LETTERS,
];

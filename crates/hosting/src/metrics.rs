//! The metrics of hosted servers and their registry, declared once.

use fleet_ops::metrics::{Kind, Metric, Unit};

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

/// All of them.
pub const TABLE: &[Metric] = &[
    HOSTED_SERVERS,
    CHILDREN,
    HOSTED_RESTARTS,
    CALLS_IN_FLIGHT,
    CALLS_TURNED_AWAY,
    BREAKER_CHANGES,
    REGISTRY_UNWRITTEN,
    REGISTRY_WRITE_FAILURES,
];

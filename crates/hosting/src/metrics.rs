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
/// Tools that are withheld.
pub const TOOLS_WITHHELD: Metric = Metric {
    name: "mcp_server_hosted_tools_withheld",
    kind: Kind::Gauge,
    unit: Unit::Count,
    labels: &[],
    help: "Tools of hosted servers that are withheld because they are not as pinned.",
};
/// Tools that are not as pinned.
pub const TOOLS_UNAPPROVED: Metric = Metric {
    name: "mcp_server_hosted_tools_unapproved_total",
    kind: Kind::Counter,
    unit: Unit::Count,
    labels: &["standing"],
    help: "Definitions of tools of hosted servers that were found not to be as pinned: changed, new, rejected.",
};
/// Processes of children.
pub const CHILDREN: Metric = Metric {
    name: "mcp_server_hosted_children",
    kind: Kind::Gauge,
    unit: Unit::Count,
    labels: &[],
    help: "Running processes of hosted servers.",
};
/// Whether children are kept apart.
pub const CHILDREN_SEPARATED: Metric = Metric {
    name: "mcp_server_hosted_children_separated",
    kind: Kind::Gauge,
    unit: Unit::Count,
    labels: &[],
    help: "Whether the kernel can keep hosted child processes out of each other's memory and environment (Landlock): 1 or 0.",
};
/// Restarts of hosted servers.
pub const HOSTED_RESTARTS: Metric = Metric {
    name: "mcp_server_hosted_restarts_total",
    kind: Kind::Counter,
    unit: Unit::Count,
    labels: &[],
    help: "Restarts of hosted servers that had failed.",
};
/// Calls of hosted tools.
pub const CALLS_IN_FLIGHT: Metric = Metric {
    name: "mcp_server_hosted_calls_in_flight",
    kind: Kind::Gauge,
    unit: Unit::Count,
    labels: &[],
    help: "Running calls of hosted tools.",
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
    help: "State changes of hosted servers' breakers: open (several calls in a row were lost), closed (the server answers \
           again).",
};
/// Requests for access tokens.
pub const UPSTREAM_TOKENS: Metric = Metric {
    name: "mcp_server_upstream_tokens_total",
    kind: Kind::Counter,
    unit: Unit::Count,
    labels: &["outcome"],
    help: "Access tokens that were asked for, for hosted remotes with `oauth` in the policy: issued, failed.",
};
/// Writes that the registry has not accepted yet.
pub const REGISTRY_UNWRITTEN: Metric = Metric {
    name: "mcp_server_registry_unwritten",
    kind: Kind::Gauge,
    unit: Unit::Count,
    labels: &[],
    help: "Changes of hosted servers that this replica has made but the shared registry has not accepted yet.",
};
/// Failed writes to the registry.
pub const REGISTRY_WRITE_FAILURES: Metric = Metric {
    name: "mcp_server_registry_write_failures_total",
    kind: Kind::Counter,
    unit: Unit::Count,
    labels: &[],
    help: "Failed writes to the shared registry. Each write is repeated until it succeeds.",
};

/// All metrics of hosted servers.
pub const TABLE: &[Metric] = &[
    HOSTED_SERVERS,
    TOOLS_WITHHELD,
    TOOLS_UNAPPROVED,
    CHILDREN,
    CHILDREN_SEPARATED,
    HOSTED_RESTARTS,
    CALLS_IN_FLIGHT,
    CALLS_TURNED_AWAY,
    BREAKER_CHANGES,
    UPSTREAM_TOKENS,
    REGISTRY_UNWRITTEN,
    REGISTRY_WRITE_FAILURES,
];

//! The metrics of the audit log.

use fleet_ops::metrics::{Kind, Metric, Unit};

/// Records that were kept.
pub const AUDIT_RECORDS: Metric = Metric {
    name: "mcp_server_audit_records_total",
    kind: Kind::Counter,
    unit: Unit::Count,
    labels: &["sink"],
    help: "Audit records that were kept, by where: file, topic.",
};
/// Records that could not be kept.
pub const AUDIT_GAPS: Metric = Metric {
    name: "mcp_server_audit_gaps_total",
    kind: Kind::Counter,
    unit: Unit::Count,
    labels: &["sink"],
    help: "Audit records that could not be kept, by where they are missing: file, topic. With \
           MCP_AUDIT=required, what they were about was not done.",
};

/// All metrics of the audit log.
pub const TABLE: &[Metric] = &[AUDIT_RECORDS, AUDIT_GAPS];

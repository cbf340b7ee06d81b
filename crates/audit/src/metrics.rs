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
           MCP_AUDIT=required, nothing was begun whose beginning was not kept.",
};

/// Records of refusals that were left out.
pub const AUDIT_LEFT_OUT: Metric = Metric {
    name: "mcp_server_audit_left_out_total",
    kind: Kind::Counter,
    unit: Unit::Count,
    labels: &[],
    help: "Audit records of refusals that were left out, since there were more than 60 of one \
           caller and one reason, or 6,000 of all, within a minute. The next record says how many.",
};

/// All metrics of the audit log.
pub const TABLE: &[Metric] = &[AUDIT_RECORDS, AUDIT_GAPS, AUDIT_LEFT_OUT];

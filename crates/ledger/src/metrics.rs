//! The metrics of a ledger in a database, declared once.

use fleet_ops::metrics::{Kind, Metric, Unit};

/// Work that the database did not do.
pub const DATABASE_ERRORS: Metric = Metric {
    name: "mcp_server_ledger_database_errors_total",
    kind: Kind::Counter,
    unit: Unit::Count,
    labels: &["work"],
    help: "Work for the ledger that PostgreSQL did not do: project (writing what the events topic says), find (reading \
           one job), list (lists and counts).",
};
/// Records of the events topic.
pub const PROJECTED: Metric = Metric {
    name: "mcp_server_ledger_projected_total",
    kind: Kind::Counter,
    unit: Unit::Count,
    labels: &["by"],
    help: "Records of the events topic that this replica wrote to PostgreSQL (this), or found there already (another).",
};

/// All metrics of a ledger in a database.
pub const TABLE: &[Metric] = &[DATABASE_ERRORS, PROJECTED];

pub(crate) fn count_error(work: &'static str) {
    ::metrics::counter!(DATABASE_ERRORS.name, "work" => work).increment(1);
}

pub(crate) fn count_projected(by: &'static str, records: usize) {
    ::metrics::counter!(PROJECTED.name, "by" => by).increment(records as u64);
}

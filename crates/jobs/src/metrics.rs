//! The metrics of the job service, declared once.

use fleet_ops::metrics::{Kind, Metric, Unit};

/// Submitted jobs.
pub const JOBS_SUBMITTED: Metric = Metric {
    name: "mcp_server_jobs_submitted_total",
    kind: Kind::Counter,
    unit: Unit::Count,
    labels: &["outcome"],
    help: "Jobs submitted through this server: new, existing (a repeat, recognised by its id or key).",
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
    help: "Jobs that the ledger has removed: ended (too old, or the ledger was full), open (the ledger is too small for \
           the open jobs).",
};
/// Ends of jobs that were written again.
pub const ENDS_RESTATED: Metric = Metric {
    name: "mcp_server_ends_restated_total",
    kind: Kind::Counter,
    unit: Unit::Count,
    labels: &[],
    help: "Terminal events that this replica has written again because a stale event followed them in the events topic.",
};
/// How far the ledger is behind.
pub const LEDGER_BEHIND: Metric = Metric {
    name: "mcp_server_ledger_behind",
    kind: Kind::Gauge,
    unit: Unit::Count,
    labels: &[],
    help: "Records of the events topic that this replica's ledger has not read yet.",
};
/// Length of the dead-letter topic.
pub const DEAD_LETTERS: Metric = Metric {
    name: "mcp_server_dead_letters",
    kind: Kind::Gauge,
    unit: Unit::Count,
    labels: &[],
    help: "Records in the dead-letter topic. Replayed ones count until they are purged.",
};

/// All metrics of the job service.
pub const TABLE: &[Metric] =
    &[JOBS_SUBMITTED, LEDGER_JOBS, LEDGER_FORGOTTEN, ENDS_RESTATED, LEDGER_BEHIND, DEAD_LETTERS];

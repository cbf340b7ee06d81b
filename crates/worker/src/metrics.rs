//! The worker's metrics, declared once.

use fleet_ops::metrics::{Kind, Metric, Unit};

const fn metric(
    name: &'static str,
    kind: Kind,
    unit: Unit,
    labels: &'static [&'static str],
    help: &'static str,
) -> Metric {
    Metric { name, kind, unit, labels, help }
}

/// Records read.
pub const CONSUMED: Metric = metric(
    "messaging_client_consumed_messages_total",
    Kind::Counter,
    Unit::Count,
    &[],
    "Records read from the jobs topic, repeats included.",
);
/// Jobs settled.
pub const SETTLED: Metric = metric(
    "fleet_jobs_settled_total",
    Kind::Counter,
    Unit::Count,
    &["state", "type"],
    "Jobs whose terminal record is acknowledged, by terminal state and job type.",
);
/// Jobs passed on.
pub const PASSED_ON: Metric = metric(
    "fleet_jobs_passed_on_total",
    Kind::Counter,
    Unit::Count,
    &["topic"],
    "Jobs written on because they have to wait: from which of the topics, jobs or delayed.",
);
/// Repeats passed over.
pub const PASSED_OVER: Metric = metric(
    "fleet_jobs_passed_over_total",
    Kind::Counter,
    Unit::Count,
    &[],
    "Records that came again after this worker had settled them; they were not run again.",
);
/// Cancel requests.
pub const CANCEL_REQUESTS: Metric = metric(
    "fleet_cancel_requests_total",
    Kind::Counter,
    Unit::Count,
    &["job"],
    "Requests to cancel that met a job of this worker: running, waiting, ending (too late), arrived (after the request).",
);
/// Attempts ended.
pub const ATTEMPTS: Metric = metric(
    "fleet_attempts_total",
    Kind::Counter,
    Unit::Count,
    &["outcome"],
    "Attempts ended: succeeded, retry, permanent, unavailable, held, cancelled.",
);
/// Time of an attempt.
pub const DURATION: Metric = metric(
    "messaging_process_duration_seconds",
    Kind::Histogram,
    Unit::Seconds,
    &["outcome"],
    "How long attempts took.",
);
/// Attempts under way.
pub const IN_FLIGHT: Metric =
    metric("fleet_jobs_in_flight", Kind::Gauge, Unit::Count, &[], "Attempts under way.");
/// Jobs in memory.
pub const BUFFERED: Metric = metric(
    "fleet_jobs_buffered",
    Kind::Gauge,
    Unit::Count,
    &[],
    "Jobs in memory that are not settled.",
);
/// Jobs that wait for their time.
pub const PARKED: Metric = metric(
    "fleet_jobs_parked",
    Kind::Gauge,
    Unit::Count,
    &[],
    "Jobs in memory that wait for their `notBefore` or their next attempt.",
);
/// Jobs that wait for what is away.
pub const WAITING: Metric = metric(
    "fleet_jobs_waiting",
    Kind::Gauge,
    Unit::Count,
    &["reason"],
    "Jobs in memory that would start if what they need were there, by why it is not: server-unavailable, server-busy, upstream-unauthorized and rate-limited behind the MCP server, unavailable and unauthorized of the MCP server itself.",
);
/// Age of the oldest job.
pub const OLDEST: Metric = metric(
    "fleet_oldest_job_age_seconds",
    Kind::Gauge,
    Unit::Seconds,
    &[],
    "Age of the oldest record of the jobs topic in memory that is not settled; 0 where there is none.",
);
/// Bytes in memory.
pub const BUFFERED_BYTES: Metric = metric(
    "fleet_jobs_buffered_bytes",
    Kind::Gauge,
    Unit::Bytes,
    &[],
    "Bytes of jobs in memory that are not settled.",
);
/// Lag.
pub const LAG: Metric = metric(
    "fleet_consumer_lag",
    Kind::Gauge,
    Unit::Count,
    &["topic", "partition"],
    "Records between the committed offset and the end of an assigned partition, as librdkafka sees it; where nothing was \
     committed, all records.",
);
/// Partitions.
pub const PARTITIONS: Metric = metric(
    "fleet_partitions_assigned",
    Kind::Gauge,
    Unit::Count,
    &[],
    "Partitions that this worker reads.",
);
/// Partitions that can't be read on.
pub const UNREADABLE: Metric = metric(
    "fleet_partitions_unreadable",
    Kind::Gauge,
    Unit::Count,
    &["topic"],
    "Assigned partitions of the jobs or delayed topic that can't be read on: the broker hands out a batch that can't be decoded, or none. The others go on.",
);
/// Rebalances.
pub const REBALANCES: Metric = metric(
    "fleet_rebalances_total",
    Kind::Counter,
    Unit::Count,
    &["kind"],
    "Changes of the assignment: assigned, revoked, lost.",
);
/// Breaker.
pub const BREAKER: Metric = metric(
    "fleet_breaker_open",
    Kind::Gauge,
    Unit::Count,
    &[],
    "1 while the MCP server is unavailable and jobs wait, else 0.",
);
/// Commits.
pub const COMMITS: Metric = metric(
    "fleet_commits_total",
    Kind::Counter,
    Unit::Count,
    &["ok"],
    "Commits answered by the broker.",
);
/// Age of what is not committed.
pub const COMMIT_AGE: Metric = metric(
    "fleet_commit_age_seconds",
    Kind::Gauge,
    Unit::Seconds,
    &[],
    "For how long the oldest settled job has waited for the commit that says so; 0 where none waits.",
);
/// Dead letters.
pub const DEAD_LETTERS: Metric = metric(
    "fleet_dead_letters_total",
    Kind::Counter,
    Unit::Count,
    &["kind"],
    "Dead letters written, by the kind of error.",
);
/// Failed writes.
pub const WRITE_FAILURES: Metric = metric(
    "fleet_write_failures_total",
    Kind::Counter,
    Unit::Count,
    &["kind"],
    "Events, dead letters and replies that could not be written; the first two are written again.",
);

/// All of them.
pub const TABLE: &[Metric] = &[
    CONSUMED,
    SETTLED,
    PASSED_ON,
    PASSED_OVER,
    CANCEL_REQUESTS,
    ATTEMPTS,
    DURATION,
    IN_FLIGHT,
    BUFFERED,
    PARKED,
    WAITING,
    OLDEST,
    BUFFERED_BYTES,
    LAG,
    PARTITIONS,
    UNREADABLE,
    REBALANCES,
    BREAKER,
    COMMITS,
    COMMIT_AGE,
    DEAD_LETTERS,
    WRITE_FAILURES,
];

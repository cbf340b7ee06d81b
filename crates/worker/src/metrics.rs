//! The worker's metrics. Each is declared once: code, `/metrics` and docs/metrics.md use this
//! table.

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

pub(crate) const CONSUMED: Metric = metric(
    "messaging_client_consumed_messages_total",
    Kind::Counter,
    Unit::Count,
    &[],
    "Records read from the jobs and delayed topics, including repeats.",
);

pub(crate) const SETTLED: Metric = metric(
    "fleet_jobs_settled_total",
    Kind::Counter,
    Unit::Count,
    &["state", "type"],
    "Settled jobs, by terminal state and job type.",
);

pub(crate) const PASSED_ON: Metric = metric(
    "fleet_jobs_passed_on_total",
    Kind::Counter,
    Unit::Count,
    &["topic"],
    "Jobs passed on as new records because they have to wait, by the topic that they came from: \
     jobs or delayed.",
);

pub(crate) const PASSED_OVER: Metric = metric(
    "fleet_jobs_passed_over_total",
    Kind::Counter,
    Unit::Count,
    &[],
    "Records that were not run again: this worker had settled them, or had another copy of them.",
);

pub(crate) const CANCEL_REQUESTS: Metric = metric(
    "fleet_cancel_requests_total",
    Kind::Counter,
    Unit::Count,
    &["job"],
    "Cancel requests for jobs of this worker, by what the job was doing: running, waiting, ending \
     (too late), or arrived (after the request).",
);

pub(crate) const REFUSED_CONTROLS: Metric = metric(
    "fleet_refused_controls_total",
    Kind::Counter,
    Unit::Count,
    &["fault"],
    "Requests to cancel and pauses that were ignored, because no server of this fleet has signed \
     them: missing, malformed, unknown-key, forged, other-topic, other-record.",
);

pub(crate) const ATTEMPTS: Metric = metric(
    "fleet_attempts_total",
    Kind::Counter,
    Unit::Count,
    &["outcome"],
    "Attempts that have ended, by outcome: succeeded, retry, permanent, unavailable, held, \
     cancelled.",
);

pub(crate) const DURATION: Metric = metric(
    "messaging_process_duration_seconds",
    Kind::Histogram,
    Unit::Seconds,
    &["outcome"],
    "Duration of attempts.",
);

pub(crate) const IN_FLIGHT: Metric =
    metric("fleet_jobs_in_flight", Kind::Gauge, Unit::Count, &[], "Running attempts.");

pub(crate) const BUFFERED: Metric =
    metric("fleet_jobs_buffered", Kind::Gauge, Unit::Count, &[], "Unsettled jobs in memory.");

pub(crate) const PARKED: Metric = metric(
    "fleet_jobs_parked",
    Kind::Gauge,
    Unit::Count,
    &[],
    "Jobs in memory that wait for their `notBefore` or their next attempt.",
);

pub(crate) const WAITING: Metric = metric(
    "fleet_jobs_waiting",
    Kind::Gauge,
    Unit::Count,
    &["reason"],
    "Jobs in memory that wait through no fault of their own, by reason: server-unavailable, \
     server-busy, upstream-unauthorized and rate-limited for what is behind the MCP server; \
     unavailable and unauthorized for the MCP server itself; paused for what people have paused.",
);

pub(crate) const OLDEST: Metric = metric(
    "fleet_oldest_job_age_seconds",
    Kind::Gauge,
    Unit::Seconds,
    &[],
    "Age of the oldest unsettled record of the jobs topic in memory; 0 if there is none.",
);

pub(crate) const BUFFERED_BYTES: Metric = metric(
    "fleet_jobs_buffered_bytes",
    Kind::Gauge,
    Unit::Bytes,
    &[],
    "Bytes of unsettled jobs in memory.",
);

pub(crate) const LAG: Metric = metric(
    "fleet_consumer_lag",
    Kind::Gauge,
    Unit::Count,
    &["topic", "partition"],
    "Records between the committed offset and the end of an assigned partition, as librdkafka \
     sees it; all records if nothing was committed.",
);

pub(crate) const PARTITIONS: Metric = metric(
    "fleet_partitions_assigned",
    Kind::Gauge,
    Unit::Count,
    &[],
    "Partitions assigned to this worker.",
);

pub(crate) const UNREADABLE: Metric = metric(
    "fleet_partitions_unreadable",
    Kind::Gauge,
    Unit::Count,
    &["topic"],
    "Assigned partitions of the jobs or delayed topic that can't be read further, because the \
     broker returns a batch that can't be decoded, or none. Other partitions go on.",
);

pub(crate) const REBALANCES: Metric = metric(
    "fleet_rebalances_total",
    Kind::Counter,
    Unit::Count,
    &["kind"],
    "Changes of the partition assignment: assigned, revoked, lost.",
);

pub(crate) const BREAKER: Metric = metric(
    "fleet_breaker_open",
    Kind::Gauge,
    Unit::Count,
    &[],
    "1 while the MCP server is unavailable and jobs wait for it, else 0.",
);

pub(crate) const COMMITS: Metric = metric(
    "fleet_commits_total",
    Kind::Counter,
    Unit::Count,
    &["ok"],
    "Commits that the broker has answered, by success.",
);

pub(crate) const COMMIT_AGE: Metric = metric(
    "fleet_commit_age_seconds",
    Kind::Gauge,
    Unit::Seconds,
    &[],
    "How long the oldest settled job has waited for a commit that covers it; 0 if none waits.",
);

pub(crate) const DEAD_LETTERS: Metric = metric(
    "fleet_dead_letters_total",
    Kind::Counter,
    Unit::Count,
    &["kind"],
    "Dead letters written, by kind of error.",
);

pub(crate) const WRITE_FAILURES: Metric = metric(
    "fleet_write_failures_total",
    Kind::Counter,
    Unit::Count,
    &["kind"],
    "Failed writes of events, dead letters and replies. Events and dead letters are written again.",
);

/// All metrics of the worker.
pub const TABLE: &[Metric] = &[
    CONSUMED,
    SETTLED,
    PASSED_ON,
    PASSED_OVER,
    CANCEL_REQUESTS,
    REFUSED_CONTROLS,
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

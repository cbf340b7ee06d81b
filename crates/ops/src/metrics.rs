//! Metrics: one Prometheus recorder per process, and the tables that declare metrics.
//!
//! Each crate declares its metrics once, in a constant table of [`Metric`]. The table supplies the
//! recorder's descriptions ([`Metrics::describe`]) and the documentation ([`markdown`]), so neither
//! can drift from the code. Labels are bounded: never a job id, a key or a message.

use std::{sync::OnceLock, time::Duration};

use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use metrics_process::Collector;

pub use ::metrics::Unit;

/// How often histogram samples are folded into buckets if nothing scrapes the process.
const UPKEEP: Duration = Duration::from_secs(5);

/// Bucket bounds in seconds, from a local call (milliseconds) to a tool that takes an hour.
const SECONDS: [f64; 17] = [
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 120.0,
    600.0, 3600.0,
];

/// Bucket bounds in bytes, for histograms whose name ends in `_bytes`.
const BYTES: [f64; 9] =
    [256.0, 1024.0, 4096.0, 16384.0, 65536.0, 262_144.0, 1_048_576.0, 4_194_304.0, 16_777_216.0];

/// Checks of named invariants; recorded by [`crate::invariant`].
pub const INVARIANT_CHECKS: Metric = Metric {
    name: "fleet_invariant_checks_total",
    kind: Kind::Counter,
    unit: Unit::Count,
    labels: &["invariant"],
    help: "How often a named invariant was checked while the process ran, whether it held or not.",
};

/// Violations of named invariants; recorded by [`crate::invariant`].
pub const INVARIANT_VIOLATIONS: Metric = Metric {
    name: "fleet_invariant_violations_total",
    kind: Kind::Counter,
    unit: Unit::Count,
    labels: &["invariant"],
    help: "How often a named invariant was violated. Anything but 0 is a bug.",
};

/// Requests rejected because too many connections were open; recorded by [`crate::http`].
pub const HTTP_BUSY: Metric = Metric {
    name: "fleet_http_busy_total",
    kind: Kind::Counter,
    unit: Unit::Count,
    labels: &[],
    help: "HTTP requests answered with 503 because too many connections were open.",
};

/// Open connections; recorded by [`crate::http`].
pub const HTTP_CONNECTIONS: Metric = Metric {
    name: "fleet_http_connections",
    kind: Kind::Gauge,
    unit: Unit::Count,
    labels: &[],
    help: "Open HTTP connections, including silent ones and probes. Beyond 768, requests other than probes get 503.",
};

/// TLS handshakes that failed; recorded by [`crate::tls`].
pub const TLS_HANDSHAKE_FAILURES: Metric = Metric {
    name: "fleet_tls_handshake_failures_total",
    kind: Kind::Counter,
    unit: Unit::Count,
    labels: &["reason"],
    help: "TLS handshakes of clients that failed: client-certificate (missing, expired, revoked, or of another authority), refused-by-client (for example, because it does not trust the certificate), protocol (plain HTTP, or no common version), connection.",
};

/// Changes of TLS files; recorded by [`crate::tls`].
pub const TLS_RELOADS: Metric = Metric {
    name: "fleet_tls_reloads_total",
    kind: Kind::Counter,
    unit: Unit::Count,
    labels: &["files", "outcome"],
    help: "Changed TLS files of a listener or of a client's connections that were applied, or invalid; after invalid ones, those before stay in force.",
};

/// The running program; recorded by [`Metrics::identify`].
pub const BUILD_INFO: Metric = Metric {
    name: "fleet_build_info",
    kind: Kind::Gauge,
    unit: Unit::Count,
    labels: &["service", "version"],
    help: "Always 1; the labels name the program and its version.",
};

const fn process_metric(name: &'static str, kind: Kind, unit: Unit, help: &'static str) -> Metric {
    Metric { name, kind, unit, labels: &[], help }
}

/// The metrics of this crate, already described by [`install`]. Those of the process are collected
/// when `/metrics` is read, and only on systems that provide them.
pub const TABLE: &[Metric] = &[
    INVARIANT_CHECKS,
    INVARIANT_VIOLATIONS,
    HTTP_BUSY,
    HTTP_CONNECTIONS,
    TLS_HANDSHAKE_FAILURES,
    TLS_RELOADS,
    BUILD_INFO,
    process_metric(
        "process_cpu_seconds_total",
        Kind::Counter,
        Unit::Seconds,
        "CPU time used by the process, user and system together.",
    ),
    process_metric(
        "process_resident_memory_bytes",
        Kind::Gauge,
        Unit::Bytes,
        "Resident memory of the process.",
    ),
    process_metric(
        "process_virtual_memory_bytes",
        Kind::Gauge,
        Unit::Bytes,
        "Address space reserved by the process.",
    ),
    process_metric(
        "process_virtual_memory_max_bytes",
        Kind::Gauge,
        Unit::Bytes,
        "The maximum address space that the process may reserve.",
    ),
    process_metric("process_open_fds", Kind::Gauge, Unit::Count, "Open file descriptors."),
    process_metric(
        "process_max_fds",
        Kind::Gauge,
        Unit::Count,
        "The maximum number of open file descriptors.",
    ),
    process_metric(
        "process_start_time_seconds",
        Kind::Gauge,
        Unit::Seconds,
        "When the process started, in Unix time.",
    ),
    process_metric("process_threads", Kind::Gauge, Unit::Count, "Threads of the process."),
];

/// The declaration of one metric.
#[derive(Debug, Clone, Copy)]
pub struct Metric {
    /// The name as scraped: snake case, with the unit as suffix and `_total` for counters.
    pub name: &'static str,
    /// Whether it is a counter, gauge or histogram.
    pub kind: Kind,
    /// The unit of the value.
    pub unit: Unit,
    /// The labels, each with a bounded set of values.
    pub labels: &'static [&'static str],
    /// What is measured, in one sentence, and what a bad value looks like if that is known.
    pub help: &'static str,
}

/// The three kinds of metric.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A value that only increases.
    Counter,
    /// A value that increases and decreases.
    Gauge,
    /// A distribution in buckets: seconds by default, bytes if the name ends in `_bytes`.
    Histogram,
}

impl Kind {
    fn as_str(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Histogram => "histogram",
        }
    }
}

/// The metrics of this process. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Metrics {
    handle: PrometheusHandle,
}

/// Installs the recorder for this process, or returns the one that is already installed.
///
/// If another library has installed its own recorder, ours stays empty and a warning is logged.
pub fn install() -> Metrics {
    static METRICS: OnceLock<Metrics> = OnceLock::new();
    METRICS
        .get_or_init(|| {
            let recorder = recorder_builder().build_recorder();
            let metrics = Metrics { handle: recorder.handle() };
            if ::metrics::set_global_recorder(recorder).is_err() {
                tracing::warn!(
                    "another metrics recorder is already installed; /metrics will be empty"
                );
            }

            // The process metrics are described by their collector.
            metrics.describe(&[
                INVARIANT_CHECKS,
                INVARIANT_VIOLATIONS,
                HTTP_BUSY,
                TLS_HANDSHAKE_FAILURES,
                TLS_RELOADS,
                BUILD_INFO,
            ]);
            Collector::default().describe();
            start_upkeep(metrics.handle.clone());
            metrics
        })
        .clone()
}

fn recorder_builder() -> PrometheusBuilder {
    // Both calls fail only for an empty list of bounds, and both lists are constants.
    let builder = PrometheusBuilder::new().set_buckets(&SECONDS).unwrap_or_default();
    builder.set_buckets_for_metric(Matcher::Suffix("_bytes".to_owned()), &BYTES).unwrap_or_default()
}

/// Folds samples into buckets for the life of the process. Without it, a process that nothing
/// scrapes would keep every sample.
fn start_upkeep(handle: PrometheusHandle) {
    let spawned = std::thread::Builder::new().name("metrics-upkeep".to_owned()).spawn(move || {
        loop {
            std::thread::sleep(UPKEEP);
            handle.run_upkeep();
        }
    });

    if let Err(error) = spawned {
        tracing::warn!(%error, "could not start metrics upkeep; samples are folded only when /metrics is read");
    }
}

impl Metrics {
    /// Gives the recorder the help texts and units of `table`, and exposes counters without labels
    /// at zero.
    pub fn describe(&self, table: &[Metric]) {
        for metric in table {
            match metric.kind {
                Kind::Counter => {
                    ::metrics::describe_counter!(metric.name, metric.unit, metric.help);
                    if metric.labels.is_empty() {
                        ::metrics::counter!(metric.name).increment(0);
                    }
                }
                Kind::Gauge => ::metrics::describe_gauge!(metric.name, metric.unit, metric.help),
                Kind::Histogram => {
                    ::metrics::describe_histogram!(metric.name, metric.unit, metric.help)
                }
            }
        }
    }

    /// Records the name and version of this program.
    pub fn identify(&self, service: &'static str, version: &'static str) {
        ::metrics::gauge!(BUILD_INFO.name, "service" => service, "version" => version).set(1.0);
    }

    /// Renders all metrics in the Prometheus text format.
    pub fn render(&self) -> String {
        Collector::default().collect();
        self.handle.render()
    }
}

/// Renders the declarations as one Markdown table, sorted by name, for the documentation.
pub fn markdown(tables: &[&[Metric]]) -> String {
    let mut metrics: Vec<&Metric> = tables.iter().flat_map(|table| table.iter()).collect();
    metrics.sort_by_key(|metric| metric.name);

    let mut text =
        String::from("| Metric | Kind | Unit | Labels | Meaning |\n|---|---|---|---|---|\n");

    for Metric { name, kind, unit, labels, help } in metrics {
        let labels: Vec<String> = labels.iter().map(|label| format!("`{label}`")).collect();
        let row = [
            format!("`{name}`"),
            kind.as_str().to_owned(),
            unit.as_str().to_owned(),
            labels.join(", "),
            help.replace('|', "\\|"),
        ];
        text.push_str(&format!("| {} |\n", row.join(" | ")));
    }
    text
}

/// Counts one thing in a gauge until dropped.
#[derive(Debug)]
pub struct Counted(&'static str);

impl Counted {
    /// Increments `gauge`.
    pub fn new(gauge: &Metric) -> Self {
        ::metrics::gauge!(gauge.name).increment(1.0);
        Self(gauge.name)
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        ::metrics::gauge!(self.0).decrement(1.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CALLS: Metric = Metric {
        name: "test_calls_total",
        kind: Kind::Counter,
        unit: Unit::Count,
        labels: &[],
        help: "Calls.",
    };
    const TIME: Metric = Metric {
        name: "test_time_seconds",
        kind: Kind::Histogram,
        unit: Unit::Seconds,
        labels: &["tool"],
        help: "Time a|b.",
    };
    const SIZE: Metric = Metric {
        name: "test_size_bytes",
        kind: Kind::Histogram,
        unit: Unit::Bytes,
        labels: &[],
        help: "Size.",
    };

    #[test]
    fn metrics_are_rendered_with_the_right_buckets() {
        let metrics = install();

        install().describe(&[CALLS, TIME, SIZE]);
        assert!(metrics.render().contains("test_calls_total 0"), "{}", metrics.render());

        ::metrics::histogram!(TIME.name, "tool" => "x").record(0.3);
        ::metrics::histogram!(SIZE.name).record(2000.0);

        let text = metrics.render();
        for line in [
            "# HELP test_calls_total Calls.",
            "# TYPE test_time_seconds histogram",
            "test_time_seconds_bucket{tool=\"x\",le=\"0.25\"} 0",
            "test_time_seconds_bucket{tool=\"x\",le=\"0.5\"} 1",
            "test_size_bytes_bucket{le=\"4096\"} 1",
        ] {
            assert!(text.contains(line), "{line} is missing in\n{text}");
        }
    }

    #[test]
    fn the_table_becomes_documentation() {
        let text = markdown(&[&[TIME], &[CALLS]]);
        let rows: Vec<&str> = text.lines().skip(2).collect();
        assert_eq!(
            rows,
            [
                "| `test_calls_total` | counter | count |  | Calls. |",
                "| `test_time_seconds` | histogram | seconds | `tool` | Time a\\|b. |",
            ]
        );
    }
}

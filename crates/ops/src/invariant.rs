//! ServiceFormat invariants that are also checked in production.
//!
//! An invariant that is checked only by tests is known to hold only where tests have been. A
//! violation is logged and counted, and the process continues: stopping a worker because of a
//! bookkeeping error would turn one fault into an outage. Tests that should stop at the first
//! violation set `FLEET_INVARIANTS=panic`.

use std::fmt::Display;

use metrics::counter;

use crate::metrics::{INVARIANT_CHECKS, INVARIANT_VIOLATIONS};

/// Reports that the invariant `name` is violated. `detail` says what was observed; it goes to the
/// log and never into a label.
///
/// # Panics
///
/// Panics in debug builds if `FLEET_INVARIANTS` is `panic`.
pub fn violated(name: &'static str, detail: impl Display) {
    counter!(INVARIANT_VIOLATIONS.name, "invariant" => name).increment(1);
    tracing::error!(invariant = name, %detail, "invariant violated");
    if cfg!(debug_assertions) && std::env::var("FLEET_INVARIANTS").is_ok_and(|v| v == "panic") {
        panic!("invariant {name} violated: {detail}");
    }
}

/// Checks an invariant once, and reports it if it does not hold.
///
/// # Panics
///
/// Like [`violated`].
pub fn check(name: &'static str, holds: bool, detail: impl Display) {
    counter!(INVARIANT_CHECKS.name, "invariant" => name).increment(1);
    if !holds {
        violated(name, detail);
    }
}

/// Reports how often an invariant has been checked since the process started, if the caller counts
/// that.
pub fn report_checks(name: &'static str, times: u64) {
    counter!(INVARIANT_CHECKS.name, "invariant" => name).absolute(times);
}

/// Exposes the counters of these invariants at zero, so that an alert can tell "never violated"
/// from "not measured".
pub fn declare(names: &[&'static str]) {
    for name in names {
        counter!(INVARIANT_VIOLATIONS.name, "invariant" => *name).increment(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_violation_is_counted() {
        let metrics = crate::metrics::install();
        declare(&["T0"]);
        violated("T1", "seen by a test");
        check("T1", false, "and again");
        check("T1", true, "and now it holds");
        report_checks("T2", 5);
        let text = metrics.render();
        assert!(text.contains("fleet_invariant_violations_total{invariant=\"T0\"} 0"), "{text}");
        assert!(text.contains("fleet_invariant_violations_total{invariant=\"T1\"} 2"), "{text}");
        assert!(text.contains("fleet_invariant_checks_total{invariant=\"T1\"} 2"), "{text}");
        assert!(text.contains("fleet_invariant_checks_total{invariant=\"T2\"} 5"), "{text}");
    }
}

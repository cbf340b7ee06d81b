//! ServiceFormat invariants that are checked in production too.
//!
//! An invariant that is only tested holds only where the tests have been. A violation is logged and
//! counted, and the process goes on: stopping a worker because of a bookkeeping error would turn
//! one fault into an outage. Tests that want to stop at the first violation set
//! `FLEET_INVARIANTS=panic`.

use std::fmt::Display;

use metrics::counter;

use crate::metrics::INVARIANT_VIOLATIONS;

/// Reports that the invariant `name` does not hold. `detail` says what was seen; it goes to the log
/// and never to a label.
///
/// # Panics
///
/// In debug builds, if `FLEET_INVARIANTS` is `panic`.
pub fn violated(name: &'static str, detail: impl Display) {
    counter!(INVARIANT_VIOLATIONS.name, "invariant" => name).increment(1);
    tracing::error!(invariant = name, %detail, "invariant violated");
    if cfg!(debug_assertions) && std::env::var("FLEET_INVARIANTS").is_ok_and(|v| v == "panic") {
        panic!("invariant {name} violated: {detail}");
    }
}

/// Makes the counters of these invariants visible at zero, so that an alert can tell "never" from
/// "not measured".
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
        violated("T1", "and again");
        let text = metrics.render();
        assert!(text.contains("fleet_invariant_violations_total{invariant=\"T0\"} 0"), "{text}");
        assert!(text.contains("fleet_invariant_violations_total{invariant=\"T1\"} 2"), "{text}");
    }
}

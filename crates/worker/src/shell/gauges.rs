//! Gauges: what this worker holds, and for how long.

use std::time::Duration;

use fleet_engine::BreakerState;
use fleet_ops::invariant;
use metrics::gauge;

use super::{JOBS, Shell};
use crate::metrics as names;

impl Shell {
    pub(super) fn update_gauges(&mut self) {
        let status = self.engine.status();
        gauge!(names::IN_FLIGHT.name).set(status.in_flight as f64);
        // Where commands wait to be carried out, the two can't agree yet.
        if status.buffered != self.jobs.len() && !self.is_out_of_contact() {
            let (engine, shell) = (status.buffered, self.jobs.len());
            invariant::violated(
                "I3",
                format_args!("{engine} jobs in the engine's hands, {shell} in the shell's"),
            );
        }
        gauge!(names::BUFFERED.name).set(status.buffered as f64);
        gauge!(names::PARKED.name).set(status.parked as f64);
        let oldest =
            self.jobs.oldest_ready(JOBS).map_or(Duration::ZERO, |at| self.clock.now().since(at));
        gauge!(names::OLDEST.name).set(oldest.as_secs_f64());
        let uncommitted =
            self.uncommitted.oldest_since().map_or(Duration::ZERO, |since| since.elapsed());
        gauge!(names::COMMIT_AGE.name).set(uncommitted.as_secs_f64());
        gauge!(names::BUFFERED_BYTES.name).set(status.buffered_bytes as f64);
        gauge!(names::PARTITIONS.name).set(status.partitions.len() as f64);
        gauge!(names::BREAKER.name).set(if status.breaker == BreakerState::Closed {
            0.0
        } else {
            1.0
        });
        self.publish_running();
        self.track_outages(&status);
    }
}

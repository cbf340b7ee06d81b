//! Gauges: what this worker holds, and for how long.

use std::time::Duration;

use fleet_engine::{BreakerState, Status};
use fleet_ops::invariant;
use metrics::gauge;

use super::{JOBS, Shell};
use crate::metrics as names;

impl Shell {
    /// Brings the gauges up to date, and publishes what waits for the same interval.
    pub(super) fn update_gauges(&mut self) {
        let status = self.engine.status();
        self.check_job_count(&status);
        for (checked, times) in self.engine.checks() {
            invariant::report_checks(checked.name(), times);
        }

        gauge!(names::IN_FLIGHT.name).set(status.in_flight as f64);
        gauge!(names::BUFFERED.name).set(status.buffered as f64);
        gauge!(names::PARKED.name).set(status.parked as f64);
        gauge!(names::BUFFERED_BYTES.name).set(status.buffered_bytes as f64);
        gauge!(names::PARTITIONS.name).set(status.partitions.len() as f64);
        let is_open = status.breaker != BreakerState::Closed;
        gauge!(names::BREAKER.name).set(if is_open { 1.0 } else { 0.0 });

        let now = self.clock.now();
        let oldest_job = self.jobs.oldest_ready(JOBS).map_or(Duration::ZERO, |at| now.since(at));
        gauge!(names::OLDEST.name).set(oldest_job.as_secs_f64());
        let uncommitted =
            self.uncommitted.oldest_since().map_or(Duration::ZERO, |since| since.elapsed());
        gauge!(names::COMMIT_AGE.name).set(uncommitted.as_secs_f64());

        self.publish_running();
        self.track_outages(&status);
    }

    /// Engine and shell must hold the same jobs (I3). Before pending commands are carried out they
    /// can't.
    fn check_job_count(&self, status: &Status) {
        if self.is_out_of_contact() {
            return;
        }

        let (engine, shell) = (status.buffered, self.jobs.len());
        let detail = format_args!("the engine holds {engine} jobs, the shell holds {shell}");
        invariant::check("I3", engine == shell, detail);
    }
}

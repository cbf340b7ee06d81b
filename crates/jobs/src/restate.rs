//! Restates terminal events that a stale event has overtaken in the events topic, so that the
//! record that compaction keeps is the job's state.
//!
//! Every replica does so, after a short wait: often another replica has written the event by then,
//! and if many stale events follow one terminal event, most of them arrive during the wait. The
//! restated record repeats the first one byte for byte, with a header that names its position
//! ([`fleet_job::state`]).

use std::time::Duration;

use fleet_job::{event::JobEvent, state::Verdict};
use fleet_kafka::producer::Outgoing;
use fleet_ledger::{Batch, LoggedEvent, Overtaken, Update, store::Positions};

use super::{Jobs, JobsError, LogState};
use crate::metrics;

/// How often to look for overtaken events that an earlier process left, or that could not be
/// written.
const LOOK_INTERVAL: Duration = Duration::from_secs(60);
/// The shortest wait before an overtaken event is written again.
const PAUSE: Duration = Duration::from_secs(1);
/// The most that is added to the wait at random, so that replicas don't all write at once.
const JITTER_MS: u128 = 2_000;
/// The most events that are written at once.
const BATCH: usize = 500;

impl Jobs {
    /// Restates overtaken events until the server stops.
    pub(super) async fn restate_overtaken(self) {
        loop {
            tokio::select! {
                () = self.inner.overtaken.notified() => {}
                () = tokio::time::sleep(LOOK_INTERVAL) => {}
                () = self.inner.stop.cancelled() => return,
            }

            let jitter = uuid::Uuid::new_v4().as_u128() % JITTER_MS;
            let jitter = Duration::from_millis(u64::try_from(jitter).unwrap_or_default());
            tokio::time::sleep(PAUSE + jitter).await;

            match self.restate_batch().await {
                Ok(written) => {
                    ::metrics::counter!(metrics::ENDS_RESTATED.name).increment(written as u64);
                    if written == BATCH {
                        self.inner.overtaken.notify_one();
                    }
                }
                Err(error) => {
                    let error = fleet_ops::errors::chain(&error);
                    tracing::warn!(
                        error,
                        "could not restate overtaken terminal events; trying again in a minute"
                    );
                }
            }
        }
    }

    /// Restates one batch of overtaken events. Returns how many it has written.
    async fn restate_batch(&self) -> Result<usize, JobsError> {
        // An event may look overtaken until the rest of the topic has been read.
        if !matches!(*self.inner.log_state.borrow(), LogState::CaughtUp(_)) {
            return Ok(0);
        }

        // Read before the jobs, so that these positions don't claim more than is known of the jobs.
        let positions = self.inner.store.positions().await?;
        let overtaken = self.inner.store.overtaken(BATCH).await?;
        let ends: Vec<_> =
            overtaken.into_iter().filter_map(|job| restated_record(job, &positions)).collect();
        if ends.is_empty() {
            return Ok(0);
        }

        let records = ends.iter().map(|(partition, job_id, logged)| Outgoing {
            topic: self.inner.topics.events.clone(),
            partition: Some(*partition),
            key: Some(job_id.clone().into_bytes()),
            value: Some(logged.value.clone()),
            headers: logged.restated.map(|restated| restated.header()).into_iter().collect(),
            timestamp: None,
        });
        let delivered = self.write_all(records.collect()).await?;
        let written = delivered.len();

        let updates = delivered.iter().zip(ends).map(|(at, (_, job_id, logged))| Update {
            partition: at.partition,
            offset: at.offset,
            job_id,
            event: Some(logged),
        });
        let batch = Batch { updates: updates.collect(), ..Batch::default() };
        let verdicts = self.inner.store.apply(batch).await?;
        let again = verdicts.iter().filter(|verdict| **verdict == Verdict::Again).count();
        tracing::info!(
            written,
            again,
            "restated terminal events that stale events had overtaken in the events topic"
        );
        Ok(written)
    }
}

/// Returns partition, key and value of the record that restates the end of a job.
fn restated_record(job: Overtaken, positions: &Positions) -> Option<(i32, String, LoggedEvent)> {
    // The positions don't cover a record that was applied before it was read.
    let next = positions.get(&job.partition).copied().unwrap_or_default();
    let known = (next - 1).max(job.standing.offset());
    let event: JobEvent = serde_json::from_slice(&job.value).ok()?;
    let logged =
        LoggedEvent { event, value: job.value, restated: Some(job.standing.restated(known)) };
    Some((job.partition, job.job_id, logged))
}

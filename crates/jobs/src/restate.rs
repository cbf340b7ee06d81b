//! Writing ends again that something else stands behind, so that what compaction leaves is the
//! state of the job.
//!
//! Every replica does so. A replica waits for a moment first: often another one has written the end
//! by then, and of many events that stand behind one end, all but the first few come within it. The
//! record is the one that was written first, byte for byte, with a header that says where that
//! stood ([`fleet_job::state`]).

use std::time::Duration;

use fleet_job::{event::JobEvent, state::Verdict};
use fleet_kafka::producer::Outgoing;
use fleet_ledger::{Batch, LoggedEvent, Overtaken, Update, store::Positions};

use super::{Jobs, JobsError, LogState};
use crate::metrics;

/// How often to look for ends that a server before this one has left, or that could not be written.
const LOOK_INTERVAL: Duration = Duration::from_secs(60);
/// The shortest wait between an end that is overtaken and its being written again.
const PAUSE: Duration = Duration::from_secs(1);
/// What is added to it at most, by chance, so that replicas don't write all at once.
const JITTER_MS: u128 = 2_000;
/// How many ends are written at once.
const BATCH: usize = 500;

impl Jobs {
    /// Writes overtaken ends again, until the server stops.
    pub(super) async fn restate_overtaken(self) {
        loop {
            tokio::select! {
                () = self.inner.overtaken.notified() => {}
                () = tokio::time::sleep(LOOK_INTERVAL) => {}
                () = self.inner.stop.cancelled() => return,
            }
            let jitter = uuid::Uuid::new_v4().as_u128() % JITTER_MS;
            tokio::time::sleep(
                PAUSE + Duration::from_millis(u64::try_from(jitter).unwrap_or_default()),
            )
            .await;

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
                        "could not write overtaken job ends again; trying again in a minute"
                    );
                }
            }
        }
    }

    async fn restate_batch(&self) -> Result<usize, JobsError> {
        // An old part of the log may look overtaken until the rest of it is read.
        if !matches!(*self.inner.log_state.borrow(), LogState::CaughtUp(_)) {
            return Ok(0);
        }
        // Before the jobs: everything up to here is known of them, and perhaps more.
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
        tracing::info!(written, again, "wrote job ends again that stale events stood behind");
        Ok(written)
    }
}

/// Partition, key and value of the record that states the end of a job once more.
fn restated_record(job: Overtaken, positions: &Positions) -> Option<(i32, String, LoggedEvent)> {
    // A record that was taken ahead of the log is not known to the positions.
    let next = positions.get(&job.partition).copied().unwrap_or_default();
    let known = (next - 1).max(job.standing.offset());
    let event: JobEvent = serde_json::from_slice(&job.value).ok()?;
    let logged =
        LoggedEvent { event, value: job.value, restated: Some(job.standing.restated(known)) };
    Some((job.partition, job.job_id, logged))
}

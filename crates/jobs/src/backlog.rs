//! Jobs that were written to Kafka directly and that no worker has read yet. They have no event and
//! so are in no ledger. A query for such a job searches the backlog; nothing follows the jobs
//! topic.

use std::time::Duration;

use fleet_job::{
    decode,
    event::{JobEvent, JobState},
    record::RawRecord,
};
use fleet_kafka::reader;
use fleet_ledger::Known;
use fleet_ops::blocking::run_blocking;

use super::{Caller, Jobs, JobsError, SHOWN_ID, not_found};

/// The longest time that a search may take.
const SEARCH_LIMIT: Duration = Duration::from_secs(5);
/// The most bytes of the backlog that are searched.
const MAX_SEARCH_BYTES: usize = 32 << 20;
/// The largest job that is unpacked.
const MAX_JOB_BYTES: usize = 16 << 20;

impl Jobs {
    /// Finds a job that waits in the jobs topic, if `caller` may see it. Its position is not one of
    /// the events topic.
    ///
    /// # Errors
    ///
    /// Returns [`JobsError::NotFound`], or [`JobsError::NotSearched`] if the backlog was too long
    /// to be certain.
    pub(super) async fn find_in_backlog(
        &self,
        job_id: &str,
        caller: &Caller,
    ) -> Result<Known, JobsError> {
        let not_searched = || JobsError::NotSearched(job_id.chars().take(SHOWN_ID).collect());
        let permit =
            tokio::time::timeout(SEARCH_LIMIT, self.inner.searches.clone().acquire_owned()).await;
        let permit = permit.map_err(|_| not_searched())?;

        let (settings, topic) =
            (self.inner.link.follower.settings().clone(), self.inner.topics.jobs.clone());
        let (group, wanted) = (self.inner.group.clone(), job_id.to_owned());
        let search = move || {
            let _permit = permit;
            let mut job = None;
            let is_done = reader::search_backlog(
                &settings,
                &topic,
                &group,
                SEARCH_LIMIT,
                MAX_SEARCH_BYTES,
                |record| {
                    job = queued_job(record, &wanted);
                    job.is_some()
                },
            )?;
            Ok::<_, JobsError>((job, is_done))
        };
        let (job, is_done) = run_blocking(search).await?;

        match job.filter(|job| caller.may_see(&job.event)) {
            Some(job) => Ok(job),
            None if is_done => Err(not_found(job_id)),
            None => Err(not_searched()),
        }
    }
}

/// Returns a `queued` event for the job in a record of the jobs topic, if it is this job.
fn queued_job(record: &RawRecord, job_id: &str) -> Option<Known> {
    let envelope =
        decode::decode(record, MAX_JOB_BYTES).ok().filter(|envelope| envelope.job_id == job_id)?;
    let time = record.timestamp.unwrap_or_else(fleet_ops::clock::now);
    let event = JobEvent {
        submitted_at: record.timestamp,
        ..JobEvent::about(&envelope, JobState::Queued, time)
    };
    // Negative partitions tell it from all positions in the events topic.
    Some(Known { partition: -1 - record.position.partition, offset: record.position.offset, event })
}

#[cfg(test)]
mod tests {
    use fleet_job::{record::Position, time::Timestamp};

    use super::*;

    #[test]
    fn a_job_that_waits_is_shown_as_queued() {
        let value =
            br#"{"jobID":"j","jobType":"tool-call","payload":{"tool":"t"},"tenant":"acme"}"#;
        let record = RawRecord {
            position: Position { topic: "mcp-jobs".to_owned(), partition: 0, offset: 7 },
            timestamp: Some(Timestamp::from_millis_clamped(5)),
            key: None,
            value: Some(value.to_vec()),
            headers: Vec::new(),
        };
        let known = queued_job(&record, "j").unwrap();
        assert_eq!((known.partition, known.offset), (-1, 7));
        assert_eq!((known.event.state, known.event.tool.as_deref()), (JobState::Queued, Some("t")));
        assert_eq!(
            (known.event.submitted_at, known.event.tenant.as_deref()),
            (record.timestamp, Some("acme"))
        );
        assert!(queued_job(&record, "k").is_none());
        assert!(queued_job(&RawRecord { value: None, ..record }, "j").is_none());
    }
}

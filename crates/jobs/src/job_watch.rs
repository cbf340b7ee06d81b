//! Watching one job: its present state, and then every later one.

use fleet_job::view::JobView;

use super::{Caller, Jobs, JobsError, hub::Waiter};

/// Watches one job.
pub struct JobWatch {
    jobs: Jobs,
    caller: Caller,
    job_id: String,
    waiter: Waiter,
    delivered: Option<Delivered>,
    /// Whether the job was found in the backlog, where no worker has read it yet.
    is_in_backlog: bool,
}

/// What was delivered last: the position of the event, and whether a cancellation was requested.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Delivered {
    partition: i32,
    offset: i64,
    is_cancel_requested: bool,
}

impl std::fmt::Debug for JobWatch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("JobWatch").field("job_id", &self.job_id).finish_non_exhaustive()
    }
}

impl Jobs {
    /// Watches a job: returns its present state first, and then every later one.
    pub fn watch(&self, job_id: &str, caller: &Caller) -> JobWatch {
        JobWatch {
            jobs: self.clone(),
            caller: caller.clone(),
            job_id: job_id.to_owned(),
            waiter: self.inner.hub.add_waiter(job_id),
            delivered: None,
            is_in_backlog: false,
        }
    }
}

impl JobWatch {
    /// Returns the job's present state as soon as it differs from the one delivered last. States in
    /// between are skipped. Cancel safe.
    ///
    /// # Errors
    ///
    /// As [`Jobs::get`].
    pub async fn next(&mut self) -> Result<JobView, JobsError> {
        loop {
            let news = self.waiter.next_news();
            let known = match self.jobs.find_known(&self.job_id, &self.caller).await {
                Err(JobsError::NotFound(_)) if self.is_in_backlog => {
                    news.await;
                    continue;
                }
                Err(JobsError::NotFound(_)) if self.delivered.is_none() => {
                    let known = self.jobs.find_in_backlog(&self.job_id, &self.caller).await?;
                    self.is_in_backlog = true;
                    known
                }
                known => known?,
            };

            let (partition, offset) = (known.partition, known.offset);
            let job = self.jobs.view(known);
            let is_cancel_requested = job.cancel_requested_at.is_some();
            let found = Some(Delivered { partition, offset, is_cancel_requested });
            if self.delivered != found {
                self.delivered = found;
                return Ok(job);
            }

            news.await;
        }
    }

    /// Returns the position of the event that was delivered last: partition and offset.
    pub fn position(&self) -> Option<(i32, i64)> {
        self.delivered.map(|delivered| (delivered.partition, delivered.offset))
    }

    /// Marks the state at this position as already delivered.
    pub fn mark_delivered(&mut self, (partition, offset): (i32, i64)) {
        self.delivered = Some(Delivered { partition, offset, is_cancel_requested: false });
    }
}

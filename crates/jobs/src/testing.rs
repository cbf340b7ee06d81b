//! Test support for crates that use the service: events without Kafka.

use fleet_job::event::JobEvent;
use fleet_ledger::{Batch, Update};

use crate::{Caller, Jobs, JobsError, tasks};

/// Returns the id of the job behind a task of this caller.
pub fn task_job_id(task_id: &str, caller: &Caller) -> String {
    tasks::task_job_id(task_id, caller)
}

/// Applies an event as if it had been read from partition 0 of the events topic at `offset`.
///
/// # Errors
///
/// Returns an error if the ledger fails.
pub async fn take_up(jobs: &Jobs, offset: i64, event: JobEvent) -> Result<(), JobsError> {
    let updates = vec![Update::new(0, offset, event)];
    jobs.inner.store.apply(Batch { updates: updates.clone(), ..Batch::default() }).await?;
    jobs.inner.hub.publish(updates);
    Ok(())
}

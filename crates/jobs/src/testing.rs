//! For tests of what is built on the service: events without a Kafka that they are read from.

use fleet_job::event::JobEvent;
use fleet_ledger::{Batch, Update};

use crate::{Caller, Jobs, JobsError, tasks};

/// The id of the job behind a task of this caller.
pub fn task_job_id(task_id: &str, caller: &Caller) -> String {
    tasks::task_job_id(task_id, caller)
}

/// Takes up an event as if it had been read from partition 0 of the events topic at `offset`.
///
/// # Errors
///
/// If the ledger fails.
pub async fn take_up(jobs: &Jobs, offset: i64, event: JobEvent) -> Result<(), JobsError> {
    let updates = vec![Update::new(0, offset, event)];
    jobs.inner.store.apply(Batch { updates: updates.clone(), ..Batch::default() }).await?;
    jobs.inner.hub.publish(updates);
    Ok(())
}

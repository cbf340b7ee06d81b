//! Jobs that are not wanted any more: what a request means for the jobs that are held, and for
//! those that come.

use fleet_engine::{Admission, Input};
use fleet_job::{control::Control, decode, delayed::Delayed, record::RawRecord};
use metrics::counter;

use super::{Shell, held_record::HeldRecord};
use crate::metrics as names;

impl Shell {
    /// Cancels the jobs that are meant, as far as they are held. The others are known when they
    /// come.
    ///
    /// A record that waits in the delayed topic and is held already goes on waiting: it is known
    /// again when the job is back.
    pub(super) fn cancel_jobs(&mut self, control: Control) {
        let job_id = control.job_id.clone();
        if !self.cancel_requests.add(self.clock.now(), control) {
            return;
        }
        for token in self.jobs.tokens_of(&job_id) {
            let Some(held) = self.jobs.get_mut(&token) else { continue };
            let Some(control) = self.cancel_requests.get(&job_id, held.record.timestamp) else {
                continue;
            };
            if let Some(job) = held.job_mut() {
                job.cancel_reason.clone_from(&control.reason);
            }
            let found = held.activity().as_str();
            counter!(names::CANCEL_REQUESTS.name, "job" => found).increment(1);
            tracing::info!(job_id, found, "the job is to be cancelled");
            self.feed_engine(Input::Cancel(token));
        }
    }

    /// The admission of a job, unless it was cancelled before it came.
    pub(super) fn check_cancelled(&self, held: &mut HeldRecord, admission: Admission) -> Admission {
        let Admission::Job(spec) = admission else { return admission };
        let Some(control) = self.cancel_requests.get(&held.job_id, held.record.timestamp) else {
            return admission;
        };
        if let Some(job) = held.job_mut() {
            job.cancel_reason.clone_from(&control.reason);
        }
        counter!(names::CANCEL_REQUESTS.name, "job" => "arrived").increment(1);
        tracing::info!(job_id = held.job_id, "the job was cancelled before it came");
        Admission::Cancelled(spec)
    }

    /// Whether a record of the delayed topic is a job that was cancelled: there is nothing to wait
    /// for then, and it is to end as soon as it is back.
    pub(super) fn is_recalled(&self, record: &RawRecord, delayed: &Delayed) -> bool {
        let limit = usize::try_from(self.args.max_job_bytes).unwrap_or(usize::MAX);
        let job_id = match decode::decode(record, limit) {
            Ok(envelope) => Some(envelope.job_id),
            Err(error) => error.job_id,
        };
        job_id.is_some_and(|job_id| self.cancel_requests.get(&job_id, delayed.timestamp).is_some())
    }
}

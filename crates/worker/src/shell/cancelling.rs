//! Cancel requests: what they mean for the jobs in hand, and for those that arrive later.

use fleet_engine::{Admission, Input};
use fleet_job::{control::Control, decode, delayed::Delayed, record::RawRecord};
use metrics::counter;

use super::{Shell, held_record::HeldRecord};
use crate::metrics as names;

impl Shell {
    /// Cancels the jobs that a request is about, if they are in hand. Others are recognised when
    /// they arrive.
    ///
    /// A record of the delayed topic that is in hand already goes on waiting: its job is recognised
    /// when it returns.
    pub(super) fn cancel_jobs(&mut self, control: Control) {
        let job_id = control.job_id.clone();
        if !self.cancel_requests.add(self.clock.now(), control) {
            return;
        }

        for token in self.jobs.tokens_of(&job_id) {
            let Some(held) = self.jobs.get_mut(&token) else { continue };
            let (written, owner) = (held.record.timestamp, held.owner());
            let Some(control) = self.cancel_requests.get(&job_id, written, owner) else { continue };

            let reason = control.reason.clone();
            if let Some(job) = held.job_mut() {
                job.cancel_reason = reason;
            }
            let found = held.activity().as_str();
            counter!(names::CANCEL_REQUESTS.name, "job" => found).increment(1);
            tracing::info!(job_id, found, "cancelling a job");
            self.feed_engine(Input::Cancel(token));
        }
    }

    /// The admission of a record, which changes if its job was cancelled before it arrived.
    pub(super) fn check_cancelled(&self, held: &mut HeldRecord, admission: Admission) -> Admission {
        let Admission::Job(spec) = admission else { return admission };
        let (written, owner) = (held.record.timestamp, held.owner());
        let Some(control) = self.cancel_requests.get(&held.job_id, written, owner) else {
            return admission;
        };

        let reason = control.reason.clone();
        if let Some(job) = held.job_mut() {
            job.cancel_reason = reason;
        }
        counter!(names::CANCEL_REQUESTS.name, "job" => "arrived").increment(1);
        tracing::info!(job_id = held.job_id, "the job was cancelled before it arrived");
        Admission::Cancelled(spec)
    }

    /// Whether the job of a record in the delayed topic was cancelled. There is nothing to wait for
    /// then: the job is to return and end at once.
    pub(super) fn is_recalled(&self, record: &RawRecord, delayed: &Delayed) -> bool {
        let limit = usize::try_from(self.args.max_job_bytes).unwrap_or(usize::MAX);
        let (job_id, owner) = match decode::decode(record, limit) {
            Ok(envelope) => (Some(envelope.job_id), envelope.owner),
            Err(error) => (error.job_id, None),
        };

        let written = delayed.timestamp;
        job_id.is_some_and(|job_id| {
            self.cancel_requests.get(&job_id, written, owner.as_deref()).is_some()
        })
    }
}

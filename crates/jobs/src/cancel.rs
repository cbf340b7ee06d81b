//! Cancelling jobs: through the control topic if a worker may have the job, or here if the job is a
//! task that waits for input.

use std::time::Duration;

use fleet_access::{Action, Arguments, AuditOutcome::Failed, Context, Resource};
use fleet_job::{
    control::{Control, Scope},
    event::{JobEvent, JobState},
    outcome::{ErrorKind, JobError},
    time::Timestamp,
    view::{CancelOutcome::TooLate, Cancellation},
};
use fleet_kafka::producer::Outgoing;
use fleet_ledger::Known;
use tokio::time::{Instant, timeout_at};

use super::{Caller, Jobs, JobsError, outcome_of};

impl Jobs {
    /// Requests the cancellation of a job, and waits for at most `limit` for its outcome.
    ///
    /// # Errors
    ///
    /// As [`Jobs::get`]; also returns an error if Kafka does not accept the request.
    pub async fn cancel(
        &self,
        job_id: &str,
        caller: &Caller,
        reason: Option<&str>,
        limit: Duration,
    ) -> Result<Cancellation, JobsError> {
        let known = match self.find_known(job_id, caller).await {
            Err(JobsError::NotFound(_)) => {
                return self.cancel_unknown_job(job_id, caller, reason, limit).await;
            }
            known => known?,
        };
        let record = caller.begin_with(Action::CancelJob, &known.event).await?;
        let cancelled = self.cancel_known_job(known, caller, reason, limit).await;
        let is_too_late = cancelled.as_ref().is_ok_and(|cancelled| cancelled.outcome == TooLate);
        record.end(if is_too_late { Failed } else { outcome_of(&cancelled) }, None);
        cancelled
    }

    async fn cancel_known_job(
        &self,
        mut known: Known,
        caller: &Caller,
        reason: Option<&str>,
        limit: Duration,
    ) -> Result<Cancellation, JobsError> {
        let job_id = &known.event.job_id.clone();
        if !known.event.is_over() && self.catch_up().await.is_ok() {
            // The job may have ended already.
            known = self.find_known(job_id, caller).await?;
        }
        if known.event.is_over() {
            return Ok(Cancellation::of(self.view(known)));
        }
        if known.event.awaits_approval().is_some() {
            return self.cancel_awaiting_approval(job_id, caller, reason).await;
        }
        if known.event.asks_for_input() {
            return self.cancel_waiting_for_input(known.event, caller, reason).await;
        }

        let owner = known.event.owner.as_deref();
        let scope = self.signs().then(|| Scope::of_owner(owner));
        let submitted_at = known.event.submitted_at;
        self.request_cancellation(job_id, submitted_at, caller, reason, scope).await?;
        let job = self.wait(job_id, caller, limit).await?;
        Ok(Cancellation::of(job))
    }

    /// Requests the cancellation of a job that the ledger doesn't know. It may have been written to
    /// Kafka directly, and no worker has read it yet. It may turn out to be anybody's job, so the
    /// request says whose jobs the caller may cancel, and workers compare. If jobs are not signed,
    /// workers can't, and whoever may not cancel jobs that belong to nobody can't cancel this one. A
    /// job that the caller may not see is left alone, and the answer is the same as if there were
    /// none.
    async fn cancel_unknown_job(
        &self,
        job_id: &str,
        caller: &Caller,
        reason: Option<&str>,
        limit: Duration,
    ) -> Result<Cancellation, JobsError> {
        let named = caller.about_job(job_id);
        let scope = self.scope_of(caller);
        let owner = scope.as_ref().and(caller.owner.as_deref());
        let (resource, names) = (Resource::job(owner, None), caller.names());
        let context = Context { owner_names: &names, ..Context::default() };
        // The answer says nothing about others' jobs; the audit log may.
        let Ok(decision) = named.check(Action::CancelJob, &resource, &context) else {
            return Ok(Cancellation::unknown());
        };
        if self.inner.store.get(job_id).await?.is_some() {
            if scope.is_some() {
                // An answer that came at once would say that there is a job.
                tokio::time::sleep(limit).await;
            }
            return Ok(Cancellation::unknown());
        }

        let begun = named.begin_record(Action::CancelJob, &resource, &decision, Arguments::None);
        let record = begun.await?;
        let cancelled = self.announce_cancellation(job_id, caller, reason, scope, limit).await;
        record.end(outcome_of(&cancelled), None);
        cancelled
    }

    /// Requests the cancellation of a job that nobody has reported yet, and waits for its state.
    async fn announce_cancellation(
        &self,
        job_id: &str,
        caller: &Caller,
        reason: Option<&str>,
        scope: Option<Scope>,
        limit: Duration,
    ) -> Result<Cancellation, JobsError> {
        let waiter = self.inner.hub.add_waiter(job_id);
        self.request_cancellation(job_id, None, caller, reason, scope).await?;

        let deadline = Instant::now() + limit;
        loop {
            let news = waiter.next_news();
            let known = self.inner.store.get(job_id).await?;
            if known.is_some_and(|known| caller.may_see(&known.event)) {
                break;
            }
            if timeout_at(deadline, news).await.is_err() {
                return Ok(Cancellation::unknown());
            }
        }

        let left = deadline.saturating_duration_since(Instant::now());
        match self.wait(job_id, caller, left).await {
            Err(JobsError::NotFound(_) | JobsError::NotSearched(_)) => Ok(Cancellation::unknown()),
            job => Ok(Cancellation::of(job?)),
        }
    }

    /// Writes a cancel request to the control topic.
    async fn request_cancellation(
        &self,
        job_id: &str,
        submitted_at: Option<Timestamp>,
        caller: &Caller,
        reason: Option<&str>,
        scope: Option<Scope>,
    ) -> Result<(), JobsError> {
        // The topic is compacted, so a second request for the same job must repeat the reason of
        // the first.
        let now = fleet_ops::clock::now();
        let owner = scope.as_ref().and_then(|scope| scope.owners.first()).map(String::as_str);
        let earlier =
            self.inner.cancelled().reason_for(job_id, submitted_at, owner, now).map(str::to_owned);
        let reason = reason.or(earlier.as_deref());

        // A request about a job that nobody knows must not displace that of somebody else.
        let key = match (submitted_at, owner, &scope) {
            (None, Some(owner), Some(_)) => format!("{job_id}\0{owner}"),
            _ => job_id.to_owned(),
        };
        let control = Control::cancel(job_id, submitted_at, now, reason).within(scope);
        let record = Outgoing {
            topic: self.inner.topics.control.clone(),
            key: Some(key.into_bytes()),
            value: Some(control.to_bytes()),
            headers: self.sign_control(&control, caller),
            ..Outgoing::default()
        };
        self.inner.link.producer.send(&record).await?;
        self.inner.cancelled().add(control);
        Ok(())
    }

    /// Cancels a job that waits for approval. No worker has it, so its end is written here.
    async fn cancel_awaiting_approval(
        &self,
        job_id: &str,
        caller: &Caller,
        reason: Option<&str>,
    ) -> Result<Cancellation, JobsError> {
        let (claim, known) = self.claim_end_of_wait(job_id).await?;
        let reason = reason.map_or_else(String::new, |reason| format!(": {reason}"));
        let message = format!("cancelled while waiting for approval{reason}");
        let error = JobError::new(ErrorKind::Cancelled, message);
        self.end_wait(known.event, JobState::Cancelled, error, &claim).await?;
        Ok(Cancellation::of(self.get(job_id, caller).await?))
    }

    /// Cancels a task that waits for input. No worker has it, so its end is written here.
    async fn cancel_waiting_for_input(
        &self,
        event: JobEvent,
        caller: &Caller,
        reason: Option<&str>,
    ) -> Result<Cancellation, JobsError> {
        let reason = reason.map_or_else(String::new, |reason| format!(": {reason}"));
        let message = format!("cancelled while waiting for input{reason}");

        let job_id = event.job_id.clone();
        let event = JobEvent {
            state: JobState::Cancelled,
            result: None,
            error: Some(JobError::new(ErrorKind::Cancelled, message)),
            time: fleet_ops::clock::now(),
            ..event
        };
        self.write_event(event).await?;
        Ok(Cancellation::of(self.get(&job_id, caller).await?))
    }
}

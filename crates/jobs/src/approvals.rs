//! Jobs that wait for the approval of a person.
//!
//! A rule with `effect = "approve"` keeps a job from running until somebody else, who may, has
//! decided. Until then there is no record that a worker could run: the job's event holds it. A server
//! writes that event when the job is submitted, or a worker, if the rule is met only when the job
//! runs. An approved job's record carries the signed decision, which the server that executes the
//! job verifies, so whoever can write to the topic approves nothing.
//!
//! Everything that ends the wait (a decision, a cancellation, the time) is claimed first, like a
//! submission, so that only one of two replicas does it.

use std::{collections::HashSet, time::Duration};

use fleet_access::{Action, AuditOutcome};
use fleet_codes as codes;
use fleet_job::{
    approval::{HEADER, MAX_RECORD_BYTES, PendingApproval},
    decode,
    event::{JobEvent, JobState},
    filter::JobFilter,
    outcome::{ErrorKind, JobError},
    time::Timestamp,
    view::JobView,
};
use fleet_ledger::{Known, Query, query::Visibility};
use tokio::time::interval;

use super::{
    Caller, Jobs, JobsError,
    claims::Claim,
    not_found,
    submit::{Submission, Undo},
};

/// How often to look for jobs that nobody has approved in time.
const EXPIRE_INTERVAL: Duration = Duration::from_secs(5);
/// The most jobs that are looked at on one page.
const PAGE: usize = 100;
/// The longest reason of a decision, in bytes.
const MAX_REASON_BYTES: usize = 1024;

/// A decision about a job that awaits approval.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    /// Whether the job may run.
    pub approves: bool,
    /// Why, for people.
    pub reason: Option<String>,
}

impl Jobs {
    /// What waits of a job that `rule` wants to be approved, and whose record has this value.
    ///
    /// # Errors
    ///
    /// Returns an error if the job is too large to wait.
    pub(crate) fn pending_approval(
        &self,
        job: &Submission,
        rule: &str,
        value: &[u8],
        now: Timestamp,
    ) -> Result<PendingApproval, JobsError> {
        let key = job.key.as_ref().map(String::as_bytes);
        let headers: Vec<_> =
            job.headers.iter().cloned().chain(self.sign_job(job, value)).collect();
        let latest = now.plus(self.inner.approval_ttl);
        let expires_at = job.envelope.deadline.map_or(latest, |deadline| deadline.min(latest));

        let by = job.submitter.as_ref().map(|by| by.principal.display_name().to_owned());
        let pending = PendingApproval::of_record(value, key, &headers, rule.to_owned(), expires_at);
        pending.map(|pending| PendingApproval { requested_by: by, ..pending }).ok_or_else(|| {
            JobsError::TooLarge {
                job_id: job.envelope.job_id.clone(),
                bytes: value.len(),
                limit: MAX_RECORD_BYTES,
            }
        })
    }

    /// Decides on a job that awaits approval.
    ///
    /// # Errors
    ///
    /// Returns an error if there is no such job or the caller may not decide on it, if it does not
    /// await approval (any more), if the caller has submitted it, or if the decision can't be
    /// signed or written.
    pub async fn decide_approval(
        &self,
        job_id: &str,
        caller: &Caller,
        verdict: Verdict,
    ) -> Result<JobView, JobsError> {
        let known = self.find_pending(job_id, caller).await?;
        let record = caller.begin_with(Action::ApproveJob, &known.event).await?;
        let decided = self.decide_pending(known, caller, verdict).await;
        match &decided {
            Ok(_) => record.end(AuditOutcome::Succeeded, None),
            Err(error) => record.end(AuditOutcome::Failed, error.code()),
        }
        decided
    }

    /// The newest event of a job that the caller may decide on, or at least see.
    async fn find_pending(&self, job_id: &str, caller: &Caller) -> Result<Known, JobsError> {
        self.check_log_is_read()?;
        let known = match self.inner.store.get(job_id).await? {
            Some(known) => known,
            None => {
                self.catch_up().await?;
                self.inner.store.get(job_id).await?.ok_or_else(|| not_found(job_id))?
            }
        };
        let may_know = caller.may_see(&known.event)
            || caller.decide_about(Action::ApproveJob, &known.event).is_allowed();
        if may_know { Ok(known) } else { Err(not_found(job_id)) }
    }

    async fn decide_pending(
        &self,
        known: Known,
        caller: &Caller,
        verdict: Verdict,
    ) -> Result<JobView, JobsError> {
        let job_id = known.event.job_id.clone();
        self.check_is_pending(&known)?;
        if self.is_own(&known.event, caller) {
            return Err(JobsError::OwnApproval(job_id));
        }
        let verdict = Verdict {
            reason: verdict.reason.map(|mut reason| {
                reason.truncate(reason.floor_char_boundary(MAX_REASON_BYTES));
                reason
            }),
            ..verdict
        };

        let (claim, known) = self.claim_end_of_wait(&job_id).await?;
        if verdict.approves {
            self.approve(known, caller, verdict.reason, &claim).await?;
        } else {
            let by = caller.principal().display_name();
            let reason = verdict.reason.map_or_else(String::new, |reason| format!(": {reason}"));
            let message = format!("{by} has denied approval{reason}");
            let error = JobError::new(ErrorKind::Cancelled, message)
                .with_error_code(codes::APPROVAL_DENIED);
            self.end_wait(known.event, JobState::Cancelled, error).await?;
        }
        let known = self.inner.store.get(&job_id).await?.ok_or_else(|| not_found(&job_id))?;
        Ok(self.view(known))
    }

    /// Writes the record of a job that is approved.
    async fn approve(
        &self,
        known: Known,
        caller: &Caller,
        reason: Option<String>,
        claim: &Claim,
    ) -> Result<(), JobsError> {
        let event = &known.event;
        let lost = || JobsError::NotReady("the job's record is not in its event".to_owned());
        let pending = event.awaits_approval().ok_or_else(lost)?;
        let signature = self.sign_approval(pending.envelope.as_bytes(), caller, reason);
        let signature = signature.ok_or_else(|| {
            JobsError::NotReady("this server has no key to sign the decision with".to_owned())
        })?;

        let record = pending.record(&self.inner.topics.jobs);
        let envelope = decode::decode(&record, usize::MAX).map_err(|_| lost())?;
        let headers = pending.record_headers().into_iter();
        let job = Submission {
            envelope,
            value: Some(pending.envelope.clone().into_bytes()),
            key: pending.key.clone(),
            submitted_at: event.submitted_at.unwrap_or(event.time),
            headers: headers.chain([(HEADER.to_owned(), Some(signature.into_bytes()))]).collect(),
            // The headers have the submitter's signature, if there is one.
            submitter: None,
            approval: None,
            undo: Undo::Restore(Box::new(known.clone())),
        };
        self.enqueue(vec![job], Some(claim)).await
    }

    /// Returns whether a caller has submitted the job of an event.
    fn is_own(&self, event: &JobEvent, caller: &Caller) -> bool {
        let signed = event
            .awaits_approval()
            .and_then(|pending| self.signed_submitter(&pending.record(&self.inner.topics.jobs)));
        let is_owner = event.owner.as_deref().is_some_and(|owner| caller.names().contains(&owner));
        is_owner || signed.is_some_and(|by| by.principal.id() == caller.principal().id())
    }

    fn check_is_pending(&self, known: &Known) -> Result<(), JobsError> {
        match known.event.awaits_approval() {
            Some(_) => Ok(()),
            None => Err(JobsError::NotPending(Box::new(self.view(known.clone())))),
        }
    }

    /// Claims the right to end the wait of a job. Returns the job's newest event.
    pub(crate) async fn claim_end_of_wait(
        &self,
        job_id: &str,
    ) -> Result<(Claim, Known), JobsError> {
        let id = format!("approval:{job_id}");
        let claim = self.claim_jobs(&HashSet::from([id.clone()])).await?;
        if !claim.won.contains(&id) {
            let why = "somebody else is deciding on this job; try again in a minute";
            return Err(JobsError::NotReady(why.to_owned()));
        }

        // Somebody else may have ended the wait before the claim.
        self.catch_up().await?;
        let known = self.inner.store.get(job_id).await?.ok_or_else(|| not_found(job_id))?;
        self.check_is_pending(&known)?;
        Ok((claim, known))
    }

    /// Writes the end of a job that has waited for approval. No worker has it.
    pub(crate) async fn end_wait(
        &self,
        event: JobEvent,
        state: JobState,
        error: JobError,
    ) -> Result<(), JobsError> {
        let time = fleet_ops::clock::now();
        let event = JobEvent { state, approval: None, error: Some(error), time, ..event };
        self.write_event(event).await
    }

    /// Ends jobs that nobody has approved in time, until the server stops.
    pub(super) async fn expire_approvals(self) {
        let mut ticks = interval(EXPIRE_INTERVAL);
        while self.is_next_tick(&mut ticks).await {
            if let Err(error) = self.expire_pending().await {
                let error = fleet_ops::errors::chain(&error);
                tracing::debug!(error, "could not look for jobs that nobody has approved in time");
            }
        }
    }

    async fn expire_pending(&self) -> Result<(), JobsError> {
        self.check_log_is_read()?;
        let states = vec![JobState::AwaitingApproval];
        let mut query = Query {
            filter: JobFilter { states, ..JobFilter::default() },
            visibility: Visibility::new(|_, _| true),
            limit: PAGE,
            ..Query::default()
        };
        loop {
            let page = self.inner.store.list(&query).await?;
            let now = fleet_ops::clock::now();
            for known in page.jobs {
                let pending = known.event.awaits_approval();
                if pending.is_some_and(|pending| pending.expires_at <= now) {
                    self.expire(&known.event.job_id).await;
                }
            }
            match page.next {
                Some(next) => query.after = Some(next),
                None => return Ok(()),
            }
        }
    }

    /// Ends one job, unless another replica does.
    async fn expire(&self, job_id: &str) {
        let Ok((_claim, known)) = self.claim_end_of_wait(job_id).await else { return };
        let error = JobError::new(ErrorKind::Expired, "nobody has approved the job in time")
            .with_error_code(codes::APPROVAL_EXPIRED);
        if let Err(error) = self.end_wait(known.event, JobState::Expired, error).await {
            let error = fleet_ops::errors::chain(&error);
            tracing::warn!(error, job_id, "could not end a job that nobody has approved in time");
        }
    }
}

impl JobsError {
    /// The stable code of the error, as the audit log has it; `None` if it has none of its own.
    fn code(&self) -> Option<&'static str> {
        match self {
            Self::OwnApproval(_) => Some(codes::OWN_APPROVAL.as_str()),
            Self::NotPending(_) => Some(codes::NOT_PENDING.as_str()),
            _ => None,
        }
    }
}

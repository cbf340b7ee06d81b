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

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use fleet_access::{Action, AuditOutcome};
use fleet_codes as codes;
use fleet_job::{
    approval::{Approved, HEADER, MAX_RECORD_BYTES, PendingApproval},
    decode,
    envelope::Envelope,
    event::{JobEvent, JobState},
    filter::JobFilter,
    outcome::{ErrorKind, JobError},
    time::Timestamp,
    view::JobView,
};
use fleet_ledger::{Known, Query, query::Visibility};
use serde_json::json;
use tokio::time::interval;

use super::{
    Caller, Jobs, JobsError,
    claims::{CLAIM_LIFETIME, Claim},
    not_found,
    submit::{Approval, Submission, Undo},
};

/// How often to look for jobs that nobody has approved in time.
const EXPIRE_INTERVAL: Duration = Duration::from_secs(5);
/// How often to look for approved jobs whose record is missing.
const RESUME_INTERVAL: Duration = Duration::from_secs(300);
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
        let said = json!({ "approve": verdict.approves, "reason": verdict.reason });
        let said = said.as_object().cloned().unwrap_or_default();
        let record = caller.begin_deciding(&known.event, &said).await?;
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
            self.approve(known, caller, verdict.reason, claim).await?;
        } else {
            let by = caller.principal().display_name();
            let reason = verdict.reason.map_or_else(String::new, |reason| format!(": {reason}"));
            let message = format!("{by} has denied approval{reason}");
            let error = JobError::new(ErrorKind::Cancelled, message)
                .with_error_code(codes::APPROVAL_DENIED);
            self.end_wait(known.event, JobState::Cancelled, error, &claim).await?;
        }
        let known = self.inner.store.get(&job_id).await?.ok_or_else(|| not_found(&job_id))?;
        Ok(self.view(known))
    }

    /// Writes the record of a job that is approved, even if the caller stops waiting. The `queued`
    /// event before it keeps what it takes to write the record, so that
    /// [`resume_approved`](Self::resume_approved) can, should this process die in between.
    async fn approve(
        &self,
        known: Known,
        caller: &Caller,
        reason: Option<String>,
        claim: Claim,
    ) -> Result<(), JobsError> {
        let lost = || JobsError::NotReady("the job's record is not in its event".to_owned());
        let mut pending = known.event.awaits_approval().cloned().ok_or_else(lost)?;
        let record = pending.record(&self.inner.topics.jobs);
        let envelope = decode::decode(&record, usize::MAX).map_err(|_| lost())?;
        let value = pending.envelope.as_bytes();
        let signature = self.sign_approval(&envelope, value, caller, reason.clone());
        let signature = signature.ok_or_else(|| {
            JobsError::NotReady("this server has no key to sign the decision with".to_owned())
        })?;

        let by = caller.principal().display_name().to_owned();
        pending.approved = Some(Approved { by, reason, time: fleet_ops::clock::now() });
        pending.headers.push((HEADER.to_owned(), signature));
        self.write_approved(envelope, pending, claim).await
    }

    async fn write_approved(
        &self,
        envelope: Envelope,
        pending: PendingApproval,
        claim: Claim,
    ) -> Result<(), JobsError> {
        let job = Submission {
            envelope,
            value: Some(pending.envelope.clone().into_bytes()),
            key: pending.key.clone(),
            // The record is new, and must not be deleted because of its age.
            submitted_at: fleet_ops::clock::now(),
            headers: pending.record_headers(),
            // The headers have the submitter's signature, if there is one.
            submitter: None,
            approval: Approval::Given(Box::new(pending)),
            // Whether the broker has taken the record may be unknown.
            undo: Undo::Nothing,
        };
        let this = self.clone();
        let writing = tokio::spawn(async move { this.enqueue(vec![job], Some(&claim)).await });
        writing.await.map_err(|error| JobsError::NotReady(error.to_string()))?
    }

    /// Writes the records of jobs that were approved by a server that has died since, until the
    /// server stops. That is rare, so it is looked for rarely.
    pub(super) async fn resume_approved(self) {
        self.wait_until_read().await;
        let mut ticks = interval(RESUME_INTERVAL);
        while self.is_next_tick(&mut ticks).await {
            if let Err(error) = self.for_each_in(JobState::Queued, Self::resume).await {
                let error = fleet_ops::errors::chain(&error);
                tracing::debug!(error, "could not look for approved jobs without a record");
            }
        }
    }

    /// Writes the record of one job, if it was approved and the record is missing.
    async fn resume(self, event: Arc<JobEvent>) {
        let Some(pending) = event.approval.clone().filter(|_| event.source.is_none()) else {
            return;
        };
        // Whoever holds the claim may still be writing.
        if fleet_ops::clock::now().since(event.time) < CLAIM_LIFETIME {
            return;
        }

        let job_id = event.job_id.clone();
        let resumed = async {
            let claim = self.claim_approval(&job_id).await?;
            let since = HashMap::from([(job_id.clone(), event.time)]);
            if !self.find_written(since).await?.is_empty() {
                return Ok(());
            }
            let record = pending.record(&self.inner.topics.jobs);
            match decode::decode(&record, usize::MAX) {
                Ok(envelope) => self.write_approved(envelope, *pending, claim).await,
                Err(_) => Ok(()),
            }
        };
        if let Err(error) = resumed.await {
            let error: JobsError = error;
            let error = fleet_ops::errors::chain(&error);
            tracing::warn!(error, job_id, "could not write the record of an approved job");
        }
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
        let pending = known.event.awaits_approval();
        match pending.filter(|pending| pending.expires_at > fleet_ops::clock::now()) {
            Some(_) => Ok(()),
            None => Err(JobsError::NotPending(Box::new(self.view(known.clone())))),
        }
    }

    /// Claims the right to end the wait of a job. Returns the job's newest event.
    pub(crate) async fn claim_end_of_wait(
        &self,
        job_id: &str,
    ) -> Result<(Claim, Known), JobsError> {
        let claim = self.claim_approval(job_id).await?;
        // Somebody else may have ended the wait before the claim.
        self.catch_up().await?;
        let known = self.inner.store.get(job_id).await?.ok_or_else(|| not_found(job_id))?;
        match known.event.awaits_approval() {
            Some(_) => Ok((claim, known)),
            None => Err(JobsError::NotPending(Box::new(self.view(known)))),
        }
    }

    async fn claim_approval(&self, job_id: &str) -> Result<Claim, JobsError> {
        // No job has such an id.
        let id = format!("\0approval:{job_id}");
        let claim = self.claim_jobs(&HashSet::from([id.clone()])).await?;
        if claim.won.contains(&id) {
            return Ok(claim);
        }
        let why = "somebody else is deciding on this job; try again in a minute";
        Err(JobsError::NotReady(why.to_owned()))
    }

    /// Writes the end of a job that has waited for approval. No worker has it.
    pub(crate) async fn end_wait(
        &self,
        event: JobEvent,
        state: JobState,
        error: JobError,
        claim: &Claim,
    ) -> Result<(), JobsError> {
        let time = fleet_ops::clock::now();
        let event = JobEvent { state, approval: None, error: Some(error), time, ..event };
        claim.check_age()?;
        self.write_event(event).await
    }

    /// Ends jobs that nobody has approved in time, until the server stops.
    pub(super) async fn expire_approvals(self) {
        let mut ticks = interval(EXPIRE_INTERVAL);
        while self.is_next_tick(&mut ticks).await {
            let looked = self.for_each_in(JobState::AwaitingApproval, Self::expire_if_due).await;
            if let Err(error) = looked {
                let error = fleet_ops::errors::chain(&error);
                tracing::debug!(error, "could not look for jobs that nobody has approved in time");
            }
        }
    }

    /// Does something with each job in a state.
    async fn for_each_in<F: Future<Output = ()>>(
        &self,
        state: JobState,
        act: impl Fn(Self, Arc<JobEvent>) -> F,
    ) -> Result<(), JobsError> {
        self.check_log_is_read()?;
        let mut query = Query {
            filter: JobFilter { states: vec![state], ..JobFilter::default() },
            visibility: Visibility::new(|_, _| true),
            limit: PAGE,
            ..Query::default()
        };
        loop {
            let page = self.inner.store.list(&query).await?;
            for known in page.jobs {
                act(self.clone(), Arc::new(known.event)).await;
            }
            match page.next {
                Some(next) => query.after = Some(next),
                None => return Ok(()),
            }
        }
    }

    async fn expire_if_due(self, event: Arc<JobEvent>) {
        let pending = event.awaits_approval();
        if pending.is_some_and(|pending| pending.expires_at <= fleet_ops::clock::now()) {
            self.expire(&event.job_id).await;
        }
    }

    /// Ends one job, unless another replica does.
    async fn expire(&self, job_id: &str) {
        let Ok((claim, known)) = self.claim_end_of_wait(job_id).await else { return };
        let error = JobError::new(ErrorKind::Expired, "nobody has approved the job in time")
            .with_error_code(codes::APPROVAL_EXPIRED);
        if let Err(error) = self.end_wait(known.event, JobState::Expired, error, &claim).await {
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

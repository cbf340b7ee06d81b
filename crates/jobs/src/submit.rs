//! Submits jobs: writes a `queued` event to the events topic, then the envelope to the jobs topic.
//!
//! The event is written first, because written after the envelope it could hide the events of a
//! quick worker. A job that another request may submit at the same time is claimed before both (see
//! [`claims`](super::claims)), so that only one of two submissions writes anything.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    sync::Arc,
    time::Duration,
};

use fleet_job::{
    approval::PendingApproval,
    decode,
    envelope::Envelope,
    event::{JobEvent, JobState},
    record::Header,
    state::Restated,
    time::Timestamp,
    trace::TraceContext,
    view::Submitted,
};
use fleet_kafka::{
    KafkaError,
    producer::{Delivered, Outgoing},
    reader,
};
use fleet_ledger::{Known, Update};
use fleet_ops::{
    blocking::run_blocking,
    trace::{Span, SpanKind},
};
use fleet_signing::OnBehalfOf;
use futures::future::join_all;

use super::{
    Caller, JobRequest, Jobs, JobsError,
    claims::{Claim, WRITE_LIMIT},
    in_view, outcome_of,
    request::{BadRequest, Prepared},
    rights,
    signing::{Submitter, without_signature},
};
use crate::metrics;

/// The most jobs in one request.
pub const MAX_JOBS: usize = 1_000;
/// How often to look for a job that another request submits.
const RETRY_INTERVAL: Duration = Duration::from_millis(200);
/// The longest time that a search of the jobs topic may take.
const SEARCH_LIMIT: Duration = Duration::from_secs(10);
/// The most records that wait for the broker's acknowledgement.
const MAX_UNACKNOWLEDGED: usize = 1_000;

/// A job on its way to Kafka.
#[derive(Debug, Clone)]
pub(crate) struct Submission {
    pub(crate) envelope: Envelope,
    /// The record's value, if it is known byte for byte.
    pub(crate) value: Option<Vec<u8>>,
    /// The record's key.
    pub(crate) key: Option<String>,
    /// When the job was submitted; for later rounds of a task, the time of its first round.
    pub(crate) submitted_at: Timestamp,
    /// The trace context.
    pub(crate) headers: Vec<Header>,
    /// As whom the job is to run; `None` if nobody is known to have submitted it.
    pub(crate) submitter: Option<Submitter>,
    /// Whether somebody has to approve the job before its record is written.
    pub(crate) approval: Approval,
    /// What to do with the `queued` event if the envelope can't be written.
    pub(crate) undo: Undo,
}

/// Whether somebody has to approve a job before its record is written.
#[derive(Debug, Clone)]
pub(crate) enum Approval {
    /// Nobody.
    NotNeeded,
    /// Somebody else than its submitter, as this rule wants.
    Wanted(String),
    /// Somebody has.
    Given(Box<PendingApproval>),
}

/// What to do with a `queued` event whose envelope could not be written.
#[derive(Debug, Clone)]
pub(crate) enum Undo {
    /// Keep it. The next submission of the same job writes the envelope.
    Nothing,
    /// Delete it, since nobody knows the job's id.
    Remove,
    /// Put the earlier state back.
    Restore(Box<Known>),
}

impl Jobs {
    /// Submits jobs. All of them are checked before the first one is written. After an error, the
    /// same request can be repeated: jobs with an id or an idempotency key are not submitted twice.
    /// Dropping the future does not stop a submission that has begun.
    ///
    /// # Errors
    ///
    /// Returns an error if a job is invalid, the ledger can't tell which jobs exist, or Kafka does
    /// not accept the jobs.
    pub async fn submit(
        &self,
        requests: Vec<JobRequest>,
        caller: &Caller,
        trace: &TraceContext,
    ) -> Result<Vec<Submitted>, JobsError> {
        let mut jobs = prepare_jobs(requests, caller)?;
        if let Some(view) = caller.view() {
            let (count, resolver) = (jobs.len(), self.inner.resolver.get());
            for (index, job) in jobs.iter_mut().enumerate() {
                in_view::resolve_names(&mut job.envelope.work, (caller, &view), resolver)
                    .map_err(|error| bad_job(error, index, count))?;
            }
        }
        self.submit_prepared_requests(jobs, caller, trace).await
    }

    /// Submits another run of a job, as [`submit`](Self::submit) does.
    pub(crate) async fn submit_run(
        &self,
        request: JobRequest,
        first: &Envelope,
        caller: &Caller,
        trace: &TraceContext,
    ) -> Result<Vec<Submitted>, JobsError> {
        let mut jobs = prepare_jobs(vec![request], caller)?;
        let (job_id, owner) = (first.job_id.clone(), first.owner.clone());
        for job in &mut jobs {
            job.on_behalf_of = Some(OnBehalfOf { job_id: job_id.clone(), owner: owner.clone() });
        }
        self.submit_prepared_requests(jobs, caller, trace).await
    }

    async fn submit_prepared_requests(
        &self,
        mut jobs: Vec<Prepared>,
        caller: &Caller,
        trace: &TraceContext,
    ) -> Result<Vec<Submitted>, JobsError> {
        let mut allowed = Vec::with_capacity(jobs.len());
        for (index, job) in jobs.iter().enumerate() {
            let resolver = self.inner.resolver.get();
            allowed.push(rights::check_submission(
                caller,
                &job.envelope,
                resolver,
                self.job_rights(),
            )?);
            self.check_reply_topic(&job.envelope)
                .map_err(|error| bad_job(error, index, jobs.len()))?;
            self.check_size(&job.envelope)?;
        }
        match self.check_log_is_read() {
            // Only jobs that may exist already need the ledger.
            Ok(()) | Err(JobsError::LedgerAway(_)) => {}
            Err(error) => return Err(error),
        }
        for (job, allowed) in jobs.iter_mut().zip(&mut allowed) {
            job.approval = allowed.approval.take();
        }

        let records = allowed.iter().zip(&jobs);
        let records = records.map(|(allowed, job)| allowed.begin_record(caller, &job.envelope));
        // If one of them must not be submitted, none is.
        let records = join_all(records).await.into_iter().collect::<Result<Vec<_>, _>>();
        let records = records?;
        let submitted = self.submit_allowed(jobs, caller, trace).await;
        let outcome = outcome_of(&submitted);
        records.into_iter().for_each(|record| record.end(outcome, None));
        submitted
    }

    /// Submits jobs that the caller may submit.
    async fn submit_allowed(
        &self,
        jobs: Vec<Prepared>,
        caller: &Caller,
        trace: &TraceContext,
    ) -> Result<Vec<Submitted>, JobsError> {
        let (this, caller, span) =
            (self.clone(), caller.clone(), self.start_send_span(trace, jobs.len()));
        let submitting = tokio::spawn(async move {
            let submitted = this.submit_prepared(jobs, &caller, &span.context().headers()).await;
            if let Err(error) = &submitted {
                span.fail("submit", &error.to_string());
            }
            submitted
        });
        let submitted =
            submitting.await.map_err(|error| JobsError::NotReady(error.to_string()))??;

        let fresh = submitted.iter().filter(|job| !job.existing).count() as u64;
        let known = submitted.len() as u64 - fresh;
        ::metrics::counter!(metrics::JOBS_SUBMITTED.name, "outcome" => "new").increment(fresh);
        ::metrics::counter!(metrics::JOBS_SUBMITTED.name, "outcome" => "existing").increment(known);
        Ok(submitted)
    }

    /// Starts the span of writing jobs, named after OpenTelemetry's conventions for messaging.
    pub(super) fn start_send_span(&self, trace: &TraceContext, jobs: usize) -> Span {
        let topic = &self.inner.topics.jobs;
        Span::start(SpanKind::Producer, format!("send {topic}"), trace, || {
            [
                ("messaging.system", "kafka".into()),
                ("messaging.operation.type", "send".into()),
                ("messaging.operation.name", "send".into()),
                ("messaging.destination.name", topic.clone().into()),
                ("messaging.batch.message_count", i64::try_from(jobs).unwrap_or(i64::MAX).into()),
            ]
        })
    }

    /// Submits jobs that have been checked. Claims those that another request may submit, too.
    async fn submit_prepared(
        &self,
        jobs: Vec<Prepared>,
        caller: &Caller,
        headers: &[Header],
    ) -> Result<Vec<Submitted>, JobsError> {
        let contested: HashSet<String> = jobs
            .iter()
            .filter(|job| job.may_exist)
            .map(|job| job.envelope.job_id.clone())
            .collect();

        // Jobs that exist already need no claim, which would only make others wait.
        let mut states = self.find_existing(&contested, caller).await?;
        let open = contested
            .iter()
            .filter(|id| !states.contains_key(*id))
            .cloned()
            .collect::<HashSet<_>>();
        let claim = if open.is_empty() { None } else { Some(self.claim_jobs(&open).await?) };

        let mut elsewhere = HashSet::new();
        if let Some(claim) = &claim {
            // Another request may have submitted a job between the first look and the claim.
            states.extend(self.find_existing(&claim.won, caller).await?);
            elsewhere.clone_from(&claim.lost);
        }

        let is_old = |id: &String| states.contains_key(id) || elsewhere.contains(id);
        let now = fleet_ops::clock::now();
        let (mut ids, mut new) = (Vec::with_capacity(jobs.len()), HashSet::new());
        let mut fresh = Vec::new();
        for Prepared { envelope, key, may_exist, approval, on_behalf_of } in jobs {
            let job_id = envelope.job_id.clone();
            // A request that contains an id twice means one job.
            let is_new = !is_old(&job_id) && new.insert(job_id.clone());
            let state = match approval {
                Some(_) => JobState::AwaitingApproval,
                None => JobState::Queued,
            };
            ids.push((job_id, is_new, state));
            if is_new {
                let undo = if may_exist { Undo::Nothing } else { Undo::Remove };
                let headers = headers.to_vec();
                let principal = Arc::clone(caller.principal());
                let submitter = Some(Submitter { principal, on_behalf_of });
                fresh.push(Submission {
                    envelope,
                    value: None,
                    key,
                    submitted_at: now,
                    headers,
                    submitter,
                    approval: approval.map_or(Approval::NotNeeded, Approval::Wanted),
                    undo,
                });
            }
        }
        self.enqueue(fresh, claim.as_ref()).await?;

        // Wait for the jobs of other requests last, since those may wait for jobs of this one.
        states.extend(self.await_other_submissions(&elsewhere, caller).await?);
        let submitted = ids.into_iter().map(|(job_id, is_new, state)| {
            let known = states.get(&job_id).cloned();
            let state = known.unwrap_or_else(|| state.as_str().to_owned());
            Submitted { job_id, state, existing: !is_new }
        });
        Ok(submitted.collect())
    }

    /// Returns the states of those jobs that exist. A `queued` job that no worker has reported on
    /// exists only if its envelope is in the jobs topic: the process that wrote the event may have
    /// died before it wrote the envelope and answered its caller.
    pub(crate) async fn find_existing(
        &self,
        job_ids: &HashSet<String>,
        caller: &Caller,
    ) -> Result<HashMap<String, String>, JobsError> {
        let mut states = HashMap::new();
        if job_ids.is_empty() {
            return Ok(states);
        }

        self.catch_up().await?;
        let mut unreported = HashMap::new();
        for job_id in job_ids {
            let Some(known) = self.inner.store.get(job_id).await? else { continue };
            let event = known.event;
            if !caller.may_see(&event) {
                // Reveal nothing about the other owner's job, not even that it exists.
                let message = format!(
                    "`jobID`: `{job_id}` can't be used here; choose another one, or leave it out"
                );
                return Err(BadRequest(message).into());
            }

            if event.state == JobState::Queued && event.source.is_none() {
                unreported.insert(job_id.clone(), event.submitted_at.unwrap_or(event.time));
            } else {
                states.insert(job_id.clone(), event.state.as_str().to_owned());
            }
        }

        for job_id in self.find_written(unreported).await? {
            states.insert(job_id, JobState::Queued.as_str().to_owned());
        }
        Ok(states)
    }

    /// Returns those of these jobs that are in the jobs topic. If the search takes too long, the
    /// jobs that it did not find count as written. The map has the times of submission.
    pub(crate) async fn find_written(
        &self,
        jobs: HashMap<String, Timestamp>,
    ) -> Result<Vec<String>, JobsError> {
        let Some(since) = jobs.values().min().copied() else { return Ok(Vec::new()) };
        // A search reads the backlog, so their number is bounded.
        let permit = self.inner.searches.clone().acquire_owned().await;
        let (settings, topic) =
            (self.inner.link.follower.settings().clone(), self.inner.topics.jobs.clone());

        let search = move || {
            let _permit = permit;
            let mut missing: HashSet<String> = jobs.keys().cloned().collect();
            let is_done = reader::search(&settings, &topic, since, SEARCH_LIMIT, |record| {
                if let Ok(envelope) = decode::decode(record, usize::MAX) {
                    missing.remove(&envelope.job_id);
                }
                missing.is_empty()
            })?;
            let found = jobs.into_keys().filter(|id| !is_done || !missing.contains(id));
            Ok::<_, JobsError>(found.collect())
        };
        run_blocking(search).await
    }

    /// Waits for jobs that other requests are submitting. Returns their states.
    async fn await_other_submissions(
        &self,
        job_ids: &HashSet<String>,
        caller: &Caller,
    ) -> Result<HashMap<String, String>, JobsError> {
        let deadline = tokio::time::Instant::now() + WRITE_LIMIT;
        loop {
            let states = self.find_existing(job_ids, caller).await?;
            if states.len() == job_ids.len() {
                return Ok(states);
            }
            if tokio::time::Instant::now() >= deadline {
                let why = "another request is submitting the same job; try again in a minute";
                return Err(JobsError::NotReady(why.to_owned()));
            }
            tokio::time::sleep(RETRY_INTERVAL).await;
        }
    }

    /// Refuses a job whose `replyTo` names a topic that workers never reply to.
    fn check_reply_topic(&self, envelope: &Envelope) -> Result<(), BadRequest> {
        let inner = &self.inner;
        match &envelope.reply_to {
            Some(topic) if inner.topics.is_reserved(&inner.registry_topic, topic) => {
                Err(BadRequest(format!(
                    "`replyTo`: `{topic}` belongs to the fleet or to Kafka; name a topic of your own that MCP_REPLY_TOPICS \
                     of the workers allows"
                )))
            }
            _ => Ok(()),
        }
    }

    /// Refuses a job that is too large for workers.
    pub(crate) fn check_size(&self, envelope: &Envelope) -> Result<(), JobsError> {
        let bytes =
            usize::try_from(fleet_job::size::json_bytes(&envelope.to_json())).unwrap_or(usize::MAX);
        let limit = self.inner.max_job_bytes;
        if bytes > limit {
            return Err(JobsError::TooLarge { job_id: envelope.job_id.clone(), bytes, limit });
        }
        Ok(())
    }

    /// Writes jobs. Returns once Kafka has acknowledged all of them and this replica's ledger has
    /// them. Writes nothing if the claim is too old.
    pub(crate) async fn enqueue(
        &self,
        jobs: Vec<Submission>,
        claim: Option<&Claim>,
    ) -> Result<(), JobsError> {
        let now = fleet_ops::clock::now();
        let (mut events, mut records) = (Vec::with_capacity(jobs.len()), Vec::new());
        for job in &jobs {
            let value = (job.value.clone())
                .unwrap_or_else(|| job.envelope.to_json().to_string().into_bytes());
            let event = JobEvent {
                submitted_at: Some(job.submitted_at),
                ..JobEvent::about(&job.envelope, JobState::Queued, now)
            };
            match &job.approval {
                Approval::Wanted(rule) => {
                    let pending = self.pending_approval(job, rule, &value, now)?;
                    let (state, approval) = (JobState::AwaitingApproval, Some(Box::new(pending)));
                    events.push(JobEvent { state, approval, ..event });
                    continue;
                }
                Approval::Given(pending) => {
                    events.push(JobEvent { approval: Some(pending.clone()), ..event });
                }
                Approval::NotNeeded => events.push(event),
            }

            let signature = self.sign_job(job, &value);
            records.push(Outgoing {
                topic: self.inner.topics.jobs.clone(),
                key: job.key.clone().map(String::into_bytes),
                value: Some(value),
                headers: job.headers.iter().cloned().chain(signature).collect(),
                // The worker's events repeat it, so that the job keeps its position in lists.
                timestamp: Some(job.submitted_at),
                partition: None,
            });
        }

        claim.map_or(Ok(()), Claim::check_age)?;
        let announced = self.write_events(&events, &jobs).await?;
        let written = match claim.map_or(Ok(()), Claim::check_age) {
            Ok(()) => self.write_all(records).await.map(drop).map_err(JobsError::from),
            Err(error) => Err(error),
        };
        if written.is_err() {
            self.undo_events(&jobs, &announced).await;
        }
        written
    }

    /// Writes events of jobs that no worker has, and applies them to the ledger at once. Returns
    /// their positions.
    async fn write_events(
        &self,
        events: &[JobEvent],
        jobs: &[Submission],
    ) -> Result<Vec<Delivered>, JobsError> {
        let records = events.iter().zip(jobs).map(|(event, job)| Outgoing {
            topic: self.inner.topics.events.clone(),
            key: Some(event.job_id.clone().into_bytes()),
            value: Some(event.to_bytes()),
            headers: without_signature(job.headers.clone()),
            ..Outgoing::default()
        });
        let delivered = self.write_all(records.collect()).await?;
        let at = events.iter().zip(&delivered);
        let updates = at.map(|(event, at)| Update::new(at.partition, at.offset, event.clone()));
        self.apply_written(updates.collect()).await?;
        Ok(delivered)
    }

    /// Undoes `queued` events whose envelopes could not be written, as far as Kafka can be reached.
    /// If an envelope was written after all, a worker runs it and its events report so.
    async fn undo_events(&self, jobs: &[Submission], announced: &[Delivered]) {
        for (job, at) in jobs.iter().zip(announced) {
            let (value, headers) = match &job.undo {
                Undo::Nothing => continue,
                Undo::Remove => (None, Vec::new()),
                Undo::Restore(known) => {
                    // The header makes the event the state again, although `queued` follows its
                    // first position.
                    let restated = Restated { offset: known.offset, known: at.offset };
                    (Some(known.event.to_bytes()), vec![restated.header()])
                }
            };
            let (topic, key) =
                (self.inner.topics.events.clone(), job.envelope.job_id.clone().into_bytes());
            let record = Outgoing { topic, key: Some(key), value, headers, ..Outgoing::default() };
            if let Err(error) = self.inner.link.producer.send(&record).await {
                let error = fleet_ops::errors::chain(&error);
                tracing::warn!(
                    error,
                    job_id = job.envelope.job_id,
                    "could not undo the event of a job that was not submitted; the job stays queued"
                );
                return;
            }
        }
    }

    /// Writes records in order, many at a time. Returns their positions.
    pub(super) async fn write_all(
        &self,
        records: Vec<Outgoing>,
    ) -> Result<Vec<Delivered>, KafkaError> {
        let mut delivered = Vec::with_capacity(records.len());
        let mut waiting = VecDeque::new();
        for record in &records {
            waiting.push_back(self.inner.link.producer.enqueue_patiently(record).await?);
            while waiting.len() >= MAX_UNACKNOWLEDGED
                && let Some(delivery) = waiting.pop_front()
            {
                delivered.push(delivery.await?);
            }
        }

        for delivery in waiting {
            delivered.push(delivery.await?);
        }
        Ok(delivered)
    }
}

/// Checks requests and turns them into envelopes.
fn prepare_jobs(requests: Vec<JobRequest>, caller: &Caller) -> Result<Vec<Prepared>, JobsError> {
    let count = requests.len();
    if !(1..=MAX_JOBS).contains(&count) {
        let message = format!("a request must contain 1 to {MAX_JOBS} jobs; this one has {count}");
        return Err(BadRequest(message).into());
    }

    let fresh = || uuid::Uuid::now_v7().to_string();
    let jobs = requests.into_iter().enumerate().map(|(index, request)| {
        request.prepare(caller, fresh).map_err(|error| bad_job(error, index, count))
    });
    jobs.collect()
}

/// The error for one of several jobs in a request.
fn bad_job(error: BadRequest, index: usize, count: usize) -> JobsError {
    match count {
        1 => error.into(),
        _ => JobsError::BadJob { index, error },
    }
}

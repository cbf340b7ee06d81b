//! Submitting: a claim on the events topic, then the envelope on the jobs topic.
//!
//! The claim goes first: written after the envelope, it could hide what a quick worker has said already. Claims of one job
//! id stand in one partition, in one order for all replicas, so that of two submissions of one job exactly one comes first.

use std::{
    collections::{HashSet, VecDeque},
    time::Duration,
};

use fleet_job::{
    decode,
    envelope::Envelope,
    event::{JobEvent, JobState},
    record::Header,
    time::Timestamp,
};
use fleet_kafka::{
    KafkaError,
    producer::{Delivered, Outgoing},
    reader,
};
use fleet_ledger::{Batch, Update};
use tokio::sync::oneshot;

use super::{
    CATCH_UP, Caller, JobRequest, Jobs, JobsError, Submitted,
    request::{BadRequest, Prepared},
};
use crate::metrics;

/// The most jobs in one request.
pub const MAX_JOBS: usize = 1_000;
/// How long the log may take to say which of several submissions came first.
const CLAIM: Duration = Duration::from_secs(10);
/// How soon to look again for a job that may be on its way.
const LOOK_AGAIN: Duration = Duration::from_millis(500);
/// How long it may take to look for a job.
const SEARCH: Duration = Duration::from_secs(10);
/// Records that are handed over to the producer and not acknowledged yet.
const WINDOW: usize = 1_000;

/// A job on its way to Kafka.
#[derive(Debug, Clone)]
pub(crate) struct Submission {
    pub(crate) envelope: Envelope,
    /// The record's key.
    pub(crate) key: Option<String>,
    /// When it was submitted: now, but for the later rounds of a job.
    pub(crate) submitted_at: Timestamp,
    /// Trace context.
    pub(crate) headers: Vec<Header>,
    /// Whether somebody else can submit a job of this id at this moment.
    pub(crate) contested: bool,
}

impl Jobs {
    /// Submits jobs. All of them are checked before the first one is written. Where this fails in the middle, the same
    /// request can be made again: jobs with an id or an idempotency key are not submitted twice.
    ///
    /// # Errors
    /// What is wrong with which job; where the ledger can't say what there is; where Kafka does not take them.
    pub async fn submit(
        &self,
        requests: Vec<JobRequest>,
        caller: &Caller,
        headers: &[Header],
    ) -> Result<Vec<Submitted>, JobsError> {
        let jobs = prepare(requests, caller)?;
        for job in &jobs {
            self.check_size(&job.envelope)?;
        }
        self.must_be_read()?;
        if jobs.iter().any(|job| job.may_exist) {
            self.catch_up().await?;
        }
        let now = fleet_ops::clock::now();
        let (mut submitted, mut fresh, mut places) = (Vec::new(), Vec::new(), Vec::new());
        let mut seen = HashSet::new();
        for Prepared { envelope, key, may_exist } in jobs {
            let job_id = envelope.job_id.clone();
            let queued = JobState::Queued.as_str().to_owned();
            let existing = if !seen.insert(job_id.clone()) {
                Some(queued.clone())
            } else if may_exist {
                self.existing(&job_id, caller).await?
            } else {
                None
            };
            let is_new = existing.is_none();
            submitted.push(Submitted { job_id, state: existing.unwrap_or(queued), existing: !is_new });
            if is_new {
                places.push(submitted.len() - 1);
                let headers = headers.to_vec();
                fresh.push(Submission { envelope, key, submitted_at: now, headers, contested: may_exist });
            }
        }
        let accepted = self.enqueue(fresh).await?;
        for (place, accepted) in places.into_iter().zip(accepted) {
            if let Some(entry) = submitted.get_mut(place) {
                entry.existing = !accepted;
            }
        }
        let fresh = submitted.iter().filter(|job| !job.existing).count();
        ::metrics::counter!(metrics::JOBS_SUBMITTED.name, "outcome" => "new").increment(fresh as u64);
        let known = submitted.len() - fresh;
        ::metrics::counter!(metrics::JOBS_SUBMITTED.name, "outcome" => "existing").increment(known as u64);
        Ok(submitted)
    }

    /// The state of a job that is there already.
    async fn existing(&self, job_id: &str, caller: &Caller) -> Result<Option<String>, JobsError> {
        let Some(known) = self.inner.store.get(job_id).await? else { return Ok(None) };
        if known.event.owner.is_some() && known.event.owner != caller.owner {
            return Err(BadRequest(format!("`jobID`: `{job_id}` is taken; choose another one")).into());
        }
        let state = known.event.state.as_str().to_owned();
        if !self.has_vanished(known.event).await? {
            return Ok(Some(state));
        }
        tracing::warn!(job_id, "was claimed and never submitted; it is submitted now");
        let (topic, key) = (self.inner.topics.events.clone(), Some(job_id.as_bytes().to_vec()));
        // Without it, the claim that follows would not be the first.
        self.inner.producer.send(&Outgoing { topic, key, ..Outgoing::default() }).await?;
        Ok(None)
    }

    /// Whether there is a claim and no job: whoever wrote the claim died before it wrote the job, and told nobody that the
    /// job was submitted. Looked for only where no worker has said anything. A claim may be followed by its job for as
    /// long as a submission takes, so this can take as long.
    async fn has_vanished(&self, mut claim: JobEvent) -> Result<bool, JobsError> {
        loop {
            if claim.state != JobState::Queued || claim.source.is_some() || self.is_written(&claim).await? {
                return Ok(false);
            }
            let claimed = claim.submitted_at.unwrap_or(claim.time);
            if fleet_ops::clock::now().since(claimed) >= CLAIM {
                return Ok(true);
            }
            tokio::time::sleep(LOOK_AGAIN).await;
            match self.inner.store.get(&claim.job_id).await? {
                Some(known) => claim = known.event,
                None => return Ok(true),
            }
        }
    }

    /// Whether the job of this claim is in the jobs topic. Where there was no time to find out, it is taken to be.
    async fn is_written(&self, claim: &JobEvent) -> Result<bool, JobsError> {
        let (settings, topic) = (self.inner.settings.clone(), self.inner.topics.jobs.clone());
        let (job_id, claimed) = (claim.job_id.clone(), claim.submitted_at.unwrap_or(claim.time));
        // The claim that is known is the newest one. The job is that of the first, which came as much earlier at most as
        // the submitter of the newest had to wait before it wrote.
        let since = claimed.minus(CLAIM + CATCH_UP);
        let search = move || {
            let mut found = false;
            let done = reader::search(&settings, &topic, since, claimed.plus(CLAIM), SEARCH, |record| {
                found = decode::decode(record, usize::MAX).is_ok_and(|envelope| envelope.job_id == job_id);
                found
            })?;
            Ok::<_, KafkaError>(found || !done)
        };
        let written = tokio::task::spawn_blocking(search).await;
        Ok(written.map_err(|error| JobsError::NotReady(error.to_string()))??)
    }

    /// Refuses what no worker would take.
    pub(crate) fn check_size(&self, envelope: &Envelope) -> Result<(), JobsError> {
        let bytes = usize::try_from(fleet_job::size::json_bytes(&envelope.to_json())).unwrap_or(usize::MAX);
        let limit = self.inner.max_job_bytes;
        if bytes > limit {
            return Err(JobsError::TooLarge { job_id: envelope.job_id.clone(), bytes, limit });
        }
        Ok(())
    }

    /// Writes jobs, and says of each whether it was the first of its id. Ends when none of them can be lost any more, and
    /// this replica can tell of all.
    pub(crate) async fn enqueue(&self, jobs: Vec<Submission>) -> Result<Vec<bool>, JobsError> {
        let now = fleet_ops::clock::now();
        let mut waiting = Vec::with_capacity(jobs.len());
        let mut claims = Vec::with_capacity(jobs.len());
        for job in &jobs {
            let mark = job.contested.then(|| format!("submission-{}", uuid::Uuid::new_v4()));
            waiting.push(mark.as_ref().map(|mark| self.inner.await_claim(mark)));
            claims.push(JobEvent {
                submitted_at: Some(job.submitted_at),
                worker: mark,
                ..JobEvent::about(&job.envelope, JobState::Queued, now)
            });
        }
        let topics = &self.inner.topics;
        let records = jobs.iter().zip(&claims).map(|(job, claim)| Outgoing {
            topic: topics.events.clone(),
            key: Some(job.envelope.job_id.clone().into_bytes()),
            value: Some(claim.to_bytes()),
            headers: job.headers.clone(),
            timestamp: Some(now),
            partition: None,
        });
        let delivered = self.write_all(records.collect()).await?;
        // What nobody else can have claimed is known here at once; the rest when the log says who came first.
        let updates = jobs.iter().zip(claims).zip(&delivered).filter(|((job, _), _)| !job.contested);
        let updates = updates.map(|((job, claim), at)| Update {
            partition: at.partition,
            offset: at.offset,
            job_id: job.envelope.job_id.clone(),
            event: Some(claim),
        });
        let batch = Batch { updates: updates.collect(), ..Batch::default() };
        self.inner.store.apply(batch).await?;
        let mut first = Vec::with_capacity(jobs.len());
        for waiting in waiting {
            first.push(match waiting {
                Some(waiting) => waiting.await?,
                None => true,
            });
        }
        let accepted = jobs.iter().zip(&first).filter(|(_, first)| **first);
        let records = accepted.map(|(job, _)| Outgoing {
            topic: topics.jobs.clone(),
            key: job.key.clone().map(String::into_bytes),
            value: Some(job.envelope.to_json().to_string().into_bytes()),
            headers: job.headers.clone(),
            // Events of the worker's repeat it, so that the job keeps its place in lists.
            timestamp: Some(job.submitted_at),
            partition: None,
        });
        self.write_all(records.collect()).await?;
        Ok(first)
    }

    /// Writes records in order, many at a time, and says where each one stands.
    async fn write_all(&self, records: Vec<Outgoing>) -> Result<Vec<Delivered>, KafkaError> {
        let mut delivered = Vec::with_capacity(records.len());
        let mut waiting = VecDeque::new();
        for record in &records {
            waiting.push_back(self.inner.producer.enqueue_patiently(record).await?);
            while waiting.len() >= WINDOW
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

fn prepare(requests: Vec<JobRequest>, caller: &Caller) -> Result<Vec<Prepared>, JobsError> {
    let count = requests.len();
    if !(1..=MAX_JOBS).contains(&count) {
        let message = format!("a request must have 1 to {MAX_JOBS} jobs, and this one has {count}");
        return Err(BadRequest(message).into());
    }
    let fresh = || uuid::Uuid::now_v7().to_string();
    let jobs = requests.into_iter().enumerate().map(|(index, request)| {
        request.prepare(caller, fresh).map_err(|error| match count {
            1 => error.into(),
            _ => JobsError::BadJob { index, error },
        })
    });
    jobs.collect()
}

impl super::Inner {
    /// Whether the claim with this mark turns out to be the first of its job.
    fn await_claim(&self, mark: &str) -> impl Future<Output = Result<bool, JobsError>> + use<> {
        let (sender, receiver) = oneshot::channel();
        let mut claims = self.claims();
        // Those that were given up would stay for ever.
        claims.retain(|_, waiting| !waiting.is_closed());
        claims.insert(mark.to_owned(), sender);
        async move {
            match tokio::time::timeout(CLAIM, receiver).await {
                Ok(Ok(existed)) => Ok(!existed),
                _ => {
                    let why = "the log did not say in time whether this job was submitted before; try again";
                    Err(JobsError::NotReady(why.to_owned()))
                }
            }
        }
    }
}

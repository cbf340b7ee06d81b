//! Jobs as this server knows them: submitted to Kafka, run by the fleet's workers, and looked up in
//! a ledger of the events topic. Every replica can answer for every job.
//!
//! `POST /jobs`, `job_submit` and tasks → [`Jobs::submit`] → `queued` on the events topic, envelope
//! on the jobs topic. Workers → events topic → `follow` → ledger and `hub` → `GET /jobs`, `job_*`,
//! `tasks/get`, streams.

use std::{
    collections::BTreeMap,
    sync::{Arc, OnceLock},
    time::Duration,
};

use fleet_job::{
    control::{Cancelled, Control},
    event::{JobEvent, JobState},
    outcome::{ErrorKind, JobError},
    time::Timestamp,
    topics::Topics,
    view::{Cancellation, JobList, JobView},
};
use fleet_kafka::{
    KafkaError, admin,
    follow::{FollowGuard, Following},
    link::Link,
    producer::Outgoing,
};
use fleet_ledger::{Cursor, Known, MemoryStore, Query, SqliteStore, Store, retention::Forgotten};
use parking_lot::{Mutex, MutexGuard};
use tokio::sync::{Notify, Semaphore, watch};
use tokio_util::sync::CancellationToken;

use crate::config::JobsConfig;

mod backlog;
mod caller;
mod claims;
pub mod config;
mod error;
mod follow;
mod hub;
pub mod metrics;
pub mod request;
pub mod rest;
mod restate;
mod submit;
pub mod tasks;
#[cfg(feature = "testing")]
pub mod testing;
mod view;

pub use caller::{Caller, Owners};
pub(crate) use claims::claim_schema;
pub use error::JobsError;
pub(crate) use hub::EventReader;
pub use request::{JobRequest, PageRequest};
pub use submit::MAX_JOBS;
pub use tasks::Tasks;

/// How many wishes to cancel are kept in memory; the workers keep as many.
const MAX_CANCELLED: usize = 100_000;
/// How long somebody who asks for what is not known may wait for the ledger to catch up.
const CATCH_UP_TIMEOUT: Duration = Duration::from_secs(5);
/// How often the topics are measured.
const MEASURE_INTERVAL: Duration = Duration::from_secs(15);
/// How long one question to a broker may take.
const BROKER_TIMEOUT: Duration = Duration::from_secs(5);
/// How many may look through the jobs topic at once.
const MAX_SEARCHES: usize = 2;
/// How often what is old is forgotten, and gauges are brought up to date.
const FORGET_INTERVAL: Duration = Duration::from_secs(10);

/// The jobs of the fleet. Clones share everything.
#[derive(Debug, Clone)]
pub struct Jobs {
    inner: Arc<Inner>,
}

struct Inner {
    link: Link,
    topics: Topics,
    registry_topic: String,
    /// The consumer group of the workers.
    group: String,
    max_job_bytes: usize,
    owners: Owners,
    store: Arc<dyn Store>,
    hub: Arc<hub::Hub>,
    cancelled: Mutex<Cancelled>,
    /// Asks the thread that follows the events how far it has come.
    events: Following,
    /// The threads that follow topics.
    threads: OnceLock<[FollowGuard; 3]>,
    log_state: watch::Sender<LogState>,
    /// That something stands behind the end of a job.
    overtaken: Notify,
    claims: Mutex<claims::Claims>,
    /// Who may look through the jobs topic.
    searches: Arc<Semaphore>,
    stop: CancellationToken,
}

impl std::fmt::Debug for Inner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // The settings may hold credentials.
        f.debug_struct("Jobs")
            .field("topics", &self.topics)
            .field("store", &self.store)
            .finish_non_exhaustive()
    }
}

/// How the ledger stands to the topic.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum LogState {
    /// It is being read for the first time.
    Reading,
    /// It can't be read, and never was: a broker is away, or has just made the topic.
    Unreadable(String),
    /// There is no topic to read.
    Missing(String),
    /// It holds everything that was there when it was asked to catch up for this time.
    CaughtUp(u64),
}

impl LogState {
    /// A failure after it had caught up leaves it as it is: what it holds is true, if old.
    fn note_failure(&mut self, error: &JobsError) -> bool {
        if matches!(self, Self::CaughtUp(_)) {
            return false;
        }
        *self = match error {
            JobsError::Kafka(KafkaError::NoTopic(_)) => Self::Missing(error.cause()),
            error => Self::Unreadable(error.cause()),
        };
        true
    }
}

impl Jobs {
    /// Begins to read the log. Nothing is known until that has been done once.
    ///
    /// # Errors
    /// Where a setting is not acceptable or the ledger's file can't be used.
    pub async fn start(
        config: &JobsConfig,
        link: Link,
        stop: CancellationToken,
    ) -> Result<Self, JobsError> {
        let topics = Topics::of(&config.topic);
        let store: Arc<dyn Store> = match &config.data_dir {
            Some(directory) => {
                // Another cluster's topic of the same name is another topic.
                let name = format!("{} {}", link.brokers(), topics.events);
                Arc::new(SqliteStore::open(directory, &name, config.retention).await?)
            }
            None => Arc::new(MemoryStore::new(config.retention)),
        };
        let inner = Arc::new(Inner {
            link,
            topics,
            registry_topic: config.registry_topic.clone(),
            group: config.group.clone(),
            max_job_bytes: config.max_job_bytes,
            owners: config.owners.clone(),
            store,
            hub: Arc::new(hub::Hub::new()),
            cancelled: Mutex::new(Cancelled::new(MAX_CANCELLED)),
            events: Following::default(),
            threads: OnceLock::new(),
            log_state: watch::Sender::new(LogState::Reading),
            overtaken: Notify::new(),
            claims: Mutex::default(),
            searches: Arc::new(Semaphore::new(MAX_SEARCHES)),
            stop,
        });
        _ = inner.threads.set(follow::start_threads(&inner)?);

        let jobs = Self { inner };
        tokio::spawn(jobs.clone().forget_old_jobs());
        tokio::spawn(jobs.clone().measure_topics());
        tokio::spawn(jobs.clone().restate_overtaken());
        Ok(jobs)
    }

    /// Forgets what is old, again and again.
    async fn forget_old_jobs(self) {
        let mut turn = tokio::time::interval(FORGET_INTERVAL);
        loop {
            tokio::select! {
                _ = turn.tick() => {}
                () = self.inner.stop.cancelled() => return,
            }
            match self.inner.store.forget(fleet_ops::clock::now()).await {
                Ok(Forgotten { ended, open }) => {
                    ::metrics::counter!(metrics::LEDGER_FORGOTTEN.name, "what" => "ended")
                        .increment(ended);
                    ::metrics::counter!(metrics::LEDGER_FORGOTTEN.name, "what" => "open")
                        .increment(open);
                    if open > 0 {
                        tracing::warn!(
                            open,
                            "the ledger is too small for the jobs that are under way"
                        );
                    }
                }
                Err(error) => {
                    tracing::warn!(
                        error = fleet_ops::errors::chain(&error),
                        "the ledger can't forget"
                    )
                }
            }
            if let Ok(counts) = self.inner.store.counts().await {
                for (state, count) in counts {
                    ::metrics::gauge!(metrics::LEDGER_JOBS.name, "state" => state)
                        .set(count as f64);
                }
            }
        }
    }

    /// Says how far the ledger is behind, and how many dead letters there are. Where the broker
    /// does not answer, what was so last is still the best that is known.
    async fn measure_topics(self) {
        let mut turn = tokio::time::interval(MEASURE_INTERVAL);
        loop {
            tokio::select! {
                _ = turn.tick() => {}
                () = self.inner.stop.cancelled() => return,
            }
            let (settings, topics) =
                (self.inner.link.follower.settings().clone(), self.inner.topics.clone());
            let (answer, asked) = tokio::sync::oneshot::channel();
            // A thread that nobody waits for at the end, as the runtime would for one of its own.
            std::thread::spawn(move || {
                answer
                    .send(admin::spans_of(&settings, [&topics.events, &topics.dlq], BROKER_TIMEOUT))
                    .ok();
            });
            let found = tokio::select! {
                found = asked => found,
                () = self.inner.stop.cancelled() => return,
            };
            let (Ok(Ok([events, dead])), Ok(positions)) =
                (found, self.inner.store.positions().await)
            else {
                continue;
            };
            let behind = events.iter().map(|span| {
                let next =
                    positions.get(&span.partition).copied().unwrap_or_default().max(span.start);
                (span.end - next).max(0)
            });
            ::metrics::gauge!(metrics::LEDGER_BEHIND.name).set(behind.sum::<i64>() as f64);
            let letters: i64 = dead.iter().map(|span| span.end - span.start).sum();
            ::metrics::gauge!(metrics::DEAD_LETTERS.name).set(letters as f64);
        }
    }

    /// Ends when the ledger has been read, or when it is clear that there is none to read.
    pub async fn wait_until_read(&self) {
        let mut standing = self.inner.log_state.subscribe();
        // The sender lives as long as `self`.
        _ = standing
            .wait_for(|standing| matches!(standing, LogState::CaughtUp(_) | LogState::Missing(_)))
            .await;
    }

    /// The topics of the fleet.
    pub(crate) fn topics(&self) -> &Topics {
        &self.inner.topics
    }

    /// Cancelled when the server is told to stop, before it waits for open requests.
    pub(crate) fn stop_token(&self) -> CancellationToken {
        self.inner.stop.clone()
    }

    /// Whose requests those with these headers are.
    pub fn caller(&self, headers: Option<&http::HeaderMap>) -> Caller {
        self.inner.owners.identify(headers)
    }

    /// The state of a job that `caller` may see. One that is not known is looked for in the log
    /// once more, and then in the backlog.
    ///
    /// # Errors
    /// [`JobsError::NotFound`] or [`JobsError::NotSearched`], or where the ledger can't say.
    pub async fn get(&self, job_id: &str, caller: &Caller) -> Result<JobView, JobsError> {
        self.watch(job_id, caller).next().await
    }

    /// The job's newest event, where `caller` may see it.
    pub(crate) async fn find_known(
        &self,
        job_id: &str,
        caller: &Caller,
    ) -> Result<Known, JobsError> {
        let known = match self.inner.store.get(job_id).await? {
            Some(known) => Some(known),
            None => {
                self.catch_up().await?;
                self.inner.store.get(job_id).await?
            }
        };
        let known =
            known.filter(|known| known.event.owner.is_none() || known.event.owner == caller.owner);
        known.ok_or_else(|| JobsError::NotFound(job_id.chars().take(256).collect()))
    }

    /// What is shown of a job.
    pub(crate) fn view(&self, known: Known) -> JobView {
        let cancelled = self.inner.cancelled();
        let control = cancelled.get(&known.event.job_id, known.event.submitted_at).cloned();
        drop(cancelled);
        view::view_of(known, control.as_ref())
    }

    /// Some jobs, those that were submitted last first.
    ///
    /// # Errors
    /// Where the ledger can't say.
    pub async fn list(&self, mut query: Query, caller: &Caller) -> Result<JobList, JobsError> {
        self.check_log_is_read()?;
        query.asker.clone_from(&caller.owner);
        let page = self.inner.store.list(&query).await?;
        let listed = page.jobs.into_iter().map(|known| {
            let cursor =
                Cursor { submitted_at: known.submitted_at(), job_id: known.event.job_id.clone() };
            (self.view(known).in_a_list(), cursor)
        });
        let (jobs, next) = view::bound_page(listed, page.next);
        Ok(JobList { jobs, next_cursor: next.map(|cursor| cursor.to_string()) })
    }

    /// Every state of a job from now on, the present one first.
    pub fn watch(&self, job_id: &str, caller: &Caller) -> JobWatch {
        let waiter = self.inner.hub.add_waiter(job_id);
        let (jobs, caller) = (self.clone(), caller.clone());
        JobWatch {
            jobs,
            caller,
            job_id: job_id.to_owned(),
            waiter,
            delivered: None,
            is_in_backlog: false,
        }
    }

    /// Waits until the job has ended, at most for `limit`, and says how it is then.
    ///
    /// # Errors
    /// As [`Jobs::get`].
    pub async fn wait(
        &self,
        job_id: &str,
        caller: &Caller,
        limit: Duration,
    ) -> Result<JobView, JobsError> {
        let mut watch = self.watch(job_id, caller);
        let mut job = watch.next().await?;
        let deadline = tokio::time::Instant::now() + limit;
        while !job.is_terminal() {
            match tokio::time::timeout_at(deadline, watch.next()).await {
                Ok(next) => job = next?,
                Err(_) => break,
            }
        }
        Ok(job)
    }

    /// Asks for a job to be cancelled, and waits for at most `limit` to see what that comes to.
    ///
    /// # Errors
    /// As [`Jobs::get`], and where Kafka does not take it.
    pub async fn cancel(
        &self,
        job_id: &str,
        caller: &Caller,
        reason: Option<&str>,
        limit: Duration,
    ) -> Result<Cancellation, JobsError> {
        let mut known = match self.find_known(job_id, caller).await {
            Err(JobsError::NotFound(_)) => {
                return self.cancel_unknown_job(job_id, caller, reason, limit).await;
            }
            known => known?,
        };
        if !known.event.is_over() && self.catch_up().await.is_ok() {
            // An end that stands in the log already is not asked to be another one.
            known = self.find_known(job_id, caller).await?;
        }
        if known.event.is_over() {
            return Ok(Cancellation::of(self.view(known)));
        }
        if known.event.asks_for_input() {
            return self.cancel_waiting_for_input(known.event, caller, reason).await;
        }
        self.request_cancellation(job_id, known.event.submitted_at, reason).await?;
        let job = self.wait(job_id, caller, limit).await?;
        Ok(Cancellation::of(job))
    }

    /// Cancels a job that was perhaps written to Kafka directly: no worker has come to it yet, or
    /// there is none of that id. One that is somebody else's is not touched, and the answer is the
    /// same.
    async fn cancel_unknown_job(
        &self,
        job_id: &str,
        caller: &Caller,
        reason: Option<&str>,
        limit: Duration,
    ) -> Result<Cancellation, JobsError> {
        if self.inner.store.get(job_id).await?.is_some() {
            return Ok(Cancellation::unknown());
        }
        let waiter = self.inner.hub.add_waiter(job_id);
        self.request_cancellation(job_id, None, reason).await?;
        let deadline = tokio::time::Instant::now() + limit;
        loop {
            let news = waiter.next_news();
            if self.inner.store.get(job_id).await?.is_some() {
                break;
            }
            if tokio::time::timeout_at(deadline, news).await.is_err() {
                return Ok(Cancellation::unknown());
            }
        }
        let left = deadline.saturating_duration_since(tokio::time::Instant::now());
        match self.wait(job_id, caller, left).await {
            Err(JobsError::NotFound(_) | JobsError::NotSearched(_)) => Ok(Cancellation::unknown()),
            job => Ok(Cancellation::of(job?)),
        }
    }

    /// Tells the workers that a job is not wanted any more.
    async fn request_cancellation(
        &self,
        job_id: &str,
        submitted_at: Option<Timestamp>,
        reason: Option<&str>,
    ) -> Result<(), JobsError> {
        // The topic is compacted, so a second record about the same job must say what the first one
        // said.
        let before = self.inner.cancelled().reason_for(job_id, submitted_at).map(str::to_owned);
        let reason = reason.or(before.as_deref());
        let control = Control::cancel(job_id, submitted_at, fleet_ops::clock::now(), reason);
        let record = Outgoing {
            topic: self.inner.topics.control.clone(),
            key: Some(job_id.as_bytes().to_vec()),
            value: Some(control.to_bytes()),
            ..Outgoing::default()
        };
        self.inner.link.producer.send(&record).await?;
        self.inner.cancelled().add(control);
        Ok(())
    }

    /// Cancels a task that waits for input. No worker has it, so its end is written here.
    async fn cancel_waiting_for_input(
        &self,
        event: JobEvent,
        caller: &Caller,
        reason: Option<&str>,
    ) -> Result<Cancellation, JobsError> {
        let reason = reason.map_or_else(String::new, |reason| format!(": {reason}"));
        let message = format!("cancelled while it waited for input{reason}");
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

    /// News of all jobs, from these positions on or from now on; `None` where those are too long
    /// ago.
    pub(crate) fn follow(&self, from: Option<BTreeMap<i32, i64>>) -> Option<EventReader> {
        self.inner.hub.follow(from)
    }

    /// Waits until the ledger holds everything that the log held when this was called.
    pub(crate) async fn catch_up(&self) -> Result<(), JobsError> {
        self.check_log_is_read()?;
        let number = self.inner.events.ask();
        let mut standing = self.inner.log_state.subscribe();
        let caught_up = standing
            .wait_for(|standing| matches!(standing, LogState::CaughtUp(to) if *to >= number));
        match tokio::time::timeout(CATCH_UP_TIMEOUT, caught_up).await {
            Ok(_) => Ok(()),
            Err(_) => {
                Err(JobsError::NotReady("the log could not be read to its end in time".to_owned()))
            }
        }
    }

    /// Nothing can be said before the log has been read once.
    pub(crate) fn check_log_is_read(&self) -> Result<(), JobsError> {
        match &*self.inner.log_state.borrow() {
            LogState::CaughtUp(_) => Ok(()),
            LogState::Reading => Err(JobsError::NotReady("the log is being read".to_owned())),
            LogState::Unreadable(why) | LogState::Missing(why) => {
                Err(JobsError::NotReady(why.clone()))
            }
        }
    }
}

/// Watches one job.
pub struct JobWatch {
    jobs: Jobs,
    caller: Caller,
    job_id: String,
    waiter: hub::Waiter,
    delivered: Option<(i32, i64, bool)>,
    /// No worker has come to the job yet, as far as is known.
    is_in_backlog: bool,
}

impl std::fmt::Debug for JobWatch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("JobWatch").field("job_id", &self.job_id).finish_non_exhaustive()
    }
}

impl JobWatch {
    /// The next state that was not told yet: the job's present one, however many it went through in
    /// between. Can be dropped without losing any.
    ///
    /// # Errors
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
            let place = Some((partition, offset, job.cancel_requested_at.is_some()));
            if self.delivered != place {
                self.delivered = place;
                return Ok(job);
            }
            news.await;
        }
    }

    /// Where the event stands of the state that was told last: partition and offset.
    pub fn position(&self) -> Option<(i32, i64)> {
        self.delivered.map(|(partition, offset, _)| (partition, offset))
    }

    /// Takes it that the state at this place was told before.
    pub fn mark_delivered(&mut self, (partition, offset): (i32, i64)) {
        self.delivered = Some((partition, offset, false));
    }
}

impl Inner {
    fn cancelled(&self) -> MutexGuard<'_, Cancelled> {
        self.cancelled.lock()
    }
}

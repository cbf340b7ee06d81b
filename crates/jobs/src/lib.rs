//! The service of jobs: submits them to Kafka, and looks up their states in a ledger of the events
//! topic. Workers run the jobs. Every replica can answer for every job.
//!
//! `POST /jobs`, `job_submit` and tasks call [`Jobs::submit`], which writes a `queued` event to the
//! events topic and the envelope to the jobs topic. Workers write to the events topic; `follow`
//! reads it into the ledger and the `hub`, from which `GET /jobs`, the `job_*` tools, `tasks/get`
//! and the streams are served.

use std::{
    collections::BTreeMap,
    sync::{Arc, OnceLock},
    time::Duration,
};

use fleet_access::{Asker, AuditOutcome};
use fleet_job::{
    control::Cancelled,
    event::JobEvent,
    topics::Topics,
    view::{JobCounts, JobList, JobView},
};
use fleet_kafka::{
    KafkaError,
    follow::{FollowGuard, Following},
    link::Link,
};
use fleet_ledger::{Batch, Cursor, Known, Page, Query, Store, StoreError, Update};
use fleet_signing::CurrentKeys;
use parking_lot::{Mutex, MutexGuard};
use tokio::sync::{Notify, Semaphore, watch};
use tokio_util::sync::CancellationToken;

use crate::config::JobsConfig;

mod approvals;
mod backlog;
mod bulk;
mod caller;
mod cancel;
mod claims;
pub mod config;
mod dead_letters;
mod error;
mod export;
mod fleet;
mod follow;
mod history;
mod hub;
mod in_view;
mod job_watch;
pub mod metrics;
mod pauses;
mod records;
pub mod request;
pub mod rest;
mod restate;
mod rights;
mod runs;
mod signing;
mod submit;
pub mod tasks;
#[cfg(feature = "testing")]
pub mod testing;
mod upkeep;
mod view;

pub use approvals::Verdict;
pub use bulk::BulkAction;
pub use caller::{Caller, Owners};
pub(crate) use claims::claim_schema;
pub use dead_letters::{LetterList, PurgeReport, ReplayReport, ReplayRequest};
pub use error::JobsError;
pub use export::Export;
pub(crate) use hub::EventReader;
pub use job_watch::JobWatch;
pub use request::{JobRequest, PageRequest};
pub use rights::{ResolvedTool, ToolResolver};
pub use runs::RunRequest;
pub use submit::MAX_JOBS;
pub use tasks::Tasks;

/// The most cancel requests that are kept in memory; workers keep as many.
const MAX_CANCELLED: usize = 100_000;
/// How long a query about an unknown job waits for the ledger to catch up.
const CATCH_UP_TIMEOUT: Duration = Duration::from_secs(5);
/// How long the writer of events waits for the ledger to take them.
const APPLY_LIMIT: Duration = Duration::from_secs(2);
/// How long the ledger is searched for the first job of a page.
const SEARCH_TIME: Duration = Duration::from_millis(250);
/// The most concurrent searches of a topic.
const MAX_SEARCHES: usize = 2;
/// The longest part of an unknown job id that an error repeats, in characters.
const SHOWN_ID: usize = 256;

/// The service of jobs. Clones share everything.
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
    /// Asks the thread that follows the events topic to report when it has caught up.
    events: Following,
    /// The threads that follow topics.
    threads: OnceLock<[FollowGuard; 3]>,
    log_state: watch::Sender<LogState>,
    /// Notified when a stale event follows the end of a job in the events topic.
    overtaken: Notify,
    claims: Mutex<claims::Claims>,
    /// Permits to search a topic.
    searches: Arc<Semaphore>,
    /// Permit to replay dead letters: two runs at once would replay a letter twice.
    replaying: Arc<Semaphore>,
    /// Finds the tools that jobs name.
    resolver: OnceLock<ToolResolver>,
    /// How long somebody may take to approve a job.
    approval_ttl: Duration,
    /// The keys that sign jobs.
    signing: OnceLock<CurrentKeys>,
    stop: CancellationToken,
}

impl std::fmt::Debug for Inner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // The settings may contain credentials.
        f.debug_struct("Jobs")
            .field("topics", &self.topics)
            .field("store", &self.store)
            .finish_non_exhaustive()
    }
}

/// How far the events topic has been read into the ledger.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum LogState {
    /// The topic is being read for the first time.
    Reading,
    /// The topic has never been read and can't be now: a broker is unavailable, or has just created
    /// the topic.
    Unreadable(String),
    /// The topic does not exist.
    Missing(String),
    /// The topic has never been read, since the ledger's database is away.
    StoreAway,
    /// The ledger holds everything that the topic held when this request to catch up was made.
    CaughtUp(u64),
}

impl LogState {
    /// Notes a failure to read. A ledger that has caught up once stays usable, since what it holds
    /// is still true. Returns whether the state has changed.
    fn note_failure(&mut self, error: &JobsError) -> bool {
        if matches!(self, Self::CaughtUp(_)) {
            return false;
        }

        *self = match error {
            JobsError::Kafka(KafkaError::NoTopic(_)) => Self::Missing(error.cause()),
            JobsError::LedgerAway(_) => Self::StoreAway,
            error => Self::Unreadable(error.cause()),
        };
        true
    }
}

impl Jobs {
    /// Starts to read the events topic. Until that has been read once, no query can be answered.
    ///
    /// # Errors
    ///
    /// Returns an error if a setting is invalid or the ledger's file can't be opened.
    pub async fn start(
        config: &JobsConfig,
        link: Link,
        stop: CancellationToken,
    ) -> Result<Self, JobsError> {
        let topics = Topics::of(&config.topic);
        // A topic of the same name on another cluster is another log.
        let log = format!("{} {}", link.brokers(), topics.events);
        let store = config.ledger.open(&log, config.retention).await?;

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
            replaying: Arc::new(Semaphore::new(1)),
            resolver: OnceLock::new(),
            approval_ttl: config.approval_ttl,
            signing: OnceLock::new(),
            stop,
        });
        _ = inner.threads.set(follow::start_threads(&inner)?);

        let jobs = Self { inner };
        tokio::spawn(jobs.clone().forget_old_jobs());
        tokio::spawn(jobs.clone().measure_topics());
        tokio::spawn(jobs.clone().restate_overtaken());
        tokio::spawn(jobs.clone().expire_approvals());
        tokio::spawn(jobs.clone().resume_approved());
        Ok(jobs)
    }

    /// Lets decisions about submissions find the tools that jobs name. A second call changes
    /// nothing.
    pub fn resolve_tools_with(&self, resolver: ToolResolver) {
        self.inner.resolver.get_or_init(|| resolver);
    }

    /// Waits until the events topic has been read once, or is known not to exist. A ledger whose
    /// database is away is not waited for: everything but questions about jobs can be served.
    pub async fn wait_until_read(&self) {
        let mut state = self.inner.log_state.subscribe();
        // The sender lives as long as `self`.
        _ = state
            .wait_for(|state| {
                matches!(state, LogState::CaughtUp(_) | LogState::Missing(_) | LogState::StoreAway)
            })
            .await;
    }

    /// Returns the topics of the fleet.
    pub(crate) fn topics(&self) -> &Topics {
        &self.inner.topics
    }

    /// Returns the token that is cancelled when the server is told to stop, before it waits for
    /// open requests.
    pub(crate) fn stop_token(&self) -> CancellationToken {
        self.inner.stop.clone()
    }

    /// Returns the caller of a request that `asker` sends with these headers; `None` if the request
    /// did not come over HTTP.
    pub fn caller(&self, headers: Option<&http::HeaderMap>, asker: &Asker) -> Caller {
        self.inner.owners.identify(headers, asker)
    }

    /// Returns the state of a job that `caller` may see. If the ledger doesn't know the job, this
    /// waits for it to catch up, and then searches the backlog.
    ///
    /// # Errors
    ///
    /// Returns [`JobsError::NotFound`] or [`JobsError::NotSearched`] if no job is found, or another
    /// error if the ledger can't be queried.
    pub async fn get(&self, job_id: &str, caller: &Caller) -> Result<JobView, JobsError> {
        self.watch(job_id, caller).next().await
    }

    /// Returns the newest event of a job if `caller` may see it.
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

        known.filter(|known| caller.may_see(&known.event)).ok_or_else(|| not_found(job_id))
    }

    /// Makes the view of a job that callers are shown.
    pub(crate) fn view(&self, known: Known) -> JobView {
        let cancelled = self.inner.cancelled();
        let JobEvent { job_id, submitted_at, owner, .. } = &known.event;
        let control = cancelled.get(job_id, *submitted_at, owner.as_deref()).cloned();
        drop(cancelled);
        view::view_of(known, control.as_ref())
    }

    /// Returns a page of jobs, the most recently submitted first.
    ///
    /// # Errors
    ///
    /// Returns an error if the ledger can't be queried.
    pub async fn list(&self, mut query: Query, caller: &Caller) -> Result<JobList, JobsError> {
        self.check_log_is_read()?;
        query.visibility = caller.visibility();

        let page = self.search_page(query).await?;
        let listed = page.jobs.into_iter().map(|known| {
            let cursor =
                Cursor { submitted_at: known.submitted_at(), job_id: known.event.job_id.clone() };
            (self.view(known).in_a_list(), cursor)
        });
        let (jobs, next) = view::bound_page(listed, page.next);
        Ok(JobList { jobs, next_cursor: next.map(|cursor| cursor.to_string()) })
    }

    /// Returns the next page of a list that has jobs, as far as it is found in time.
    async fn search_page(&self, mut query: Query) -> Result<Page, JobsError> {
        let started = std::time::Instant::now();
        loop {
            let page = self.inner.store.list(&query).await?;
            let is_empty = page.jobs.is_empty() && started.elapsed() < SEARCH_TIME;
            match page.next {
                Some(next) if is_empty => query.after = Some(next),
                _ => return Ok(page),
            }
        }
    }

    /// Returns how many jobs `caller` may see in each state.
    ///
    /// # Errors
    ///
    /// Returns an error if the ledger can't be queried.
    pub async fn counts(&self, caller: &Caller) -> Result<JobCounts, JobsError> {
        self.check_log_is_read()?;
        let (tallies, visibility) = (self.inner.store.tallies().await?, caller.visibility());

        let visible = tallies
            .tallies
            .into_iter()
            .filter(|tally| visibility.covers(tally.owner.as_deref(), tally.tenant.as_deref()));
        let counts = visible.map(|tally| (tally.state, tally.jobs));
        Ok(JobCounts::of(counts, tallies.complete_since))
    }

    /// Waits until a job has ended, for at most `limit`, and returns its state.
    ///
    /// # Errors
    ///
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

    /// Returns a reader of the events of all jobs, from these positions on or from now on; `None`
    /// if the positions are too old.
    pub(crate) fn follow(&self, from: Option<BTreeMap<i32, i64>>) -> Option<EventReader> {
        self.inner.hub.follow(from)
    }

    /// Waits until the ledger holds everything that the events topic held at the time of the call.
    pub(crate) async fn catch_up(&self) -> Result<(), JobsError> {
        self.check_log_is_read()?;

        let number = self.inner.events.ask();
        let mut state = self.inner.log_state.subscribe();
        let caught_up =
            state.wait_for(|state| matches!(state, LogState::CaughtUp(to) if *to >= number));
        match tokio::time::timeout(CATCH_UP_TIMEOUT, caught_up).await {
            Ok(_) => Ok(()),
            Err(_) => {
                let why = "the events topic could not be read to its end in time";
                Err(JobsError::NotReady(why.to_owned()))
            }
        }
    }

    /// Applies events that this server has just written, so that their writer finds them at once. If
    /// the ledger's database is away or slow, the events reach it from the topic.
    pub(crate) async fn apply_written(&self, updates: Vec<Update>) -> Result<(), JobsError> {
        let batch = Batch { updates, ..Batch::default() };
        match tokio::time::timeout(APPLY_LIMIT, self.inner.store.apply(batch)).await {
            Ok(Err(error)) if !error.is_unavailable() => Err(error.into()),
            Ok(Ok(_)) => Ok(()),
            Ok(Err(_)) | Err(_) => {
                tracing::debug!("the ledger did not take events at once; it reads them later");
                Ok(())
            }
        }
    }

    /// Checks that the events topic has been read once, before which no query can be answered.
    pub(crate) fn check_log_is_read(&self) -> Result<(), JobsError> {
        match &*self.inner.log_state.borrow() {
            LogState::CaughtUp(_) => Ok(()),
            LogState::Reading => {
                Err(JobsError::NotReady("the events topic is being read".to_owned()))
            }
            LogState::Unreadable(why) | LogState::Missing(why) => {
                Err(JobsError::NotReady(why.clone()))
            }
            LogState::StoreAway => Err(JobsError::LedgerAway(StoreError::Unanswered)),
        }
    }
}

impl Inner {
    fn cancelled(&self) -> MutexGuard<'_, Cancelled> {
        self.cancelled.lock()
    }
}

/// What the audit log says of something that has ended so.
pub(crate) fn outcome_of<T>(result: &Result<T, JobsError>) -> AuditOutcome {
    match result {
        Ok(_) => AuditOutcome::Succeeded,
        Err(_) => AuditOutcome::Failed,
    }
}

/// The error for a job that does not exist, or that its caller may not see.
fn not_found(job_id: &str) -> JobsError {
    JobsError::NotFound(job_id.chars().take(SHOWN_ID).collect())
}

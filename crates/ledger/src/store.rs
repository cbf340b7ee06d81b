//! What a store of jobs does, whatever it is made of.

use std::{collections::BTreeMap, fmt::Debug};

use async_trait::async_trait;
use fleet_job::{
    event::{JobEvent, JobState},
    state::{Entry, Restated, Standing, Verdict},
    time::Timestamp,
};

use crate::{
    query::{Page, Query},
    retention::Forgotten,
};

/// How far the log has been read: the offset to read next, by partition.
pub type Positions = BTreeMap<i32, i64>;

/// One record of the events topic.
#[derive(Debug, Clone, PartialEq)]
pub struct Update {
    /// Its partition. All records of a job are in one.
    pub partition: i32,
    /// Its offset.
    pub offset: i64,
    /// Its key.
    pub job_id: String,
    /// Its value; absent in a tombstone, after which there is no such job.
    pub event: Option<LoggedEvent>,
}

/// An event as the log holds it.
#[derive(Debug, Clone, PartialEq)]
pub struct LoggedEvent {
    /// The event.
    pub event: JobEvent,
    /// The record's value, byte for byte: a newer worker may say more than is understood here.
    pub value: Vec<u8>,
    /// Where the event first stood, if a server has written it again.
    pub restated: Option<Restated>,
}

impl From<JobEvent> for LoggedEvent {
    fn from(event: JobEvent) -> Self {
        Self { value: event.to_bytes(), event, restated: None }
    }
}

impl Update {
    /// An event that stands at this offset.
    pub fn new(partition: i32, offset: i64, event: impl Into<LoggedEvent>) -> Self {
        let event = event.into();
        Self { partition, offset, job_id: event.event.job_id.clone(), event: Some(event) }
    }

    /// The event; absent in a tombstone.
    pub fn event(&self) -> Option<&JobEvent> {
        self.event.as_ref().map(|logged| &logged.event)
    }

    /// Whether the log was read past it already. Before a tombstone it would count once more.
    pub(crate) fn was_applied(&self, positions: &Positions) -> bool {
        positions.get(&self.partition).is_some_and(|next| self.offset < *next)
    }

    /// What the rule for the state of a job has to know of it.
    pub(crate) fn entry(&self, logged: &LoggedEvent) -> Entry {
        Entry::new(self.offset, &logged.event, &logged.value, logged.restated)
    }
}

/// A job whose end something else stands behind in the log.
#[derive(Debug, Clone, PartialEq)]
pub struct Overtaken {
    /// The job.
    pub job_id: String,
    /// The partition of its records.
    pub partition: i32,
    /// The value of the record that is its state.
    pub value: Vec<u8>,
    /// What its state goes by.
    pub standing: Standing,
}

/// Records, in the order of the log within each partition.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Batch {
    /// The records.
    pub updates: Vec<Update>,
    /// How far the log has been read with them. Empty where a record is taken up ahead of the log.
    pub positions: Positions,
}

/// A job as the store knows it.
#[derive(Debug, Clone, PartialEq)]
pub struct Known {
    /// Where the event first stood that is its state.
    pub partition: i32,
    /// The offset there.
    pub offset: i64,
    /// The event that is its state.
    pub event: JobEvent,
}

impl Known {
    /// When the job was submitted, as far as that is known.
    pub fn submitted_at(&self) -> Timestamp {
        submitted_at(&self.event)
    }
}

/// By what jobs are put in order. A job's first event comes when it is submitted.
pub(crate) fn submitted_at(event: &JobEvent) -> Timestamp {
    event.submitted_at.unwrap_or(event.time)
}

/// A store of jobs by id.
#[async_trait]
pub trait Store: Debug + Send + Sync {
    /// Takes up records, and says what each is to the state of its job ([`fleet_job::state`]). It
    /// does no harm to take up a record ahead of the log, or twice.
    ///
    /// # Errors
    /// Where the store fails. Nothing has been taken up then.
    async fn apply(&self, batch: Batch) -> Result<Vec<Verdict>, StoreError>;

    /// Jobs whose end something else stands behind in the log, at most `limit` of them.
    ///
    /// # Errors
    /// Where the store fails.
    async fn overtaken(&self, limit: usize) -> Result<Vec<Overtaken>, StoreError>;

    /// How far the log had been read with the last batch that has been kept.
    ///
    /// # Errors
    /// Where the store fails.
    async fn positions(&self) -> Result<Positions, StoreError>;

    /// Forgets everything, positions included.
    ///
    /// # Errors
    /// Where the store fails.
    async fn reset(&self) -> Result<(), StoreError>;

    /// One job.
    ///
    /// # Errors
    /// Where the store fails.
    async fn get(&self, job_id: &str) -> Result<Option<Known>, StoreError>;

    /// Many jobs, those that were submitted last first. Results and error details are left out.
    ///
    /// # Errors
    /// Where the store fails.
    async fn list(&self, query: &Query) -> Result<Page, StoreError>;

    /// How many jobs there are in each state.
    ///
    /// # Errors
    /// Where the store fails.
    async fn counts(&self) -> Result<BTreeMap<&'static str, u64>, StoreError>;

    /// Forgets what is older than it may be, and says what was forgotten since the last call, for
    /// want of room too.
    ///
    /// # Errors
    /// Where the store fails.
    async fn forget(&self, now: Timestamp) -> Result<Forgotten, StoreError>;
}

/// The event without what a list leaves out.
pub(crate) fn strip_details(mut event: JobEvent) -> JobEvent {
    event.result = None;
    if let Some(error) = &mut event.error {
        error.data = None;
    }
    event
}

/// All states, in the order of their numbers in stores.
pub(crate) const STATES: [JobState; 7] = JobState::ALL;

/// A state's number in stores.
pub(crate) fn state_number(state: JobState) -> usize {
    // All states are in the list, so there is no other case.
    STATES.iter().position(|known| *known == state).unwrap_or_default()
}

/// Why a store failed.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The file can't be used.
    #[error("the ledger's file can't be used: {0}")]
    File(#[from] libsql::Error),
    /// The directory can't be made.
    #[error("the ledger's directory can't be made")]
    Directory(#[source] std::io::Error),
    /// What it holds can't be read.
    #[error("the ledger holds an event of job `{job_id}` that can't be read")]
    Event {
        /// The job.
        job_id: String,
        /// What is wrong with it.
        source: serde_json::Error,
    },
    /// The thread that works for the store has failed.
    #[error("the ledger's work was not finished")]
    Worker,
}

//! The interface of a job store, independent of its implementation.

use std::{collections::BTreeMap, fmt::Debug};

use async_trait::async_trait;
use fleet_codes as codes;
use fleet_job::{
    event::{JobEvent, JobState},
    state::{Entry, Restated, Standing, Verdict},
    time::Timestamp,
};

use crate::{
    query::{Page, Query},
    retention::Forgotten,
    sqlstate::is_away,
};

/// Positions in the log: for each partition, the offset of the next record to read.
pub type Positions = BTreeMap<i32, i64>;

/// What tells an events topic from every other, as far as the brokers say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogId {
    /// The topic's name.
    pub topic: String,
    /// The cluster's id.
    pub cluster_id: Option<String>,
    /// The topic's id, which a topic of the same name does not get again.
    pub topic_id: Option<String>,
}

/// One record of the events topic.
#[derive(Debug, Clone, PartialEq)]
pub struct Update {
    /// The record's partition. All records of a job are in the same one.
    pub partition: i32,
    /// The record's offset.
    pub offset: i64,
    /// The record's key.
    pub job_id: String,
    /// The record's value; `None` for a tombstone, which removes the job.
    pub event: Option<LoggedEvent>,
}

/// An event as the log holds it.
#[derive(Debug, Clone, PartialEq)]
pub struct LoggedEvent {
    /// The decoded event.
    pub event: JobEvent,
    /// The record's value, byte for byte: a newer worker may write fields unknown to this version.
    pub value: Vec<u8>,
    /// The event's original position, if a server has restated the event.
    pub restated: Option<Restated>,
}

impl From<JobEvent> for LoggedEvent {
    fn from(event: JobEvent) -> Self {
        Self { value: event.to_bytes(), event, restated: None }
    }
}

impl Update {
    /// Creates an update for an event at this offset.
    pub fn new(partition: i32, offset: i64, event: impl Into<LoggedEvent>) -> Self {
        let event = event.into();
        Self { partition, offset, job_id: event.event.job_id.clone(), event: Some(event) }
    }

    /// Returns the event; `None` for a tombstone.
    pub fn event(&self) -> Option<&JobEvent> {
        self.event.as_ref().map(|logged| &logged.event)
    }

    /// Returns whether the log has already been read past this record. Applying a record again that
    /// precedes a tombstone would bring the job back.
    pub(crate) fn was_applied(&self, positions: &Positions) -> bool {
        positions.get(&self.partition).is_some_and(|next| self.offset < *next)
    }

    /// Returns the record in the form that the rule for a job's state needs.
    pub(crate) fn entry(&self, logged: &LoggedEvent) -> Entry {
        Entry::new(self.offset, &logged.event, &logged.value, logged.restated)
    }
}

/// A job whose terminal event has been overtaken in the log by a stale event.
#[derive(Debug, Clone, PartialEq)]
pub struct Overtaken {
    /// The id of the job.
    pub job_id: String,
    /// The partition of the job's records.
    pub partition: i32,
    /// The value of the record that is the job's state.
    pub value: Vec<u8>,
    /// The data by which the job's state is decided.
    pub standing: Standing,
}

/// Records to apply, in log order within each partition.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Batch {
    /// The records to apply.
    pub updates: Vec<Update>,
    /// The positions in the log after these records. Empty if a record is applied ahead of the log.
    pub positions: Positions,
}

/// A job as the store knows it.
#[derive(Debug, Clone, PartialEq)]
pub struct Known {
    /// The partition in which the event that is the job's state was first written.
    pub partition: i32,
    /// The event's offset in that partition.
    pub offset: i64,
    /// The event that is the job's state.
    pub event: JobEvent,
}

impl Known {
    /// Returns when the job was submitted, as far as that is known.
    pub fn submitted_at(&self) -> Timestamp {
        submitted_at(&self.event)
    }
}

/// Returns the time by which jobs are sorted. A job's first event is written on submission.
pub(crate) fn submitted_at(event: &JobEvent) -> Timestamp {
    event.submitted_at.unwrap_or(event.time)
}

/// How many jobs a store holds, by what decides about their visibility.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tallies {
    /// The number of jobs of each state, owner and tenant that occur, in no particular order.
    pub tallies: Vec<Tally>,
    /// The store has forgotten jobs whose newest event was older than this, and none whose newest
    /// event was not; `None` if it has forgotten none since it was created or emptied.
    pub complete_since: Option<Timestamp>,
}

/// The number of jobs that share state, owner and tenant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tally {
    /// The state.
    pub state: JobState,
    /// The owner.
    pub owner: Option<String>,
    /// The tenant.
    pub tenant: Option<String>,
    /// The number of jobs.
    pub jobs: u64,
}

/// A store of jobs by id.
#[async_trait]
pub trait Store: Debug + Send + Sync {
    /// Applies records and returns what each one means for its job's state ([`fleet_job::state`]).
    /// Applying a record ahead of the log, or twice, is harmless.
    ///
    /// # Errors
    /// Returns an error if the store fails, in which case nothing has been applied.
    async fn apply(&self, batch: Batch) -> Result<Vec<Verdict>, StoreError>;

    /// Returns whether other servers use the same store. Such a store is told which log it is a
    /// projection of ([`Store::resume`]).
    fn is_shared(&self) -> bool {
        false
    }

    /// Begins to read `log`, or begins again after a failure, and returns where to read on: not
    /// necessarily where the store stands, since another server may have come further. A store that
    /// holds another log is emptied.
    ///
    /// # Errors
    /// Returns an error if the store fails, or another server still uses it for another log.
    async fn resume(&self, log: &LogId) -> Result<Positions, StoreError> {
        _ = log;
        self.positions().await
    }

    /// Returns up to `limit` jobs whose terminal event has been overtaken in the log.
    ///
    /// # Errors
    /// Returns an error if the store fails.
    async fn overtaken(&self, limit: usize) -> Result<Vec<Overtaken>, StoreError>;

    /// Returns the positions in the log as of the last stored batch.
    ///
    /// # Errors
    /// Returns an error if the store fails.
    async fn positions(&self) -> Result<Positions, StoreError>;

    /// Forgets everything, including the positions.
    ///
    /// # Errors
    /// Returns an error if the store fails.
    async fn reset(&self) -> Result<(), StoreError>;

    /// Returns one job.
    ///
    /// # Errors
    /// Returns an error if the store fails.
    async fn get(&self, job_id: &str) -> Result<Option<Known>, StoreError>;

    /// Returns one page of jobs, newest first, without results and error details.
    ///
    /// # Errors
    /// Returns an error if the store fails.
    async fn list(&self, query: &Query) -> Result<Page, StoreError>;

    /// Returns how many jobs there are of each state, owner and tenant. The time that this takes
    /// does not grow with the number of jobs.
    ///
    /// # Errors
    /// Returns an error if the store fails.
    async fn tallies(&self) -> Result<Tallies, StoreError>;

    /// Returns the number of jobs in each state.
    ///
    /// # Errors
    /// Returns an error if the store fails.
    async fn counts(&self) -> Result<BTreeMap<&'static str, u64>, StoreError> {
        let mut counts: BTreeMap<_, _> = STATES.iter().map(|state| (state.as_str(), 0)).collect();
        for tally in self.tallies().await?.tallies {
            *counts.entry(tally.state.as_str()).or_default() += tally.jobs;
        }
        Ok(counts)
    }

    /// Forgets jobs beyond the retention period. Returns how many jobs have been forgotten since
    /// the last call, including those evicted for lack of space.
    ///
    /// # Errors
    /// Returns an error if the store fails.
    async fn forget(&self, now: Timestamp) -> Result<Forgotten, StoreError>;
}

/// Removes from an event what a list omits.
pub(crate) fn strip_details(mut event: JobEvent) -> JobEvent {
    event.result = None;
    if let Some(error) = &mut event.error {
        error.data = None;
    }
    event
}

/// Returns the time since which a store has all jobs that has forgotten some until `forgotten`.
pub(crate) fn complete_since(forgotten: i64) -> Timestamp {
    // Jobs of the same millisecond may be forgotten, too.
    Timestamp::from_millis_clamped(forgotten.saturating_add(1))
}

/// All states, in the order of their numbers in stores.
pub(crate) const STATES: [JobState; 8] = JobState::ALL;

/// Returns a state's number in stores.
pub(crate) fn state_number(state: JobState) -> usize {
    // The list holds all states, so the default is never used.
    STATES.iter().position(|known| *known == state).unwrap_or_default()
}

/// Returns a standing as stores write it.
pub(crate) fn standing_text(standing: &Standing) -> String {
    // A struct of plain fields can't fail to become JSON.
    serde_json::to_string(standing).unwrap_or_default()
}

/// Why a store failed.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The ledger file cannot be used.
    #[error("could not use the ledger file: {0}")]
    File(#[from] rusqlite::Error),
    /// The ledger directory could not be created.
    #[error("could not create the ledger directory")]
    Directory(#[source] std::io::Error),
    /// The ledger holds an event that cannot be decoded.
    #[error("the ledger holds an unreadable event of job `{job_id}`")]
    Event {
        /// The job of the unreadable event.
        job_id: String,
        /// Why the event cannot be decoded.
        source: serde_json::Error,
    },
    /// The thread that worked for the store panicked or was cancelled.
    #[error("a ledger operation was interrupted")]
    Worker,
    /// The database did not do what it was asked for.
    #[error("the ledger's database failed")]
    Database(#[from] tokio_postgres::Error),
    /// The database did not answer in time.
    #[error("the ledger's database did not answer in time")]
    Unanswered,
    /// Another server changed the same jobs meanwhile. Nothing was written.
    #[error("another server changed the same jobs of the ledger; trying again")]
    Contended,
    /// The ledger was emptied after the log was last read.
    #[error("another server emptied the ledger; reading the events topic again")]
    Emptied,
    /// The database lost transactions that it had committed.
    #[error(
        "the ledger's database went back in partition {partition}, as after a restore or a failover; \
         reading the events topic again from there"
    )]
    WentBack {
        /// The partition of the events topic.
        partition: i32,
    },
    /// Servers with another events topic use the same database.
    #[error(
        "servers that follow another events topic ({}) use the ledger's database; give each fleet a \
         database or a schema of its own, or stop those servers and wait for a minute [{code}]",
        log.as_ref().map_or("unknown", |log| log.topic.as_str()),
        code = codes::LEDGER_UNAVAILABLE
    )]
    Contested {
        /// The other log.
        log: Option<Box<LogId>>,
    },
    /// The database can't hold every text.
    #[error(
        "the encoding of the ledger's database is {0}; expected UTF8, as in \
         CREATE DATABASE fleet ENCODING 'UTF8' TEMPLATE template0 [{code}]",
        code = codes::LEDGER_UNAVAILABLE
    )]
    Encoding(String),
    /// The database was used by a newer version.
    #[error(
        "the tables of the ledger's database are of a newer version ({found}; this one knows {known}); \
         upgrade this server, or give it another schema [{code}]",
        code = codes::LEDGER_UNAVAILABLE
    )]
    NewerSchema {
        /// The number of the last step that was taken.
        found: i32,
        /// The number of the last step that this version knows.
        known: i32,
    },
}

impl StoreError {
    /// Returns whether the store says only that others have changed it.
    pub(crate) fn is_news(&self) -> bool {
        matches!(self, Self::Contended | Self::Emptied | Self::WentBack { .. })
    }

    /// Returns whether the store is away, so that the same call may succeed later.
    pub fn is_unavailable(&self) -> bool {
        match self {
            Self::Database(error) => is_away(error),
            Self::Unanswered
            | Self::Contended
            | Self::Emptied
            | Self::WentBack { .. }
            | Self::Contested { .. }
            | Self::Encoding(_)
            | Self::NewerSchema { .. } => true,
            Self::File(_) | Self::Directory(_) | Self::Event { .. } | Self::Worker => false,
        }
    }
}

//! What the loop holds: jobs, answers of tasks, partitions to give back, and its clock.

use std::{
    collections::BTreeMap,
    sync::{Arc, mpsc as std_mpsc},
    time::{Duration, Instant},
};

use fleet_engine::{FinalCommit, Partition, Token};
use fleet_job::{
    delayed::Delayed,
    envelope::Envelope,
    outcome::{JobError, Outcome},
    record::RawRecord,
    time::Timestamp,
};
use serde_json::Value;
use tokio::task::AbortHandle;

use super::settled::Settled;
use crate::report::{Kept, Subject};

/// A job in this worker's hands.
pub(super) struct Held {
    pub(super) record: Arc<RawRecord>,
    /// What the record is known by once it is settled.
    pub(super) identity: Settled,
    /// How it came here, if through the delayed topic.
    pub(super) delayed: Option<Delayed>,
    pub(super) envelope: Option<Arc<Envelope>>,
    pub(super) job_id: String,
    pub(super) started_at: Option<Timestamp>,
    pub(super) first_error: Option<JobError>,
    pub(super) last_error: Option<JobError>,
    pub(super) result: Option<Kept>,
    /// Calls of a job with several that have succeeded already.
    pub(super) done: BTreeMap<usize, Value>,
    pub(super) dead_letter_written: bool,
    /// An attempt is under way.
    pub(super) running: bool,
    /// The last attempt found no server.
    pub(super) met_outage: bool,
    pub(super) task: Option<AbortHandle>,
}

impl Held {
    pub(super) fn new(record: RawRecord, identity: Settled, job_id: String) -> Self {
        Self {
            record: Arc::new(record),
            identity,
            delayed: None,
            envelope: None,
            job_id,
            started_at: None,
            first_error: None,
            last_error: None,
            result: None,
            done: BTreeMap::new(),
            dead_letter_written: false,
            running: false,
            met_outage: false,
            task: None,
        }
    }

    pub(super) fn subject(&self) -> Subject<'_> {
        Subject {
            record: &self.record,
            envelope: self.envelope.as_deref(),
            job_id: &self.job_id,
            started_at: self.started_at,
            first_error: self.first_error.as_ref(),
            last_error: self.last_error.as_ref(),
            result: self.result.as_ref(),
        }
    }
}

/// What comes back from tasks.
pub(super) enum Done {
    Attempt { token: Token, outcome: Outcome, done: BTreeMap<usize, Value>, took: Duration },
    Written(Token, fleet_job::event::JobState),
    PassedOn(Token),
    NotDeferred(Token),
    NotWritten { token: Token, dead_letter_written: bool },
    Probed(bool),
}

/// Partitions that the poll thread waits to give back.
pub(super) struct Revoke {
    pub(super) partitions: Vec<Partition>,
    pub(super) deadline: Instant,
    pub(super) reply: std_mpsc::SyncSender<Vec<FinalCommit>>,
}

/// The wall clock, made monotonic: it starts at the system's time and then follows the steady clock.
pub(super) struct Clock {
    base: Timestamp,
    start: Instant,
}

impl Clock {
    pub(super) fn new() -> Self {
        Self { base: fleet_ops::clock::now(), start: Instant::now() }
    }

    pub(super) fn now(&self) -> Timestamp {
        self.base.plus(self.start.elapsed())
    }

    /// When `at` will be; never in the past.
    pub(super) fn instant(&self, at: Timestamp) -> Instant {
        Instant::now() + at.since(self.now())
    }
}

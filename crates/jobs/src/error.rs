//! Errors of the job service.

use fleet_access::{Action, AuditGap, Decision, LimitReached};
use fleet_codes as codes;
use fleet_job::view::JobView;
use fleet_kafka::KafkaError;
use fleet_ledger::StoreError;
use fleet_ops::blocking::WorkLost;

use super::request::BadRequest;

/// Why the job service could not serve a request.
#[derive(Debug, thiserror::Error)]
pub enum JobsError {
    /// The events topic has not been read yet, or can't be read.
    #[error("the states of jobs are not known yet: {0}")]
    NotReady(String),
    /// There is no such job, or the caller may not see it. Callers are not told which.
    #[error("there is no job `{0}`, or the caller may not see it")]
    NotFound(String),
    /// No worker has read such a job yet, and the backlog was too long to search.
    #[error(
        "no worker has read a job `{0}` yet, or the caller may not see it; a job that was written to Kafka directly \
         may be further back in the backlog than was searched"
    )]
    NotSearched(String),
    /// The job's record is no longer in the jobs topic.
    #[error(
        "the record of job `{job_id}` is no longer in the jobs topic, so its arguments are not known; \
         the topic's retention has deleted it, or the topic was created again"
    )]
    RecordGone {
        /// The job's id.
        job_id: String,
    },
    /// There is no such dead letter, or the caller may not see it. Callers are not told which.
    #[error("there is no dead letter at `{0}`, or the caller may not see it")]
    NoLetter(String),
    /// No such pause is in force.
    #[error("no pause `{0}` is in force [{code}]", code = codes::NO_SUCH_PAUSE)]
    NoPause(String),
    /// The pause that is asked for is invalid, or one too many.
    #[error("the pause is refused: {0}")]
    BadPause(String),
    /// Kafka is asked for something that these brokers can't do.
    #[error("{0}")]
    Unsupported(&'static str),
    /// The job has ended before it could be cancelled.
    #[error("{0}; it can no longer be cancelled")]
    TooLate(String),
    /// The caller may not do this.
    #[error("{}", decision.message(action.as_str()).unwrap_or_default())]
    Denied {
        /// What the caller wanted to do.
        action: Action,
        /// The decision, which is not to allow it.
        decision: Box<Decision>,
    },
    /// The job does not await approval.
    #[error("{}; it does not await approval [{code}]", .0.summary(), code = codes::NOT_PENDING)]
    NotPending(Box<JobView>),
    /// The caller has submitted the job that it wants to decide on.
    #[error("job `{0}` was submitted by the caller; somebody else has to decide [{code}]", code = codes::OWN_APPROVAL)]
    OwnApproval(String),
    /// The caller has reached a limit.
    #[error(transparent)]
    Limited(LimitReached),
    /// What the caller wants can't be recorded in the audit log, and must be.
    #[error(transparent)]
    Unrecorded(#[from] AuditGap),
    /// The request is invalid.
    #[error("{0}")]
    Bad(#[from] BadRequest),
    /// One of several jobs is invalid.
    #[error("job {index}: {error}")]
    BadJob {
        /// The job's position in the request, counted from 0.
        index: usize,
        /// What is wrong with the job.
        error: BadRequest,
    },
    /// The job is larger than workers accept.
    #[error(
        "job `{job_id}` has {bytes} bytes, but workers accept at most {limit}; pass large data by reference, or raise \
         MCP_MAX_JOB_BYTES on all workers and servers"
    )]
    TooLarge {
        /// The job's id.
        job_id: String,
        /// The job's size.
        bytes: usize,
        /// The largest size that is accepted.
        limit: usize,
    },
    /// Kafka did not accept a record.
    #[error("Kafka did not accept the job: {}", fleet_ops::errors::chain(.0))]
    Kafka(#[from] KafkaError),
    /// The ledger has failed.
    #[error("the ledger failed: {}", fleet_ops::errors::chain(.0))]
    Store(#[source] StoreError),
    /// The ledger's database is away. Its error may name addresses, which callers are not told.
    #[error(
        "the ledger's database is away, so nothing can be said about jobs now; calls and jobs go on, \
         and the ledger continues where it was [{code}]",
        code = codes::LEDGER_UNAVAILABLE
    )]
    LedgerAway(#[source] StoreError),
}

impl From<StoreError> for JobsError {
    fn from(error: StoreError) -> Self {
        if error.is_unavailable() { Self::LedgerAway(error) } else { Self::Store(error) }
    }
}

impl From<WorkLost> for JobsError {
    fn from(error: WorkLost) -> Self {
        Self::NotReady(error.to_string())
    }
}

impl JobsError {
    /// Returns the cause without the context that `Display` adds.
    pub(crate) fn cause(&self) -> String {
        match self {
            Self::Kafka(error) => fleet_ops::errors::chain(error),
            Self::LedgerAway(error) => fleet_ops::errors::chain(error),
            error => error.to_string(),
        }
    }

    /// Returns whether the same request may succeed later.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::NotReady(_)
            | Self::Store(_)
            | Self::LedgerAway(_)
            | Self::Limited(_)
            | Self::Unrecorded(_) => true,
            Self::Kafka(error) => error.is_retryable(),
            Self::NotFound(_)
            | Self::NotSearched(_)
            | Self::RecordGone { .. }
            | Self::TooLate(_)
            | Self::NoLetter(_)
            | Self::NoPause(_)
            | Self::BadPause(_)
            | Self::Unsupported(_)
            | Self::Bad(_)
            | Self::BadJob { .. }
            | Self::Denied { .. }
            | Self::NotPending(_)
            | Self::OwnApproval(_)
            | Self::TooLarge { .. } => false,
        }
    }
}

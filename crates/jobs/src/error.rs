//! Why something could not be done about jobs.

use fleet_kafka::KafkaError;
use fleet_ledger::StoreError;
use fleet_ops::blocking::WorkLost;

use super::request::BadRequest;

/// Why something could not be done about jobs.
#[derive(Debug, thiserror::Error)]
pub enum JobsError {
    /// The ledger has not been read yet, or can't be.
    #[error("the state of jobs is not known yet: {0}")]
    NotReady(String),
    /// There is no such job, or it is somebody else's: who may not see it is not told which.
    #[error("there is no job `{0}`, or it was submitted with other credentials")]
    NotFound(String),
    /// No worker has come to such a job, and the backlog was too long to be looked through.
    #[error(
        "there is no job `{0}` that a worker has come to, or it was submitted with other credentials; jobs that were \
         written to Kafka directly may wait further back than is looked"
    )]
    NotSearched(String),
    /// Something in the request is not acceptable.
    #[error("{0}")]
    Bad(#[from] BadRequest),
    /// One of several jobs is not acceptable.
    #[error("job {index}: {error}")]
    BadJob {
        /// Which, counted from 0.
        index: usize,
        /// What is wrong with it.
        error: BadRequest,
    },
    /// The job is larger than workers take.
    #[error(
        "job `{job_id}` has {bytes} bytes and workers take at most {limit}: pass large data by reference, or raise \
         MCP_MAX_JOB_BYTES everywhere"
    )]
    TooLarge {
        /// Its id.
        job_id: String,
        /// Its size.
        bytes: usize,
        /// The largest one that is taken.
        limit: usize,
    },
    /// Kafka has not taken what had to be written.
    #[error("Kafka has not taken the job: {}", fleet_ops::errors::chain(.0))]
    Kafka(#[from] KafkaError),
    /// The ledger has failed.
    #[error("the ledger has failed: {}", fleet_ops::errors::chain(.0))]
    Store(#[from] StoreError),
}

impl From<WorkLost> for JobsError {
    fn from(error: WorkLost) -> Self {
        Self::NotReady(error.to_string())
    }
}

impl JobsError {
    /// What is wrong underneath, without what was to be done.
    pub(crate) fn cause(&self) -> String {
        match self {
            Self::Kafka(error) => fleet_ops::errors::chain(error),
            error => error.to_string(),
        }
    }

    /// Whether the same request may succeed later.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::NotReady(_) | Self::Store(_) => true,
            Self::Kafka(error) => error.is_retryable(),
            Self::NotFound(_)
            | Self::NotSearched(_)
            | Self::Bad(_)
            | Self::BadJob { .. }
            | Self::TooLarge { .. } => false,
        }
    }
}

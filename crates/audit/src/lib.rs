//! Keeps audit records: as lines of a file, as records of a Kafka topic, or both.
//!
//! What is recorded is for `fleet-access` to say; this crate is the sink of its
//! [`AuditLog`]. [`Destinations::open`] starts a [`Recorder`], whose [`Recorder::log`] is handed to
//! whatever acts for principals. Nobody ever waits for a record but where the log is required; a
//! record that could not be kept is counted as a gap.

mod file;
pub mod metrics;
mod state;
mod topic;

use std::{io, path::PathBuf, sync::Arc, time::Duration};

use fleet_access::{AuditGap, AuditLog, AuditRecord, AuditSink, Keeping};
use fleet_kafka::{KafkaError, admin::TopicSpec, link::Link};

use file::FileSink;
use topic::TopicSink;

/// How long a required record may take to be kept.
const KEEP_LIMIT: Duration = Duration::from_secs(5);

/// Where audit records are kept. Without any of them, nothing can be recorded.
#[derive(Debug, Default)]
pub struct Destinations {
    /// A file, to which each record is appended as one line of JSON.
    pub file: Option<PathBuf>,
    /// A topic, which is created if it does not exist.
    pub topic: Option<(Link, TopicSpec)>,
}

/// The audit log can't be opened.
#[derive(Debug, thiserror::Error)]
pub enum AuditError {
    /// The file can't be written.
    #[error("could not open the audit log {path}", path = path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why not.
        #[source]
        error: io::Error,
    },
    /// The thread that writes the file could not be started.
    #[error("could not start the thread of the audit log")]
    Thread(#[source] io::Error),
    /// The producer of the topic could not be created.
    #[error(transparent)]
    Kafka(#[from] KafkaError),
}

/// Keeps audit records. Clones share the destinations.
#[derive(Debug, Clone)]
pub struct Recorder(Arc<Sinks>);

#[derive(Debug)]
struct Sinks {
    file: Option<FileSink>,
    topic: Option<TopicSink>,
}

impl Destinations {
    /// Opens the destinations.
    ///
    /// # Errors
    ///
    /// Returns an error if the file can't be opened, or a setting of Kafka is invalid. Brokers that
    /// are away are no error.
    pub async fn open(self) -> Result<Recorder, AuditError> {
        let file = self.file.as_deref().map(FileSink::open).transpose()?;
        let topic = match self.topic {
            Some((link, spec)) => Some(TopicSink::open(&link, spec).await?),
            None => None,
        };
        Ok(Recorder(Arc::new(Sinks { file, topic })))
    }
}

impl Recorder {
    /// The log of which this is the sink. If it is required, nothing is done before its beginning
    /// is kept in all destinations.
    pub fn log(&self, is_required: bool) -> AuditLog {
        AuditLog::new(Box::new(self.clone()), is_required, fleet_ops::clock::now)
    }

    /// Waits until the records so far are kept, for at most `limit`.
    pub async fn flush(&self, limit: Duration) {
        if let Some(file) = &self.0.file {
            // What was not kept has been counted.
            _ = tokio::time::timeout(limit, file.flush()).await;
        }
        if let Some(topic) = &self.0.topic {
            topic.flush(limit).await;
        }
    }
}

impl AuditSink for Recorder {
    fn record(&self, record: AuditRecord) {
        if let Some(topic) = &self.0.topic {
            topic.record(&record);
        }
        if let Some(file) = &self.0.file {
            file.record(&record);
        }
    }

    fn leave_out(&self) {
        ::metrics::counter!(metrics::AUDIT_LEFT_OUT.name).increment(1);
    }

    fn keep(&self, record: AuditRecord) -> Keeping<'_> {
        Box::pin(async move {
            let in_file = async {
                match &self.0.file {
                    Some(file) => file.keep(&record).await,
                    None => Ok(()),
                }
            };
            let in_topic = async {
                match &self.0.topic {
                    Some(topic) => topic.keep(&record).await,
                    None => Ok(()),
                }
            };
            let (in_file, in_topic) = tokio::join!(in_file, in_topic);
            in_file.and(in_topic).map_err(|reason| AuditGap { reason })
        })
    }
}

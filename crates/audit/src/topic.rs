//! The topic of the audit log.

use std::{sync::Arc, time::Duration};

use fleet_access::AuditRecord;
use fleet_kafka::{
    KafkaError,
    admin::{self, TopicSpec},
    link::Link,
    producer::{Outgoing, Producer},
    settings::Settings,
};
use fleet_ops::errors::chain;
use tokio::time::{sleep, timeout};

use crate::{AuditError, KEEP_LIMIT, state::SinkState};

/// How long the start waits for the topic.
const CREATE_PATIENCE: Duration = Duration::from_secs(3);
/// How long to wait before the topic is created again after that failed.
const CREATE_INTERVAL: Duration = Duration::from_secs(10);

/// Writes records to a topic, with a producer of its own, so that they never fill the queue of jobs.
#[derive(Debug)]
pub(crate) struct TopicSink {
    producer: Arc<Producer>,
    topic: String,
    state: Arc<SinkState>,
}

impl TopicSink {
    /// Waits briefly for the topic, since one that the broker makes by itself for the first record
    /// has another retention.
    pub(crate) async fn open(link: &Link, spec: TopicSpec) -> Result<Self, AuditError> {
        let producer = Arc::new(link.producer.sibling()?);
        let topic = spec.name.clone();
        let created = tokio::spawn(create_topic(link.follower.settings().clone(), spec));
        // The task keeps running after the timeout.
        _ = timeout(CREATE_PATIENCE, created).await;
        Ok(Self { producer, topic, state: Arc::new(SinkState::new("topic")) })
    }

    pub(crate) fn record(&self, record: &AuditRecord) {
        let state = Arc::clone(&self.state);
        let note = move |result: Result<_, KafkaError>| match result {
            Ok(_) => state.note_kept(1),
            Err(error) => state.note_gaps(1, &chain(&error)),
        };
        if let Err(error) = self.producer.enqueue_then(&self.outgoing(record), note) {
            self.state.note_gaps(1, &chain(&error));
        }
    }

    pub(crate) async fn keep(&self, record: &AuditRecord) -> Result<(), String> {
        let outgoing = self.outgoing(record);
        let reason = match timeout(KEEP_LIMIT, self.producer.send(&outgoing)).await {
            Ok(Ok(_)) => {
                self.state.note_kept(1);
                return Ok(());
            }
            Ok(Err(error)) => chain(&error),
            Err(_) => format!("the brokers have not acknowledged it within {KEEP_LIMIT:?}"),
        };
        self.state.note_gaps(1, &reason);
        Err(format!("topic {}: {reason}", self.topic))
    }

    pub(crate) async fn flush(&self, limit: Duration) {
        let producer = Arc::clone(&self.producer);
        // Whatever is not written then is counted by its delivery report.
        _ = tokio::task::spawn_blocking(move || producer.flush(limit)).await;
    }

    /// A record of Kafka. Its key is the principal, so that what one principal does stays in order.
    fn outgoing(&self, record: &AuditRecord) -> Outgoing {
        Outgoing {
            topic: self.topic.clone(),
            key: record.principal.as_ref().map(|principal| principal.id.clone().into_bytes()),
            value: Some(record.to_line().into_bytes()),
            timestamp: Some(record.time),
            ..Outgoing::default()
        }
    }
}

/// Creates the topic if it does not exist, once a broker answers.
async fn create_topic(settings: Settings, spec: TopicSpec) {
    loop {
        match admin::create_topics(&settings, std::slice::from_ref(&spec)).await {
            Ok(created) if created.is_empty() => return,
            Ok(_) => {
                return tracing::info!(topic = spec.name, "created the topic of the audit log");
            }
            Err(error @ KafkaError::CreateTopic { .. }) => {
                // The topic may exist, and the right to create topics be missing.
                return tracing::warn!(
                    topic = spec.name,
                    error = chain(&error),
                    "could not create the topic of the audit log; if it does not exist, create it \
                     with `mcp-fleet topics create`"
                );
            }
            Err(_) => sleep(CREATE_INTERVAL).await,
        }
    }
}

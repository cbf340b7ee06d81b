//! Errors of the Kafka clients.

use fleet_codes as codes;
use rdkafka::error::{KafkaError as Native, RDKafkaErrorCode};

/// An error from Kafka, or in the settings for it.
#[derive(Debug, thiserror::Error)]
pub enum KafkaError {
    /// The property would break a guarantee, or librdkafka rejects it.
    #[error(
        "cannot set Kafka property `{name}` to `{value}`: {reason} [{code}]",
        code = codes::KAFKA_PROPERTY
    )]
    Property {
        /// The name of the property.
        name: String,
        /// The refused value, or `…` if it might be a secret.
        value: String,
        /// Why the value is refused.
        reason: String,
    },
    /// A broker address is invalid.
    #[error(
        "KAFKA_BROKERS: `{0}` is not a broker address; expected host:port, such as kafka:9092 [{code}]",
        code = codes::SETTING
    )]
    Brokers(String),
    /// librdkafka could not create a client.
    #[error("could not create the Kafka client")]
    Client(#[source] Native),
    /// No broker answered in time.
    #[error(
        "no Kafka broker answered at `{brokers}`; check KAFKA_BROKERS and that the broker is running [{code}]",
        code = codes::KAFKA_UNREACHABLE
    )]
    Unreachable {
        /// The configured brokers.
        brokers: String,
        /// librdkafka's error.
        #[source]
        source: Native,
    },
    /// A topic does not exist.
    #[error(
        "topic `{0}` does not exist; create it with `mcp-fleet topics create` [{code}]",
        code = codes::NO_TOPIC
    )]
    NoTopic(String),
    /// The topic is compacted, so jobs may be deleted before they have run.
    #[error(
        "topic `{0}` is compacted (cleanup.policy): Kafka keeps only the newest of the jobs that share a key, so the \
         others may be lost before they run; set cleanup.policy=delete, or accept the loss with \
         MCP_ALLOW_COMPACTED_TOPIC=true (--allow-compacted-topic) [{code}]",
        code = codes::COMPACTED_TOPIC
    )]
    Compacted(String),
    /// The topic ends before an offset that was already read, so it was deleted and created again.
    #[error(
        "topic `{0}` ends before the offset that was already read: it was deleted and created again [{code}]",
        code = codes::LOG_RESET
    )]
    LogReset(String),
    /// The topic could not be created or enlarged.
    #[error(
        "could not create or enlarge topic `{topic}`: {reason} [{code}]",
        code = codes::TOPIC_NOT_CREATED
    )]
    CreateTopic {
        /// The name of the topic.
        topic: String,
        /// The broker's reason.
        reason: String,
    },
    /// A record could not be written.
    #[error(
        "could not write a record to topic `{topic}` [{code}]",
        code = codes::KAFKA_REFUSED
    )]
    Produce {
        /// The topic of the record.
        topic: String,
        /// librdkafka's error.
        #[source]
        source: Native,
    },
    /// A record was not written, because there is no contact with the consumer group.
    #[error(
        "no contact with the consumer group; not writing a record to topic `{topic}` [{code}]",
        code = codes::NO_CONTACT
    )]
    OutOfContact {
        /// The topic of the record.
        topic: String,
    },
    /// The poll thread, or the commit thread on its behalf, has failed.
    #[error("the Kafka poll thread failed: {0}")]
    PollThread(&'static str),
    /// Any other request to a broker failed.
    #[error("{what} failed [{code}]", code = codes::KAFKA_REFUSED)]
    Request {
        /// The request, such as `reading`.
        what: &'static str,
        /// librdkafka's error.
        #[source]
        source: Native,
    },
}

impl KafkaError {
    /// Wraps an error from the creation of a client. librdkafka's message about a property repeats
    /// its value, which may be a secret if the name is mistyped, so the value is removed.
    pub(crate) fn client(error: Native) -> Self {
        match error {
            Native::ClientConfig(_, reason, name, value) => {
                let reason = if value.is_empty() { reason } else { reason.replace(&value, "…") };
                Self::Property { name, value: "…".to_owned(), reason }
            }
            other => Self::Client(other),
        }
    }

    /// Returns whether librdkafka's queue had no room for the record. Retry a little later.
    pub fn is_queue_full(&self) -> bool {
        matches!(self, Self::Produce { source, .. }
            if source.rdkafka_error_code() == Some(RDKafkaErrorCode::QueueFull))
    }

    /// Returns whether the record is larger than the client or the topic allows.
    pub fn is_too_large(&self) -> bool {
        matches!(self, Self::Produce { source, .. }
            if source.rdkafka_error_code() == Some(RDKafkaErrorCode::MessageSizeTooLarge))
    }

    /// Returns whether the topic does not have the requested partition.
    pub fn is_unknown_partition(&self) -> bool {
        matches!(self, Self::Produce { source, .. }
            if source.rdkafka_error_code() == Some(RDKafkaErrorCode::UnknownPartition))
    }

    /// Returns whether the same request may succeed later without a change to settings or topics.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Property { .. }
            | Self::Brokers(_)
            | Self::Client(_)
            | Self::CreateTopic { .. }
            | Self::PollThread(_)
            | Self::Compacted(_) => false,
            Self::NoTopic(_)
            | Self::LogReset(_)
            | Self::Unreachable { .. }
            | Self::OutOfContact { .. } => true,
            Self::Produce { source, .. } | Self::Request { source, .. } => !matches!(
                source.rdkafka_error_code(),
                Some(
                    RDKafkaErrorCode::MessageSizeTooLarge
                        | RDKafkaErrorCode::TopicAuthorizationFailed
                        | RDKafkaErrorCode::InvalidTopic
                        | RDKafkaErrorCode::InvalidRecord
                )
            ),
        }
    }
}

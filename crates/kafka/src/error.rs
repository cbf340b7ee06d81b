//! What can go wrong with Kafka, in words for people.

use fleet_codes as codes;
use rdkafka::error::{KafkaError as Native, RDKafkaErrorCode};

/// An error from Kafka or from the way we were told to talk to it.
#[derive(Debug, thiserror::Error)]
pub enum KafkaError {
    /// A property that would break a promise, or that librdkafka does not know.
    #[error(
        "Kafka property `{name}` can't be set to `{value}`: {reason} [{code}]",
        code = codes::KAFKA_PROPERTY
    )]
    Property {
        /// The property.
        name: String,
        /// The refused value; never a secret, since no secret is refused.
        value: String,
        /// Why.
        reason: String,
    },
    /// This is not the address of a broker.
    #[error(
        "KAFKA_BROKERS: `{0}` is not the address of a broker; expected host:port, such as kafka:9092 [{code}]",
        code = codes::SETTING
    )]
    Brokers(String),
    /// The client could not be made from its properties.
    #[error("the Kafka client could not be started")]
    Client(#[source] Native),
    /// No broker answered in time.
    #[error(
        "no Kafka broker answers at `{brokers}`: check KAFKA_BROKERS, and that the broker is up [{code}]",
        code = codes::KAFKA_UNREACHABLE
    )]
    Unreachable {
        /// Where we looked.
        brokers: String,
        /// What librdkafka says.
        #[source]
        source: Native,
    },
    /// A topic does not exist.
    #[error(
        "topic `{0}` does not exist: create it with `mcp-fleet topics create` [{code}]",
        code = codes::NO_TOPIC
    )]
    NoTopic(String),
    /// Records are to be compacted away before their jobs have ended.
    #[error(
        "topic `{0}` is compacted (cleanup.policy): of jobs with one key the broker keeps only the newest, so the others \
         are lost before they run; set cleanup.policy=delete, or allow it with MCP_ALLOW_COMPACTED_TOPIC=true \
         (--allow-compacted-topic) [{code}]",
        code = codes::COMPACTED_TOPIC
    )]
    Compacted(String),
    /// A topic ends before a place that it had been read to: it was made again.
    #[error(
        "topic `{0}` ends before the place that it had been read to: it was made again [{code}]",
        code = codes::LOG_RESET
    )]
    LogReset(String),
    /// A topic could not be created.
    #[error(
        "topic `{topic}` could not be created: {reason} [{code}]",
        code = codes::TOPIC_NOT_CREATED
    )]
    CreateTopic {
        /// Its name.
        topic: String,
        /// The broker's word.
        reason: String,
    },
    /// A record could not be written.
    #[error(
        "a record for topic `{topic}` could not be written [{code}]",
        code = codes::KAFKA_REFUSED
    )]
    Produce {
        /// Where it should have gone.
        topic: String,
        /// What librdkafka says.
        #[source]
        source: Native,
    },
    /// A record was not handed over, because there is no contact with the consumer group.
    #[error(
        "no contact with the consumer group: the record for topic `{topic}` is held back [{code}]",
        code = codes::NO_CONTACT
    )]
    OutOfContact {
        /// Where it should have gone.
        topic: String,
    },
    /// The thread that polls has failed us.
    #[error("the Kafka poll thread can't be used: {0}")]
    PollThread(&'static str),
    /// Anything else that was asked of a broker.
    #[error("{what} failed [{code}]", code = codes::KAFKA_REFUSED)]
    Request {
        /// What we wanted.
        what: &'static str,
        /// What librdkafka says.
        #[source]
        source: Native,
    },
}

impl KafkaError {
    /// A client could not be made. librdkafka's complaint about a property repeats the property's
    /// value, which can be a secret under a mistyped name.
    pub(crate) fn client(error: Native) -> Self {
        match error {
            Native::ClientConfig(_, reason, name, value) => {
                let reason = if value.is_empty() { reason } else { reason.replace(&value, "…") };
                Self::Property { name, value: "…".to_owned(), reason }
            }
            other => Self::Client(other),
        }
    }

    /// Whether librdkafka's own queue had no room for a record: hand it over again a little later.
    pub fn is_queue_full(&self) -> bool {
        matches!(self, Self::Produce { source, .. }
            if source.rdkafka_error_code() == Some(RDKafkaErrorCode::QueueFull))
    }

    /// Whether the record is larger than the client or the topic takes.
    pub fn is_too_large(&self) -> bool {
        matches!(self, Self::Produce { source, .. }
            if source.rdkafka_error_code() == Some(RDKafkaErrorCode::MessageSizeTooLarge))
    }

    /// Whether the topic does not have the partition that was asked for.
    pub fn is_unknown_partition(&self) -> bool {
        matches!(self, Self::Produce { source, .. }
            if source.rdkafka_error_code() == Some(RDKafkaErrorCode::UnknownPartition))
    }

    /// Whether the same request may succeed later without anybody changing anything.
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

//! The Kafka connection flags of all commands that need one.

use clap_complete::engine::ArgValueCompleter;
use fleet_job::topics::{DEFAULT_JOBS_TOPIC, Topics, parse_jobs_topic};
use fleet_kafka::{compression::Compression, settings::Settings};
use fleet_ops::config::Env;

use crate::{error::CliError, suggestions};

/// The brokers and the jobs topic.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Connection {
    /// Kafka brokers as comma-separated host:port
    ///
    /// `KAFKA_PROPERTY_<NAME>` sets any librdkafka property.
    #[arg(
        help_heading = "Kafka",
        long,
        env = "KAFKA_BROKERS",
        default_value = "127.0.0.1:9092",
        value_name = "HOSTS"
    )]
    pub(crate) brokers: String,

    /// The jobs topic
    #[arg(
        help_heading = "Kafka",
        long,
        env = "KAFKA_TOPIC",
        default_value = DEFAULT_JOBS_TOPIC,
        value_name = "NAME",
        value_parser = parse_jobs_topic,
        add = ArgValueCompleter::new(suggestions::topics),
    )]
    pub(crate) topic: String,

    /// Compression of written records: none, gzip, snappy, lz4 or zstd
    #[arg(
        help_heading = "Kafka",
        long,
        env = "KAFKA_COMPRESSION",
        default_value_t,
        hide = true,
        value_name = "CODEC"
    )]
    pub(crate) compression: Compression,
}

impl Connection {
    pub(crate) fn settings(&self) -> Result<Settings, CliError> {
        Ok(settings(&self.brokers)?.compressed(self.compression))
    }

    pub(crate) fn topics(&self) -> Topics {
        Topics::of(self.topic.clone())
    }
}

/// Returns the settings for `brokers`, with the librdkafka properties from the environment.
pub(crate) fn settings(brokers: &str) -> Result<Settings, CliError> {
    let settings =
        Settings { brokers: brokers.to_owned(), properties: Env::process().kafka_properties()? };
    settings.check()?;
    Ok(settings)
}

//! The worker's settings. Each is a flag and an environment variable, and the table in
//! docs/configuration.md is generated from them.

use std::{
    net::IpAddr,
    num::NonZeroU32,
    path::{Path, PathBuf},
    time::Duration,
};

use clap::ValueEnum;
use fleet_job::{
    glob::Glob,
    topics::{self, DEFAULT_REGISTRY_TOPIC, Topics},
};
use fleet_kafka::compression::Compression;
use fleet_ops::{
    config::{named_path, parse_bytes, parse_duration, path_parser},
    tls::{ServerTlsArgs, TlsArgs},
};

use crate::{
    limits::{JobLimits, TenantWeights, ToolLimit},
    oauth::OAuthArgs,
    public_keys::{PublicKeys, PublicKeysError},
};

// The groups of `--help`.
const KAFKA: &str = "Kafka";
const SERVER: &str = "MCP server";
const HEALTH: &str = "Health and metrics";
const CONCURRENCY: &str = "Concurrency and order";
const ATTEMPTS: &str = "Attempts and delays";
const SIZES: &str = "Memory and sizes";
const REPORTS: &str = "Events and replies";

/// Shown below `--help`.
pub const EXAMPLES: &str = "Examples:
  KAFKA_BROKERS=localhost:9092 MCP_SERVER_URL=http://localhost:8080 kafka-worker
  kafka-worker --brokers a:9092,b:9092 --server-url http://mcp-1:8080,http://mcp-2:8080 --max-in-flight 64
  KAFKA_PROPERTY_SECURITY_PROTOCOL=SASL_SSL KAFKA_PROPERTY_SASL_MECHANISM=SCRAM-SHA-512 kafka-worker

Any librdkafka property can be set as KAFKA_PROPERTY_<NAME>, with `_` for `.`.";

/// The worker's settings.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// Kafka brokers: host:port, comma-separated.
    #[arg(long, env = "KAFKA_BROKERS", value_name = "HOSTS", help_heading = KAFKA)]
    pub brokers: String,

    /// The jobs topic. Events go to `<topic>.events`, dead letters to `<topic>.dlq`, long delays to
    /// `<topic>.delayed`; cancel requests are read from `<topic>.control`, pauses from
    /// `<topic>.pauses`.
    #[arg(
        long,
        env = "KAFKA_TOPIC",
        default_value = topics::DEFAULT_JOBS_TOPIC,
        value_name = "NAME",
        help_heading = KAFKA
    )]
    pub topic: String,

    /// The compression of events, dead letters and replies: none, gzip, snappy, lz4 or zstd. All
    /// Kafka clients can read the first two.
    #[arg(
        long,
        env = "KAFKA_COMPRESSION",
        default_value_t,
        value_name = "CODEC",
        help_heading = KAFKA
    )]
    pub compression: Compression,

    /// Create missing topics for events, dead letters, delayed jobs and cancel requests, if the
    /// jobs topic exists; with `false`, wait until somebody else creates those that are required.
    #[arg(
        long,
        env = "MCP_CREATE_TOPICS",
        value_parser = clap::builder::BoolishValueParser::new(),
        num_args = 0..=1,
        default_value = "true",
        default_missing_value = "true",
        require_equals = true,
        help_heading = KAFKA
    )]
    pub create_topics: bool,

    /// The consumer group that the workers share.
    #[arg(
        long,
        env = "MCP_CONSUMER_GROUP",
        default_value = "mcp-workers",
        value_name = "NAME",
        help_heading = KAFKA
    )]
    pub group: String,

    /// The MCP server: one or several URLs, comma-separated. The path defaults to `/mcp`.
    #[arg(long, env = "MCP_SERVER_URL", value_name = "URLS", help_heading = SERVER)]
    pub server_url: String,

    /// A bearer token for the MCP server.
    #[arg(
        long,
        env = "MCP_SERVER_TOKEN",
        hide_env_values = true,
        value_name = "TOKEN",
        help_heading = SERVER
    )]
    pub server_token: Option<String>,

    /// A file with the token, in place of `--server-token`, which goes before it. Changes apply
    /// within five seconds.
    #[arg(
        long,
        env = "MCP_SERVER_TOKEN_FILE",
        value_name = "FILE",
        help_heading = SERVER,
        value_parser = path_parser(),
    )]
    pub server_token_file: Option<PathBuf>,

    /// A file of public keys (PEM). Requests to cancel a job count only if a server of the fleet has
    /// signed them with one of these. `mcp-fleet keys init` makes it.
    #[arg(
        long,
        env = "MCP_SIGNING_PUBLIC_KEYS_FILE",
        value_name = "FILE",
        help_heading = SERVER,
        value_parser = path_parser(),
    )]
    pub signing_public_keys: Option<PathBuf>,

    /// The worker as an OAuth client.
    #[command(flatten)]
    pub oauth: OAuthArgs,

    /// TLS of connections to the MCP server.
    #[command(flatten)]
    pub server_tls: ServerTlsArgs,

    /// The address on which /health, /ready and /metrics are served.
    #[arg(
        long,
        env = "MCP_HOST",
        default_value = "127.0.0.1",
        value_name = "ADDRESS",
        help_heading = HEALTH
    )]
    pub host: IpAddr,

    /// The port of /health, /ready and /metrics; 0 for any free port.
    #[arg(long, env = "PORT", default_value_t = 8081, help_heading = HEALTH)]
    pub port: u16,

    /// TLS of this port.
    #[command(flatten)]
    pub tls: TlsArgs,

    /// Host names that requests for /metrics may use, in addition to addresses and loopback names:
    /// HOST or HOST:PORT; `*` for any.
    #[arg(
        long,
        env = "MCP_ALLOWED_HOSTS",
        value_delimiter = ',',
        value_name = "HOST",
        help_heading = HEALTH
    )]
    pub allowed_hosts: Vec<String>,

    /// Write the `host:port` of the health endpoint to this file once it listens.
    #[arg(long, value_name = "FILE", help_heading = HEALTH)]
    pub ready_file: Option<PathBuf>,

    /// The worker's name in events; host name and process id by default.
    #[arg(long, env = "WORKER_ID", value_name = "NAME", help_heading = REPORTS)]
    pub worker_id: Option<String>,

    /// How many jobs may run at once.
    #[arg(
        long,
        env = "MCP_MAX_IN_FLIGHT",
        default_value_t = 16,
        value_parser = clap::value_parser!(u32).range(1..=65_536),
        help_heading = CONCURRENCY
    )]
    pub max_in_flight: u32,

    /// Threads for calls, events and answers. One thread makes the best use of its CPU time. More
    /// threads help if answers are large or the server uses TLS; so do more workers.
    #[arg(
        long,
        env = "MCP_THREADS",
        default_value_t = 1,
        value_parser = clap::value_parser!(u32).range(1..=256),
        help_heading = CONCURRENCY
    )]
    pub threads: u32,

    /// How many jobs of a tool may run at once: TOOL=NUMBER, comma-separated. TOOL is a name or a
    /// pattern (docs/wildcards.md); `files__*=4` is one limit for all tools that match. The first
    /// match applies.
    #[arg(
        long = "tool-limit",
        env = "MCP_TOOL_LIMITS",
        value_delimiter = ',',
        value_name = "TOOL=NUMBER",
        help_heading = CONCURRENCY
    )]
    pub tool_limits: Vec<ToolLimit>,

    /// How many jobs of each tenant may run at once; unlimited by default.
    #[arg(long, env = "MCP_TENANT_LIMIT", value_name = "NUMBER", help_heading = CONCURRENCY)]
    pub tenant_limit: Option<NonZeroU32>,

    /// How many jobs a tenant may start in its turn, while jobs of several tenants wait for a slot:
    /// TENANT=WEIGHT, comma-separated, from 1 to 1000. All other tenants, and the jobs without one
    /// together, have the weight 1.
    #[arg(
        long,
        env = "MCP_TENANT_WEIGHTS",
        value_name = "TENANT=WEIGHT",
        help_heading = CONCURRENCY
    )]
    pub tenant_weights: Option<TenantWeights>,

    /// The order in which jobs may start.
    #[arg(
        long,
        env = "MCP_ORDERING",
        value_enum,
        default_value_t = Ordering::Key,
        help_heading = CONCURRENCY
    )]
    pub ordering: Ordering,

    /// How many attempts a job has, unless it says otherwise.
    #[arg(
        long,
        env = "MCP_MAX_ATTEMPTS",
        default_value_t = 5,
        value_parser = clap::value_parser!(u32).range(1..=100),
        help_heading = ATTEMPTS
    )]
    pub max_attempts: u32,

    /// How long an attempt may take, unless the job says otherwise.
    #[arg(
        long,
        env = "MCP_CALL_TIMEOUT",
        default_value = "60s",
        value_parser = parse_duration,
        value_name = "DURATION",
        help_heading = SERVER
    )]
    pub call_timeout: Duration,

    /// The least time between two progress events of a running job; 0 asks tools for no progress.
    #[arg(
        long,
        env = "MCP_PROGRESS_INTERVAL",
        default_value = "1s",
        value_parser = parse_duration,
        value_name = "DURATION",
        help_heading = ATTEMPTS
    )]
    pub progress_interval: Duration,

    /// The upper limit of the first delay between attempts, which doubles each time; delays have
    /// full jitter.
    #[arg(
        long,
        env = "MCP_RETRY_BASE",
        default_value = "500ms",
        value_parser = parse_duration,
        value_name = "DURATION",
        help_heading = ATTEMPTS
    )]
    pub retry_base: Duration,

    /// The upper limit of all delays between attempts.
    #[arg(
        long,
        env = "MCP_RETRY_MAX",
        default_value = "60s",
        value_parser = parse_duration,
        value_name = "DURATION",
        help_heading = ATTEMPTS
    )]
    pub retry_max: Duration,

    /// The longest time that a job parks in memory for its `notBefore` or its next attempt; longer
    /// delays go through the delayed topic, if there is one.
    #[arg(
        long,
        env = "MCP_MAX_PARK",
        default_value = "60s",
        value_parser = parse_park,
        value_name = "DURATION",
        help_heading = ATTEMPTS
    )]
    pub max_park: Duration,

    /// How long running jobs may take to finish when the worker stops or gives back partitions.
    #[arg(
        long,
        env = "MCP_DRAIN_TIMEOUT",
        default_value = "25s",
        value_parser = parse_duration,
        value_name = "DURATION",
        help_heading = ATTEMPTS
    )]
    pub drain_timeout: Duration,

    /// Jobs held in memory before fetching pauses. Half of them are shared out among the
    /// partitions.
    #[arg(
        long,
        env = "MCP_MAX_BUFFERED",
        default_value_t = 25_000,
        value_parser = clap::value_parser!(u32).range(2..),
        help_heading = SIZES
    )]
    pub max_buffered: u32,

    /// Bytes of jobs held in memory before fetching pauses.
    #[arg(
        long,
        env = "MCP_MAX_BUFFERED_BYTES",
        default_value = "64MiB",
        value_parser = parse_bytes,
        value_name = "SIZE",
        help_heading = SIZES
    )]
    pub max_buffered_bytes: u64,

    /// The largest job that is accepted; larger ones become dead letters.
    #[arg(
        long,
        env = "MCP_MAX_JOB_BYTES",
        default_value = "1MiB",
        value_parser = parse_bytes,
        value_name = "SIZE",
        help_heading = SIZES
    )]
    pub max_job_bytes: u64,

    /// The largest event that is written; a result that does not fit is left out, and its size is
    /// reported instead.
    #[arg(
        long,
        env = "MCP_MAX_EVENT_BYTES",
        default_value = "900KiB",
        value_parser = parse_bytes,
        value_name = "SIZE",
        help_heading = SIZES
    )]
    pub max_event_bytes: u64,

    /// The largest answer that is accepted from the MCP server.
    #[arg(
        long,
        env = "MCP_MAX_RESPONSE_BYTES",
        default_value = "8MiB",
        value_parser = parse_bytes,
        value_name = "SIZE",
        help_heading = SERVER
    )]
    pub max_response_bytes: u64,

    /// Topics that a job may name in `replyTo`: names or patterns, comma-separated
    /// (docs/wildcards.md).
    #[arg(
        long,
        env = "MCP_REPLY_TOPICS",
        default_value = "mcp-replies*",
        value_name = "PATTERNS",
        help_heading = REPORTS
    )]
    pub reply_topics: String,

    /// The topic in which servers share what they host. Jobs may not name it in `replyTo`.
    #[arg(
        long,
        env = "MCP_REGISTRY_TOPIC",
        default_value = DEFAULT_REGISTRY_TOPIC,
        value_name = "TOPIC",
        help_heading = REPORTS
    )]
    pub registry_topic: String,

    /// Accept a jobs or delayed topic that is compacted. A job is lost before it runs if a later
    /// record has its key.
    #[arg(long, env = "MCP_ALLOW_COMPACTED_TOPIC", help_heading = KAFKA)]
    pub allow_compacted_topic: bool,

    /// The least time between two commits of a partition.
    #[arg(
        long,
        env = "MCP_COMMIT_INTERVAL",
        default_value = "1s",
        value_parser = parse_duration,
        value_name = "DURATION",
        help_heading = KAFKA
    )]
    pub commit_interval: Duration,
}

/// With less than a second, jobs would only be passed to and fro.
fn parse_park(text: &str) -> Result<Duration, String> {
    let park = parse_duration(text).map_err(|error| error.to_string())?;
    if park < Duration::from_secs(1) {
        return Err("must be at least 1s".to_owned());
    }
    Ok(park)
}

/// The order in which jobs may start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Ordering {
    /// Jobs with the same record key run one after the other.
    Key,
    /// Jobs in the same partition run one after the other.
    Partition,
    /// Jobs run in any order.
    Unordered,
}

impl From<Ordering> for fleet_engine::Ordering {
    fn from(ordering: Ordering) -> Self {
        match ordering {
            Ordering::Key => Self::Key,
            Ordering::Partition => Self::Partition,
            Ordering::Unordered => Self::Unordered,
        }
    }
}

impl Args {
    /// The token for the MCP server, if the settings have it. An empty variable counts as unset.
    pub(crate) fn token(&self) -> Option<&str> {
        self.server_token.as_deref().filter(|token| !token.is_empty())
    }

    /// The file of the token, unless the settings have the token itself.
    pub(crate) fn token_file(&self) -> Option<&Path> {
        let file = self.server_token_file.as_deref().filter(|file| !file.as_os_str().is_empty());
        file.filter(|_| self.token().is_none())
    }

    /// Reads the public keys with which requests to cancel jobs of `topic` are verified; `None` if
    /// the settings name no file.
    pub(crate) fn public_keys(&self, topic: &str) -> Result<Option<PublicKeys>, PublicKeysError> {
        let file = named_path(&self.signing_public_keys);
        file.map(|file| PublicKeys::open(file, topic.to_owned())).transpose()
    }

    /// The topics that belong to the jobs topic.
    pub(crate) fn topics(&self) -> Topics {
        Topics::of(self.topic.clone())
    }

    /// The worker's name in events.
    pub(crate) fn worker_name(&self) -> String {
        self.worker_id.clone().unwrap_or_else(|| {
            let host = std::env::var("HOSTNAME").ok().or_else(|| {
                let name = std::fs::read_to_string("/etc/hostname").ok()?;
                Some(name.trim().to_owned())
            });
            let host = host.filter(|name| !name.is_empty()).unwrap_or_else(|| "worker".to_owned());
            format!("{host}-{}", std::process::id())
        })
    }

    /// The limits per tool and tenant.
    pub(crate) fn limits(&self) -> JobLimits {
        JobLimits {
            tools: self.tool_limits.clone(),
            tenant: self.tenant_limit,
            weights: self.tenant_weights.clone().unwrap_or_default(),
        }
    }

    /// The engine's configuration. Without a delayed topic, all jobs wait in memory.
    pub(crate) fn engine(&self, seed: u64, has_delayed_topic: bool) -> fleet_engine::Config {
        fleet_engine::Config {
            ordering: self.ordering.into(),
            max_in_flight: self.max_in_flight as usize,
            max_buffered: self.max_buffered as usize,
            max_buffered_bytes: usize::try_from(self.max_buffered_bytes).unwrap_or(usize::MAX),
            commit_interval: self.commit_interval,
            max_park: has_delayed_topic.then_some(self.max_park),
            retry: fleet_retry::Backoff { base: self.retry_base, max: self.retry_max },
            seed,
            ..fleet_engine::Config::default()
        }
    }

    /// How often a running job's progress is published, if at all.
    pub(crate) fn progress(&self) -> Option<Duration> {
        Some(self.progress_interval).filter(|interval| !interval.is_zero())
    }

    /// Whether a job may name `topic` in `replyTo`. The topics of the fleet and of Kafka itself are
    /// never allowed, however wide the patterns are.
    pub(crate) fn may_reply_to(&self, topic: &str) -> bool {
        let mut patterns = self.reply_topics.split(',').map(str::trim);
        let is_listed = patterns.any(|pattern| Glob::new(pattern).matches(topic));
        is_listed && !self.topics().is_reserved(&self.registry_topic, topic)
    }
}

#[cfg(test)]
mod tests;

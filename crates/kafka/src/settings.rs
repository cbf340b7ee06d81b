//! The settings of every Kafka client: the brokers, and any librdkafka property except those that
//! would break a guarantee.

use std::{collections::BTreeMap, time::Duration};

use rdkafka::ClientConfig;

use crate::{compression::Compression, error::KafkaError};

/// The brokers and how to talk to them.
#[derive(Debug, Clone, Default)]
pub struct Settings {
    /// The brokers as `host:port`, separated by commas.
    pub brokers: String,
    /// librdkafka properties by name, such as `security.protocol`.
    pub properties: BTreeMap<String, String>,
}

/// Properties with a fixed value, and the reason. The worker commits an offset only after its job
/// is settled (I1, I2), and librdkafka must not commit on its own.
const FIXED: [(&str, &str, &str); 5] = [
    ("enable.auto.commit", "false", "the worker commits, and only offsets of settled jobs"),
    ("enable.auto.offset.store", "false", "the worker commits, and only offsets of settled jobs"),
    (
        "enable.idempotence",
        "true",
        "without idempotence, retries could repeat or reorder the events of a job",
    ),
    ("acks", "all", "a job is settled only when all in-sync replicas have its terminal record"),
    (
        "delivery.report.only.error",
        "false",
        "a job is settled only when its terminal record is reported as written",
    ),
];

/// Properties that we set from other settings.
const OWNED: [(&str, &str); 2] = [
    ("bootstrap.servers", "set KAFKA_BROKERS instead"),
    ("group.id", "set MCP_CONSUMER_GROUP instead"),
];

/// Properties of consumers only. Producers do not get them, since librdkafka would log a warning at
/// every start.
const CONSUMER_ONLY: [&str; 14] = [
    "group.",
    "partition.assignment.strategy",
    "session.timeout.ms",
    "heartbeat.interval.ms",
    "max.poll.interval.ms",
    "auto.offset.reset",
    "fetch.",
    "queued.",
    "enable.auto.",
    "auto.commit.",
    "isolation.level",
    "check.crcs",
    "max.partition.fetch.bytes",
    "coordinator.query.interval.ms",
];

/// Properties of producers only.
const PRODUCER_ONLY: [&str; 15] = [
    "acks",
    "request.required.acks",
    "enable.idempotence",
    "linger.ms",
    "queue.buffering.",
    "compression.",
    "batch.",
    "delivery.timeout.ms",
    "message.timeout.ms",
    "partitioner",
    "retries",
    "transactional.id",
    "sticky.partitioning.",
    // librdkafka would require the largest fetch of a consumer to be above it.
    "message.max.bytes",
    "delivery.report.",
];

/// Properties with a default of ours, and their aliases.
const ALIASES: [(&str, &str); 3] = [
    ("linger.ms", "queue.buffering.max.ms"),
    ("compression.type", "compression.codec"),
    ("max.partition.fetch.bytes", "fetch.message.max.bytes"),
];

/// The property that makes a member static.
const INSTANCE_ID: &str = "group.instance.id";
/// Defaults for the member of a quiet topic: little is fetched ahead, and empty fetches are rare.
const SIDE_DEFAULTS: [(&str, &str); 3] = [
    ("queued.min.messages", "100"),
    ("queued.max.messages.kbytes", "1024"),
    ("fetch.wait.max.ms", "2000"),
];
/// The default of `session.timeout.ms`. With librdkafka's own default of 45 s, the jobs of a killed
/// worker would wait that long. With this one and the heartbeats below, other workers get them
/// within 20 s.
const SESSION_TIMEOUT_MS: u64 = 15_000;
/// The session timeout if the brokers decide on it: the default of their
/// `group.consumer.session.timeout.ms` (KIP-848).
const BROKERS_SESSION_TIMEOUT_MS: u64 = 45_000;
/// The default of `heartbeat.interval.ms`. Members learn of a rebalance from the answer to a
/// heartbeat.
const HEARTBEAT_INTERVAL_MS: &str = "2000";
/// The longest interval between the statistics of a member.
const STATISTICS_INTERVAL_MS: u64 = 5_000;
/// The longest time that a record may wait to be written. Short sessions shorten it further.
const DELIVERY_TIMEOUT_MS: u64 = 30_000;
/// The two names of the property for that time.
const DELIVERY_TIMEOUT: [&str; 2] = ["delivery.timeout.ms", "message.timeout.ms"];

/// The role of a member of the group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Follows the topic with the main load.
    Main,
    /// Follows a topic that needs only small fetch buffers. A static member gets the id
    /// `<group.instance.id>-<name>`.
    Side(&'static str),
}

impl Settings {
    /// Creates settings for the brokers at `brokers`, with defaults for everything else.
    pub fn new(brokers: impl Into<String>) -> Self {
        Self { brokers: brokers.into(), properties: BTreeMap::new() }
    }

    /// Sets the codec for written records, unless a property already does.
    #[must_use]
    pub fn compressed(mut self, codec: Compression) -> Self {
        let is_set = ["compression.type", "compression.codec"];

        if !is_set.iter().any(|name| self.properties.contains_key(*name)) {
            self.properties.insert("compression.type".to_owned(), codec.to_string());
        }
        self
    }

    /// Returns a warning if a property is risky but cannot be refused.
    pub fn warning(&self) -> Option<&'static str> {
        self.is_next_generation().then_some(
            "group.protocol=consumer: with librdkafka 2.12, rebalances can stall for minutes and commits can fail with \
             `member epoch is stale`; leave this property out unless you need it",
        )
    }

    /// Returns whether the group protocol of KIP-848 is used.
    fn is_next_generation(&self) -> bool {
        self.properties
            .get("group.protocol")
            .is_some_and(|value| value.eq_ignore_ascii_case("consumer"))
    }

    /// Checks the brokers, and refuses properties that would break a guarantee.
    ///
    /// # Errors
    ///
    /// Returns [`KafkaError::Brokers`], or [`KafkaError::Property`] with the reason.
    pub fn check(&self) -> Result<(), KafkaError> {
        let refuse = |name: &str, value: &str, reason: &str| {
            Err(KafkaError::Property {
                name: name.into(),
                value: value.into(),
                reason: reason.into(),
            })
        };

        let mut brokers = self.brokers.split(',').map(str::trim);
        if let Some(wrong) = brokers.find(|broker| !is_broker(broker)) {
            return Err(KafkaError::Brokers(wrong.to_owned()));
        }

        for (name, value) in &self.properties {
            if let Some((_, reason)) = OWNED.iter().find(|(owned, _)| owned == name) {
                return refuse(name, value, reason);
            }

            if name == "auto.offset.reset"
                && !["earliest", "smallest", "beginning", "error"].contains(&value.as_str())
            {
                let reason =
                    "jobs that were written before a partition's first commit would be skipped";
                return refuse(name, value, reason);
            }

            let fixed = FIXED.iter().find(|(fixed, ..)| {
                fixed == name || (*fixed == "acks" && name == "request.required.acks")
            });
            if let Some((_, only, reason)) = fixed
                && value != only
                && !(*only == "all" && value == "-1")
            {
                return refuse(name, value, reason);
            }

            // A record that outlives the session of a stopped or disconnected worker could follow
            // the end that another worker has written for the same job.
            if DELIVERY_TIMEOUT.contains(&name.as_str())
                && value.parse::<u64>().is_ok_and(|ms| ms == 0 || ms >= self.session_timeout_ms())
            {
                let reason = "it must be shorter than session.timeout.ms, so that no event of a worker is written after \
                              another worker has taken over its jobs";
                return refuse(name, value, reason);
            }
        }

        Ok(())
    }

    fn session_timeout_ms(&self) -> u64 {
        let set = self.properties.get("session.timeout.ms").and_then(|value| value.parse().ok());
        let default =
            if self.is_next_generation() { BROKERS_SESSION_TIMEOUT_MS } else { SESSION_TIMEOUT_MS };
        set.unwrap_or(default)
    }

    /// Returns how long the group waits for a sign of life before it gives a member's partitions to
    /// others.
    pub fn session_timeout(&self) -> Duration {
        Duration::from_millis(self.session_timeout_ms())
    }

    /// The same settings with this `client.id`, unless the user has chosen one.
    #[must_use]
    pub fn named(mut self, client_id: &str) -> Self {
        self.properties.entry("client.id".to_owned()).or_insert_with(|| client_id.to_owned());
        self
    }

    /// Starts a configuration with the user's properties, except those with a prefix in
    /// `leave_out`.
    fn base(&self, leave_out: &[&str]) -> ClientConfig {
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", &self.brokers);
        config.set("client.id", "mcp-fleet");

        for (name, value) in &self.properties {
            if !leave_out.iter().any(|prefix| name.starts_with(prefix)) {
                config.set(name, value);
            }
        }

        config
    }

    /// Adds `defaults` that neither the user nor an earlier call has set.
    fn with_defaults(&self, mut config: ClientConfig, defaults: &[(&str, &str)]) -> ClientConfig {
        for (name, value) in defaults {
            if config.get(name).is_some() {
                continue;
            }
            let alias = ALIASES.iter().find(|(ours, _)| ours == name).map(|(_, alias)| alias);
            if ![Some(name), alias]
                .into_iter()
                .flatten()
                .any(|name| self.properties.contains_key(*name))
            {
                config.set(*name, *value);
            }
        }
        config
    }

    /// Returns the configuration of a member of `group`.
    pub(crate) fn consumer(&self, group: &str, role: Role) -> ClientConfig {
        let statistics_interval =
            STATISTICS_INTERVAL_MS.min(self.session_timeout_ms() / 9).to_string();

        let mut config = self.base(&PRODUCER_ONLY);
        if let Role::Side(name) = role {
            config = self.with_defaults(config, &SIDE_DEFAULTS);
            if let Some(id) = self.properties.get(INSTANCE_ID) {
                config.set(INSTANCE_ID, format!("{id}-{name}"));
            }
        }

        config = self.with_defaults(
            config,
            &[
                ("auto.offset.reset", "earliest"),
                // Keep the queue in librdkafka short: the engine bounds what waits for its turn.
                ("queued.min.messages", "1000"),
                ("queued.max.messages.kbytes", "4096"),
                // The largest record of our topics. The embedded broker does not return larger ones
                // than this.
                ("fetch.max.bytes", "5242880"),
                ("max.partition.fetch.bytes", "262144"),
                // How long the broker holds a fetch while there are no records. A resumed partition
                // waits for the fetch under way, but each empty answer wakes an idle worker.
                ("fetch.wait.max.ms", "400"),
                // How long fetching stops for a partition whose queue is full. librdkafka's default
                // of a second lets a fast worker run dry.
                ("fetch.queue.backoff.ms", "20"),
                // The statistics tell when the coordinator last answered, and the allowed gap in
                // contact is a third of the session.
                ("statistics.interval.ms", &statistics_interval),
                // How soon new partitions of a topic are noticed. With librdkafka's default, nobody
                // would read them for 5 minutes.
                ("topic.metadata.refresh.interval.ms", "5000"),
            ],
        );
        // In the KIP-848 protocol the brokers decide on these.
        if !self.is_next_generation() {
            let session_timeout = self.session_timeout_ms().to_string();
            let defaults = [
                ("partition.assignment.strategy", "cooperative-sticky"),
                ("session.timeout.ms", &session_timeout),
                ("heartbeat.interval.ms", HEARTBEAT_INTERVAL_MS),
            ];
            config = self.with_defaults(config, &defaults);
        }

        config
            .set("group.id", group)
            .set("enable.auto.commit", "false")
            .set("enable.auto.offset.store", "false")
            .set("enable.partition.eof", "true");
        config
    }

    /// Returns the configuration of a consumer without a group, for tools that read a topic.
    pub(crate) fn reader(&self) -> ClientConfig {
        let mut config = self.base(&PRODUCER_ONLY);
        // librdkafka requires a group name for every consumer; nothing is ever committed under this
        // one.
        config.set("group.id", "mcp-fleet-reader").set("enable.auto.commit", "false");
        config.set("enable.partition.eof", "true");

        // If the requested record no longer exists (compacted, expired), read the ones after it.
        config.set("auto.offset.reset", "earliest");
        config
    }

    /// Returns the configuration of a consumer without a group that follows topics for as long as a
    /// process lives. It fetches little ahead, since it reads records as they are written. A newly
    /// added topic waits for the fetch under way.
    pub(crate) fn follower(&self) -> ClientConfig {
        let defaults = [
            ("queued.min.messages", "1000"),
            ("queued.max.messages.kbytes", "4096"),
            ("fetch.wait.max.ms", "1000"),
        ];
        let mut config = self.with_defaults(self.reader(), &defaults);
        config.set("enable.partition.eof", "false");
        config
    }

    /// Returns the configuration of a producer that waits for all in-sync replicas.
    pub(crate) fn producer(&self) -> ClientConfig {
        let delivery_timeout =
            DELIVERY_TIMEOUT_MS.min(self.session_timeout_ms() * 2 / 3).to_string();

        let mut config = self.base(&CONSUMER_ONLY);
        if !DELIVERY_TIMEOUT.iter().any(|name| self.properties.contains_key(*name)) {
            config.set("delivery.timeout.ms", delivery_timeout);
        }

        config = self.with_defaults(
            config,
            &[
                ("linger.ms", "2"),
                ("compression.type", Compression::default().as_str()),
                ("message.max.bytes", "16777216"),
                // The partitioner of the Java clients, so that a key goes to the same partition
                // whichever client writes it.
                ("partitioner", "murmur2_random"),
                // Jobs without a key should keep all workers busy, but a sticky partition would
                // take a whole burst.
                ("sticky.partitioning.linger.ms", "0"),
            ],
        );

        let codec = config.get("compression.type").or_else(|| config.get("compression.codec"));
        if codec == Some(Compression::Gzip.as_str()) {
            // Higher levels cost several times as much and gain little for records of this size.
            config = self.with_defaults(config, &[("compression.level", "1")]);
        }

        config.set("enable.idempotence", "true").set("acks", "all");
        config
    }

    /// Returns the configuration of an admin client.
    pub(crate) fn admin(&self) -> ClientConfig {
        self.base(&[&CONSUMER_ONLY[..], &PRODUCER_ONLY[..]].concat())
    }
}

/// Returns whether librdkafka accepts this as a broker address: host and port, optionally with a
/// security protocol as the scheme.
fn is_broker(text: &str) -> bool {
    const SCHEMES: [&str; 4] = ["plaintext", "ssl", "sasl_plaintext", "sasl_ssl"];
    let address = match text.split_once("://") {
        Some((scheme, rest)) if SCHEMES.iter().any(|own| own.eq_ignore_ascii_case(scheme)) => rest,
        Some(_) => return false,
        None => text,
    };
    !address.contains(['/', '@', '?', '#'])
}

#[cfg(test)]
mod tests;

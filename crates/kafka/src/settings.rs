//! The settings of every Kafka client: the brokers, and any librdkafka property except those that
//! would break a guarantee.

use std::{collections::BTreeMap, time::Duration};

use rdkafka::ClientConfig;

use crate::{compression::Compression, consumer::Role, error::KafkaError};

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
mod tests {
    use super::*;

    #[test]
    fn invalid_broker_addresses_are_refused() {
        for good in ["kafka:9092", "a:1, b:2", "kafka", "[::1]:9092", "SASL_SSL://k:1"] {
            Settings::new(good).check().unwrap();
        }
        for bad in ["http://kafka:9092", "a:1,https://b:2", "kafka:9092/topic", "tcp://k:1"] {
            let message = Settings::new(bad).check().unwrap_err().to_string();
            assert!(
                message.contains("KAFKA_BROKERS") && message.contains("host:port"),
                "{message}"
            );
        }
    }

    fn check(name: &str, value: &str) -> Result<(), KafkaError> {
        let properties = BTreeMap::from([(name.to_owned(), value.to_owned())]);
        Settings { brokers: "b:1".into(), properties }.check()
    }

    #[test]
    fn properties_that_would_break_a_guarantee_are_refused_with_the_reason() {
        for (name, value, word) in [
            ("enable.auto.commit", "true", "settled"),
            ("enable.auto.offset.store", "true", "settled"),
            ("acks", "1", "replicas"),
            ("request.required.acks", "0", "replicas"),
            ("enable.idempotence", "false", "reorder"),
            ("group.id", "x", "MCP_CONSUMER_GROUP"),
            ("bootstrap.servers", "x", "KAFKA_BROKERS"),
            ("auto.offset.reset", "latest", "skipped"),
            ("delivery.report.only.error", "true", "reported"),
        ] {
            let message = check(name, value).unwrap_err().to_string();
            assert!(message.contains(name) && message.contains(word), "{message}");
        }
    }

    #[test]
    fn pending_writes_do_not_outlive_the_session() {
        let settings = |properties: &[(&str, &str)]| {
            let properties =
                properties.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
            Settings { brokers: "b:1".into(), properties: properties.collect() }
        };

        let session = ("session.timeout.ms", "6000");
        for (properties, expected) in [
            (&[][..], Some("10000")),
            (&[session][..], Some("4000")),
            (&[session, ("delivery.timeout.ms", "5000")][..], Some("5000")),
            (&[session, ("message.timeout.ms", "5000")][..], None),
        ] {
            let settings = settings(properties);
            settings.check().unwrap();
            assert_eq!(settings.producer().get("delivery.timeout.ms"), expected, "{properties:?}");
        }

        for (name, value) in [
            ("delivery.timeout.ms", "6000"),
            ("message.timeout.ms", "30000"),
            ("message.timeout.ms", "0"),
        ] {
            let message = settings(&[session, (name, value)]).check().unwrap_err().to_string();
            assert!(message.contains(name) && message.contains("session.timeout.ms"), "{message}");
        }
    }

    #[test]
    fn written_records_are_readable_by_every_client() {
        let settings = Settings::new("b:1");
        let producer = settings.producer();
        assert_eq!(producer.get("compression.type"), Some("gzip"));
        assert_eq!(producer.get("compression.level"), Some("1"));
        assert_eq!(settings.consumer("g", Role::Main).get("compression.type"), None);

        let producer = settings.clone().compressed(Compression::Lz4).producer();
        assert_eq!(
            (producer.get("compression.type"), producer.get("compression.level")),
            (Some("lz4"), None)
        );

        let mut set = settings;
        set.properties.insert("compression.codec".to_owned(), "none".to_owned());
        let producer = set.compressed(Compression::Zstd).producer();
        assert_eq!(
            (producer.get("compression.codec"), producer.get("compression.type")),
            (Some("none"), None)
        );
    }

    #[test]
    fn sessions_are_short_if_the_client_decides_on_them() {
        let mut settings = Settings::new("b:1");
        let consumer = settings.consumer("g", Role::Main);
        assert_eq!(consumer.get("session.timeout.ms"), Some("15000"));
        assert_eq!(consumer.get("heartbeat.interval.ms"), Some("2000"));
        assert_eq!(settings.warning(), None);

        settings.properties.insert("group.protocol".to_owned(), "consumer".to_owned());
        let consumer = settings.consumer("g", Role::Main);
        assert_eq!(
            (consumer.get("session.timeout.ms"), consumer.get("heartbeat.interval.ms")),
            (None, None)
        );
        assert!(settings.warning().is_some_and(|warning| warning.contains("2.12")));
    }

    #[test]
    fn properties_that_keep_the_guarantees_are_accepted() {
        for (name, value) in [
            ("acks", "all"),
            ("acks", "-1"),
            ("enable.auto.commit", "false"),
            ("security.protocol", "SSL"),
        ] {
            check(name, value).unwrap();
        }
    }

    #[test]
    fn a_mistyped_secret_is_not_repeated() {
        let properties = BTreeMap::from([("sasl.pasword".to_owned(), "hunter2".to_owned())]);
        let settings = Settings { brokers: "b:1".into(), properties };
        let error = crate::producer::Producer::new(&settings).unwrap_err();
        let message = format!("{error} {error:?}");
        assert!(message.contains("sasl.pasword") && !message.contains("hunter2"), "{message}");
    }

    #[test]
    fn users_override_defaults_but_not_guarantees() {
        let properties = BTreeMap::from([
            ("session.timeout.ms".to_owned(), "6000".to_owned()),
            ("linger.ms".to_owned(), "0".to_owned()),
            ("statistics.interval.ms".to_owned(), "1000".to_owned()),
        ]);
        let settings = Settings { brokers: "b:1".into(), properties };

        let consumer = settings.consumer("g", Role::Main);
        assert_eq!(consumer.get("session.timeout.ms"), Some("6000"));
        assert_eq!(consumer.get("statistics.interval.ms"), Some("1000"));
        assert_eq!(consumer.get("linger.ms"), None);
        assert_eq!(consumer.get("enable.auto.commit"), Some("false"));

        let producer = settings.producer();
        assert_eq!(producer.get("linger.ms"), Some("0"));
        assert_eq!(producer.get("session.timeout.ms"), None);
    }

    #[test]
    fn a_side_member_has_its_own_id_and_small_buffers() {
        let properties = [("group.instance.id", "worker-a"), ("fetch.wait.max.ms", "50")];
        let properties = properties.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
        let settings = Settings { brokers: "b:1".into(), properties };

        for (role, name, kilobytes) in
            [(Role::Main, "worker-a", "4096"), (Role::Side("delayed"), "worker-a-delayed", "1024")]
        {
            let config = settings.consumer("g", role);
            assert_eq!(config.get("group.instance.id"), Some(name));
            assert_eq!(config.get("queued.max.messages.kbytes"), Some(kilobytes));
            assert_eq!(
                config.get("fetch.wait.max.ms"),
                Some("50"),
                "the user's property applies to both"
            );
        }

        let dynamic = Settings::new("b:1").consumer("g", Role::Side("delayed"));
        assert_eq!(dynamic.get("group.instance.id"), None);
    }

    #[test]
    fn a_property_set_by_its_alias_is_not_overridden() {
        let properties = BTreeMap::from([
            ("fetch.message.max.bytes".to_owned(), "1000".to_owned()),
            ("queue.buffering.max.ms".to_owned(), "7".to_owned()),
        ]);
        let settings = Settings { brokers: "b:1".into(), properties };
        assert_eq!(settings.consumer("g", Role::Main).get("max.partition.fetch.bytes"), None);
        assert_eq!(settings.producer().get("linger.ms"), None);
    }

    #[test]
    fn a_large_message_limit_for_producers_does_not_prevent_consumers_from_starting() {
        let properties = BTreeMap::from([("message.max.bytes".to_owned(), "16777216".to_owned())]);
        let settings = Settings { brokers: "127.0.0.1:1".into(), properties };
        let consumer: Result<rdkafka::consumer::BaseConsumer, _> =
            settings.consumer("g", Role::Main).create();
        assert!(consumer.is_ok(), "{:?}", consumer.err());
        assert_eq!(settings.producer().get("message.max.bytes"), Some("16777216"));
    }
}

//! What every client of ours is configured from: brokers, and any librdkafka property but those
//! that would break a promise.

use std::{collections::BTreeMap, time::Duration};

use rdkafka::ClientConfig;

use crate::{compression::Compression, consumer::Role, error::KafkaError};

/// Where the brokers are and how to talk to them.
#[derive(Debug, Clone, Default)]
pub struct Settings {
    /// `host:port`, comma-separated.
    pub brokers: String,
    /// librdkafka properties by their own names, such as `security.protocol`.
    pub properties: BTreeMap<String, String>,
}

/// Properties that must keep a value, and why. The worker commits an offset only after its job is
/// settled (I1, I2), and nothing in librdkafka may do that in its place.
const FIXED: [(&str, &str, &str); 5] = [
    ("enable.auto.commit", "false", "the worker itself commits, and only what is settled"),
    ("enable.auto.offset.store", "false", "the worker itself commits, and only what is settled"),
    (
        "enable.idempotence",
        "true",
        "without it a broker's retry can repeat or reorder the events of a job",
    ),
    ("acks", "all", "a job is settled when all in-sync replicas have its terminal record"),
    (
        "delivery.report.only.error",
        "false",
        "a job is settled when its terminal record is reported as written",
    ),
];

/// Properties that we set ourselves from elsewhere.
const OWNED: [(&str, &str); 2] = [
    ("bootstrap.servers", "set KAFKA_BROKERS instead"),
    ("group.id", "set MCP_CONSUMER_GROUP instead"),
];

/// Properties of consumers only; a producer is not given them, since librdkafka would warn at every
/// start.
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
    // Of consumers librdkafka wants their largest fetch to be above it.
    "message.max.bytes",
    "delivery.report.",
];

/// Properties that we set, and their other names.
const ALIASES: [(&str, &str); 3] = [
    ("linger.ms", "queue.buffering.max.ms"),
    ("compression.type", "compression.codec"),
    ("max.partition.fetch.bytes", "fetch.message.max.bytes"),
];

/// The name of a static member.
const INSTANCE_ID: &str = "group.instance.id";
/// Defaults of a member that follows a quiet topic: little is read ahead, and empty fetches are
/// rare.
const SIDE_DEFAULTS: [(&str, &str); 3] = [
    ("queued.min.messages", "100"),
    ("queued.max.messages.kbytes", "1024"),
    ("fetch.wait.max.ms", "2000"),
];
/// The default of `session.timeout.ms`. With librdkafka's own 45 s the jobs of a killed worker
/// would wait as long; with the heartbeats below, other workers have them within 20 s.
const SESSION_TIMEOUT_MS: u64 = 15_000;
/// The same where the brokers decide: their default (`group.consumer.session.timeout.ms`, KIP-848).
const BROKERS_SESSION_TIMEOUT_MS: u64 = 45_000;
/// The default of `heartbeat.interval.ms`; others hear of a rebalance by their heartbeats.
const HEARTBEAT_INTERVAL_MS: &str = "2000";
/// The longest time between two statistics of a member.
const STATISTICS_INTERVAL_MS: u64 = 5_000;
/// How long a record may wait to be written, unless the session is so short that it must be less.
const DELIVERY_TIMEOUT_MS: u64 = 30_000;
/// The two names of that time.
const DELIVERY_TIMEOUT: [&str; 2] = ["delivery.timeout.ms", "message.timeout.ms"];

impl Settings {
    /// Settings for the brokers at `brokers`, with nothing else said.
    pub fn new(brokers: impl Into<String>) -> Self {
        Self { brokers: brokers.into(), properties: BTreeMap::new() }
    }

    /// The same, with what is written compressed by `codec`, unless a property says otherwise.
    #[must_use]
    pub fn compressed(mut self, codec: Compression) -> Self {
        let is_set = ["compression.type", "compression.codec"];
        if !is_set.iter().any(|name| self.properties.contains_key(*name)) {
            self.properties.insert("compression.type".to_owned(), codec.to_string());
        }
        self
    }

    /// What is risky about the properties and can't be refused.
    pub fn warning(&self) -> Option<&'static str> {
        self.is_next_generation().then_some(
            "group.protocol=consumer: with librdkafka 2.12 a rebalance can stall for minutes, and commits can fail with \
             `member epoch is stale`; leave the property out unless you have to use it",
        )
    }

    /// The group protocol of KIP-848.
    fn is_next_generation(&self) -> bool {
        self.properties
            .get("group.protocol")
            .is_some_and(|value| value.eq_ignore_ascii_case("consumer"))
    }

    /// Refuses what would break a promise.
    ///
    /// # Errors
    /// [`KafkaError::Property`] with the reason.
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
                let reason = "jobs written before a partition's first commit would be passed over";
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
            // A worker that was stopped or cut off speaks of jobs that others have ended meanwhile,
            // if what it had to say outlives its session.
            if DELIVERY_TIMEOUT.contains(&name.as_str())
                && value.parse::<u64>().is_ok_and(|ms| ms == 0 || ms >= self.session_timeout_ms())
            {
                let reason = "it must be shorter than session.timeout.ms: what a worker has to say of a job must not \
                              come when another one has the job";
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

    /// How long the group waits for a sign of life before it gives a member's partitions to others.
    pub fn session_timeout(&self) -> Duration {
        Duration::from_millis(self.session_timeout_ms())
    }

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

    /// Puts `defaults` under what the user has set, and under earlier defaults.
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

    /// A member of group `group`.
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
                // Fetched records wait in librdkafka only briefly: what waits for its turn is
                // bounded by the engine.
                ("queued.min.messages", "1000"),
                ("queued.max.messages.kbytes", "4096"),
                // The largest record of our topics; the embedded broker returns none that is larger
                // than this.
                ("fetch.max.bytes", "5242880"),
                ("max.partition.fetch.bytes", "262144"),
                // How long the broker keeps a request for which there is nothing. A partition that
                // is resumed waits for the answer, since there is one request at a time; but each
                // answer wakes an idle worker.
                ("fetch.wait.max.ms", "400"),
                // How long a partition is not fetched whose records wait already: a second, if
                // nothing is said, in which a quick worker runs dry.
                ("fetch.queue.backoff.ms", "20"),
                // They say when the coordinator was last heard, and a gap is a third of the
                // session.
                ("statistics.interval.ms", &statistics_interval),
                // A topic that grows is noticed by this: with librdkafka's own 5 minutes nobody
                // reads its new partitions.
                ("topic.metadata.refresh.interval.ms", "5000"),
            ],
        );
        // In the other protocol the broker decides about these.
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

    /// A consumer without a group, for tools that read a topic.
    pub(crate) fn reader(&self) -> ClientConfig {
        let mut config = self.base(&PRODUCER_ONLY);
        // librdkafka wants a group's name for every consumer; nothing is ever committed under this
        // one.
        config.set("group.id", "mcp-fleet-reader").set("enable.auto.commit", "false");
        config.set("enable.partition.eof", "true");
        // What was asked for and is gone (compacted, expired) is no reason to leave out what comes
        // after it.
        config.set("auto.offset.reset", "earliest");
        config
    }

    /// A consumer without a group that follows topics for as long as a process lives. Little is
    /// fetched ahead: what is read is what has just been written. A topic that is added waits for
    /// the answer to the fetch under way.
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

    /// A producer that waits for all in-sync replicas.
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
                // The partitioner of the Java clients: one key goes to one partition, whoever
                // writes it.
                ("partitioner", "murmur2_random"),
                // Jobs without a key are to keep all workers busy: a sticky partition takes all of
                // a burst.
                ("sticky.partitioning.linger.ms", "0"),
            ],
        );
        let codec = config.get("compression.type").or_else(|| config.get("compression.codec"));
        if codec == Some(Compression::Gzip.as_str()) {
            // The others cost several times as much, and make little difference to records of this
            // size.
            config = self.with_defaults(config, &[("compression.level", "1")]);
        }
        config.set("enable.idempotence", "true").set("acks", "all");
        config
    }

    /// A client for administration.
    pub(crate) fn admin(&self) -> ClientConfig {
        self.base(&[&CONSUMER_ONLY[..], &PRODUCER_ONLY[..]].concat())
    }
}

/// Whether librdkafka takes this for the address of a broker: host and port, perhaps with a
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
    fn what_is_no_address_of_a_broker_is_refused() {
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
    fn what_would_break_a_promise_is_refused_with_the_reason() {
        for (name, value, word) in [
            ("enable.auto.commit", "true", "settled"),
            ("enable.auto.offset.store", "true", "settled"),
            ("acks", "1", "replicas"),
            ("request.required.acks", "0", "replicas"),
            ("enable.idempotence", "false", "repeat"),
            ("group.id", "x", "MCP_CONSUMER_GROUP"),
            ("bootstrap.servers", "x", "KAFKA_BROKERS"),
            ("auto.offset.reset", "latest", "passed over"),
            ("delivery.report.only.error", "true", "reported"),
        ] {
            let message = check(name, value).unwrap_err().to_string();
            assert!(message.contains(name) && message.contains(word), "{message}");
        }
    }

    #[test]
    fn what_waits_to_be_written_does_not_outlive_the_session() {
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
    fn what_is_written_can_be_read_by_every_client() {
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
    fn a_session_is_short_where_the_client_decides_about_it() {
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
    fn what_agrees_with_the_promises_passes() {
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
    fn users_override_defaults_but_not_promises() {
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
    fn a_side_member_has_a_name_and_small_buffers_of_its_own() {
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
                "what the user says goes for both"
            );
        }
        let dynamic = Settings::new("b:1").consumer("g", Role::Side("delayed"));
        assert_eq!(dynamic.get("group.instance.id"), None);
    }

    #[test]
    fn a_property_under_its_other_name_is_not_overruled() {
        let properties = BTreeMap::from([
            ("fetch.message.max.bytes".to_owned(), "1000".to_owned()),
            ("queue.buffering.max.ms".to_owned(), "7".to_owned()),
        ]);
        let settings = Settings { brokers: "b:1".into(), properties };
        assert_eq!(settings.consumer("g", Role::Main).get("max.partition.fetch.bytes"), None);
        assert_eq!(settings.producer().get("linger.ms"), None);
    }

    #[test]
    fn larger_records_of_a_producer_do_not_keep_a_consumer_from_starting() {
        let properties = BTreeMap::from([("message.max.bytes".to_owned(), "16777216".to_owned())]);
        let settings = Settings { brokers: "127.0.0.1:1".into(), properties };
        let consumer: Result<rdkafka::consumer::BaseConsumer, _> =
            settings.consumer("g", Role::Main).create();
        assert!(consumer.is_ok(), "{:?}", consumer.err());
        assert_eq!(settings.producer().get("message.max.bytes"), Some("16777216"));
    }
}

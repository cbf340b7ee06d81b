//! Tests of the settings.

use super::*;

#[test]
fn invalid_broker_addresses_are_refused() {
    for good in ["kafka:9092", "a:1, b:2", "kafka", "[::1]:9092", "SASL_SSL://k:1"] {
        Settings::new(good).check().unwrap();
    }
    for bad in ["http://kafka:9092", "a:1,https://b:2", "kafka:9092/topic", "tcp://k:1"] {
        let message = Settings::new(bad).check().unwrap_err().to_string();
        assert!(message.contains("KAFKA_BROKERS") && message.contains("host:port"), "{message}");
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

//! Tests the fleet's reader against the broker: the end of a topic is found at once although
//! fetches wait for records, an unreadable batch does not hide other partitions, and directories of
//! other versions are healed or refused.

use std::{
    net::{Ipv4Addr, SocketAddr},
    path::Path,
    time::{Duration, Instant},
};

use fleet_job::topics::Topics;
use fleet_kafka::{
    admin,
    producer::{Outgoing, Producer},
    reader::{From, Reader},
    settings::Settings,
};
use tansu_sans_io::Compression;
use tansu_storage::{Storage as _, Topition};

use crate::{
    Broker, BrokerConfig,
    batches::tests::{batch, raw},
    storage::Storage,
};

const LONG: Duration = Duration::from_secs(20);
/// Less time than the broker holds a fetch of a partition back.
const SOON: Duration = Duration::from_secs(3);
const POLL: Duration = Duration::from_millis(50);

fn client_settings(broker: &Broker) -> Settings {
    Settings { brokers: broker.address().to_string(), properties: Default::default() }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_end_of_an_idle_topic_is_found_at_once() {
    let listen = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let broker = Broker::start(BrokerConfig { listen, data_dir: None }).await.unwrap();
    let settings = client_settings(&broker);
    let topics = Topics::of("idle");
    admin::create_topics(&settings, &admin::fleet_topics(&topics, 12, 1)).await.unwrap();

    let (reader, topic) = (settings.clone(), topics.events.clone());
    let open = move || Reader::open(&reader, &topic, From::Start, LONG).unwrap();
    let mut reader = tokio::task::spawn_blocking(open).await.unwrap();
    // The first search leaves fetches in progress that nothing answers.
    let mut reader = tokio::task::spawn_blocking(move || {
        reader.next(POLL).unwrap();
        reader.refresh_end(LONG).unwrap();
        assert!(reader.at_end());
        reader
    })
    .await
    .unwrap();

    let record = |n: u8| Outgoing {
        topic: topics.events.clone(),
        key: Some(vec![n]),
        value: Some(vec![n]),
        ..Outgoing::default()
    };

    let producer = Producer::new(&settings).unwrap();
    for n in 0..24 {
        producer.send(&record(n)).await.unwrap();
    }

    let look = move || {
        let start = Instant::now();
        reader.refresh_end(LONG).unwrap();
        let took = start.elapsed();
        let mut read = 0;
        while start.elapsed() < LONG && !reader.at_end() {
            read += usize::from(reader.next(POLL).unwrap().is_some());
        }
        (took, read, reader.at_end())
    };

    let (took, read, at_end) = tokio::task::spawn_blocking(look).await.unwrap();
    assert!(took < SOON, "{took:?}");
    assert!(at_end && read == 24, "{read}");
    broker.stop().await;
}

/// A batch that the engine cannot serve, in a directory that is not brought up to date.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unreadable_batch_hides_no_other_partition() {
    let directory = tempfile::tempdir().unwrap();
    let listen = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let config = || BrokerConfig { listen, data_dir: Some(directory.path().to_path_buf()) };
    let broker = Broker::start(config()).await.unwrap();
    let settings = client_settings(&broker);

    let spec = admin::TopicSpec {
        name: "mixed".to_owned(),
        partitions: 2,
        replication: 1,
        properties: Default::default(),
    };

    admin::create_topics(&settings, &[spec]).await.unwrap();

    let record = Outgoing {
        topic: "mixed".to_owned(),
        partition: Some(1),
        value: Some(b"good".to_vec()),
        ..Outgoing::default()
    };
    Producer::new(&settings).unwrap().send(&record).await.unwrap();
    broker.stop().await;

    write_snappy(directory.path(), "mixed").await;

    let broker = Broker::start(config()).await.unwrap();
    let settings = client_settings(&broker);
    let read = move || {
        let mut reader = Reader::open(&settings, "mixed", From::Start, LONG).unwrap();
        reader.next(SOON).unwrap()
    };
    let found = tokio::task::spawn_blocking(read).await.unwrap();
    assert_eq!(found.and_then(|record| record.value), Some(b"good".to_vec()));
    broker.stop().await;
}

/// Older brokers stored snappy batches, which they could not serve.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_directory_of_an_older_broker_is_brought_up_to_date() {
    let directory = tempfile::tempdir().unwrap();
    let listen = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let config = || BrokerConfig { listen, data_dir: Some(directory.path().to_path_buf()) };
    let broker = Broker::start(config()).await.unwrap();
    let settings = client_settings(&broker);
    let spec = admin::TopicSpec {
        name: "old".to_owned(),
        partitions: 1,
        replication: 1,
        properties: Default::default(),
    };
    admin::create_topics(&settings, &[spec]).await.unwrap();
    broker.stop().await;

    write_snappy(directory.path(), "old").await;
    // Older brokers did not say which format they wrote.
    let format = directory.path().join("format");
    std::fs::remove_file(&format).unwrap();

    let broker = Broker::start(config()).await.unwrap();
    assert_eq!(std::fs::read_to_string(&format).unwrap(), "2\n");
    let settings = client_settings(&broker);
    let read = move || {
        let mut reader = Reader::open(&settings, "old", From::Start, LONG).unwrap();
        [reader.next(LONG).unwrap(), reader.next(LONG).unwrap()]
    };
    let found = tokio::task::spawn_blocking(read).await.unwrap();
    let values = found.map(|record| record.and_then(|record| record.value));
    assert_eq!(values, [Some(b"one".to_vec()), Some(b"two".to_vec())]);
    broker.stop().await;

    // A newer broker may have changed anything.
    std::fs::write(&format, "3\n").unwrap();
    let refused = Broker::start(config()).await.err().map(|error| error.to_string());
    assert!(refused.as_ref().is_some_and(|error| error.contains("FLEET-BROKER-VERSION")));
}

/// Writes two records to partition 0 of a topic, as brokers did that did not decode snappy.
async fn write_snappy(directory: &Path, topic: &str) {
    let listen = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let (data_dir, topition) = (Some(directory.to_path_buf()), Topition::new(topic, 0));
    let write = move || {
        // The storage engine ends with its runtime.
        let runtime = tokio::runtime::Runtime::new().unwrap();
        runtime.block_on(async {
            let storage = Storage::open(data_dir, listen).await.unwrap();
            let old = batch(Compression::Snappy, raw);
            storage.engine.produce(None, &topition, old).await.unwrap();
        });
        runtime.shutdown_timeout(LONG);
    };
    tokio::task::spawn_blocking(write).await.unwrap();
}

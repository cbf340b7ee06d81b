//! A reader of the fleet against the broker: where a topic ends is said at once, though fetches wait for records.

use std::{
    net::{Ipv4Addr, SocketAddr},
    time::{Duration, Instant},
};

use fleet_job::topics::Topics;
use fleet_kafka::{
    admin,
    producer::{Outgoing, Producer},
    reader::{From, Reader},
};

use crate::{
    broker::{Broker, BrokerConfig},
    connection,
};

const LONG: Duration = Duration::from_secs(20);
/// Less than a fetch is held back for each of the partitions.
const SOON: Duration = Duration::from_secs(3);
const POLL: Duration = Duration::from_millis(50);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_end_of_an_idle_topic_is_found_at_once() {
    let listen = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let broker = Broker::start(BrokerConfig { listen, data_dir: None }).await.unwrap();
    let settings = connection::settings(&broker.bootstrap()).unwrap();
    let topics = Topics::of("idle");
    admin::create_topics(&settings, &admin::fleet_topics(&topics, 12, 1)).await.unwrap();
    let (reader, topic) = (settings.clone(), topics.events.clone());
    let open = move || Reader::open(&reader, &topic, From::Start, LONG).unwrap();
    let mut reader = tokio::task::spawn_blocking(open).await.unwrap();
    // Once: by now fetches are under way, and nothing answers them.
    let mut reader = tokio::task::spawn_blocking(move || {
        reader.next(POLL).unwrap();
        reader.look_for_end(LONG).unwrap();
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
        reader.look_for_end(LONG).unwrap();
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

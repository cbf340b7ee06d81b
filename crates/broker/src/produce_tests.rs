//! Tests produce requests as clients send them: what is refused and what else is written, and that
//! large batches keep no other client waiting.

use std::{
    net::{Ipv4Addr, SocketAddr},
    time::{Duration, Instant},
};

use bytes::Bytes;
use fleet_kafka::{admin, settings::Settings};
use tansu_sans_io::{
    ApiKey as _, ApiVersionsRequest, Body, Compression, ErrorCode, Frame, Header, ProduceRequest,
    produce_request::{PartitionProduceData, TopicProduceData},
    record::deflated::{self, Batch},
};
use tokio::{io::AsyncWriteExt as _, net::TcpStream, task::JoinSet};

use crate::{
    Broker, BrokerConfig,
    batches::tests::{batch, batch_of, lz4},
    read_frame,
};

const TOPIC: &str = "written";
const VERSION: i16 = 9;
/// Longer than any answer takes that waits for nothing, and shorter than the engine's own decoder
/// takes for one of the large batches.
const SOON: Duration = Duration::from_secs(3);

/// A broker with a topic of four partitions.
async fn start() -> Broker {
    let listen = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let broker = Broker::start(BrokerConfig { listen, data_dir: None }).await.unwrap();
    let spec = admin::TopicSpec {
        name: TOPIC.to_owned(),
        partitions: 4,
        replication: 1,
        properties: Default::default(),
    };
    let settings =
        Settings { brokers: broker.address().to_string(), properties: Default::default() };
    admin::create_topics(&settings, &[spec]).await.unwrap();
    broker
}

fn request(batches: Vec<(i32, Vec<Batch>)>) -> Bytes {
    let partitions = batches.into_iter().map(|(index, batches)| {
        let records = Some(deflated::Frame { batches });
        PartitionProduceData::default().index(index).records(records)
    });
    let topic = TopicProduceData::default()
        .name(TOPIC.to_owned())
        .partition_data(Some(partitions.collect()));
    let produce =
        ProduceRequest::default().acks(-1).timeout_ms(10_000).topic_data(Some(vec![topic]));

    frame(ProduceRequest::KEY, VERSION, produce.into())
}

fn frame(api_key: i16, api_version: i16, body: Body) -> Bytes {
    let header = Header::Request {
        api_key,
        api_version,
        correlation_id: 1,
        client_id: Some("test".to_owned()),
    };
    Frame::request(header, body).unwrap()
}

/// Sends a produce request, and returns each partition's error and base offset.
async fn produce(stream: &mut TcpStream, request: &[u8]) -> Vec<(i32, ErrorCode, i64)> {
    stream.write_all(request).await.unwrap();
    let answer = read_frame(stream, usize::MAX).await.expect("an answer");
    let answer = Frame::response_from_bytes(answer, ProduceRequest::KEY, VERSION).unwrap();
    let Body::ProduceResponse(answer) = answer.body else { panic!("{answer:?}") };

    let topics = answer.responses.into_iter().flatten();
    let partitions = topics.flat_map(|topic| topic.partition_responses.into_iter().flatten());
    let mut outcomes: Vec<_> = partitions
        .map(|done| (done.index, ErrorCode::try_from(done.error_code).unwrap(), done.base_offset))
        .collect();
    outcomes.sort_by_key(|(partition, ..)| *partition);
    outcomes
}

async fn list_versions(stream: &mut TcpStream) {
    let request = frame(ApiVersionsRequest::KEY, 0, ApiVersionsRequest::default().into());
    stream.write_all(&request).await.unwrap();
    read_frame(stream, usize::MAX).await.expect("an answer");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_partition_is_told_what_is_wrong_with_its_batch() {
    let broker = start().await;
    let mut stream = TcpStream::connect(broker.address()).await.unwrap();
    let good = || batch(Compression::None, <[u8]>::to_vec);
    let altered = Batch { crc: good().crc ^ 1, ..good() };
    let old = Batch { magic: 1, ..good() };

    for offset in [0, 2] {
        let request = request(vec![
            (0, vec![altered.clone()]),
            (1, vec![good()]),
            (2, vec![good(), good()]),
            (3, vec![old.clone()]),
            (4, vec![good()]),
        ]);
        let expected = [
            (0, ErrorCode::CorruptMessage, -1),
            (1, ErrorCode::None, offset),
            (2, ErrorCode::InvalidRecord, -1),
            (3, ErrorCode::InvalidRecord, -1),
            (4, ErrorCode::UnknownTopicOrPartition, -1),
        ];
        assert_eq!(produce(&mut stream, &request).await, expected);
    }

    // The connection has survived, and nothing of what was refused has been written.
    let again = request((0..4).map(|partition| (partition, vec![good()])).collect());
    let offsets = [(0, 0), (1, 4), (2, 0), (3, 0)];
    let expected = offsets.map(|(partition, offset)| (partition, ErrorCode::None, offset));
    assert_eq!(produce(&mut stream, &again).await, expected);
    broker.stop().await;
}

/// One request may not take more memory than any other, however many partitions it writes to.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_limit_is_for_the_whole_request() {
    let broker = start().await;
    let mut stream = TcpStream::connect(broker.address()).await.unwrap();
    let large = || batch_of(&vec![Bytes::from(vec![0; 1 << 20]); 40], Compression::Lz4, lz4);

    let request = request(vec![(0, vec![large()]), (1, vec![large()])]);
    let expected = [(0, ErrorCode::None, 0), (1, ErrorCode::MessageTooLarge, -1)];
    assert_eq!(produce(&mut stream, &request).await, expected);
    broker.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn large_batches_keep_no_other_client_waiting() {
    let broker = start().await;
    let large = batch_of(&vec![Bytes::from(vec![0; 1 << 20]); 20], Compression::Lz4, lz4);
    let address = broker.address();
    let mut producers = JoinSet::new();
    for partition in 0..4 {
        let request = request(vec![(partition, vec![large.clone()])]);
        producers.spawn(async move {
            let mut stream = TcpStream::connect(address).await.unwrap();
            let expected = [(partition, ErrorCode::None, 0)];
            assert_eq!(produce(&mut stream, &request).await, expected);
        });
    }

    let mut other = TcpStream::connect(address).await.unwrap();
    let mut longest = Duration::ZERO;
    while !producers.is_empty() {
        let start = Instant::now();
        list_versions(&mut other).await;
        longest = longest.max(start.elapsed());
        if let Some(done) = producers.try_join_next() {
            done.unwrap();
        }
    }
    assert!(longest < SOON, "{longest:?}");
    broker.stop().await;
}

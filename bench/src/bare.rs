//! The two contestants that are not job systems: the ceiling, which makes calls without Kafka, and
//! the floor, which makes one call at a time for each partition.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
};

use rdkafka::{
    ClientConfig, Message as _, TopicPartitionList,
    consumer::{Consumer as _, StreamConsumer},
    message::OwnedMessage,
};
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::mpsc,
    task::JoinSet,
};

use crate::workload::Workload;

/// The most records of a partition that may wait for their turn.
const READ_AHEAD: usize = 10_000;

/// The peers' environment, in which these two are started, too.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[arg(long, env = "BENCH_URL")]
    url: String,
    #[arg(long, env = "BENCH_CONCURRENCY", default_value_t = 16)]
    concurrency: usize,
    #[arg(long, env = "BENCH_BROKERS", default_value = "")]
    brokers: String,
    #[arg(long, env = "BENCH_TOPIC", default_value = "")]
    topic: String,
    #[arg(long, env = "BENCH_GROUP", default_value = "")]
    group: String,
    /// Bytes of each job's arguments; only the ceiling makes jobs itself.
    #[arg(long, env = "BENCH_BYTES", default_value_t = 300)]
    bytes: usize,
}

fn client(concurrency: usize) -> reqwest::Client {
    let builder = reqwest::Client::builder().tcp_nodelay(true).pool_max_idle_per_host(concurrency);
    // No TLS is used, so the system's certificates need not be loaded.
    builder.tls_certs_only([]).build().expect("an HTTP client")
}

/// Makes one call, and reads its answer to the end.
async fn call(client: &reqwest::Client, url: &str, body: Vec<u8>) {
    let request = client.post(url).header("content-type", "application/json").body(body);
    let response = request.send().await.expect("an answer");
    assert!(response.status().is_success(), "{}", response.status());
    response.bytes().await.expect("the whole answer");
}

/// Works until SIGTERM.
fn run(work: impl Future<Output = ()>) {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let mut terminate = signal(SignalKind::terminate()).expect("a signal handler");
        tokio::select! {
            () = work => {}
            _ = terminate.recv() => {}
        }
    });
}

/// Makes calls as fast as possible with this concurrency.
pub(crate) fn ceiling(args: &Args) {
    run(async {
        let (client, workload) = (client(args.concurrency), Arc::new(Workload::new(1, args.bytes)));
        let next = Arc::new(AtomicU32::new(0));
        let mut lanes = JoinSet::new();
        for _ in 0..args.concurrency {
            let (client, workload, next, url) =
                (client.clone(), workload.clone(), next.clone(), args.url.clone());
            lanes.spawn(async move {
                loop {
                    let job = next.fetch_add(1, Ordering::Relaxed);
                    call(&client, &url, workload.request(job).into_bytes()).await;
                }
            });
        }
        lanes.join_all().await;
    });
}

/// A consumer as in a tutorial: it processes the records of a partition one after the other, stores
/// offsets when they are done, and lets librdkafka commit every five seconds.
pub(crate) fn floor(args: &Args) {
    run(consume(args));
}

fn consumer(args: &Args) -> StreamConsumer {
    let consumer: StreamConsumer = ClientConfig::new()
        .set("bootstrap.servers", &args.brokers)
        .set("group.id", &args.group)
        .set("auto.offset.reset", "earliest")
        .set("enable.auto.offset.store", "false")
        .set("partition.assignment.strategy", "cooperative-sticky")
        .create()
        .expect("a consumer");
    consumer.subscribe(&[&args.topic]).expect("a subscription");
    consumer
}

/// Consumes until it is dropped, which commits the stored offsets and leaves the group.
async fn consume(args: &Args) {
    let consumer = Arc::new(consumer(args));
    let client = client(args.concurrency);
    let mut lanes: HashMap<i32, mpsc::Sender<OwnedMessage>> = HashMap::new();
    loop {
        let message = consumer.recv().await.expect("a record").detach();
        let lane = lanes.entry(message.partition()).or_insert_with(|| {
            let (sender, inbox) = mpsc::channel(READ_AHEAD);
            tokio::spawn(lane(consumer.clone(), client.clone(), args.url.clone(), inbox));
            sender
        });
        lane.send(message).await.expect("the lane of a partition");
    }
}

async fn lane(
    consumer: Arc<StreamConsumer>,
    client: reqwest::Client,
    url: String,
    mut inbox: mpsc::Receiver<OwnedMessage>,
) {
    while let Some(message) = inbox.recv().await {
        call(&client, &url, message.payload().unwrap_or_default().to_vec()).await;
        let mut done = TopicPartitionList::new();
        let next = rdkafka::Offset::Offset(message.offset() + 1);
        done.add_partition_offset(message.topic(), message.partition(), next).expect("an offset");
        // The offset of a partition that was revoked meanwhile can't be stored; its new owner
        // repeats the records.
        drop(consumer.store_offsets(&done));
    }
}

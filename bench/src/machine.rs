//! The setup that all contestants share: one broker, one stub, and topics filled with the same
//! jobs.

use std::{
    collections::HashMap,
    env, fs,
    net::TcpListener,
    path::PathBuf,
    process::Command,
    time::{Duration, Instant},
};

use fleet_job::topics::Topics;
use fleet_kafka::{
    admin::{self, TopicSpec},
    settings::Settings,
};
use fleet_tests::{bins, kafka::Cluster, process, process::Process, topics, wait};
use rdkafka::{
    ClientConfig,
    error::KafkaError,
    producer::{BaseRecord, DefaultProducerContext, Producer as _, ThreadedProducer},
    types::RDKafkaErrorCode,
};
use tokio::runtime::Runtime;

use crate::{
    calls::{self, Call},
    stub::{Service, Stats},
    workload::{self, Workload},
};

const START: Duration = Duration::from_secs(60);
/// How often the stub is polled.
const LOOK: Duration = Duration::from_millis(20);

/// The broker, the stub, and the filled topics.
pub(crate) struct Machine {
    pub(crate) cluster: Cluster,
    stub: Process,
    /// `http://127.0.0.1:port`.
    pub(crate) url: String,
    pub(crate) directory: PathBuf,
    runtime: Runtime,
    client: reqwest::Client,
    filled: HashMap<(i32, usize), Filled>,
}

/// A topic with jobs.
#[derive(Debug, Clone)]
pub(crate) struct Filled {
    pub(crate) topic: String,
    pub(crate) workload: Workload,
    pub(crate) jobs: u32,
}

impl Machine {
    pub(crate) fn start() -> Self {
        let directory = bins::scratch("bench");
        process::remove_at_exit(&directory);
        let cluster = Cluster::start_fast();
        let ready = directory.join("stub");
        let mut command = Command::new(env::current_exe().expect("the path of this program"));
        command.args(["stub", "--ready-file"]).arg(&ready);
        let mut stub = Process::start("stub", &directory, command);
        let port = stub.wait_until("the port", START, || fs::read_to_string(&ready).ok());
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let client = reqwest::Client::builder().tls_certs_only([]).build().expect("an HTTP client");
        let url = format!("http://127.0.0.1:{port}");

        // The broker creates its topic of groups for the first group, which would count towards the
        // start of a contestant.
        let settings = Settings::new(&cluster.brokers);
        let first = [TopicSpec {
            name: "bench-first".to_owned(),
            partitions: 1,
            replication: 1,
            properties: vec![],
        }];
        runtime.block_on(admin::create_topics(&settings, &first)).expect("a topic");
        wait::poll_until("the topic of groups", START, || {
            let found = admin::group_positions(&settings, "bench-first", "bench-first", START);
            found.is_ok().then_some(())
        });
        Self { cluster, stub, url, directory, runtime, client, filled: HashMap::new() }
    }

    /// The topic with at least this many jobs; filled on first use.
    pub(crate) fn topic(&mut self, partitions: i32, bytes: usize, jobs: u32) -> Filled {
        if let Some(filled) =
            self.filled.get(&(partitions, bytes)).filter(|filled| filled.jobs >= jobs)
        {
            return filled.clone();
        }
        let topic = bins::unique(&format!("bench-{partitions}p-{bytes}b"));
        let workload = Workload::new(partitions, bytes);
        self.create(&topic, partitions);
        eprintln!("filling {topic} with {jobs} jobs");
        let producer = producer(&self.cluster.brokers, "20");
        (0..jobs).for_each(|n| send(&producer, &topic, &workload, n));
        producer.flush(Duration::from_secs(300)).expect("every job acknowledged");
        let filled = Filled { topic, workload, jobs };
        self.filled.insert((partitions, bytes), filled.clone());
        filled
    }

    /// Creates a jobs topic and its companions, as `mcp-fleet topics create` does.
    pub(crate) fn create(&self, topic: &str, partitions: i32) {
        let settings = Settings::new(&self.cluster.brokers);
        let specs = admin::fleet_topics(&Topics::of(topic), partitions, 1);
        self.runtime.block_on(admin::create_topics(&settings, &specs)).expect("topics");
        wait::poll_until("leaders of all partitions", START, || {
            topics::in_sync(&self.cluster.brokers).then_some(())
        });
    }

    /// Sets the duration of calls at the stub, which forgets all calls.
    pub(crate) fn service(&self, service: Service) {
        let body = serde_json::to_vec(&service).expect("a service as JSON");
        let request = self.client.post(format!("{}/service", self.url)).body(body);
        self.runtime.block_on(request.send()).expect("an answer of the stub");
    }

    fn get(&self, path: &str) -> Vec<u8> {
        let request = self.client.get(format!("{}{path}", self.url));
        let answer = async { request.send().await?.bytes().await };
        self.runtime.block_on(answer).expect("an answer of the stub").into()
    }

    pub(crate) fn stats(&self) -> Stats {
        serde_json::from_slice(&self.get("/stats")).expect("the stub's statistics")
    }

    pub(crate) fn calls(&self) -> Vec<Call> {
        let mut calls = calls::decode(&self.get("/calls"));
        calls.sort_unstable_by_key(|call| call.end);
        calls
    }

    /// Waits until this many calls have been answered; returns whether they were.
    pub(crate) fn wait_for_calls(
        &self,
        count: usize,
        deadline: Duration,
        mut goes_on: impl FnMut() -> bool,
    ) -> bool {
        let end = Instant::now() + deadline;
        while Instant::now() < end && goes_on() {
            if self.stats().calls >= count {
                return true;
            }
            std::thread::sleep(LOOK);
        }
        false
    }

    /// The process ids of broker and stub.
    pub(crate) fn pids(&self) -> [u32; 2] {
        [self.cluster.process(0).map_or(0, Process::pid), self.stub.pid()]
    }
}

/// A producer of jobs, for many at once or for one at a time.
pub(crate) fn producer(brokers: &str, linger_ms: &str) -> ThreadedProducer<DefaultProducerContext> {
    ClientConfig::new()
        .set("bootstrap.servers", brokers)
        .set("linger.ms", linger_ms)
        // This is the default of Java's producer, which fills most topics in practice. librdkafka's
        // is a million, and a consumer of one record of a batch gets the whole batch.
        .set("batch.size", "16384")
        .set("enable.idempotence", "true")
        .create()
        .expect("a producer")
}

/// Writes job `n`, waiting for room in the queue if necessary.
pub(crate) fn send(
    producer: &ThreadedProducer<DefaultProducerContext>,
    topic: &str,
    workload: &Workload,
    n: u32,
) {
    let key = workload.key(n);
    let (partition, key) = (workload.partition(key), format!("k{key}"));
    let value = workload.envelope(n);
    let mut record = BaseRecord::to(topic).key(&key).payload(&value).partition(partition);
    while let Err((error, again)) = producer.send(record) {
        let is_full = matches!(error, KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull));
        assert!(is_full, "{error}");
        std::thread::sleep(LOOK);
        record = again;
    }
}

/// Writes the jobs' ids and bodies, one per line, for contestants that don't read Kafka.
pub(crate) fn write_lines(path: &std::path::Path, workload: &Workload, jobs: u32) {
    let mut text = String::new();
    for n in 0..jobs {
        text.push_str(&workload.envelope(n));
        text.push('\n');
    }
    fs::write(path, text).expect("a file of jobs");
}

/// A Redis without persistence.
pub(crate) struct Redis {
    _process: Process,
    pub(crate) url: String,
}

impl Redis {
    pub(crate) fn start(machine: &Machine) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let port = listener.local_addr().expect("its number").port();
        drop(listener);
        let mut command = Command::new("redis-server");
        command.args([
            "--port",
            &port.to_string(),
            "--bind",
            "127.0.0.1",
            "--save",
            "",
            "--appendonly",
            "no",
        ]);
        let mut process = Process::start("redis", &machine.directory, command);
        process.says("Ready to accept connections", START);
        Self { _process: process, url: format!("redis://127.0.0.1:{port}/0") }
    }
}

/// Describes the machine.
pub(crate) fn describe() -> serde_json::Value {
    let line = |path: &str, key: &str| {
        let text = fs::read_to_string(path).unwrap_or_default();
        let found = text.lines().find_map(|line| line.strip_prefix(key).map(str::to_owned));
        found.map(|value| value.trim_start_matches([' ', '\t', ':']).to_owned()).unwrap_or_default()
    };
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    serde_json::json!({
        "cpu": line("/proc/cpuinfo", "model name"),
        "cores": cores,
        "memory": line("/proc/meminfo", "MemTotal"),
        "kernel": fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default().trim(),
        "keys": workload::KEYS,
    })
}

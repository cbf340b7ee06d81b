//! Real Apache Kafka: KRaft nodes that are broker and controller at once, from the jars that `tests/kafka/pom.xml` names.

use std::{
    fs,
    net::TcpListener,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use crate::{bins, cache, process, process::Process, topics};

/// How long a cluster may take to answer. Starting a JVM on two busy cores is slow.
const START: Duration = Duration::from_secs(120);
const HEAP: &str = "-Xmx512m";
/// A cluster id is a base64 UUID; any one will do, since nothing else is in the data directory.
const CLUSTER_ID: &str = "bWNwLWZsZWV0LXRlc3RzMA";

/// What is missing to run Kafka here, if anything.
pub fn missing() -> Option<String> {
    let java = cache::works("java", &["-version"]);
    let maven = cache::works("mvn", &["--version"]);
    let missing: Vec<_> = [(java, "java (17 or newer)"), (maven, "mvn")]
        .into_iter()
        .filter_map(|(there, name)| (!there).then_some(name))
        .collect();
    (!missing.is_empty()).then(|| missing.join(" and "))
}

/// A cluster of one or more nodes. Dropping it kills it and removes its data.
#[derive(Debug)]
pub struct Cluster {
    nodes: Vec<Node>,
    /// What clients put into `bootstrap.servers`.
    pub brokers: String,
    directory: PathBuf,
}

/// One node of a cluster.
#[derive(Debug)]
struct Node {
    id: usize,
    config: PathBuf,
    process: Option<Process>,
}

impl Cluster {
    /// Starts `size` nodes and returns when all of them are in the cluster's metadata.
    pub fn start(size: usize) -> Self {
        let directory = bins::scratch("kafka");
        process::remove_at_exit(&directory);
        let ports: Vec<Ports> = (0..size).map(|_| Ports::reserve()).collect();
        let voters: Vec<_> = ports
            .iter()
            .enumerate()
            .map(|(id, ports)| format!("{id}@127.0.0.1:{}", ports.controller))
            .collect();
        let brokers: Vec<_> = ports.iter().map(|ports| format!("127.0.0.1:{}", ports.broker)).collect();
        let nodes = ports.iter().enumerate().map(|(id, ports)| {
            let config = directory.join(format!("node-{id}.properties"));
            let data = directory.join(format!("data-{id}"));
            fs::write(&config, properties(id, ports, &voters.join(","), &data, size))
                .expect("a broker's configuration");
            Node { id, config, process: None }
        });
        let mut cluster = Self { nodes: nodes.collect(), brokers: brokers.join(","), directory };
        for id in 0..size {
            let format = java("kafka.tools.StorageTool", &["format", "-t", CLUSTER_ID, "-c"]);
            cache::run({ format }.arg(&cluster.nodes[id].config));
            cluster.restart(id);
        }
        let brokers = cluster.brokers.clone();
        let first = cluster.nodes[0].process.as_mut().expect("the first node");
        first.until("cluster metadata", START, || (topics::nodes(&brokers) == Ok(size)).then_some(()));
        cluster
    }

    /// Starts a node that was killed.
    pub fn restart(&mut self, id: usize) {
        let node = &mut self.nodes[id];
        let mut command = java("kafka.Kafka", &[]);
        command.arg(&node.config);
        node.process = Some(Process::start(&format!("kafka-{}", node.id), &self.directory, command));
    }

    /// Kills a node with SIGKILL.
    pub fn kill(&mut self, id: usize) {
        self.nodes[id].process = None;
    }

    /// The process of a node, to send signals to.
    pub fn process(&self, id: usize) -> Option<&Process> {
        self.nodes[id].process.as_ref()
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.nodes.clear();
        drop(fs::remove_dir_all(&self.directory));
    }
}

/// The ports of a node. They are free now; that nobody takes them until the node does is likely, not certain.
#[derive(Debug)]
struct Ports {
    broker: u16,
    controller: u16,
}

impl Ports {
    fn reserve() -> Self {
        let listeners = [(); 2].map(|()| TcpListener::bind("127.0.0.1:0").expect("a free port"));
        let [broker, controller] =
            listeners.map(|listener| listener.local_addr().expect("its number").port());
        Self { broker, controller }
    }
}

fn properties(id: usize, ports: &Ports, voters: &str, data: &Path, size: usize) -> String {
    let (copies, in_sync) = (size.min(3), size.min(2));
    let Ports { broker, controller } = ports;
    let data = data.display();
    format!(
        "process.roles=broker,controller
node.id={id}
controller.quorum.voters={voters}
listeners=PLAINTEXT://127.0.0.1:{broker},CONTROLLER://127.0.0.1:{controller}
advertised.listeners=PLAINTEXT://127.0.0.1:{broker}
controller.listener.names=CONTROLLER
listener.security.protocol.map=CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT
log.dirs={data}
auto.create.topics.enable=false
default.replication.factor={copies}
min.insync.replicas={in_sync}
offsets.topic.replication.factor={copies}
offsets.topic.num.partitions=4
transaction.state.log.replication.factor={copies}
transaction.state.log.min.isr={in_sync}
transaction.state.log.num.partitions=2
share.coordinator.state.topic.replication.factor={copies}
share.coordinator.state.topic.min.isr={in_sync}
share.coordinator.state.topic.num.partitions=2
group.initial.rebalance.delay.ms=0
message.max.bytes=8388608
log.cleaner.dedupe.buffer.size=2097152
num.network.threads=2
num.io.threads=4
num.recovery.threads.per.data.dir=1
"
    )
}

fn java(class: &str, arguments: &[&str]) -> Command {
    let log = bins::repository().join("tests/kafka/log4j2.properties");
    let mut command = Command::new("java");
    command
        .args([HEAP, "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-Xshare:auto"])
        .arg(format!("-Dlog4j2.configurationFile={}", log.display()))
        .arg("-cp")
        .arg(jars().join("*"))
        .arg(class)
        .args(arguments);
    command
}

fn jars() -> PathBuf {
    let pom = bins::repository().join("tests/kafka/pom.xml");
    let text = fs::read_to_string(&pom).expect("tests/kafka/pom.xml");
    cache::once(&format!("kafka-{}", version(&text)), |directory| {
        let output = format!("-DoutputDirectory={}", directory.display());
        cache::run(Command::new("mvn").args(["-q", "-B", "-f"]).arg(&pom).args([
            "dependency:copy-dependencies",
            "-DincludeScope=runtime",
            &output,
        ]));
    })
}

fn version(pom: &str) -> &str {
    let after = pom.split_once("<kafka.version>").expect("the version in the pom").1;
    after.split_once('<').expect("the end of the version").0
}

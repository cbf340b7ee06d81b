//! Real Apache Kafka: KRaft nodes that are both broker and controller, from the jars in
//! `tests/kafka/pom.xml`.

use std::{
    collections::BTreeMap,
    fs,
    net::{SocketAddr, TcpListener},
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use crate::{
    bins, cache, is_set, loud,
    node::fingerprint,
    process,
    process::Process,
    proxy::{Network, Proxy},
    secured::Secured,
    topics, wait,
};

/// How long a cluster may take to answer, considering that a JVM starts slowly on two busy cores.
const START: Duration = Duration::from_secs(120);
const HEAP: &str = "-Xmx512m";
/// JVM options for a quick start at the cost of speed afterwards, which suits tests.
const SOON: [&str; 2] = ["-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1"];
/// The JVM options of Kafka's own start script, with a heap for a broker on two cores.
const FAST: &str = "-Xms1g -Xmx1g -server -XX:+UseG1GC -XX:MaxGCPauseMillis=20 -XX:InitiatingHeapOccupancyPercent=35";
/// A cluster id is a base64 UUID. Any UUID will do, since the data directory is otherwise empty.
const CLUSTER_ID: &str = "bWNwLWZsZWV0LXRlc3RzMA";

/// The program that is missing to run Kafka here, if any.
pub fn missing() -> Option<String> {
    let java = cache::works("java", &["-version"]);
    let maven = cache::works("mvn", &["--version"]);
    let missing: Vec<_> = [(java, "java (17 or newer)"), (maven, "mvn")]
        .into_iter()
        .filter_map(|(there, name)| (!there).then_some(name))
        .collect();
    (!missing.is_empty()).then(|| missing.join(" and "))
}

/// Whether Kafka can be started here. If it can't, prints a warning, or panics if Kafka is required
/// (`FLEET_REQUIRE_KAFKA`).
pub fn available() -> bool {
    let Some(missing) = missing() else { return true };
    let message = format!(
        "{missing} not found: the tests on Apache Kafka are NOT RUN, only those on the embedded broker. \
         scripts/setup-system --tests installs it; KAFKA_BROKERS=host:port uses another cluster."
    );
    assert!(!is_set("FLEET_REQUIRE_KAFKA"), "FLEET_REQUIRE_KAFKA is set, but {message}");
    loud(&message);
    false
}

/// A cluster of one or more nodes. Dropping it kills it and removes its data.
#[derive(Debug)]
pub struct Cluster {
    nodes: Vec<Node>,
    /// The value of `bootstrap.servers` for clients.
    pub brokers: String,
    /// The same, for clients behind a network that can fail; see [`Cluster::network`].
    pub proxied: String,
    /// One proxy per node, in front of its second listener.
    proxies: Vec<Proxy>,
    directory: PathBuf,
    /// The listener with TLS and a password, if there is one.
    secured: Option<Secured>,
    /// Whether the JVM is set up for speed rather than for a quick start.
    is_fast: bool,
}

/// One node of a cluster.
#[derive(Debug)]
struct Node {
    id: usize,
    config: PathBuf,
    process: Option<Process>,
}

impl Cluster {
    /// Starts `size` nodes, and returns once all of them are in the cluster's metadata.
    pub fn start(size: usize) -> Self {
        Self::start_as(size, false, false)
    }

    /// A cluster of one node whose JVM is set up as in production, for benchmarks.
    pub fn start_fast() -> Self {
        Self::start_as(1, true, false)
    }

    /// A cluster of one node that has a third listener, [`Cluster::secured`].
    pub fn start_secured() -> Self {
        Self::start_as(1, false, true)
    }

    fn start_as(size: usize, is_fast: bool, is_secured: bool) -> Self {
        let directory = bins::scratch("kafka");
        process::remove_at_exit(&directory);
        let ports: Vec<Ports> = (0..size).map(|_| Ports::reserve()).collect();
        let voters: Vec<_> = ports
            .iter()
            .enumerate()
            .map(|(id, ports)| format!("{id}@127.0.0.1:{}", ports.controller))
            .collect();
        let brokers: Vec<_> =
            ports.iter().map(|ports| format!("127.0.0.1:{}", ports.broker)).collect();

        // Clients connect to the address that a broker advertises, so the second listener has to
        // advertise its proxy.
        let local = |port| SocketAddr::from(([127, 0, 0, 1], port));
        let proxies: Vec<_> =
            ports.iter().map(|ports| Proxy::start(Some(local(ports.proxied)))).collect();
        let proxied: Vec<_> = proxies.iter().map(|proxy| proxy.address.to_string()).collect();
        let secured = is_secured.then(|| Secured::new(&directory));
        let nodes = ports.iter().enumerate().map(|(id, ports)| {
            let config = directory.join(format!("node-{id}.properties"));
            let data = directory.join(format!("data-{id}"));
            let text = properties(id, ports, &proxied[id], &voters.join(","), &data, size);
            let text = secured.as_ref().map_or(text.clone(), |secured| secured.extend(&text));
            fs::write(&config, text).expect("a broker's configuration");
            Node { id, config, process: None }
        });

        let nodes = nodes.collect::<Vec<_>>();
        let mut cluster = Self {
            nodes,
            brokers: brokers.join(","),
            proxied: proxied.join(","),
            proxies,
            directory,
            secured,
            is_fast,
        };

        for id in 0..size {
            let mut format = java("kafka.tools.StorageTool", &["format", "-t", CLUSTER_ID, "-c"]);
            format.arg(&cluster.nodes[id].config);
            if is_secured {
                format.args(["--add-scram", &Secured::user()]);
            }
            cache::run(&mut format);
            cluster.restart(id);
        }

        let brokers = cluster.brokers.clone();
        let first = cluster.nodes[0].process.as_mut().expect("the first node");
        first.wait_until("cluster metadata", START, || {
            (topics::nodes(&brokers) == Ok(size)).then_some(())
        });
        cluster
    }

    /// The listener with TLS and a password of [`Cluster::start_secured`].
    ///
    /// # Panics
    ///
    /// Panics if the cluster was started without one.
    pub fn secured(&self) -> &Secured {
        self.secured.as_ref().expect("a cluster with a secured listener")
    }

    /// Starts a node that was killed.
    pub fn restart(&mut self, id: usize) {
        let node = &mut self.nodes[id];
        let mut command = if self.is_fast {
            java_as(FAST.split_whitespace(), "kafka.Kafka", &[])
        } else {
            java("kafka.Kafka", &[])
        };
        command.arg(&node.config);
        node.process =
            Some(Process::start(&format!("kafka-{}", node.id), &self.directory, command));
    }

    /// Kills a node with SIGKILL.
    pub fn kill(&mut self, id: usize) {
        self.nodes[id].process = None;
    }

    /// Sets the state of the network for clients that connect through [`Cluster::proxied`].
    pub fn network(&self, network: Network) {
        self.proxies.iter().for_each(|proxy| proxy.set(network));
    }

    /// Waits until all replicas of all partitions are in sync: only then may the next node fail.
    pub fn wait_until_in_sync(&self) {
        wait::poll_until("all replicas in sync", START, || self.is_in_sync().then_some(()));
    }

    /// Whether all replicas of all partitions are in sync.
    pub fn is_in_sync(&self) -> bool {
        topics::nodes(&self.brokers) == Ok(self.nodes.len()) && topics::in_sync(&self.brokers)
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

/// The ports of a node. They are free now, and probably still are when the node starts.
#[derive(Debug)]
struct Ports {
    broker: u16,
    proxied: u16,
    controller: u16,
}

impl Ports {
    fn reserve() -> Self {
        let listeners = [(); 3].map(|()| TcpListener::bind("127.0.0.1:0").expect("a free port"));
        let [broker, proxied, controller] =
            listeners.map(|listener| listener.local_addr().expect("its number").port());
        Self { broker, proxied, controller }
    }
}

fn properties(
    id: usize,
    ports: &Ports,
    advertised: &str,
    voters: &str,
    data: &Path,
    size: usize,
) -> String {
    let (copies, in_sync) = (size.min(3), size.min(2));
    let Ports { broker, proxied, controller } = ports;
    let data = data.display();
    format!(
        "process.roles=broker,controller
node.id={id}
controller.quorum.voters={voters}
listeners=PLAINTEXT://127.0.0.1:{broker},PROXIED://127.0.0.1:{proxied},CONTROLLER://127.0.0.1:{controller}
advertised.listeners=PLAINTEXT://127.0.0.1:{broker},PROXIED://{advertised}
inter.broker.listener.name=PLAINTEXT
controller.listener.names=CONTROLLER
listener.security.protocol.map=CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT,PROXIED:PLAINTEXT
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

/// Writes the configuration of a node below `directory` and formats its storage, with the program
/// that the image `apache/kafka` uses: variables `KAFKA_…` become properties, and `CLUSTER_ID` is
/// the id of the cluster.
pub(crate) fn set_up_as_image(directory: &Path, env: &BTreeMap<String, String>) {
    fs::create_dir_all(directory).expect("a directory for a node's configuration");
    let nothing = directory.join("nothing");
    let mut command = java("kafka.docker.KafkaDockerWrapper", &["setup"]);
    let path = std::env::var_os("PATH").unwrap_or_default();
    command.arg("--default-configs-dir").arg(&nothing).arg("--mounted-configs-dir").arg(&nothing);
    command.arg("--final-configs-dir").arg(directory).env_clear().env("PATH", path).envs(env);
    cache::run(&mut command);
}

fn java(class: &str, arguments: &[&str]) -> Command {
    java_with(HEAP, class, arguments)
}

/// A command that runs `tests/kafka/Codecs.java` with Kafka's own client; `None` if Java or Maven is
/// neither available nor required.
pub fn codecs() -> Option<Command> {
    if !available() {
        return None;
    }
    let program = bins::repository().join("tests/kafka/Codecs.java");
    Some(java(program.to_str().expect("a path in UTF-8"), &[]))
}

/// A command that runs a class of Kafka with these heap options.
pub(crate) fn java_with(heap: &str, class: &str, arguments: &[&str]) -> Command {
    java_as(heap.split_whitespace().chain(SOON), class, arguments)
}

fn java_as<'a>(
    options: impl IntoIterator<Item = &'a str>,
    class: &str,
    arguments: &[&str],
) -> Command {
    let log = bins::repository().join("tests/kafka/log4j2.properties");
    let mut command = Command::new("java");
    command
        .args(options)
        .arg("-Xshare:auto")
        .arg(format!("-Dlog4j2.configurationFile={}", log.display()))
        .arg("-cp")
        .arg(jars().join("*"))
        .arg(class)
        .args(arguments);
    command
}

fn jars() -> PathBuf {
    let pom = pom();
    let digests = bins::repository().join("tests/kafka/jars.sha256");
    let entry = format!("kafka-{}-{}-{}", version(), fingerprint(&pom), fingerprint(&digests));

    cache::once(&entry, |directory| {
        let output = format!("-DoutputDirectory={}", directory.display());
        let mut maven = Command::new("mvn");
        maven.args(["--quiet", "--batch-mode", "--strict-checksums", "--file"]).arg(&pom);
        maven.args(["dependency:copy-dependencies", "-DincludeScope=runtime", &output]);
        cache::run(&mut maven);
        check_digests(directory, &digests);
    })
}

/// Checks that `directory` has the files of the list `digests` and no others.
fn check_digests(directory: &Path, digests: &Path) {
    let mut sha256sum = Command::new("sha256sum");
    sha256sum.args(["--check", "--strict", "--quiet"]).arg(digests).current_dir(directory);
    cache::run(&mut sha256sum);

    let listed = fs::read_to_string(digests).expect("the list of digests").lines().count();
    let found = fs::read_dir(directory).expect("the directory of jars").count();
    assert_eq!(found, listed, "{} has jars that {} lacks", directory.display(), digests.display());
}

fn pom() -> PathBuf {
    bins::repository().join("tests/kafka/pom.xml")
}

/// The version of Kafka.
pub(crate) fn version() -> String {
    let pom = fs::read_to_string(pom()).expect("tests/kafka/pom.xml");
    let after = pom.split_once("<kafka.version>").expect("the version in the pom").1;
    after.split_once('<').expect("the end of the version").0.to_owned()
}

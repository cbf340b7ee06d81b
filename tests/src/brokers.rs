//! The brokers that tests run on.
//!
//! `KAFKA_BROKERS` names a cluster to use instead of starting one. Otherwise Apache Kafka needs
//! Java and Maven. If they are missing, the tests that need Kafka print a warning and pass, unless
//! `FLEET_REQUIRE_KAFKA=1`.

use std::{
    collections::BTreeMap,
    fs,
    path::Path,
    process::Command,
    sync::{Arc, OnceLock, Weak},
    time::Duration,
};

use parking_lot::Mutex;

use crate::{bins, kafka, kafka::Cluster, process, process::Process};

const START: Duration = Duration::from_secs(60);

/// A broker for the tests of this process.
#[derive(Debug)]
pub struct Env {
    /// The value of `bootstrap.servers` for clients.
    pub brokers: String,
    /// The broker's name in messages.
    pub name: &'static str,
    /// Kept as long as the environment is used.
    _running: Running,
}

#[derive(Debug)]
enum Running {
    Elsewhere,
    Cluster { _cluster: Cluster },
    Process { _process: Process },
}

impl Env {
    /// Apache Kafka, started on first use; `None` if it is neither available nor required.
    pub fn apache_kafka() -> Option<&'static Self> {
        static ENV: OnceLock<Option<Env>> = OnceLock::new();
        ENV.get_or_init(|| {
            if let Ok(brokers) = std::env::var("KAFKA_BROKERS")
                && !brokers.is_empty()
            {
                return Some(Self {
                    brokers,
                    name: "the cluster of KAFKA_BROKERS",
                    _running: Running::Elsewhere,
                });
            }
            if !kafka::available() {
                return None;
            }
            let cluster = Cluster::start(1);
            let brokers = cluster.brokers.clone();
            Some(Self {
                brokers,
                name: "Apache Kafka",
                _running: Running::Cluster { _cluster: cluster },
            })
        })
        .as_ref()
    }

    /// A cluster that a test has started and owns.
    pub fn of(cluster: &Cluster) -> Self {
        Self {
            brokers: cluster.brokers.clone(),
            name: "Apache Kafka",
            _running: Running::Elsewhere,
        }
    }

    /// Whether the broker decodes records before it stores them, so that any client reads them.
    pub fn keeps_plain_records(&self) -> bool {
        matches!(self._running, Running::Process { .. })
    }

    /// An embedded broker, as a process of its own. Tests of the same `module` that run at the same
    /// time share it. One broker for all tests would have hundreds of topics.
    pub fn embedded_broker(module: &'static str) -> Arc<Self> {
        static RUNNING: Mutex<BTreeMap<&str, Weak<Env>>> = Mutex::new(BTreeMap::new());

        // Held while the broker starts, so that the module's other tests wait for this one.
        let mut running = RUNNING.lock();
        if let Some(env) = running.get(module).and_then(Weak::upgrade) {
            return env;
        }

        let directory = bins::scratch("embedded-broker");
        process::remove_at_exit(&directory);
        let (process, brokers) = start_embedded(&directory, "127.0.0.1:0");
        let env = Arc::new(Self {
            brokers,
            name: "the embedded broker",
            _running: Running::Process { _process: process },
        });
        running.insert(module, Arc::downgrade(&env));
        env
    }

    /// Whether this is the embedded broker.
    pub fn is_embedded(&self) -> bool {
        matches!(self._running, Running::Process { .. })
    }
}

/// Starts an embedded broker that keeps everything below `directory`, and waits until it answers.
/// Returns its address.
pub fn start_embedded(directory: &Path, listen: &str) -> (Process, String) {
    let ready = directory.join(bins::unique("ready"));
    let mut command = Command::new(bins::bin("mcp-fleet-broker"));
    command.args(["--listen", listen, "--ready-file"]).arg(&ready).arg("--data-dir");
    command.arg(directory.join("data"));
    let mut process = Process::start("mcp-fleet-broker", directory, command);
    let brokers = process.wait_until("the ready file", START, || fs::read_to_string(&ready).ok());
    (process, brokers.trim().to_owned())
}

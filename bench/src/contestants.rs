//! The contestants, and how each is started.

use std::{collections::BTreeMap, env, fs, path::Path, process::Command};

use fleet_tests::bins;
use serde::{Deserialize, Serialize};

/// The list of what `bench/peers/setup` has built.
pub(crate) const PEERS: &str = "target/bench/peers/peers.json";

/// A third-party contestant.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct Peer {
    pub(crate) name: String,
    #[serde(default)]
    pub(crate) version: String,
    pub(crate) ready: bool,
    /// Why it could not be built, if it is not ready.
    #[serde(default)]
    pub(crate) reason: Option<String>,
    #[serde(default)]
    command: Vec<String>,
    #[serde(default)]
    env: BTreeMap<String, String>,
    /// The command that fills its queue, if it doesn't read Kafka.
    #[serde(default)]
    fill: Option<Vec<String>>,
}

/// One contestant.
#[derive(Debug, Clone)]
pub(crate) struct Contestant {
    pub(crate) name: String,
    pub(crate) kind: Kind,
}

#[derive(Debug, Clone)]
pub(crate) enum Kind {
    Ceiling,
    Floor,
    /// The fleet, with an ordering.
    Fleet(&'static str),
    /// A peer, with an ordering.
    Peer(Box<Peer>, &'static str),
}

/// The environment of a contestant.
#[derive(Debug, Clone, Default)]
pub(crate) struct Setup {
    pub(crate) brokers: String,
    pub(crate) topic: String,
    pub(crate) group: String,
    /// The stub's URL, without a path.
    pub(crate) url: String,
    /// The number of the worker, if there are several.
    pub(crate) worker: u32,
    pub(crate) concurrency: usize,
    pub(crate) bytes: usize,
    /// The Redis for contestants that don't use Kafka.
    pub(crate) redis: String,
}

/// All peers, whether they were built or not.
pub(crate) fn peers() -> Vec<Peer> {
    let text = fs::read(bins::repository().join(PEERS)).unwrap_or_default();
    serde_json::from_slice(&text).unwrap_or_default()
}

/// All contestants that are available here.
pub(crate) fn all() -> Vec<Contestant> {
    let named = |name: &str, kind| Contestant { name: name.to_owned(), kind };
    let mut all = vec![
        named("ceiling", Kind::Ceiling),
        named("floor", Kind::Floor),
        named("fleet-key", Kind::Fleet("key")),
        named("fleet-partition", Kind::Fleet("partition")),
        named("fleet-unordered", Kind::Fleet("unordered")),
    ];
    for peer in peers().into_iter().filter(|peer| peer.ready) {
        if peer.name == "parallel-consumer" {
            for ordering in ["key", "unordered"] {
                let kind = Kind::Peer(Box::new(peer.clone()), ordering);
                all.push(named(&format!("{}-{ordering}", peer.name), kind));
            }
        } else {
            all.push(named(&peer.name.clone(), Kind::Peer(Box::new(peer), "unordered")));
        }
    }
    all
}

impl Contestant {
    /// Whether it reads its jobs from Kafka.
    pub(crate) fn reads_kafka(&self) -> bool {
        match &self.kind {
            Kind::Ceiling => false,
            Kind::Peer(peer, _) => peer.fill.is_none(),
            Kind::Floor | Kind::Fleet(_) => true,
        }
    }

    pub(crate) fn is_ceiling(&self) -> bool {
        matches!(self.kind, Kind::Ceiling)
    }

    pub(crate) fn is_fleet(&self) -> bool {
        matches!(self.kind, Kind::Fleet(_))
    }

    /// The command that starts it.
    pub(crate) fn command(&self, setup: &Setup) -> Command {
        match &self.kind {
            Kind::Ceiling => bare("ceiling", setup),
            Kind::Floor => bare("floor", setup),
            Kind::Fleet(ordering) => fleet(ordering, setup),
            Kind::Peer(peer, ordering) => {
                let mut command = peer.argv(&peer.command, setup);
                command.env("BENCH_ORDERING", ordering);
                command
            }
        }
    }

    /// The command that puts the first `jobs` lines of a file into its queue.
    pub(crate) fn fill(&self, setup: &Setup, lines: &Path, jobs: u32) -> Option<Command> {
        let Kind::Peer(peer, _) = &self.kind else { return None };
        let mut command = peer.argv(peer.fill.as_ref()?, setup);
        command.arg(lines).arg(jobs.to_string());
        Some(command)
    }
}

impl Peer {
    fn argv(&self, argv: &[String], setup: &Setup) -> Command {
        let (program, rest) = argv.split_first().expect("a peer's command");
        let mut command = Command::new(program);
        command.current_dir(bins::repository()).args(rest);
        bench(&mut command, setup, "job");
        command.envs(&self.env);
        command
    }
}

/// Sets the environment of all contestants other than the fleet.
fn bench(command: &mut Command, setup: &Setup, path: &str) {
    command
        .env("BENCH_BROKERS", &setup.brokers)
        .env("BENCH_TOPIC", &setup.topic)
        .env("BENCH_GROUP", &setup.group)
        .env("BENCH_QUEUE", &setup.group)
        .env("BENCH_REDIS", &setup.redis)
        .env("BENCH_URL", format!("{}/w/{}/{path}", setup.url, setup.worker))
        .env("BENCH_BYTES", setup.bytes.to_string())
        .env("BENCH_CONCURRENCY", setup.concurrency.to_string());
}

fn bare(name: &str, setup: &Setup) -> Command {
    let mut command = Command::new(env::current_exe().expect("the path of this program"));
    command.arg(name);
    bench(&mut command, setup, if name == "ceiling" { "mcp" } else { "job" });
    command
}

fn fleet(ordering: &str, setup: &Setup) -> Command {
    let mut command = Command::new(bins::bin("kafka-worker"));
    command
        .env("KAFKA_BROKERS", &setup.brokers)
        .env("KAFKA_TOPIC", &setup.topic)
        .env("MCP_CONSUMER_GROUP", &setup.group)
        .env("MCP_SERVER_URL", format!("{}/w/{}/mcp", setup.url, setup.worker))
        .env("MCP_MAX_IN_FLIGHT", setup.concurrency.to_string())
        .env("MCP_ORDERING", ordering)
        .env("PORT", "0")
        .env("RUST_LOG", "warn");
    command
}

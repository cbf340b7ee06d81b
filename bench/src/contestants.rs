//! Who takes part, and how each is started.

use std::{collections::BTreeMap, env, fs, path::Path, process::Command};

use fleet_tests::bins;
use serde::{Deserialize, Serialize};

/// What `bench/peers/setup` says it has built.
pub(crate) const PEERS: &str = "target/bench/peers/peers.json";

/// A contestant that others have written.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct Peer {
    pub(crate) name: String,
    #[serde(default)]
    pub(crate) version: String,
    pub(crate) ready: bool,
    /// Why it could not be built, where it is not ready.
    #[serde(default)]
    pub(crate) reason: Option<String>,
    #[serde(default)]
    command: Vec<String>,
    #[serde(default)]
    env: BTreeMap<String, String>,
    /// What puts jobs into its queue, where it does not read Kafka.
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
    /// Ours, with an ordering.
    Fleet(&'static str),
    /// Another's, with an ordering.
    Peer(Box<Peer>, &'static str),
}

/// Where a contestant works.
#[derive(Debug, Clone, Default)]
pub(crate) struct Place {
    pub(crate) brokers: String,
    pub(crate) topic: String,
    pub(crate) group: String,
    /// The stub's URL, without a path.
    pub(crate) url: String,
    /// Which of several workers it is.
    pub(crate) worker: u32,
    pub(crate) concurrency: usize,
    pub(crate) bytes: usize,
    /// For who has no Kafka.
    pub(crate) redis: String,
}

/// What was built of the peers, and what was not.
pub(crate) fn peers() -> Vec<Peer> {
    let text = fs::read(bins::repository().join(PEERS)).unwrap_or_default();
    serde_json::from_slice(&text).unwrap_or_default()
}

/// Everybody who can take part here.
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
    /// Whether it takes its jobs from Kafka.
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
    pub(crate) fn command(&self, place: &Place) -> Command {
        match &self.kind {
            Kind::Ceiling => bare("ceiling", place),
            Kind::Floor => bare("floor", place),
            Kind::Fleet(ordering) => fleet(ordering, place),
            Kind::Peer(peer, ordering) => {
                let mut command = peer.argv(&peer.command, place);
                command.env("BENCH_ORDERING", ordering);
                command
            }
        }
    }

    /// The command that puts the first `jobs` lines of a file into its queue.
    pub(crate) fn fill(&self, place: &Place, lines: &Path, jobs: u32) -> Option<Command> {
        let Kind::Peer(peer, _) = &self.kind else { return None };
        let mut command = peer.argv(peer.fill.as_ref()?, place);
        command.arg(lines).arg(jobs.to_string());
        Some(command)
    }
}

impl Peer {
    fn argv(&self, argv: &[String], place: &Place) -> Command {
        let (program, rest) = argv.split_first().expect("a peer's command");
        let mut command = Command::new(program);
        command.current_dir(bins::repository()).args(rest);
        bench(&mut command, place, "job");
        command.envs(&self.env);
        command
    }
}

/// The environment that all contestants but ours are started in.
fn bench(command: &mut Command, place: &Place, path: &str) {
    command
        .env("BENCH_BROKERS", &place.brokers)
        .env("BENCH_TOPIC", &place.topic)
        .env("BENCH_GROUP", &place.group)
        .env("BENCH_QUEUE", &place.group)
        .env("BENCH_REDIS", &place.redis)
        .env("BENCH_URL", format!("{}/w/{}/{path}", place.url, place.worker))
        .env("BENCH_BYTES", place.bytes.to_string())
        .env("BENCH_CONCURRENCY", place.concurrency.to_string());
}

fn bare(name: &str, place: &Place) -> Command {
    let mut command = Command::new(env::current_exe().expect("the path of this program"));
    command.arg(name);
    bench(&mut command, place, if name == "ceiling" { "mcp" } else { "job" });
    command
}

fn fleet(ordering: &str, place: &Place) -> Command {
    let mut command = Command::new(bins::bin("kafka-worker"));
    command
        .env("KAFKA_BROKERS", &place.brokers)
        .env("KAFKA_TOPIC", &place.topic)
        .env("MCP_CONSUMER_GROUP", &place.group)
        .env("MCP_SERVER_URL", format!("{}/w/{}/mcp", place.url, place.worker))
        .env("MCP_MAX_IN_FLIGHT", place.concurrency.to_string())
        .env("MCP_ORDERING", ordering)
        .env("PORT", "0")
        .env("RUST_LOG", "warn");
    command
}

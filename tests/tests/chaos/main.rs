//! Chaos on three real brokers: workers, servers and brokers are killed, stopped and cut off while
//! jobs run, all from one seed. Afterwards the oracle and the audit check the outcome of every job.
//!
//! `FLEET_CHAOS_SEED`, `FLEET_CHAOS_JOBS` and `FLEET_CHAOS_IN_FLIGHT` (per worker) select another
//! run; `scripts/storm chaos` makes long ones. With `--nocapture`, the test reports what it does.

#![expect(clippy::expect_used, reason = "a panic is the report of a test")]
#![expect(clippy::print_stderr, reason = "shown by the test runner, under the test that failed")]

mod disturbances;
mod judgement;

use std::{
    collections::{BTreeMap, HashSet},
    env,
    fs::{File, OpenOptions},
    io::Write as _,
    num::NonZeroUsize,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant, UNIX_EPOCH},
};

use fleet_job::{control::Control, event::JobEvent, topics::Topics};
use fleet_tests::{
    Env, Fleet, Oracle,
    chaos::{
        BEHIND_PROXY, BROKERS, Disturbance, Schedule, Step, WITHOUT_COORDINATOR_MS, WORKERS,
        audit::{Audit, Report},
        evidence::{COMMIT_MS, Cut, Loss, Witness},
        hosted::Hosted,
        jobs::{Jobs, Plan},
        keyring::Keyring,
        ledger::{Ledger, SETTLED, ZOMBIES},
        watch::Watch,
    },
    fleet::{self, ServerOptions, Service},
    http,
    kafka::{self, Cluster},
    oracle::{self, Account},
    proxy::{Network, Proxy},
    topics::{self, Record},
    wait,
};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

const SEED: u64 = 20_000;
/// The number of jobs of a short run. Long runs are started by hand.
const JOBS: u64 = 3_000;
const PARTITIONS: i32 = 12;
const IN_FLIGHT: u64 = 8;
/// The number of partitions of the delayed topic, as created by the product.
const DELAYED_PARTITIONS: i32 = 6;
/// One in this many jobs is cancelled as soon as its end has been read, which is too late.
const CANCELLED: usize = 40;
/// The number of jobs that are looked up at the server afterwards, in addition to those with events
/// after their end.
const ASKED: usize = 300;
/// How often the test checks the state of the run.
const LOOK: Duration = Duration::from_millis(100);
/// The longest time for any step: for a session to expire, a JVM to start, or a transaction of the
/// group to be repeated.
const STALLED: Duration = Duration::from_secs(120);
/// The time by which a worker that was unreachable has learned its state.
const AWAKE: Duration = Duration::from_secs(3);
/// The time by which a worker has either lost its partitions or will keep them: a new coordinator
/// starts the session timeout of each member anew.
const KEPT: Duration = Duration::from_secs(15);

#[test]
fn every_job_ends_whatever_is_killed() {
    if !kafka::available() {
        return;
    }

    let jobs = count("FLEET_CHAOS_JOBS", JOBS);
    let schedule = Schedule::new(number("FLEET_CHAOS_SEED", SEED), jobs);
    eprintln!("{schedule}");
    let begin = Instant::now();
    let cluster = Cluster::start(BROKERS);
    let env = Env::of(&cluster);
    let mut chaos = Chaos::new(&env, cluster);
    eprintln!("{:>6.1} s: the fleet is up", begin.elapsed().as_secs_f64());
    let run = Instant::now();
    chaos.play(&schedule);
    let took = run.elapsed().as_secs_f64();
    let report = chaos.judge();
    eprintln!("{} jobs in {took:.0} s; {report}", schedule.jobs);
    assert!(
        report.wrong.is_empty(),
        "{} things are wrong:\n{}\n{schedule}",
        report.wrong.len(),
        report.wrong[..report.wrong.len().min(40)].join("\n")
    );
}

fn number(name: &str, default: u64) -> u64 {
    let text = env::var(name).ok().filter(|text| !text.is_empty());
    text.map_or(default, |text| {
        text.parse().unwrap_or_else(|error| panic!("{name}={text}: {error}"))
    })
}

fn count(name: &str, default: u64) -> usize {
    usize::try_from(number(name, default)).expect("a number that memory can hold")
}

fn now_ms() -> i64 {
    i64::try_from(UNIX_EPOCH.elapsed().expect("a clock").as_millis()).expect("this century")
}

/// A fleet that is disturbed.
struct Chaos<'e> {
    fleet: Fleet<'e>,
    cluster: Cluster,
    /// The keys that sign jobs and requests to cancel them.
    keyring: Keyring,
    /// The proxy in front of the server: closed while the server is down, and open once it listens.
    gate: Proxy,
    hosted: Hosted,
    ledger: PathBuf,
    /// The ledgers of both tools.
    notes: [File; 2],
    /// The usual workers.
    workers: Vec<Worker>,
    witnesses: Vec<Witness>,
    losses: Vec<Loss>,
    plans: Vec<(Record, Plan)>,
    active: Vec<Active>,
    broker_down_since: Option<i64>,
    outages: Vec<(i64, i64)>,
    /// When a server was killed or cut off.
    cuts: Vec<Cut>,
    cancelled_late: HashSet<String>,
    /// The number of concurrent calls of each worker.
    in_flight: usize,
}

struct Worker {
    name: String,
    service: Service,
}

/// An active disturbance.
struct Active {
    what: Disturbance,
    /// The time of its start, in milliseconds.
    began: i64,
    /// The time of its second phase, if it has two.
    midway: Option<Instant>,
    /// The time of its end, if that is fixed; then recovery starts.
    until: Instant,
    recovering: bool,
    /// How often its worker had lost partitions before.
    lost: f64,
    /// The coordinator that was killed when the worker woke up.
    broker: Option<usize>,
    /// The workers that leave in a storm.
    leaving: Vec<Worker>,
}

impl<'e> Chaos<'e> {
    fn new(env: &'e Env, cluster: Cluster) -> Self {
        let mut fleet = Fleet::new(env, "chaos", PARTITIONS);
        let in_flight = count("FLEET_CHAOS_IN_FLIGHT", IN_FLIGHT);
        for (name, value) in [
            ("MCP_MAX_IN_FLIGHT", in_flight.to_string()),
            ("KAFKA_PROPERTY_SOCKET_CONNECTION_SETUP_TIMEOUT_MS", "5000".to_owned()),
        ] {
            fleet.worker_env(name, &value);
        }
        let keyring = Keyring::new(&fleet.directory, &fleet.topic);
        for (name, value) in keyring.of_workers() {
            fleet.worker_env(name, &value);
        }
        fleet.create_control_topic();
        topics::create(&env.brokers, &[(&Topics::of(&*fleet.topic).delayed, DELAYED_PARTITIONS)]);
        let ledger = fleet.directory.join("ledger");
        let hosted = Hosted::start(env!("CARGO_BIN_EXE_fixture_remote"), &fleet.directory);
        let notes = [&ledger, &hosted.ledger].map(|path| {
            OpenOptions::new().create(true).append(true).open(path).expect("the ledger")
        });
        let gate = Proxy::start(None);
        fleet.server_url = format!("http://{}", gate.address);
        let mut chaos = Self {
            fleet,
            cluster,
            keyring,
            gate,
            hosted,
            ledger,
            notes,
            workers: Vec::new(),
            witnesses: Vec::new(),
            losses: Vec::new(),
            plans: Vec::new(),
            active: Vec::new(),
            broker_down_since: None,
            outages: Vec::new(),
            cuts: Vec::new(),
            cancelled_late: HashSet::new(),
            in_flight,
        };
        chaos.start_server();
        chaos.host();
        for slot in 0..WORKERS {
            let worker = chaos.launch(slot);
            chaos.workers.push(worker);
        }
        chaos
    }

    // --- Processes ------------------------------------------------------------------------------

    /// Starts a server, and opens the proxy for workers once it listens. The server has to read
    /// from the registry what it hosts.
    fn start_server(&mut self) {
        let program = env!("CARGO_BIN_EXE_fixture_tools");
        let env = [
            ("MCP_REPEAT_WINDOW", "0"),
            ("MCP_ALLOWED_REMOTES", "127.0.0.1"),
            // Any job may be looked up afterwards, even the first of a million.
            ("MCP_LEDGER_MAX_JOBS", "10000000"),
            ("MCP_LEDGER_MAX_BYTES", "16GiB"),
        ];
        let options = ServerOptions {
            allowed: vec![format!("{program} {}", self.ledger.display())],
            env: env
                .map(|(name, value)| (name.to_owned(), value.to_owned()))
                .into_iter()
                .chain(self.keyring.of_servers())
                .collect(),
            ..ServerOptions::default()
        };
        let server = self.fleet.launch_replica(options);
        self.gate.forward_to(server.address);
        self.gate.set(Network::Up);
        self.fleet.server = Some(server);
    }

    /// Lets the server host both tools. The server and its successors then read them from the
    /// registry.
    fn host(&self) {
        let server = self.fleet.server.as_ref().expect("the server");
        let child = json!({"command": env!("CARGO_BIN_EXE_fixture_tools"), "args": [self.ledger]});
        let remote = json!({"type": "http", "url": self.hosted.url()});
        for (name, config) in [("chaos", child), ("remote", remote)] {
            wait::poll_until_ok(&format!("a server that hosts {name}"), STALLED, || {
                let answer =
                    server.call("server_initialize", &json!({"name": name, "config": config}));
                let hosted =
                    answer["error"].is_null() && answer["result"]["isError"] != json!(true);
                if hosted { Ok(()) } else { Err(answer) }
            });
        }
    }

    /// Starts a worker that is to become the one of `slot`.
    fn launch(&mut self, slot: usize) -> Worker {
        let name = format!("w{slot}-{}", self.witnesses.len());
        let mut env = vec![("WORKER_ID", name.as_str())];
        if slot == BEHIND_PROXY {
            env.push(("KAFKA_BROKERS", &self.cluster.proxied));
        }
        let service = self.fleet.launch_worker_with(&env);
        let log = service.process.log_path().to_owned();
        self.witnesses.push(Witness { worker: name.clone(), log });
        Worker { name, service }
    }

    fn submit(&mut self, jobs: &mut Jobs, until: usize) {
        let Some(count) = NonZeroUsize::new(until.saturating_sub(self.plans.len())) else { return };
        let (records, plans): (Vec<_>, Vec<_>) = jobs.take(count).into_iter().unzip();
        let records = records.into_iter().map(|record| self.keyring.sign_job(record)).collect();
        let placed = self.fleet.submit(records);
        self.plans.extend(placed.into_iter().zip(plans));
    }
}

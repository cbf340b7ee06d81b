//! Chaos on three real brokers: workers, servers and brokers are killed, stopped and cut off while
//! jobs run, all from one seed. Afterwards the oracle and the audit check the outcome of every job.
//!
//! `FLEET_CHAOS_SEED`, `FLEET_CHAOS_JOBS` and `FLEET_CHAOS_IN_FLIGHT` (per worker) select another
//! run; `scripts/storm chaos` makes long ones. With `--nocapture`, the test reports what it does.

#![expect(clippy::expect_used, reason = "a panic is the report of a test")]
#![expect(clippy::print_stderr, reason = "shown by the test runner, under the test that failed")]

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

use fleet_job::{event::JobEvent, topics::Topics};
use fleet_tests::{
    Env, Fleet, Oracle,
    chaos::{
        BEHIND_PROXY, BROKERS, Disturbance, Schedule, Step, WITHOUT_COORDINATOR_MS, WORKERS,
        audit::{Audit, COMMIT_MS, Cut, Loss, Report, Witness},
        hosted::Hosted,
        jobs::{Jobs, Plan},
        ledger::{Ledger, SETTLED, ZOMBIES},
        watch::Watch,
    },
    fleet::{ServerOptions, Service},
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

/// The cut that a disturbance from `from` to `until` was for calls.
fn cut_by(what: Disturbance, from: i64, until: i64) -> Option<Cut> {
    let (lost_calls, only_remote) = match what {
        Disturbance::KillServer { .. } => (1, false),
        // One with the server, and one when it refuses the old session without saying why.
        Disturbance::KillHosted { .. } => (2, true),
        Disturbance::CutHosted { .. } => (1, true),
        _ => return None,
    };
    Some(Cut { from, until, lost_calls, only_remote })
}

/// How often a worker has lost its partitions without a revocation.
fn count_losses(worker: &Worker) -> f64 {
    http::metric(worker.service.address, "fleet_rebalances_total{kind=\"lost\"}")
        .unwrap_or_default()
}

/// A fleet that is disturbed.
struct Chaos<'e> {
    fleet: Fleet<'e>,
    cluster: Cluster,
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
            env: env.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec(),
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
        let placed = self.fleet.submit(records);
        self.plans.extend(placed.into_iter().zip(plans));
    }

    // --- Disturbances ---------------------------------------------------------------------------

    /// Carries out the schedule, and returns once every job has ended and no disturbance is active.
    fn play(&mut self, schedule: &Schedule) {
        let events = Topics::of(self.fleet.topic.clone()).events;
        let mut watch = Watch::new(&self.cluster.brokers, &events, 2);
        let mut jobs = Jobs::new(schedule.seed);
        self.submit(&mut jobs, schedule.submitted(0));
        let (begin, mut begun) = (Instant::now(), 0);
        let (mut ended, mut moved) = (0, Instant::now());
        while ended < schedule.jobs || begun < schedule.steps.len() || !self.active.is_empty() {
            let seen = watch.ended(LOOK);
            if seen > ended {
                (ended, moved) = (seen, Instant::now());
            }
            self.assert_moving(schedule, ended, moved);
            self.cancel_late(&watch.take_fresh());
            self.go_on();
            if let Some(Step { after, what }) = schedule.steps.get(begun).copied()
                && ended >= after
                && what.may_join(&self.active.iter().map(|active| active.what).collect::<Vec<_>>())
            {
                eprintln!("{:>6.1} s, {ended:>6} ended: {what}", begin.elapsed().as_secs_f64());
                self.begin(what);
                begun += 1;
                self.submit(&mut jobs, schedule.submitted(begun));
            }
        }
    }

    /// Requests the cancellation of some of the ended jobs.
    fn cancel_late(&mut self, ended: &[String]) {
        let number =
            |id: &str| id.strip_prefix('c').and_then(|number| number.parse::<usize>().ok());
        let chosen = |id: &&str| number(id).is_some_and(|number| number.is_multiple_of(CANCELLED));
        let ids: Vec<_> = ended.iter().map(String::as_str).filter(chosen).collect();
        if ids.is_empty() {
            return;
        }
        self.fleet.cancel_all(&ids, Some("too late"));
        self.cancelled_late.extend(ids.into_iter().map(str::to_owned));
    }

    fn assert_moving(&self, schedule: &Schedule, ended: usize, moved: Instant) {
        if moved.elapsed() < STALLED || ended == schedule.jobs {
            return;
        }

        let account =
            Oracle::new(&self.fleet.topic, &self.fleet.submitted).read(&self.cluster.brokers);
        let open = self.fleet.submitted.iter().filter(|record| {
            let last = account.states.get(&(record.partition, record.offset));
            last.is_none_or(|event| !event.state.is_terminal())
        });
        let open: Vec<_> = open.map(|record| (record.partition, record.offset)).collect();
        let active: Vec<_> = self.active.iter().map(|active| active.what).collect();
        let some = &open[..open.len().min(20)];
        panic!(
            "nothing moves: {ended} ended, {} are open, such as {some:?}; {active:?}\n{schedule}",
            open.len()
        );
    }

    fn begin(&mut self, what: Disturbance) {
        let (began, mut leaving) = (now_ms(), Vec::new());
        let lost =
            what.workers().first().map_or(0.0, |worker| count_losses(&self.workers[*worker]));
        match what {
            Disturbance::KillWorker { worker } => {
                self.workers[worker].service.process.kill();
                self.record_loss(worker, now_ms());
                self.workers[worker] = self.launch(worker);
            }
            Disturbance::StopWorker { worker, .. }
            | Disturbance::WakeWithoutCoordinator { worker, .. } => {
                self.note(ZOMBIES);
                self.workers[worker].service.process.signal(Signal::SIGSTOP);
            }
            Disturbance::CutWorker { how, .. } => {
                self.note(ZOMBIES);
                self.cluster.network(how);
            }
            Disturbance::Storm { join, leave } => {
                let joined: Vec<_> = (0..join).map(|_| self.launch(0)).collect();
                for slot in 0..leave {
                    let fresh = self.launch(slot);
                    leaving.push(std::mem::replace(&mut self.workers[slot], fresh));
                }
                leaving.extend(joined);
                leaving.iter().for_each(|worker| worker.service.process.signal(Signal::SIGTERM));
            }
            Disturbance::KillServer { .. } => {
                self.gate.set(Network::Refused);
                self.fleet.server.take().expect("the server").process.kill();
            }
            Disturbance::KillBroker { broker, .. } => {
                self.broker_down_since = Some(now_ms());
                self.cluster.kill(broker);
            }
            Disturbance::KillHosted { .. } => {
                self.hosted.kill();
            }
            Disturbance::CutHosted { how, .. } => {
                self.hosted.network(how);
            }
            Disturbance::RefuseHosted { .. } => self.hosted.refuse(true),
        }
        let until = Instant::now() + Duration::from_millis(what.lasts_ms());
        let has_two_halves = matches!(what, Disturbance::WakeWithoutCoordinator { .. });
        let midway = has_two_halves.then(|| until - Duration::from_millis(WITHOUT_COORDINATOR_MS));
        self.active.push(Active {
            what,
            began,
            midway,
            until,
            recovering: false,
            lost,
            broker: None,
            leaving,
        });
    }

    /// Ends the disturbances that are due, and removes those from which the fleet has recovered.
    fn go_on(&mut self) {
        for mut active in std::mem::take(&mut self.active) {
            if active.midway.is_some_and(|at| Instant::now() >= at) {
                active.midway = None;
                self.wake_without_coordinator(&mut active);
            }
            if !active.recovering && Instant::now() >= active.until {
                self.end(&active);
                active.recovering = true;
                // The recovery starts now.
                active.until = Instant::now();
            }
            if active.recovering && self.has_recovered(&mut active) {
                self.recovered(active.what, active.began);
            } else {
                self.active.push(active);
            }
        }
    }

    /// Kills the coordinator and lets the worker go on. From now on, the killed broker is known.
    fn wake_without_coordinator(&mut self, active: &mut Active) {
        let worker = active.what.workers()[0];
        let broker = topics::coordinator(&self.cluster.brokers, &self.fleet.group);
        self.broker_down_since = Some(now_ms());
        self.cluster.kill(broker);
        active.broker = Some(broker);
        self.workers[worker].service.process.signal(Signal::SIGCONT);
    }

    fn end(&mut self, active: &Active) {
        match active.what {
            Disturbance::StopWorker { worker, .. } => {
                self.workers[worker].service.process.signal(Signal::SIGCONT);
            }
            Disturbance::CutWorker { .. } => self.cluster.network(Network::Up),
            Disturbance::KillServer { .. } => self.start_server(),
            Disturbance::KillBroker { broker, .. } => self.cluster.restart(broker),
            Disturbance::WakeWithoutCoordinator { .. } => {
                self.cluster.restart(active.broker.expect("the broker that was killed"));
            }
            Disturbance::KillHosted { forgotten, .. } => self.hosted.restart(forgotten),
            Disturbance::CutHosted { .. } => self.hosted.network(Network::Up),
            Disturbance::RefuseHosted { .. } => self.hosted.refuse(false),
            Disturbance::KillWorker { .. } | Disturbance::Storm { .. } => {}
        }
    }

    fn has_recovered(&mut self, active: &mut Active) -> bool {
        let since = active.until.elapsed();
        let recovered = match active.what {
            Disturbance::StopWorker { .. } | Disturbance::CutWorker { .. } => {
                self.is_member_again(active)
            }
            Disturbance::WakeWithoutCoordinator { .. } => {
                self.cluster.is_in_sync() && self.is_member_again(active)
            }
            Disturbance::KillBroker { .. } => self.cluster.is_in_sync(),
            Disturbance::Storm { .. } => {
                active.leaving.retain_mut(|worker| {
                    let process = &mut worker.service.process;
                    let runs = process.is_running();
                    assert!(
                        runs || process.wait(LOOK).success(),
                        "{} failed:\n{}",
                        worker.name,
                        process.log()
                    );
                    runs
                });
                active.leaving.is_empty()
            }
            Disturbance::KillWorker { .. }
            | Disturbance::KillServer { .. }
            | Disturbance::KillHosted { .. }
            | Disturbance::CutHosted { .. }
            | Disturbance::RefuseHosted { .. } => true,
        };

        assert!(recovered || since < STALLED, "no recovery from {} within {since:?}", active.what);
        recovered
    }

    /// Whether the worker of an ended disturbance is known to be in its group again.
    fn is_member_again(&self, active: &Active) -> bool {
        let since = active.until.elapsed();
        let worker = &self.workers[active.what.workers()[0]];
        let partitions = http::metric(worker.service.address, "fleet_partitions_assigned");
        let heard = since > KEPT || count_losses(worker) > active.lost;
        since > AWAKE && heard && partitions.is_some_and(|partitions| partitions > 0.0)
    }

    fn recovered(&mut self, what: Disturbance, began: i64) {
        self.cuts.extend(cut_by(what, began, now_ms()));
        match what {
            Disturbance::StopWorker { worker, .. } => self.record_loss(worker, began),
            Disturbance::WakeWithoutCoordinator { worker, .. } => {
                self.record_loss(worker, began);
                self.broker_down_since = None;
                self.outages.push((began, now_ms()));
            }
            Disturbance::CutWorker { .. } => self.record_loss(BEHIND_PROXY, began),
            Disturbance::KillBroker { .. } => {
                self.broker_down_since = None;
                self.outages.push((began, now_ms()));
                return;
            }
            _ => return,
        }

        let is_zombie = |active: &Active| {
            matches!(
                active.what,
                Disturbance::StopWorker { .. }
                    | Disturbance::CutWorker { .. }
                    | Disturbance::WakeWithoutCoordinator { .. }
            )
        };

        if !self.active.iter().any(is_zombie) {
            self.note(SETTLED);
        }
    }

    /// Records that a worker has stopped, or was unreachable since `began`. While a broker is down,
    /// commits may be delayed.
    fn record_loss(&mut self, worker: usize, began: i64) {
        let from = self.broker_down_since.unwrap_or(began).min(began) - COMMIT_MS;
        self.losses.push(Loss { worker: self.workers[worker].name.clone(), from, until: now_ms() });
    }

    fn note(&mut self, word: &str) {
        for notes in &mut self.notes {
            notes.write_all(format!("{word}\n").as_bytes()).expect("the ledger");
        }
    }

    // --- Outcome --------------------------------------------------------------------------------

    fn judge(&mut self) -> Report {
        let mut wrong = Vec::new();
        for worker in &self.workers {
            let violations =
                http::metric(worker.service.address, "fleet_invariant_violations_total");
            if violations != Some(0.0) {
                wrong.push(format!("{}: {violations:?} violations of invariants", worker.name));
            }
        }

        self.cluster.wait_until_in_sync();
        for worker in self.workers.drain(..) {
            self.fleet.workers.push(worker.service);
        }

        self.fleet.stop_workers();
        self.fleet.assert_all_committed();
        let oracle = Oracle::new(&self.fleet.topic, &self.fleet.submitted).repeats(usize::MAX);
        let account = self.first_ends_stand(&oracle);
        wrong.extend(oracle.judge(&account));
        wrong.extend(self.asked(&account));
        let audit = Audit {
            account: &account,
            plans: &self.plans,
            ledger: &Ledger::read(&self.ledger).with(Ledger::read(&self.hosted.ledger)),
            losses: std::mem::take(&mut self.losses),
            outages: std::mem::take(&mut self.outages),
            witnesses: &self.witnesses,
            cuts: std::mem::take(&mut self.cuts),
            cancelled_late: &self.cancelled_late,
            in_flight: self.in_flight,
        };

        let mut report = audit.report();
        report.wrong.extend(wrong);
        report
    }

    /// Reads the topics once the server has restated every end that is followed by another event,
    /// or has had time to.
    fn first_ends_stand(&self, oracle: &Oracle<'_>) -> Account {
        let begin = Instant::now();
        loop {
            let account = oracle.read(&self.cluster.brokers);
            let stands = |(place, events): (&(i32, i64), &Vec<Arc<JobEvent>>)| {
                oracle::ends(events).next() == account.last.get(place)
            };
            if account.events.iter().all(stands) || begin.elapsed() > STALLED {
                return account;
            }
            std::thread::sleep(LOOK);
        }
    }

    /// The differences between the server's answers and the topics, for some jobs, and for all jobs
    /// with events after their end.
    fn asked(&self, account: &Account) -> Vec<String> {
        let server = self.fleet.server.as_ref().expect("the server");
        let first = |events: &Vec<Arc<JobEvent>>| oracle::ends(events).next().cloned();
        let is_plain = |events: &Vec<Arc<JobEvent>>| {
            events.iter().position(|event| event.state.is_terminal()) == Some(events.len() - 1)
        };
        let odd = account.events.values().filter(|events| !is_plain(events));
        let some = account.events.values().take(ASKED);
        let ends: BTreeMap<_, _> =
            odd.chain(some).filter_map(first).map(|end| (end.job_id.clone(), end)).collect();

        let differs = |(id, end): (&String, &Arc<JobEvent>)| {
            let path = format!("/jobs/{}", id.replace('/', "%2F"));
            let (status, body) = http::get(server.address, &path).expect("an answer of the server");
            let job: Value = serde_json::from_str(&body).unwrap_or_default();
            let output = job["state"].as_str().unwrap_or_default();
            (status != 200 || output != end.state.as_str()).then(|| {
                format!("{id}: ended as {}; the server says {status} {body}", end.state.as_str())
            })
        };
        ends.iter().filter_map(differs).collect()
    }
}

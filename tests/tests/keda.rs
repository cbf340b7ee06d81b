//! Scaling by lag, end to end: what KEDA and the Horizontal Pod Autoscaler would do with the
//! project's own ScaledObject (`fleet_tests::keda`), done to real workers on a real Kafka, over a
//! burst of jobs.
//!
//! Time passes [`SPEED`] times faster for the controllers than for the workers: their windows,
//! periods and intervals are divided by it, and so is the workers' commit interval, because the
//! controllers see only commits. A worker starts and drains in real time. `FLEET_KEDA_JOBS` selects
//! another burst. With `--nocapture`, the test reports what happens.

#![expect(clippy::expect_used, reason = "a panic is the report of a test")]
#![expect(clippy::print_stderr, reason = "shown by the test runner, under the test that failed")]

use std::{
    collections::BTreeSet,
    env, fs,
    path::PathBuf,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use fleet_job::{
    event::{JobEvent, JobState},
    topics::Topics,
};
use fleet_tests::{
    Env, Fleet, Oracle, bins,
    chaos::ledger::Ledger,
    fleet::Service,
    http,
    keda::{By, Controller, Source as _, live::Live, live::Snapshot, settings::ScaledObject},
    topics::{self, Outgoing},
};
use nix::sys::signal::Signal;
use serde_json::json;

/// How much faster time passes for the controllers.
const SPEED: u32 = 40;
const JOBS: usize = 10_000;
/// The number of jobs behind the long one on its partition: more than enough lag for the maximum
/// number of workers.
const BEHIND: usize = 1_000;
const KEYS: usize = 5_000;
/// The id and key of the long job.
const LONG: &str = "long";
const PARTITIONS: i32 = 12;
/// As many workers as two cores can use.
const MAX: i32 = 5;
/// The workers' `MCP_COMMIT_INTERVAL` is a second, and KEDA polls every few seconds.
const COMMIT_INTERVAL: &str = "100ms";
const DELAYED_PARTITIONS: i32 = 6;
/// The longest time for any step.
const STALLED: Duration = Duration::from_secs(600);

#[test]
fn a_burst_of_jobs_scales_the_fleet_up_and_back_to_zero() {
    let Some(env) = Env::apache_kafka() else { return };
    let jobs = env::var("FLEET_KEDA_JOBS").ok().and_then(|jobs| jobs.parse().ok()).unwrap_or(JOBS);
    let mut run = Run::new(env);

    // There are no jobs, and there has never been a commit.
    run.run_until("three looks at nothing", |run| run.looks >= 3);
    assert_eq!(run.changes, [], "there is no work");

    run.submit("job", jobs, |n| format!("k{}", n % KEYS));
    let burst = run.begin.elapsed();
    run.run_until("the burst to end and the fleet to sleep", |run| run.looks > 3 && run.sleeps());
    let took = run.worked_until.saturating_sub(burst).as_secs_f64();
    let up_and_down = run.only_up_and_then_down();
    assert_eq!(up_and_down.iter().max(), Some(&MAX), "{up_and_down:?}");

    // The first job of one partition runs for long; all others end soon.
    let gate = run.poison();
    run.run_until("the fleet to be one worker", |run| run.replicas() == 1 && run.runnable == 1.0);
    let settled = run.now();
    let period = run.object.cooldown_period() + run.object.polling_interval() * 2;
    run.run_until("a cooldown with the long job still running", |run| run.now() > settled + period);
    let behind = run.seen.lag();
    assert_eq!(run.replicas(), 1, "a running job keeps its worker, and no more than that");
    assert_eq!(run.without.replicas, MAX, "with persistent lag counted, all would still be there");
    fs::write(gate, "").expect("the gate");
    run.run_until("the fleet to sleep again", Run::sleeps);
    let poisoned = run.only_up_and_then_down();

    let calls = run.judge();
    let jobs_per_second = jobs as f64 / took;
    eprintln!(
        "{jobs} jobs in {took:.0} s ({jobs_per_second:.0}/s) by 0 {up_and_down:?} workers; then {behind} behind a long job: \
         {poisoned:?}; every job ended once, {calls} calls"
    );
}

/// The project's own object, changed as its comments describe for scaling to zero, with fewer
/// workers, and with the topics of this test.
fn object(topics: &Topics) -> ScaledObject {
    let path = bins::repository().join("k8s/components/keda/kafka-worker-scaledobject.yaml");
    let text = fs::read_to_string(path).expect("the ScaledObject");
    let mut object = ScaledObject::parse(&text).expect("a ScaledObject");
    assert!(object.max_replica_count <= PARTITIONS, "workers without a partition are of no use");
    object.max_replica_count = MAX;
    object.min_replica_count = 0;
    object.prometheus_mut().for_each(|prometheus| prometheus.ignore_null_values = true);
    for kafka in object.kafka_mut() {
        kafka.topic = Some(match kafka.topic.as_deref() {
            Some("$KAFKA_TOPIC") => topics.jobs.clone(),
            Some("mcp-jobs.delayed") => topics.delayed.clone(),
            other => panic!("a topic that workers don't read: {other:?}"),
        });
    }

    object
}

/// How long Kubernetes gives a worker to stop.
fn grace() -> Duration {
    let path = bins::repository().join("k8s/base/kafka-worker-deployment.yaml");
    let text = fs::read_to_string(path).expect("the Deployment");
    let deployment: serde_json::Value = serde_norway::from_str(&text).expect("YAML");
    let seconds = deployment["spec"]["template"]["spec"]["terminationGracePeriodSeconds"].as_u64();
    Duration::from_secs(seconds.expect("the grace period"))
}

/// The same object with triggers that count persistent lag.
fn with_persistent_lag(mut object: ScaledObject) -> ScaledObject {
    for kafka in object.kafka_mut() {
        kafka.exclude_persistent_lag = false;
        // This setting would hide the effect, because one partition is work for one worker.
        kafka.limit_to_partitions_with_lag = false;
    }
    object
}

/// A change of the number of workers.
#[derive(Clone, Debug, PartialEq)]
struct Change {
    by: By,
    to: i32,
}

/// A controller whose decisions are not carried out.
struct Thought {
    controller: Controller,
    replicas: i32,
}

struct Run<'e> {
    fleet: Fleet<'e>,
    object: ScaledObject,
    controller: Controller,
    without: Thought,
    live: Live,
    /// The controllers' last observation.
    seen: Snapshot,
    /// The result of the `prometheus` trigger's query at that time.
    runnable: f64,
    grace: Duration,
    looks: usize,
    /// The stopping workers, and when they were asked to stop.
    leaving: Vec<(Instant, Service)>,
    changes: Vec<Change>,
    begin: Instant,
    /// The last time at which there was work.
    worked_until: Duration,
    told: Duration,
    /// The number of calls before the first job's.
    calls: f64,
}

impl<'e> Run<'e> {
    fn new(env: &'e Env) -> Self {
        let mut fleet = Fleet::new(env, "keda", PARTITIONS);
        let topics = Topics::of(fleet.topic.clone());
        topics::create(
            &env.brokers,
            &[(&topics.delayed, DELAYED_PARTITIONS), (&topics.control, 1)],
        );
        let ledger = fleet.directory.join("ledger");
        fleet.start_tool_server(env!("CARGO_BIN_EXE_fixture_tools"), &ledger, false);

        // No process is killed here, so sessions may be long enough to survive stalls of a busy
        // machine.
        fleet.worker_env.retain(|(name, _)| !name.starts_with("KAFKA_PROPERTY_"));
        for (name, value) in [
            ("MCP_COMMIT_INTERVAL", COMMIT_INTERVAL),
            ("MCP_MAX_IN_FLIGHT", "16"),
            // The drain is shorter than the long job, so that the job has to move if its worker is
            // stopped.
            ("MCP_DRAIN_TIMEOUT", "5s"),
        ] {
            fleet.worker_env(name, value);
        }
        let server = fleet.server.as_ref().expect("the server").address;
        let object = object(&topics);
        let watched = vec![(topics.jobs, PARTITIONS), (topics.delayed, DELAYED_PARTITIONS)];
        Self {
            live: Live::new(&env.brokers, &fleet.group, watched),
            fleet,
            controller: Controller::new(object.clone()),
            without: Thought {
                controller: Controller::new(with_persistent_lag(object.clone())),
                replicas: 0,
            },
            object,
            seen: Snapshot::default(),
            runnable: 0.0,
            grace: grace(),
            looks: 0,
            leaving: Vec::new(),
            changes: Vec::new(),
            begin: Instant::now(),
            worked_until: Duration::ZERO,
            told: Duration::ZERO,
            calls: http::metric(server, "mcp_server_tool_calls_total").unwrap_or_default(),
        }
    }

    // --- Load -----------------------------------------------------------------------------------

    /// Submits a number of jobs for a tool that costs next to nothing.
    fn submit(&mut self, name: &str, count: usize, key: impl Fn(usize) -> String) {
        let job = |n| {
            let job = json!({"jobID": format!("{name}-{n}"), "jobType": "tool-call", "payload": {"tool": "server_list"}});
            Outgoing::value(job.to_string()).key(key(n))
        };
        self.fleet.submit((0..count).map(job).collect());
        self.report(&format!("{count} jobs more"));
    }

    /// Submits a job that runs until a file exists, and many jobs behind it on its partition.
    /// Returns the file.
    fn poison(&mut self) -> PathBuf {
        let gate = self.fleet.directory.join("gate");
        let job = json!({"jobID": LONG, "jobType": "tool-call", "timeoutMs": 600_000,
            "payload": {"server": "chaos", "tool": "work", "arguments": {"until": gate, "key": LONG}}});
        let record = self.fleet.submit(vec![Outgoing::value(job.to_string()).key(LONG)]).remove(0);
        let others =
            self.fleet.submitted.iter().filter(|other| other.partition == record.partition);
        let keys: BTreeSet<_> = others.filter_map(|other| other.content.key.clone()).collect();
        let keys: Vec<_> = keys.into_iter().filter(|key| key != LONG.as_bytes()).collect();
        self.submit("behind", BEHIND, |n| {
            String::from_utf8_lossy(&keys[n % keys.len()]).into_owned()
        });
        gate
    }

    // --- Controllers ----------------------------------------------------------------------------

    /// The controllers' time.
    fn now(&self) -> Duration {
        self.begin.elapsed() * SPEED
    }

    fn replicas(&self) -> i32 {
        i32::try_from(self.fleet.workers.len()).expect("few workers")
    }

    fn sleeps(&self) -> bool {
        self.replicas() == 0 && self.leaving.is_empty() && self.seen.lag() == 0
    }

    fn run_until(&mut self, what: &str, mut done: impl FnMut(&Self) -> bool) {
        let deadline = Instant::now() + STALLED;
        while !done(self) {
            assert!(
                Instant::now() < deadline,
                "waited too long for {what}; the lag is {}",
                self.seen.lag()
            );
            self.step();
        }
        self.report(what);
    }

    fn step(&mut self) {
        let now = self.now();
        let due = self.controller.next();
        if now < due {
            // Wait for the controllers' next turn in small steps.
            thread::sleep(((due - now) / SPEED).min(Duration::from_millis(50)));
            return self.remove_stopped();
        }

        let workers =
            self.fleet.workers.iter().chain(self.leaving.iter().map(|(_, worker)| worker));
        self.seen = self.live.look(workers.map(|worker| worker.address));
        self.looks += 1;
        let queries: Vec<_> =
            self.object.prometheus_mut().map(|trigger| trigger.query.clone()).collect();
        self.runnable = queries
            .iter()
            .filter_map(|query| self.seen.query(query))
            .fold(0.0, |sum, each| sum + each);
        if self.seen.lag() > 0 {
            self.worked_until = self.begin.elapsed();
        }

        let thought = &mut self.without;
        if let Some(decision) =
            thought.controller.turn(now, thought.replicas, &mut self.seen.clone())
        {
            thought.replicas = decision.replicas;
        }
        let replicas = self.replicas();
        if let Some(decision) = self.controller.turn(now, replicas, &mut self.seen.clone())
            && decision.replicas != replicas
        {
            self.changes.push(Change { by: decision.by, to: decision.replicas });
            let seen: Vec<_> = decision.seen.iter().map(|seen| seen.value).collect();
            self.report(&format!(
                "{:?}, which sees {seen:?}: {replicas} → {}",
                decision.by, decision.replicas
            ));
            self.scale(decision.replicas);
        }

        if self.begin.elapsed() > self.told + Duration::from_secs(10) {
            self.report("");
        }
    }

    /// Starts workers, or asks the newest to stop, as a Deployment does.
    fn scale(&mut self, replicas: i32) {
        assert!((0..=MAX).contains(&replicas), "{replicas} workers");
        while self.replicas() < replicas {
            let worker = self.fleet.launch_worker();
            self.fleet.workers.push(worker);
        }
        while self.replicas() > replicas {
            let worker = self.fleet.workers.pop().expect("a worker");
            for wrong in
                ["fleet_invariant_violations_total", "fleet_rebalances_total{kind=\"lost\"}"]
            {
                assert_eq!(http::metric(worker.address, wrong).unwrap_or_default(), 0.0, "{wrong}");
            }
            self.report(&format!("worker {} is asked to end", worker.process.pid()));
            worker.process.signal(Signal::SIGTERM);
            self.leaving.push((Instant::now(), worker));
        }
    }

    /// Removes the workers that have stopped.
    fn remove_stopped(&mut self) {
        self.leaving.retain_mut(|(since, worker)| {
            let runs = worker.process.is_running();
            assert!(
                !runs || since.elapsed() < self.grace,
                "a worker takes too long to end:\n{}",
                worker.process.log()
            );
            if !runs {
                let status = worker.process.wait(Duration::ZERO);
                assert!(
                    status.success(),
                    "a worker ended with {status}:\n{}",
                    worker.process.log()
                );
            }
            runs
        });
    }

    fn report(&mut self, what: &str) {
        self.told = self.begin.elapsed();
        let (lag, workers, leaving) = (self.seen.lag(), self.replicas(), self.leaving.len());
        let (took, thought) = (self.told.as_secs_f64(), self.without.replicas);
        eprintln!(
            "{took:>6.1} s ({:>5.0} s): lag {lag:>6}, runnable {:>6}, {workers} workers and {leaving} leaving \
             (with persistent lag {thought}); {what}",
            self.now().as_secs_f64(),
            self.runnable
        );
    }

    // --- Outcome --------------------------------------------------------------------------------

    /// The sequence of the numbers of workers since the last call. Asserts that there is no
    /// flapping: once the number has gone down, it doesn't go up again.
    fn only_up_and_then_down(&mut self) -> Vec<i32> {
        let counts: Vec<_> =
            std::mem::take(&mut self.changes).iter().map(|change| change.to).collect();
        let top =
            counts.iter().position(|count| Some(count) == counts.iter().max()).unwrap_or_default();
        let (up, down) = counts.split_at(top);
        assert!(up.is_sorted() && down.iter().rev().is_sorted(), "up and down again: {counts:?}");
        counts
    }

    /// Checks that every job has ended once, after one call; only the long job may have been called
    /// again. Returns the number of calls.
    fn judge(self) -> usize {
        let fleet = &self.fleet;
        fleet.assert_all_committed();
        let oracle = Oracle::new(&fleet.topic, &fleet.submitted);
        let account = oracle.read(&fleet.env.brokers);
        let is_repeated = |events: &&Vec<Arc<JobEvent>>| {
            events.iter().filter(|event| event.state.is_terminal()).count() > 1
        };
        let repeated: Vec<_> = account.events.values().filter(is_repeated).take(5).collect();
        let wrong = oracle.judge(&account);
        assert!(wrong.is_empty(), "{}\nrepeated: {repeated:#?}", wrong.join("\n"));
        assert_eq!(account.count(JobState::Succeeded), fleet.submitted.len());

        let ledger = Ledger::read(&fleet.directory.join("ledger"));
        let long: usize = ledger.calls[LONG].values().sum();

        // The long job may be repeated whenever its worker stops.
        let ended = account
            .states
            .values()
            .find(|event| event.job_id == LONG)
            .expect("the end of the long job");
        assert_eq!(ended.attempts, 1, "an interrupted call is not an attempt: {ended:?}");

        let server = fleet.server.as_ref().expect("the server").address;
        let calls =
            http::metric(server, "mcp_server_tool_calls_total").expect("calls") - self.calls;
        assert_eq!(calls, (fleet.submitted.len() - 1 + long) as f64, "calls were repeated");
        calls as usize
    }
}

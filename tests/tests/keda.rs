//! Scaling by lag, end to end: what KEDA and the Horizontal Pod Autoscaler would do with the project's own ScaledObject
//! (`fleet_tests::keda`), done to real workers on a real Kafka, over a burst of 50,000 jobs.
//!
//! Time goes [`SPEED`] times faster for the controllers than for the workers: their windows, periods and intervals are
//! divided by it, and so is the workers' commit interval, because the controllers see nothing but commits. A worker starts
//! and drains in its own time. `FLEET_KEDA_JOBS` chooses another burst. With `--nocapture` it tells what happens.

#![expect(clippy::expect_used, reason = "a panic is the report of a test")]
#![expect(clippy::print_stderr, reason = "shown by the test runner, under the test that failed")]

use std::{
    collections::BTreeSet,
    env, fs, thread,
    time::{Duration, Instant},
};

use fleet_job::{
    envelope::{Envelope, ToolCall, Work},
    event::{JobEvent, JobState},
    topics::Topics,
};
use fleet_tests::{
    Env, Fleet, Oracle, bins,
    chaos::ledger::Ledger,
    fleet::{self, Service},
    http,
    keda::{By, Controller, live::Live, live::Snapshot, settings::ScaledObject},
    topics::{self, Outgoing},
};
use nix::sys::signal::Signal;
use serde_json::json;

/// How much faster time goes for the controllers.
const SPEED: u32 = 30;
const JOBS: usize = 50_000;
/// Jobs behind the one that goes on and on, on its partition: as much lag as the most workers are for, at least.
const BEHIND: usize = 1_000;
const KEYS: usize = 5_000;
const PARTITIONS: i32 = 12;
/// As many as two cores can make use of.
const MAX: i32 = 5;
/// The workers' `MCP_COMMIT_INTERVAL` is a second, and KEDA looks every few of them.
const COMMIT_INTERVAL: &str = "100ms";
/// The least that Kubernetes gives a pod to end, once it was asked to.
const GRACE: Duration = Duration::from_secs(30);
/// Nothing takes longer.
const STALLED: Duration = Duration::from_secs(600);

#[test]
fn fifty_thousand_jobs_wake_the_fleet_and_let_it_sleep_again() {
    let Some(env) = Env::apache_kafka() else { return };
    let jobs = env::var("FLEET_KEDA_JOBS").ok().and_then(|jobs| jobs.parse().ok()).unwrap_or(JOBS);
    let mut run = Run::new(env);

    // There is nothing to do, and nothing was ever committed.
    run.until("three looks at nothing", |run| run.looks >= 3);
    assert_eq!(run.changes, [], "nobody has asked for anything");

    run.submit("job", jobs, |n| format!("k{}", n % KEYS));
    let burst = run.begin.elapsed();
    run.until("the burst to end and the fleet to sleep", |run| run.looks > 3 && run.sleeps());
    let took = run.worked_until.saturating_sub(burst).as_secs_f64();
    let up_and_down = run.only_up_and_then_down();
    assert_eq!(up_and_down.iter().max(), Some(&MAX), "{up_and_down:?}");

    // The head of one partition goes on and on; everything else is done soon.
    let (poison, gate) = run.poison();
    run.until("the fleet to be one worker", |run| run.replicas() == 1 && run.seen.lag() > 0 && run.open() == Some(1.0));
    let settled = run.now();
    let period = run.object.cooldown_period() + run.object.polling_interval() * 2;
    run.until("a cooldown with the long job still running", |run| run.now() > settled + period);
    let behind = run.seen.lag();
    assert_eq!(run.replicas(), 1, "a running job keeps its worker, and no more than that");
    assert_eq!(run.without.replicas, MAX, "with persistent lag counted, all would still be there");
    fs::write(gate, "").expect("the gate");
    run.until("the fleet to sleep again", Run::sleeps);
    let poisoned = run.only_up_and_then_down();

    let calls = run.judge(poison);
    let jobs_per_second = jobs as f64 / took;
    eprintln!(
        "{jobs} jobs in {took:.0} s ({jobs_per_second:.0}/s) by 0 {up_and_down:?} workers; then {behind} behind a long job: \
         {poisoned:?}; every job ended once, {calls} calls"
    );
}

/// The project's own object, for fewer workers.
fn object() -> ScaledObject {
    let directory = bins::repository().join("k8s/components/keda");
    let files = fs::read_dir(&directory).expect("k8s/components/keda");
    let objects = files.filter_map(|file| {
        let text = fs::read_to_string(file.expect("a file").path()).expect("its text");
        text.contains("kind: ScaledObject").then(|| ScaledObject::parse(&text).expect("a ScaledObject"))
    });
    let mut object = objects.last().expect("a ScaledObject in k8s/components/keda");
    assert!(object.max_replica_count <= PARTITIONS, "workers without a partition are of no use");
    object.max_replica_count = MAX;
    object
}

/// What persistent lag would do to the same object.
fn with_persistent_lag(mut object: ScaledObject) -> ScaledObject {
    for kafka in object.kafka_mut() {
        assert!(kafka.exclude_persistent_lag, "one long job must not keep all workers");
        kafka.exclude_persistent_lag = false;
    }
    object
}

/// A change of the number of workers.
#[derive(Clone, Debug, PartialEq)]
struct Change {
    by: By,
    to: i32,
}

/// A controller whose decisions nobody carries out.
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
    /// What the controllers have seen last.
    seen: Snapshot,
    looks: usize,
    /// Those that were asked to end, and when.
    leaving: Vec<(Instant, Service)>,
    changes: Vec<Change>,
    begin: Instant,
    /// When there was something to be done the last time.
    worked_until: Duration,
    told: Duration,
    /// Calls that were made before the first job's.
    calls: f64,
}

impl<'e> Run<'e> {
    fn new(env: &'e Env) -> Self {
        let mut fleet = Fleet::new(env, "keda", PARTITIONS);
        let options = fleet.with_jobs(fleet::ServerOptions::default());
        fleet.server_env.extend(options.env);
        let ledger = fleet.directory.join("ledger");
        fleet.start_tool_server(env!("CARGO_BIN_EXE_fixture_tools"), &ledger, false);
        for (name, value) in [
            ("MCP_COMMIT_INTERVAL", COMMIT_INTERVAL),
            ("MCP_MAX_IN_FLIGHT", "16"),
            // Less than the long job takes, so that it has to move if its worker is one of those that go.
            ("MCP_DRAIN_TIMEOUT", "5s"),
        ] {
            fleet.worker_env(name, value);
        }
        let server = fleet.server.as_ref().expect("the server").address;
        let object = object();
        Self {
            live: Live::new(&env.brokers, &fleet.group, &fleet.topic, PARTITIONS, vec![server]),
            fleet,
            controller: Controller::new(object.clone()),
            without: Thought {
                controller: Controller::new(with_persistent_lag(object.clone())),
                replicas: 0,
            },
            object,
            seen: Snapshot::default(),
            looks: 0,
            leaving: Vec::new(),
            changes: Vec::new(),
            begin: Instant::now(),
            worked_until: Duration::ZERO,
            told: Duration::ZERO,
            calls: http::metric(server, "mcp_server_tool_calls_total").unwrap_or_default(),
        }
    }

    // --- What there is to do ------------------------------------------------------------------------------------------

    /// Submits jobs as `mcp-fleet submit` does: first the events that say so, then the jobs.
    fn submit_jobs(&mut self, jobs: Vec<(Envelope, String)>) -> Vec<topics::Record> {
        let queued = jobs.iter().map(|(job, _)| {
            let now = fleet::now();
            let event = JobEvent { submitted_at: Some(now), ..JobEvent::about(job, JobState::Queued, now) };
            Outgoing::value(event.to_bytes()).key(job.job_id.as_str())
        });
        let events = Topics::of(self.fleet.topic.clone()).events;
        topics::produce(&self.fleet.env.brokers, &events, queued.collect());
        let records = jobs.iter().map(|(job, key)| Outgoing::value(job.to_json().to_string()).key(key.as_str()));
        self.fleet.submit(records.collect())
    }

    /// Submits so many jobs for a tool that costs next to nothing.
    fn submit(&mut self, name: &str, count: usize, key: impl Fn(usize) -> String) {
        let call = ToolCall::new(None, "server_list");
        let job = |n| (Envelope::new(format!("{name}-{n}"), Work::ToolCall(call.clone())), key(n));
        self.submit_jobs((0..count).map(job).collect());
        self.tell(&format!("{count} jobs more"));
    }

    /// Submits a job that goes on until there is a file, and many behind it on its partition. Returns its id and the file.
    fn poison(&mut self) -> (&'static str, std::path::PathBuf) {
        const POISON: (&str, &str) = ("poison", "poison");
        let gate = self.fleet.directory.join("gate");
        let mut call = ToolCall::new(Some("chaos".to_owned()), "work");
        call.arguments.insert("until".to_owned(), json!(gate));
        let mut job = Envelope::new(POISON.0, Work::ToolCall(call));
        job.timeout_ms = Some(600_000);
        let partition = self.submit_jobs(vec![(job, POISON.1.to_owned())])[0].partition;
        let others = self.fleet.submitted.iter().filter(|record| record.partition == partition);
        let keys: BTreeSet<_> = others.filter_map(|record| record.content.key.clone()).collect();
        let keys: Vec<_> = keys.into_iter().filter(|key| key != POISON.1.as_bytes()).collect();
        let text = |n: usize| String::from_utf8_lossy(&keys[n % keys.len()]).into_owned();
        let threshold = self.object.kafka_mut().map(|kafka| kafka.lag_threshold).max().expect("a kafka trigger");
        let count = usize::try_from(threshold * i64::from(MAX)).expect("a number of jobs").max(BEHIND);
        self.submit("behind", count, text);
        (POISON.0, gate)
    }

    // --- What the controllers do --------------------------------------------------------------------------------------

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

    /// Jobs that have not ended, as the server knows them.
    fn open(&self) -> Option<f64> {
        let open: Vec<_> = JobState::ALL.iter().filter(|state| !state.is_terminal()).map(|state| state.as_str()).collect();
        self.seen.jobs(&open)
    }

    fn until(&mut self, what: &str, mut done: impl FnMut(&Self) -> bool) {
        let deadline = Instant::now() + STALLED;
        while !done(self) {
            assert!(Instant::now() < deadline, "waited too long for {what}; the lag is {}", self.seen.lag());
            self.step();
        }
        self.tell(what);
    }

    fn step(&mut self) {
        let now = self.now();
        let due = self.controller.next();
        if now < due {
            // The controllers' own waiting for their next turn, a little of it at a time.
            thread::sleep(((due - now) / SPEED).min(Duration::from_millis(50)));
            return self.part();
        }
        self.seen = self.live.look();
        self.looks += 1;
        if self.seen.lag() > 0 {
            self.worked_until = self.begin.elapsed();
        }
        let thought = &mut self.without;
        if let Some(decision) = thought.controller.turn(now, thought.replicas, &mut self.seen.clone()) {
            thought.replicas = decision.replicas;
        }
        let replicas = self.replicas();
        if let Some(decision) = self.controller.turn(now, replicas, &mut self.seen.clone())
            && decision.replicas != replicas
        {
            self.changes.push(Change { by: decision.by, to: decision.replicas });
            let seen: Vec<_> = decision.seen.iter().map(|seen| seen.value).collect();
            self.tell(&format!("{:?}, which sees {seen:?}: {replicas} → {}", decision.by, decision.replicas));
            self.scale(decision.replicas);
        }
        if self.begin.elapsed() > self.told + Duration::from_secs(10) {
            self.tell("");
        }
    }

    /// Starts workers, or asks the newest to end, as a Deployment does.
    fn scale(&mut self, replicas: i32) {
        assert!((0..=MAX).contains(&replicas), "{replicas} workers");
        while self.replicas() < replicas {
            let worker = self.fleet.launch_worker();
            self.fleet.workers.push(worker);
        }
        while self.replicas() > replicas {
            let worker = self.fleet.workers.pop().expect("a worker");
            let violations = http::metric(worker.address, "fleet_invariant_violations_total");
            assert_eq!(violations, Some(0.0), "violations of invariants");
            worker.process.signal(Signal::SIGTERM);
            self.leaving.push((Instant::now(), worker));
        }
    }

    /// Lets those go that have ended.
    fn part(&mut self) {
        self.leaving.retain_mut(|(since, worker)| {
            let runs = worker.process.is_running();
            assert!(!runs || since.elapsed() < GRACE, "a worker takes too long to end:\n{}", worker.process.log());
            if !runs {
                let status = worker.process.wait(Duration::ZERO);
                assert!(status.success(), "a worker ended with {status}:\n{}", worker.process.log());
            }
            runs
        });
    }

    fn tell(&mut self, what: &str) {
        self.told = self.begin.elapsed();
        let (lag, workers, leaving) = (self.seen.lag(), self.replicas(), self.leaving.len());
        let (took, thought) = (self.told.as_secs_f64(), self.without.replicas);
        eprintln!(
            "{took:>6.1} s ({:>5.0} s): lag {lag:>6}, {workers} workers and {leaving} leaving (with persistent lag {thought}); {what}",
            self.now().as_secs_f64()
        );
    }

    // --- What became of it --------------------------------------------------------------------------------------------

    /// How many workers there were, one after the other, since this was asked the last time. There is no flapping: once the
    /// number has gone down it does not go up again.
    fn only_up_and_then_down(&mut self) -> Vec<i32> {
        let counts: Vec<_> = std::mem::take(&mut self.changes).iter().map(|change| change.to).collect();
        let top = counts.iter().position(|count| Some(count) == counts.iter().max()).unwrap_or_default();
        let (up, down) = counts.split_at(top);
        assert!(up.is_sorted() && down.iter().rev().is_sorted(), "up and down again: {counts:?}");
        counts
    }

    /// Every job has ended once, by one call each; only the long one may have been called again. Returns the calls.
    fn judge(self, long: &str) -> usize {
        let fleet = &self.fleet;
        fleet.everything_is_committed();
        let account = Oracle::new(&fleet.topic, &fleet.submitted).check(&fleet.env.brokers);
        assert_eq!(account.count(JobState::Succeeded), fleet.submitted.len());
        let ledger = Ledger::read(&fleet.directory.join("ledger"));
        let long: usize = ledger.calls[long].values().sum();
        let server = fleet.server.as_ref().expect("the server").address;
        let calls = http::metric(server, "mcp_server_tool_calls_total").expect("calls") - self.calls;
        assert_eq!(calls, (fleet.submitted.len() - 1 + long) as f64, "calls were repeated");
        calls as usize
    }
}

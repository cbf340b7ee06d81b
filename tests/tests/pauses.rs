//! Pauses: paused jobs wait without a slot and without an attempt, others go on, and people let the
//! paused ones start again.

#![expect(clippy::expect_used, reason = "a panic is the report of a test")]

use std::{
    path::PathBuf,
    process::{Command, Output},
    sync::Arc,
    time::{Duration, Instant},
};

use fleet_job::{
    event::{JobEvent, JobState},
    pause::Pause,
    time::Timestamp,
    topics::Topics,
};
use fleet_tests::{
    Env, Fleet, Oracle,
    bins::{self, bin},
    chaos::ledger::Ledger,
    fleet::{ServerOptions, now},
    http, on_every_broker, rest,
    topics::{self, Outgoing, Record},
    wait,
};
use serde_json::{Value, json};

on_every_broker!(
    a_paused_tool_waits_while_others_go_on,
    a_worker_that_starts_obeys_what_was_paused_before,
    a_running_fleet_obeys_within_a_second,
    running_jobs_go_on_while_everything_is_paused,
    a_pause_ends_by_itself_and_a_deadline_ends_a_paused_job,
    a_worker_obeys_once_the_topic_is_made,
);

/// The gauge of jobs that wait, over all reasons.
const WAITING: &str = "fleet_jobs_waiting";

/// One slot, one partition: jobs that are not paused start behind those that are, and so do those
/// of other keys.
fn a_paused_tool_waits_while_others_go_on(env: &Env) {
    let mut case = Case::new(env, "tool");
    let pause = case.pause("p-tool", &json!({"tool": "chaos__w?rk"}), None);
    case.fleet.start_worker();
    let paused = case.submit("paused", Some("k"), &json!({}));
    let behind = case.submit_other("behind", Some("k"));
    let others: Vec<_> =
        (0..5).map(|n| case.submit_other(&format!("other-{n}"), Some(&n.to_string()))).collect();

    let ends: Vec<_> =
        others.iter().map(|other| case.becomes(other, JobState::Succeeded)).collect();
    assert!(ends.iter().all(|end| end.attempts == 1), "{ends:?}");
    let waits = case.waits(&paused);
    assert_eq!((waits.state, waits.attempts), (JobState::Queued, 0), "{waits:?}");
    let waiting = waits.waiting.expect("what it waits for");
    assert_eq!(waiting.pause.as_deref(), Some("p-tool"));
    assert_eq!(waiting.by.as_deref(), Some("ada"));
    assert_eq!(waiting.why.as_deref(), Some("maintenance"));

    let worker = case.fleet.workers[0].address;
    case.fleet.wait_for_gauge(WAITING, 1);
    assert_eq!(http::metric(worker, "fleet_jobs_in_flight"), Some(0.0));
    assert_eq!(case.times("paused"), 0);

    case.resume(&pause);
    let account = case.fleet.settle(0);
    for record in [&paused, &behind] {
        let end = account.of(record);
        assert_eq!((end.state, end.attempts), (JobState::Succeeded, 1), "{end:?}");
    }
    assert_eq!(case.times("paused"), 1);
    let reports = account.events[&(paused.partition, paused.offset)].iter();
    let waits = reports.filter(|event| event.waiting.is_some()).count();
    assert_eq!(waits, 1, "a pause is reported once");
}

/// The worker reads what was paused before it takes its first job.
fn a_worker_that_starts_obeys_what_was_paused_before(env: &Env) {
    let mut case = Case::new(env, "restart");
    let pause = case.pause("p-restart", &json!({"idPrefix": "paused-"}), None);
    let paused: Vec<_> =
        (0..5).map(|n| case.submit(&format!("paused-{n}"), None, &json!({}))).collect();
    for round in 0..2 {
        case.fleet.start_worker();
        let free = case.submit(&format!("free-{round}"), None, &json!({}));
        case.becomes(&free, JobState::Succeeded);
        case.fleet.wait_for_gauge(WAITING, paused.len());
        case.fleet.stop_workers();
    }
    assert!((0..5).all(|n| case.times(&format!("paused-{n}")) == 0));

    case.fleet.start_worker();
    case.resume(&pause);
    let account = case.fleet.settle(0);
    let ends: Vec<_> = paused.iter().map(|record| account.of(record)).collect();
    assert!(
        ends.iter().all(|end| (end.state, end.attempts) == (JobState::Succeeded, 1)),
        "{ends:?}"
    );
}

/// A busy machine may delay some, so the quickest of several pauses counts, and of their ends.
fn a_running_fleet_obeys_within_a_second(env: &Env) {
    let mut case = Case::new(env, "quick");
    case.fleet.start_worker();
    let first = case.submit("first", None, &json!({}));
    case.becomes(&first, JobState::Succeeded);

    let (mut paused, mut resumed) = (Vec::new(), Vec::new());
    for round in 0..5 {
        let id = format!("p-quick-{round}");
        let began = Instant::now();
        let pause = case.pause(&id, &json!({"idPrefix": "job-"}), None);
        case.fleet.workers[0].process.says(&id, wait::LONG);
        paused.push(began.elapsed());

        let name = format!("job-{round}");
        let job = case.submit(&name, None, &json!({}));
        case.waits(&job);
        let began = Instant::now();
        case.resume(&pause);
        wait::poll_until("the call of the resumed job", wait::LONG, || {
            (case.times(&name) == 1).then_some(())
        });
        resumed.push(began.elapsed());
    }

    let is_quick = |all: &[Duration]| all.iter().any(|took| *took < Duration::from_secs(1));
    assert!(is_quick(&paused) && is_quick(&resumed), "{paused:?} {resumed:?}");
    case.fleet.settle(0);
}

fn running_jobs_go_on_while_everything_is_paused(env: &Env) {
    let mut case = Case::new(env, "drain");
    case.fleet.start_worker();
    let gate = case.fleet.directory.join(bins::unique("gate"));
    let running = case.submit("running", None, &json!({"until": gate}));
    wait::poll_until("the call", wait::LONG, || (case.times("running") == 1).then_some(()));

    let pause = case.pause("p-all", &json!({}), None);
    case.fleet.workers[0].process.says("p-all", wait::LONG);
    std::fs::write(&gate, "").expect("the gate");
    assert_eq!(case.becomes(&running, JobState::Succeeded).attempts, 1);
    let next = case.submit("next", None, &json!({}));
    case.waits(&next);

    // A second pause covers the job when the first one ends.
    let second = case.pause("p-second", &json!({"idPrefix": "next"}), None);
    case.fleet.workers[0].process.says("p-second", wait::LONG);
    case.resume(&pause);
    wait::poll_until("the job to name the other pause", wait::LONG, || {
        let waiting = case.newest(&next)?.waiting?;
        (waiting.pause.as_deref() == Some("p-second")).then_some(())
    });
    assert_eq!(case.times("next"), 0);
    case.resume(&second);
    let account = case.fleet.settle(0);
    assert_eq!(account.of(&next).attempts, 1);
}

fn a_pause_ends_by_itself_and_a_deadline_ends_a_paused_job(env: &Env) {
    let mut case = Case::new(env, "ends");
    case.fleet.start_worker();
    let until = now().plus(Duration::from_secs(6));
    case.pause("p-short", &json!({"idPrefix": "short"}), Some(until));
    case.pause("p-long", &json!({"idPrefix": "long"}), None);
    case.fleet.workers[0].process.says("p-long", wait::LONG);

    let short = case.submit("short", None, &json!({}));
    let mut long = call("long", &json!({}));
    long["deadline"] = json!(now().plus(Duration::from_secs(4)).to_string());
    let long = case.fleet.submit_job(&long);
    assert_eq!(case.waits(&short).waiting.and_then(|waiting| waiting.until), Some(until));
    case.waits(&long);

    let account = case.fleet.settle(0);
    let (short, long) = (account.of(&short), account.of(&long));
    assert_eq!((short.state, short.attempts), (JobState::Succeeded, 1), "{short:?}");
    assert!(short.time >= until, "{short:?}");
    assert_eq!((long.state, long.attempts), (JobState::Expired, 0), "{long:?}");
    assert_eq!(case.times("long"), 0);
}

/// A fleet without the topic works, and needs no restart once it is made.
fn a_worker_obeys_once_the_topic_is_made(env: &Env) {
    let mut case = Case::without_topic(env, "absent");
    case.fleet.start_worker();
    case.fleet.workers[0].process.says("jobs can't be paused until it is made", wait::LONG);
    let free = case.submit("free", None, &json!({}));
    case.becomes(&free, JobState::Succeeded);

    case.fleet.create_pauses_topic();
    let pause = case.pause("p-late", &json!({}), None);
    case.fleet.workers[0].process.says("p-late", wait::LONG);
    let paused = case.submit("paused", None, &json!({}));
    case.waits(&paused);
    case.resume(&pause);
    case.fleet.settle(0);
}

/// By REST and by command line, in a fleet whose topic is not there yet.
#[test]
fn people_pause_and_resume_jobs_through_a_server() {
    let env = Env::embedded_broker(module_path!());
    let mut fleet = Fleet::new(&env, "pauses-people", 1);
    let options = ServerOptions { roots: vec![fleet.files()], ..ServerOptions::default() };
    let server = fleet.start_replica(options);
    fleet.server_url = format!("http://{}", server.address);
    assert_eq!(rest::get(server.address, "/pauses").expect(200), json!({"pauses": []}));

    let url = fleet.server_url.clone();
    let cli = |arguments: &[&str]| {
        let mut command = Command::new(bin("mcp-fleet"));
        command.args(arguments).env("MCP_SERVER_URL", &url);
        command.output().expect("a process")
    };
    let refused = cli(&["pause", "--reason", "r"]);
    assert!(!refused.status.success() && stderr(&refused).contains("--all"), "{refused:?}");
    let made = cli(&["pause", "--tool", "file_*", "--reason", "why not", "--for", "1h", "--json"]);
    assert!(made.status.success(), "{made:?}");
    let made: Value = serde_json::from_slice(&made.stdout).expect("JSON");
    let id = made["id"].as_str().expect("an id").to_owned();
    assert!(stdout(&cli(&["pauses"])).contains("tool file_*"));

    fleet.start_worker();
    let worker = fleet.workers[0].address;
    let job = json!({"jobID": "j", "tool": "file_read", "arguments": {"path": "hello.txt"}});
    rest::post(server.address, "/jobs", &job).expect(202);
    wait::poll_until_ok("the job to wait", wait::LONG, || {
        let shown = stdout(&cli(&["jobs", "show", "j"]));
        if shown.contains("paused") && shown.contains("why not") { Ok(()) } else { Err(shown) }
    });
    assert!(stdout(&cli(&["jobs", "list"])).contains("queued (paused)"));
    let shown = rest::get(server.address, "/jobs/j").expect(200);
    assert_eq!(shown["waiting"]["reason"], "paused", "{shown}");
    assert_eq!(shown["waiting"]["pause"], json!(id), "{shown}");
    assert_eq!(http::metric(worker, "fleet_jobs_in_flight"), Some(0.0));

    let status = cli(&["status", "--brokers", &env.brokers, "--topic", &fleet.topic]);
    assert!(stdout(&status).contains("why not"), "{status:?}");

    let resumed = cli(&["resume", &id]);
    assert!(resumed.status.success(), "{resumed:?}");
    let ended = rest::get(server.address, "/jobs/j?wait=60").expect(200);
    assert_eq!((&ended["state"], &ended["attempts"]), (&json!("succeeded"), &json!(1)), "{ended}");
    assert_eq!(rest::get(server.address, "/pauses").expect(200), json!({"pauses": []}));

    let path = format!("/pauses/{id}");
    let again = rest::request(server.address, "DELETE", &path, &[], b"");
    again.problem(404, "no-such-pause");
    let bad = json!({"scope": {"tol": "x"}, "reason": "r"});
    rest::post(server.address, "/pauses", &bad).problem(422, "bad-pause");
    let all = json!({"scope": {}, "reason": "r", "forMs": 60_000});
    rest::post(server.address, "/pauses", &all).expect(201);
    assert!(cli(&["resume", "--all"]).status.success());
    assert!(stdout(&cli(&["pauses"])).contains("nothing is paused"));
}

fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// A fleet with a tool that logs its calls, a worker of one slot, and a topic of pauses.
struct Case<'e> {
    fleet: Fleet<'e>,
    ledger: PathBuf,
}

impl<'e> Case<'e> {
    fn new(env: &'e Env, name: &str) -> Self {
        let case = Self::without_topic(env, name);
        case.fleet.create_pauses_topic();
        case
    }

    fn without_topic(env: &'e Env, name: &str) -> Self {
        let mut fleet = Fleet::new(env, &format!("pauses-{name}"), 1);
        let ledger = fleet.directory.join("ledger");
        fleet.start_tool_server(env!("CARGO_BIN_EXE_fixture_tools"), &ledger, false);
        fleet.worker_env("MCP_MAX_IN_FLIGHT", "1");
        Self { fleet, ledger }
    }

    /// Pauses jobs, as a server does.
    fn pause(&self, id: &str, scope: &Value, until: Option<Timestamp>) -> Pause {
        let pause = json!({"id": id, "scope": scope, "by": "ada", "reason": "maintenance",
            "since": now(), "until": until});
        let pause: Pause = serde_json::from_value(pause).expect("a pause");
        self.write(&pause);
        pause
    }

    fn resume(&self, pause: &Pause) {
        self.write(&Pause { resumed_at: Some(now()), ..pause.clone() });
    }

    fn write(&self, pause: &Pause) {
        let record = Outgoing::value(pause.to_bytes()).key(&*pause.id);
        let topic = Topics::of(&*self.fleet.topic).pauses;
        topics::produce(&self.fleet.env.brokers, &topic, vec![record]);
    }

    fn submit(&mut self, id: &str, key: Option<&str>, arguments: &Value) -> Record {
        self.submit_record(&call(id, arguments), key)
    }

    /// Submits a call of another tool.
    fn submit_other(&mut self, id: &str, key: Option<&str>) -> Record {
        let job = json!({"jobID": id, "jobType": "tool-call", "payload": {"tool": "server_list"}});
        self.submit_record(&job, key)
    }

    fn submit_record(&mut self, job: &Value, key: Option<&str>) -> Record {
        let record = Outgoing::value(job.to_string());
        self.fleet.submit(vec![Outgoing { key: key.map(Into::into), ..record }]).remove(0)
    }

    /// The number of calls for the job.
    fn times(&self, id: &str) -> usize {
        let calls = Ledger::read(&self.ledger).calls;
        calls.get(id).map(|attempts| attempts.values().sum()).unwrap_or_default()
    }

    fn newest(&self, record: &Record) -> Option<JobEvent> {
        let oracle = Oracle::new(&self.fleet.topic, &self.fleet.submitted);
        let mut account = oracle.read(&self.fleet.env.brokers);
        account.states.remove(&(record.partition, record.offset)).map(Arc::unwrap_or_clone)
    }

    /// Waits until the newest event of the job is one that `is_wanted`.
    fn sees(&self, record: &Record, is_wanted: impl Fn(&JobEvent) -> bool) -> JobEvent {
        wait::poll_until_ok(&format!("what becomes of {}", record.text()), wait::LONG, || {
            let newest = self.newest(record);
            newest.clone().filter(|event| is_wanted(event)).ok_or_else(|| Box::new(newest))
        })
    }

    /// Waits until the newest event of the job has this state.
    fn becomes(&self, record: &Record, state: JobState) -> JobEvent {
        self.sees(record, |event| event.state == state)
    }

    /// Waits until the newest event of the job says that it is paused.
    fn waits(&self, record: &Record) -> JobEvent {
        let is_paused = |event: &JobEvent| {
            event.waiting.as_ref().is_some_and(|waiting| waiting.reason == "paused")
        };
        self.sees(record, is_paused)
    }
}

fn call(id: &str, arguments: &Value) -> Value {
    json!({"jobID": id, "jobType": "tool-call",
        "payload": {"server": "chaos", "tool": "work", "arguments": arguments}})
}

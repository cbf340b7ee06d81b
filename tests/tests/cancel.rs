//! Cancelling jobs: before they start, while they run, while they wait, and too late.

#![expect(clippy::expect_used, reason = "a panic is the report of a test")]

use std::{path::PathBuf, sync::Arc, time::Duration};

use fleet_job::{
    control::Control,
    event::{JobEvent, JobState},
    meta,
    outcome::ErrorKind,
    topics::Topics,
};
use fleet_mcp_client::{ClientConfig, Era, McpClient, ToolCall};
use fleet_tests::{
    Env, Fleet, Oracle, bins,
    chaos::ledger::Ledger,
    fleet::{ServerOptions, now},
    http, on_every_broker, rest,
    topics::{self, Outgoing, Record},
    wait,
};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

on_every_broker!(
    a_queued_job_never_starts,
    a_running_job_is_cancelled_at_the_tool,
    a_job_that_waits_ends_at_once,
    a_job_in_the_delayed_topic_ends_when_it_comes_back,
    a_cancel_after_the_end_changes_nothing,
    a_cancel_between_the_end_and_its_commit_changes_nothing,
    a_worker_that_starts_after_the_cancel_request_obeys_it,
    a_killed_workers_successor_does_not_run_cancelled_jobs,
    nothing_is_cancelled_until_the_control_topic_is_created,
);

/// The number of jobs that a worker of these tests has in flight.
const IN_FLIGHT: usize = 4;
/// The gauge of these jobs.
const BUSY: &str = "fleet_jobs_in_flight";

/// The job is behind another one of its key. Jobs behind it are not held up.
fn a_queued_job_never_starts(env: &Env) {
    let mut case = Case::new(env, "queued", 1);
    case.fleet.start_worker();
    let gate = case.gate();
    let first = case.submit("first", Some("k"), &json!({"until": gate}));
    let second = case.submit("second", Some("k"), &json!({}));
    let third = case.submit("third", Some("k"), &json!({}));
    case.called("first");
    case.fleet.cancel("second", Some("not needed"));
    let end = case.ends_as(&second, JobState::Cancelled);
    assert_eq!(end.attempts, 0, "{end:?}");

    let error = end.error.expect("an error");
    assert_eq!((error.kind, &*error.message), (ErrorKind::Cancelled, "cancelled: not needed"));
    assert!(end.timings.is_some_and(|timings| timings.started_at.is_none()));
    open(&gate);
    let account = case.fleet.settle(0);
    assert_eq!(
        (account.of(&first).state, account.of(&third).state),
        (JobState::Succeeded, JobState::Succeeded)
    );
    assert!(account.dead.is_empty(), "{:?}", account.dead);
    assert_eq!(case.times("second"), 0);
}

/// Jobs are cancelled on whichever worker they run, and the tool is notified. Jobs that waited for
/// their slots start.
fn a_running_job_is_cancelled_at_the_tool(env: &Env) {
    let mut case = Case::new(env, "running", 6);
    case.fleet.start_worker();
    case.fleet.start_worker();
    case.fleet.wait_for_gauge("fleet_partitions_assigned", 3);
    let gate = case.fleet.submit_held(100);
    case.fleet.wait_for_gauge(BUSY, IN_FLIGHT);
    let running = wait::poll_until("the calls of all that run", wait::LONG, || {
        let calls = Ledger::read(&case.ledger).calls;
        (calls.len() == 2 * IN_FLIGHT).then(|| calls.into_keys().collect::<Vec<_>>())
    });
    running.iter().for_each(|job| case.fleet.cancel(job, None));
    let by_id = |id: &str| {
        let of_id = |record: &&Record| record.text().contains(&format!("\"{id}\""));
        case.fleet.submitted.iter().find(of_id).expect("the job's record").clone()
    };
    let ends: Vec<_> =
        running.iter().map(|job| case.ends_as(&by_id(job), JobState::Cancelled)).collect();
    assert!(
        ends.iter()
            .all(|end| end.timings.as_ref().is_some_and(|timings| timings.started_at.is_some()))
    );

    let workers: std::collections::BTreeSet<_> =
        ends.iter().map(|end| end.worker.clone()).collect();
    assert_eq!(workers.len(), 2, "one worker has cancelled them all: {ends:?}");

    wait::poll_until_ok("the tool to hear of it", wait::LONG, || {
        let mut heard = Ledger::read(&case.ledger).cancelled;
        heard.sort();
        let mut running = running.clone();
        running.sort();
        if heard == running { Ok(()) } else { Err(heard) }
    });

    gate.open();
    let account = case.fleet.settle(0);
    assert_eq!(account.count(JobState::Cancelled), 2 * IN_FLIGHT);
    assert_eq!(account.count(JobState::Succeeded), 100 - 2 * IN_FLIGHT);
    assert!(running.iter().all(|job| case.times(job) == 1));
}

/// The jobs wait for their `notBefore`, or for their next attempt.
fn a_job_that_waits_ends_at_once(env: &Env) {
    let mut case = Case::new(env, "waiting", 2);
    case.fleet.worker_env("MCP_RETRY_BASE", "1h");
    case.fleet.worker_env("MCP_RETRY_MAX", "1h");
    let worker = case.fleet.start_worker().address;
    let mut later = call("later", &json!({}));
    later["notBefore"] = json!(now().plus(Duration::from_secs(3_600)).to_string());
    let later = case.fleet.submit_job(&later);
    let mut again = call("again", &json!({"failures": 1_000}));
    again["maxAttempts"] = json!(100);
    let again = case.fleet.submit_job(&again);
    case.ends_as(&again, JobState::Retrying);
    wait::poll_until("both to wait", wait::LONG, || {
        (http::metric(worker, "fleet_jobs_buffered")? == 2.0).then_some(())
    });
    case.fleet.cancel("later", None);
    case.fleet.cancel("again", None);
    let account = case.fleet.settle(0);
    let ends = [&later, &again].map(|record| account.of(record));
    assert!(ends.iter().all(|end| end.state == JobState::Cancelled), "{ends:?}");
    assert_eq!(case.times("later"), 0);
    assert_eq!(
        case.times("again"),
        ends[1].attempts as usize,
        "an attempt that has failed counts: {ends:?}"
    );
}

/// One job returns by itself; the other is due in an hour, but the worker that reads its record
/// after the cancel request returns it at once.
fn a_job_in_the_delayed_topic_ends_when_it_comes_back(env: &Env) {
    let mut case = Case::new(env, "delayed", 2);
    let delayed = Topics::of(&*case.fleet.topic).delayed;
    topics::create(&env.brokers, &[(&delayed, 6)]);
    case.fleet.worker_env("MCP_MAX_PARK", "1s");
    case.fleet.start_worker();
    let due = now().plus(Duration::from_secs(10));
    let mut submit = |id: &str, at: fleet_job::time::Timestamp| {
        let mut job = call(id, &json!({}));
        job["notBefore"] = json!(at.to_string());
        case.fleet.submit_job(&job)
    };
    let soon = submit("soon", due);
    let far = submit("far", due.plus(Duration::from_secs(3_600)));
    wait::poll_until("both in the delayed topic", wait::LONG, || {
        let waiting = topics::read(&env.brokers, &delayed);
        let has =
            |id: &str| waiting.iter().any(|record| record.text().contains(&format!("\"{id}\"")));
        (has("soon") && has("far")).then_some(())
    });
    case.fleet.cancel("soon", None);
    case.fleet.cancel("far", Some("no longer"));
    case.ends_as(&soon, JobState::Cancelled);

    // A worker held its record when the cancel request arrived, so the record stays in the delayed
    // topic; the next worker reads it again.
    let mut victim = case.fleet.workers.remove(0);
    victim.process.kill();
    case.fleet.start_worker();
    let end = case.ends_as(&far, JobState::Cancelled);
    assert_eq!(end.error.map(|error| error.message).as_deref(), Some("cancelled: no longer"));

    // The kill may cause a repeated end.
    case.fleet.wait_for_all();
    case.fleet.stop_workers();
    Oracle::new(&case.fleet.topic, &case.fleet.submitted).repeats(1).check(&env.brokers);
    assert_eq!(case.times("soon") + case.times("far"), 0);
}

/// An ended job stays ended, and a later job with its id is another job.
fn a_cancel_after_the_end_changes_nothing(env: &Env) {
    let mut case = Case::new(env, "late", 1);
    case.fleet.start_worker();
    let before = case.submit("job", None, &json!({}));
    case.ends_as(&before, JobState::Succeeded);
    case.fleet.cancel("job", None);

    // Cancel requests are read in order: once this one has its effect, the previous one has been
    // read.
    let gate = case.gate();
    let held = case.submit("held", None, &json!({"until": gate}));
    case.called("held");
    case.fleet.cancel("held", None);
    case.ends_as(&held, JobState::Cancelled);
    let after = case.submit("job", None, &json!({}));
    let account = case.fleet.settle(0);
    let ends = [&before, &after].map(|record| account.of(record));
    assert!(ends.iter().all(|end| end.state == JobState::Succeeded), "{ends:?}");
    assert_eq!(
        account.events[&(before.partition, before.offset)].last().map(|event| event.state),
        Some(JobState::Succeeded)
    );
    open(&gate);
}

/// After a crash, the record is read again, and the cancel request applies. The first end remains
/// the job's end: for the server, for a server that reads the topic again, and for compaction,
/// because the server restates it.
fn a_cancel_between_the_end_and_its_commit_changes_nothing(env: &Env) {
    let mut fleet = Fleet::new(env, "cancel-published", 1);
    let ledger = fleet.directory.join("ledger");
    fleet.server_env = fleet.with_jobs(ServerOptions::default()).env;
    fleet.start_tool_server(env!("CARGO_BIN_EXE_fixture_tools"), &ledger, false);
    fleet.create_control_topic();
    fleet.worker_env("MCP_COMMIT_INTERVAL", "10m");
    let mut case = Case { fleet, ledger };
    let server = case.fleet.server.as_ref().expect("the server").address;

    // The first commit comes at once, the next one only after ten minutes.
    let worker = case.fleet.start_worker().address;
    case.submit("committed", None, &json!({}));
    let commits = || http::metric(worker, "fleet_commits_total").filter(|commits| *commits > 0.0);
    wait::poll_until("the first commit", wait::LONG, commits);
    let job = case.submit("job", None, &json!({}));
    case.ends_as(&job, JobState::Succeeded);

    case.fleet.cancel("job", None);
    case.fleet.workers.remove(0).process.kill();
    case.fleet.start_worker();
    let place = (job.partition, job.offset);
    let events = || {
        let oracle = Oracle::new(&case.fleet.topic, &case.fleet.submitted);
        oracle.read(&env.brokers).events.remove(&place).unwrap_or_default()
    };
    wait::poll_until("the end of the repeat", wait::LONG, || {
        events().iter().any(|event| event.state == JobState::Cancelled).then_some(())
    });

    wait::poll_until_ok("the newest record to be the first end", wait::LONG, || {
        let states: Vec<_> = events().iter().map(|event| event.state).collect();
        if states.last() == Some(&JobState::Succeeded) { Ok(()) } else { Err(states) }
    });
    let replica = case.fleet.start_replica(ServerOptions::default());
    for address in [server, replica.address] {
        assert_eq!(rest::get(address, "/jobs/job").expect(200)["state"], "succeeded");
    }
    assert_eq!(http::metric(server, "mcp_server_ends_restated_total"), Some(1.0));
    case.fleet.stop_workers();
}

/// The number of irrelevant cancel requests before those of the next test: enough to take some time
/// to read.
const MANY: usize = 10_000;

/// No job starts before the worker has read the cancel requests.
fn a_worker_that_starts_after_the_cancel_request_obeys_it(env: &Env) {
    let mut case = Case::new(env, "after", 2);
    let jobs = (0..20).map(|n| Outgoing::value(call(&format!("job-{n}"), &json!({})).to_string()));
    let jobs = case.fleet.submit(jobs.collect());
    let others = (0..MANY).map(|n| format!("other-{n}"));
    let even = (0..20).step_by(2).map(|n| format!("job-{n}"));
    let cancel =
        |id: String| Outgoing::value(Control::cancel(&*id, None, now(), None).to_bytes()).key(id);

    // Malformed records do no harm.
    let strange = [
        Outgoing::value("no json").key("job-1"),
        Outgoing::default().key("job-3"),
        Outgoing::value("{}"),
    ];
    let records = others.chain(even).map(cancel).chain(strange).collect();
    topics::produce(&env.brokers, &Topics::of(&*case.fleet.topic).control, records);
    let worker = case.fleet.start_worker().address;
    case.fleet.wait_for_all();
    assert_eq!(http::metric(worker, "fleet_cancel_requests_total"), Some(10.0));
    assert_eq!(http::metric(worker, "fleet_invariant_violations_total"), Some(0.0));

    let account = case.fleet.settle(0);
    for (n, job) in jobs.iter().enumerate() {
        let (state, times) =
            if n % 2 == 0 { (JobState::Cancelled, 0) } else { (JobState::Succeeded, 1) };
        assert_eq!(
            (account.of(job).state, case.times(&format!("job-{n}"))),
            (state, times),
            "job-{n}"
        );
    }
}

/// The killed worker could not report the outcome of the running job.
fn a_killed_workers_successor_does_not_run_cancelled_jobs(env: &Env) {
    let mut case = Case::new(env, "killed", 1);
    case.fleet.start_worker();
    let gate = case.gate();
    let job = case.submit("job", Some("k"), &json!({"until": gate}));
    let next = case.submit("next", Some("k"), &json!({}));
    case.called("job");
    let mut victim = case.fleet.workers.remove(0);
    victim.process.signal(Signal::SIGSTOP);
    case.fleet.cancel("job", None);
    victim.process.kill();
    case.fleet.start_worker();
    let account = case.fleet.settle(0);
    assert_eq!(
        (account.of(&job).state, account.of(&next).state),
        (JobState::Cancelled, JobState::Succeeded)
    );
    assert_eq!((case.times("job"), case.times("next")), (1, 1));
    open(&gate);
}

/// A fleet without a control topic works without cancellation, and needs no restart once the topic
/// is created.
fn nothing_is_cancelled_until_the_control_topic_is_created(env: &Env) {
    let mut case = Case::without_topic(env, "absent", 1);
    case.fleet.start_worker();
    case.fleet.workers[0].process.says("jobs can't be cancelled until it is made", wait::LONG);
    let gate = case.gate();
    let job = case.submit("job", None, &json!({"until": gate}));
    case.called("job");
    case.fleet.create_control_topic();
    case.fleet.cancel("job", None);
    case.ends_as(&job, JobState::Cancelled);
    case.fleet.settle(0);
    open(&gate);
}

/// A worker cancels a call by dropping it. The call is cancelled at the tool: in the modern era by
/// closing the connection, before that by a notification. The server passes the cancellation on to
/// the process that it hosts.
#[test]
fn a_dropped_call_is_cancelled_at_the_tool_in_both_eras() {
    for (era, sessions) in [(Era::Modern, "false"), (Era::Legacy, "true"), (Era::Legacy, "false")] {
        let env = Env::embedded_broker(module_path!());
        let mut fleet = Fleet::new(&env, "eras", 1);
        let ledger = fleet.directory.join("ledger");
        fleet.server_env = vec![("MCP_LEGACY_SESSIONS".into(), sessions.into())];
        fleet.start_tool_server(env!("CARGO_BIN_EXE_fixture_tools"), &ledger, false);
        let mut config =
            ClientConfig::new(ClientConfig::parse_urls(&fleet.server_url).expect("a URL"));
        config.era = era;
        let client = McpClient::new(config).expect("a client");
        let runtime = tokio::runtime::Runtime::new().expect("a runtime");
        for (id, wants_progress) in [("silent", false), ("told", true)] {
            let gate = fleet.directory.join(bins::unique("gate"));
            let arguments = json!({"until": gate, "ms": 100, "progress": 1});
            let mut call =
                ToolCall::new("chaos__work", arguments.as_object().expect("an object").clone());
            call.meta.insert(meta::JOB_ID.to_owned(), id.into());
            let (sender, mut news) = tokio::sync::watch::channel(None);
            call.progress = wants_progress.then_some(sender);
            let caller = client.clone();
            let task = runtime.spawn(async move { caller.call_tool(call).await });
            wait::poll_until("the call", wait::LONG, || {
                Ledger::read(&ledger).calls.contains_key(id).then_some(())
            });
            if wants_progress {
                // The answer has already begun as an event stream.
                runtime.block_on(news.changed()).expect("news");
            }
            task.abort();
            wait::poll_until(&format!("the tool to hear of {id} ({era:?})"), wait::LONG, || {
                Ledger::read(&ledger).cancelled.iter().any(|job| job == id).then_some(())
            });
            open(&gate);
        }
    }
}

/// A fleet with a tool that logs its calls.
struct Case<'e> {
    fleet: Fleet<'e>,
    ledger: PathBuf,
}

impl<'e> Case<'e> {
    fn new(env: &'e Env, name: &str, partitions: i32) -> Self {
        let case = Self::without_topic(env, name, partitions);
        case.fleet.create_control_topic();
        case
    }

    fn without_topic(env: &'e Env, name: &str, partitions: i32) -> Self {
        let mut fleet = Fleet::new(env, &format!("cancel-{name}"), partitions);
        let ledger = fleet.directory.join("ledger");
        fleet.start_tool_server(env!("CARGO_BIN_EXE_fixture_tools"), &ledger, false);
        fleet.worker_env("MCP_MAX_IN_FLIGHT", &IN_FLIGHT.to_string());
        // A call that times out is also cancelled at the tool, which would hide a missing
        // cancellation.
        fleet.worker_env("MCP_CALL_TIMEOUT", "10m");
        Self { fleet, ledger }
    }

    fn submit(&mut self, id: &str, key: Option<&str>, arguments: &Value) -> Record {
        let record = Outgoing::value(call(id, arguments).to_string());
        self.fleet.submit(vec![Outgoing { key: key.map(Into::into), ..record }]).remove(0)
    }

    /// A file that doesn't exist until [`open`] creates it.
    fn gate(&self) -> PathBuf {
        self.fleet.directory.join(bins::unique("gate"))
    }

    /// Waits until the tool has been called for the job.
    fn called(&self, id: &str) {
        wait::poll_until(&format!("the call of {id}"), wait::LONG, || {
            (self.times(id) > 0).then_some(())
        });
    }

    /// The number of calls for the job.
    fn times(&self, id: &str) -> usize {
        Ledger::read(&self.ledger)
            .calls
            .get(id)
            .map(|attempts| attempts.values().sum())
            .unwrap_or_default()
    }

    /// Waits until the newest event of the job has this state.
    fn ends_as(&self, record: &Record, state: JobState) -> JobEvent {
        let oracle = Oracle::new(&self.fleet.topic, &self.fleet.submitted);
        let place = (record.partition, record.offset);
        wait::poll_until_ok(&format!("{} to be {state:?}", record.text()), wait::LONG, || {
            let last = oracle
                .read(&self.fleet.env.brokers)
                .states
                .remove(&place)
                .map(Arc::unwrap_or_clone);
            last.clone().filter(|event| event.state == state).ok_or_else(|| Box::new(last))
        })
    }
}

fn open(gate: &PathBuf) {
    std::fs::write(gate, "").expect("the gate");
}

fn call(id: &str, arguments: &Value) -> Value {
    json!({"jobID": id, "jobType": "tool-call",
        "payload": {"server": "chaos", "tool": "work", "arguments": arguments}})
}

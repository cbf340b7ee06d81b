//! Progress of running jobs, and jobs with several calls: their progress, which calls a retry
//! repeats, and their final reports.

#![expect(clippy::expect_used, reason = "a panic is the report of a test")]

use std::{collections::BTreeMap, fs, os::unix::fs::PermissionsExt as _, path::PathBuf};

use fleet_job::{
    event::{JobEvent, JobState, Progress},
    outcome::ErrorKind,
};
use fleet_tests::{
    Env, Fleet, Oracle, bins, fleet::ServerOptions, on_every_broker, oracle::Account,
    topics::Record, wait,
};
use serde_json::{Value, json};

on_every_broker!(
    progress_is_reported_at_the_configured_pace,
    the_newest_progress_is_reported_even_if_the_tool_falls_silent,
    a_batch_reports_the_number_of_finished_calls,
    tools_are_not_asked_for_unwanted_progress,
    a_retry_repeats_only_the_calls_that_have_not_succeeded,
    a_batch_that_fails_in_part_reports_each_call,
    a_slow_start_is_reported_by_its_job,
);

/// Sixty notifications in three seconds make an event every half second.
fn progress_is_reported_at_the_configured_pace(env: &Env) {
    let mut case = Case::new(env, "pace", "500ms");
    let gate = case.gate();
    let job = case.submit_call("job", &json!({"ms": 3_000, "progress": 60, "until": gate}));
    let again = case.submit_call("again", &json!({"ms": 200, "progress": 10, "failures": 2}));
    case.wait_for_progress(&job, |progress| progress.progress == 60.0);
    open(&gate);
    let account = case.settle();
    let reported = progress_events(&account, &job);
    let steps: Vec<_> = reported.iter().map(|(_, progress)| progress.progress).collect();
    assert!(steps.is_sorted_by(|a, b| a < b), "{steps:?}");

    let (first, last) = (reported[0].0.time, reported[reported.len() - 1].0.time);
    let most = last.since(first).as_millis() / 500 + 2;
    assert!(
        (3..=most as usize).contains(&reported.len()),
        "{} within {first} to {last}: {reported:?}",
        reported.len()
    );

    let (_, end) = &reported[reported.len() - 1];
    assert_eq!((end.total, end.message.as_deref()), (Some(60.0), Some("step 60")));
    let end = account.of(&job);
    assert_eq!((end.state, &end.progress), (JobState::Succeeded, &None));
    assert_eq!(account.of(&again).attempts, 3);
}

/// At the end of an interval, only the newest notification within it is reported.
fn the_newest_progress_is_reported_even_if_the_tool_falls_silent(env: &Env) {
    let mut case = Case::new(env, "newest", "1s");
    let gate = case.gate();
    let job = case.submit_call("job", &json!({"ms": 0, "progress": 200, "until": gate}));
    case.wait_for_progress(&job, |progress| progress.progress == 200.0);
    open(&gate);
    let account = case.settle();
    let reported = progress_events(&account, &job);

    // One at once, one a second, and the newest. The steps take longer on a busy machine.
    let times = || reported.iter().map(|(event, _)| event.time.as_millis());
    let took = times().max().zip(times().min()).map_or(0, |(last, first)| last - first);
    let most = 2 + usize::try_from(took / 1_000).expect("a short time");
    assert!(reported.len() <= most, "two hundred steps in {took} ms, and {reported:?}");
}

/// The progress of a batch is the number of finished calls, not the progress of each call.
fn a_batch_reports_the_number_of_finished_calls(env: &Env) {
    let mut case = Case::new(env, "count", "50ms");
    let gate = case.gate();
    let quick = || work(&json!({"ms": 200, "progress": 20}));
    let job = case.submit_batch("job", vec![quick(), quick(), work(&json!({"until": gate}))], 1);
    case.wait_for_progress(&job, |progress| progress.progress == 2.0);
    open(&gate);
    let account = case.settle();
    let reported = progress_events(&account, &job);
    let one = |done| Progress {
        progress: done,
        total: Some(3.0),
        message: Some("chaos__work".to_owned()),
    };
    let progress: Vec<_> = reported.into_iter().map(|(_, progress)| progress).collect();
    assert_eq!(progress, [one(1.0), one(2.0)]);
}

fn tools_are_not_asked_for_unwanted_progress(env: &Env) {
    let mut case = Case::new(env, "off", "0");
    let job = case.submit_call("job", &json!({"ms": 200, "progress": 20}));
    let batch = case.submit_batch("batch", vec![work(&json!({})), work(&json!({}))], 1);
    let account = case.settle();
    assert!(
        progress_events(&account, &job).is_empty() && progress_events(&account, &batch).is_empty()
    );
}

/// This holds even if several calls run at once.
fn a_retry_repeats_only_the_calls_that_have_not_succeeded(env: &Env) {
    let mut case = Case::new(env, "repeats", "1s");
    let calls = (0..12).map(|n| {
        let failures = [0, 0, 1, 2][n % 4];
        work(&json!({"ms": 10 * n, "failures": failures, "key": format!("call-{n}")}))
    });
    let job = case.submit_batch("job", calls.collect(), 4);
    let account = case.settle();
    let end = account.of(&job);
    assert_eq!((end.state, end.attempts), (JobState::Succeeded, 3), "{end:?}");

    let results =
        end.result.as_ref().expect("a result")["calls"].as_array().expect("results").clone();
    assert_eq!(results.len(), 12);
    assert!(
        results.iter().all(|call| call["result"]["content"][0]["text"] == "done"),
        "{results:?}"
    );

    let attempts = case.attempts();
    for n in 0..12 {
        let expected: Vec<u32> = (1..=1 + [0, 0, 1, 2][n % 4]).collect();
        assert_eq!(attempts[&format!("call-{n}")], expected, "call {n}: {attempts:?}");
    }
}

/// Neither the successful nor the failed calls of a batch hide the others.
fn a_batch_that_fails_in_part_reports_each_call(env: &Env) {
    let mut case = Case::new(env, "part", "1s");
    let named = |key: &str, mut arguments: Value| {
        arguments["key"] = json!(key);
        work(&arguments)
    };
    let calls = vec![
        named("good", json!({})),
        named("bad", json!({"final": true})),
        named("late", json!({"failures": 1})),
        json!({"server": "chaos", "tool": "no_such_tool"}),
    ];
    let job = case.submit_batch("job", calls, 2);
    let account = case.settle();
    let end = account.of(&job);
    assert_eq!(end.state, JobState::Failed, "{end:?}");

    let error = end.error.as_ref().expect("an error");
    assert!(error.message.starts_with("2 of 4 calls failed"), "{}", error.message);
    let results = error.data.as_ref().and_then(Value::as_array).expect("the result of each call");
    assert_eq!(results[0]["result"]["content"][0]["text"], "done");
    assert_eq!(results[1]["error"]["kind"], ErrorKind::Tool.as_str());
    assert_eq!(
        results[2]["result"]["content"][0]["text"], "done",
        "a call that can still succeed is tried again"
    );
    assert_eq!(results[3]["error"]["kind"], ErrorKind::JsonRpc.as_str());

    let attempts = case.attempts();
    assert_eq!((attempts["good"].len(), attempts["late"].len()), (1, 2));
    assert_eq!(account.dead.len(), 1);
}

/// The job reports what the server waits for, and the last output of the child.
fn a_slow_start_is_reported_by_its_job(env: &Env) {
    let mut fleet = Fleet::new(env, "progress-start", 2);
    let (program, gate) = (fleet.directory.join("slow"), fleet.directory.join("gate"));
    let (tools, ledger) = (env!("CARGO_BIN_EXE_fixture_tools"), fleet.directory.join("ledger"));
    let wait = format!("while [ ! -e {} ]; do sleep 0.1; done", gate.display());
    let text = format!(
        "#!/bin/sh\necho 'resolving packages' >&2\n{wait}\nexec {tools} {}\n",
        ledger.display()
    );
    fs::write(&program, text).expect("a program");
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).expect("its mode");

    let allowed = vec![program.display().to_string()];
    fleet.start_server(&ServerOptions { allowed, ..ServerOptions::default() });
    fleet.worker_env("MCP_PROGRESS_INTERVAL", "100ms");
    fleet.start_worker();
    let mut case = Case { fleet, ledger };
    let payload = json!({"mcpServers": {"slow": {"command": program}}});
    let init = case
        .fleet
        .submit_job(&json!({"jobID": "init", "jobType": "server-init", "payload": payload}));
    case.wait_for_progress(&init, |progress| {
        let message = progress.message.as_deref().unwrap_or_default();
        progress.total == Some(30.0) && message.contains("resolving packages")
    });
    open(&gate);
    let account = case.settle();
    let end = account.of(&init);
    assert_eq!((end.state, end.attempts), (JobState::Succeeded, 1), "{end:?}");
}

/// A fleet of one worker, with a tool that reports progress and logs its calls.
struct Case<'e> {
    fleet: Fleet<'e>,
    ledger: PathBuf,
}

impl<'e> Case<'e> {
    fn new(env: &'e Env, name: &str, interval: &str) -> Self {
        let mut fleet = Fleet::new(env, &format!("progress-{name}"), 2);
        let ledger = fleet.directory.join("ledger");
        fleet.start_tool_server(env!("CARGO_BIN_EXE_fixture_tools"), &ledger, false);
        fleet.worker_env("MCP_PROGRESS_INTERVAL", interval);
        fleet.start_worker();
        Self { fleet, ledger }
    }

    fn submit_call(&mut self, id: &str, arguments: &Value) -> Record {
        self.fleet
            .submit_job(&json!({"jobID": id, "jobType": "tool-call", "payload": work(arguments)}))
    }

    fn submit_batch(&mut self, id: &str, calls: Vec<Value>, parallel: u32) -> Record {
        let payload = json!({"calls": calls, "parallel": parallel});
        self.fleet.submit_job(&json!({"jobID": id, "jobType": "tool-batch", "payload": payload}))
    }

    /// A file that doesn't exist until [`open`] creates it.
    fn gate(&self) -> PathBuf {
        self.fleet.directory.join(bins::unique("gate"))
    }

    /// Waits until the newest event of a running job reports such progress.
    fn wait_for_progress(&self, record: &Record, wanted: impl Fn(&Progress) -> bool) {
        let oracle = Oracle::new(&self.fleet.topic, &self.fleet.submitted);
        wait::poll_until_ok("progress", wait::LONG, || {
            let last = oracle
                .read(&self.fleet.env.brokers)
                .states
                .remove(&(record.partition, record.offset));
            let progress = last.and_then(|event| event.progress.clone());
            if progress.as_ref().is_some_and(&wanted) { Ok(()) } else { Err(progress) }
        });
    }

    /// Waits for all ends. Asserts that all progress was reported for running attempts.
    fn settle(&mut self) -> Account {
        let account = self.fleet.settle(0);
        for events in account.events.values() {
            for pair in events.windows(2).filter(|pair| pair[1].progress.is_some()) {
                let goes_on =
                    pair[0].state == JobState::Running && pair[0].attempts == pair[1].attempts;
                assert!(goes_on && pair[1].state == JobState::Running, "{pair:?}");
            }
        }
        account
    }

    /// The attempts in which each key's tool was called.
    fn attempts(&self) -> BTreeMap<String, Vec<u32>> {
        let ledger = fs::read_to_string(&self.ledger).expect("the ledger");
        let mut attempts: BTreeMap<String, Vec<u32>> = BTreeMap::new();
        for line in ledger.lines() {
            if let ["s", _, attempt, key] = line.split(' ').collect::<Vec<_>>()[..] {
                attempts
                    .entry(key.to_owned())
                    .or_default()
                    .push(attempt.parse().expect("a number"));
            }
        }
        attempts
    }
}

/// The events of a job that report progress.
fn progress_events(account: &Account, record: &Record) -> Vec<(JobEvent, Progress)> {
    let events = account.events[&(record.partition, record.offset)].iter();
    events.filter_map(|event| Some((JobEvent::clone(event), event.progress.clone()?))).collect()
}

fn open(gate: &PathBuf) {
    fs::write(gate, "").expect("the gate");
}

fn work(arguments: &Value) -> Value {
    json!({"server": "chaos", "tool": "work", "arguments": arguments})
}

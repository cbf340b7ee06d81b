//! Outages behind the MCP server: a hosted remote server goes down while jobs need it, another one
//! refuses our credentials, and one that is to be hosted is not reachable yet. No job spends an
//! attempt on an outage, all affected jobs report that they wait, and jobs that don't need those
//! servers go on. A program that exits at once is not an outage.

#![expect(clippy::expect_used, reason = "a panic is the report of a test")]

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
};

use fleet_job::{
    event::{JobEvent, JobState},
    topics::Topics,
};
use fleet_tests::{
    Env, Fleet, Oracle,
    chaos::{
        hosted::{Forgotten, Hosted},
        ledger::Ledger,
    },
    fleet::{LARGE_FILE, ServerOptions, Service},
    http, on_every_broker,
    topics::{self, Outgoing},
    wait,
};
use serde_json::{Value, json};

on_every_broker!(
    an_outage_of_a_hosted_server_costs_no_attempts,
    a_call_that_is_turned_away_ends_no_other_call_of_its_batch,
    calls_that_fail_beside_one_that_waits_are_not_repeated_by_scouts,
    a_server_that_is_away_keeps_no_other_from_being_hosted,
);

fn digest(id: &str, tool: &str) -> String {
    json!({"jobID": id, "jobType": "tool-call", "payload": {"tool": tool, "arguments": {"path": LARGE_FILE}}})
        .to_string()
}

fn init(id: &str, config: &Value) -> String {
    json!({"jobID": id, "jobType": "server-init", "payload": {"mcpServers": {id: config}}})
        .to_string()
}

fn initialize(server: &Service, name: &str, config: &Value) {
    let hosted: Value = server.call("server_initialize", &json!({"name": name, "config": config}));
    assert!(hosted["error"].is_null() && hosted["result"]["isError"] != true, "{hosted}");
}

/// Waits until the newest event of this job says that it waits for this reason and has spent no
/// attempts.
fn wait_for_reason(fleet: &Fleet<'_>, job_id: &str, reason: &str) {
    wait::poll_until_ok("the job to say that it waits", wait::LONG, || {
        let account = Oracle::new(&fleet.topic, &fleet.submitted).read(&fleet.env.brokers);
        let event = account.last.values().find(|event| event.job_id == job_id);
        let waits = event.is_some_and(|event| {
            event.attempts == 0
                && event.waiting.as_ref().is_some_and(|waiting| waiting.reason == reason)
        });
        if waits { Ok(()) } else { Err(format!("{job_id}: {event:?}")) }
    });
}

/// How often each job has reported that it waits. A call that takes long although the server is
/// away, as on a busy machine, makes its job `running` for a while; what it reports after that is
/// not counted.
fn reports_of_waiting(fleet: &Fleet<'_>) -> BTreeMap<String, usize> {
    let mut reports: BTreeMap<String, usize> = BTreeMap::new();
    let mut has_run = BTreeSet::new();
    for record in topics::read(&fleet.env.brokers, &Topics::of(&*fleet.topic).events) {
        let value = record.content.value.as_deref().unwrap_or_default();
        let Ok(event) = serde_json::from_slice::<JobEvent>(value) else { continue };
        if event.waiting.is_none() {
            has_run.insert(event.job_id);
        } else if !has_run.remove(&event.job_id) || !reports.contains_key(&event.job_id) {
            *reports.entry(event.job_id).or_default() += 1;
        }
    }
    reports
}

fn an_outage_of_a_hosted_server_costs_no_attempts(env: &Env) {
    let mut fleet = Fleet::new(env, "hosted-outage", 3);
    let files = ServerOptions { roots: vec![fleet.files()], ..ServerOptions::default() };
    fleet.start_server(&files);
    let mut remote = fleet.server.take().expect("the remote server");
    let port = remote.address.port();

    let guarded = Hosted::start(env!("CARGO_BIN_EXE_fixture_remote"), &fleet.directory);
    let options = ServerOptions {
        env: vec![("MCP_ALLOWED_REMOTES".to_owned(), "127.0.0.1".to_owned())],
        allowed: vec!["false".to_owned()],
        ..files.clone()
    };
    fleet.start_server(&options);
    let config = json!({"type": "http", "url": format!("http://{}/mcp", remote.address)});
    let server = fleet.server.as_ref().expect("the server");
    initialize(server, "remote", &config);
    initialize(server, "guarded", &json!({"type": "http", "url": guarded.url()}));

    fleet.worker_env("MCP_MAX_ATTEMPTS", "2");
    let worker = fleet.start_worker().address;
    fleet.submit(vec![Outgoing::value(digest("before", "remote__file_digest"))]);
    fleet.wait_for_all();

    assert!(remote.process.stop(wait::LONG).success());
    let with_keys = (0..6)
        .map(|n| Outgoing::value(digest(&format!("away-{n}"), "remote__file_digest")).key("k"));
    let without =
        (0..6).map(|n| Outgoing::value(digest(&format!("apart-{n}"), "remote__file_digest")));
    let needy = fleet.submit(with_keys.chain(without).collect());
    wait::poll_until("jobs that wait for the hosted server", wait::LONG, || {
        (http::metric(worker, "fleet_jobs_waiting")? > 0.0).then_some(())
    });

    // Refused credentials and a server that is not reachable yet are outages, too.
    guarded.refuse(true);
    let refused = |n| {
        let payload = json!({"tool": "guarded__work"});
        let job =
            json!({"jobID": format!("refused-{n}"), "jobType": "tool-call", "payload": payload});
        Outgoing::value(job.to_string())
    };
    fleet.submit((0..2).map(refused).collect());
    let command = json!({"command": "false"});
    let locked = json!({"type": "http", "url": guarded.url()});
    fleet.submit(vec![
        Outgoing::value(init("later", &config)),
        Outgoing::value(init("locked", &locked)),
        Outgoing::value(init("broken", &command)),
    ]);
    wait_for_reason(&fleet, "refused-0", "upstream-unauthorized");
    wait_for_reason(&fleet, "locked", "upstream-unauthorized");
    wait_for_reason(&fleet, "later", "server-unavailable");

    // Jobs that need none of them go on, and the worker stays ready. The job whose program exits at
    // once has spent its attempts.
    let others = (0..20).map(|n| Outgoing::value(digest(&format!("other-{n}"), "file_digest")));
    fleet.submit(others.collect());
    fleet.wait_for(22);
    assert_eq!(http::get(worker, "/ready").expect("the worker's answer").0, 200);
    assert_eq!(http::metric(worker, "fleet_breaker_open"), Some(0.0));
    for n in 0..6 {
        wait_for_reason(&fleet, &format!("apart-{n}"), "server-unavailable");
    }

    let halfway = Oracle::new(&fleet.topic, &fleet.submitted).read(&env.brokers);
    let waiting = needy.iter().filter_map(|record| {
        halfway.states.values().find(|event| {
            event.source.as_ref().is_some_and(|source| {
                (source.partition, source.offset) == (record.partition, record.offset)
            })
        })
    });
    let waiting: Vec<_> = waiting.filter_map(|event| event.waiting.as_ref()).collect();
    assert!(!waiting.is_empty(), "no job reports that it waits");
    assert!(
        waiting.iter().all(|waiting| waiting.server.as_deref() == Some("remote")),
        "{waiting:?}"
    );

    guarded.refuse(false);
    let back = ServerOptions { port, ..files };
    let server = fleet.server.take();
    fleet.start_server(&back);
    remote = fleet.server.take().expect("the remote server");
    fleet.server = server;
    let account = fleet.settle(0);
    assert_eq!((account.count(JobState::Succeeded), account.count(JobState::Failed)), (37, 1));

    let spent: Vec<_> = account.states.values().filter(|event| event.attempts != 1).collect();
    let spent: Vec<_> = spent.iter().map(|event| (event.job_id.as_str(), event.attempts)).collect();
    assert_eq!(
        spent,
        [("broken", 2)],
        "attempts were spent on outages, or not spent on other failures"
    );

    // The jobs behind the first one of their key wait for that job, whatever it waits for.
    let apart = (0..6).map(|n| format!("apart-{n}"));
    let others = ["away-0", "refused-0", "refused-1", "later", "locked"].map(str::to_owned);
    let waiting = reports_of_waiting(&fleet);
    for job in apart.chain(others) {
        assert_eq!(waiting.get(&job), Some(&1), "{job} reports once per outage: {waiting:?}");
    }
    assert!(waiting.values().all(|count| *count == 1), "{waiting:?}");
    drop(remote);
}

/// Starts a fleet that hosts the remote servers `live` and `dead`, and kills `dead`.
fn start_with_dead_server<'a>(env: &'a Env, name: &str) -> (Fleet<'a>, Hosted, Hosted) {
    let mut fleet = Fleet::new(env, name, 1);
    let start = |name: &str| {
        let directory = fleet.directory.join(name);
        fs::create_dir(&directory).expect("a directory");
        Hosted::start(env!("CARGO_BIN_EXE_fixture_remote"), &directory)
    };
    let (live, mut dead) = (start("live"), start("dead"));
    let settings = [("MCP_ALLOWED_REMOTES", "127.0.0.1"), ("MCP_REPEAT_WINDOW", "0")];
    fleet.start_server(&ServerOptions {
        env: settings.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec(),
        ..ServerOptions::default()
    });
    let server = fleet.server.as_ref().expect("the server");
    initialize(server, "live", &json!({"type": "http", "url": live.url()}));
    initialize(server, "dead", &json!({"type": "http", "url": dead.url()}));
    dead.kill();

    fleet.start_worker();
    (fleet, live, dead)
}

/// A batch keeps the results of the calls that run when another one is turned away, so that each is
/// made once, however often a scout asks whether the other server is back.
fn a_call_that_is_turned_away_ends_no_other_call_of_its_batch(env: &Env) {
    let (mut fleet, live, mut dead) = start_with_dead_server(env, "batch-outage");
    let calls = json!([{"tool": "live__work", "arguments": {"ms": 3000}}, {"tool": "dead__work"}]);
    let payload = json!({"calls": calls, "parallel": 2});
    fleet.submit_job(&json!({"jobID": "batch", "jobType": "tool-batch", "payload": payload}));
    wait_for_reason(&fleet, "batch", "server-unavailable");
    wait::poll_until("the end of the call of the live server", wait::LONG, || {
        let ledger = fs::read_to_string(&live.ledger).ok()?;
        ledger.lines().any(|line| line.starts_with("e batch")).then_some(())
    });

    dead.restart(Forgotten::NotFound);
    let account = fleet.settle(0);
    assert_eq!(account.count(JobState::Succeeded), 1);
    let calls = |hosted: &Hosted| Ledger::read(&hosted.ledger).calls["batch"].clone();
    assert_eq!(calls(&live), BTreeMap::from([(1, 1)]), "the call of the live server is made once");
    assert_eq!(calls(&dead), BTreeMap::from([(1, 1)]));
}

/// The servers of a `server-init` have nothing to do with each other.
fn a_server_that_is_away_keeps_no_other_from_being_hosted(env: &Env) {
    let (mut fleet, live, mut dead) = start_with_dead_server(env, "init-outage");
    let config = |hosted: &Hosted| json!({"type": "http", "url": hosted.url()});
    let servers = json!({"away": config(&dead), "fresh": config(&live)});
    fleet.submit_job(
        &json!({"jobID": "init", "jobType": "server-init", "payload": {"mcpServers": servers}}),
    );
    wait_for_reason(&fleet, "init", "server-unavailable");
    fleet.submit_job(
        &json!({"jobID": "call", "jobType": "tool-call", "payload": {"tool": "fresh__work"}}),
    );
    wait::poll_until("the call of the server that is there", wait::LONG, || {
        let account = Oracle::new(&fleet.topic, &fleet.submitted).read(&fleet.env.brokers);
        (account.count(JobState::Succeeded) == 1).then_some(())
    });

    dead.restart(Forgotten::NotFound);
    let account = fleet.settle(0);
    assert_eq!(account.count(JobState::Succeeded), 2);
}

/// Calls that fail while another call of their batch waits for its server spend attempts, as
/// planned, and run no more often. One that fails for good runs once.
fn calls_that_fail_beside_one_that_waits_are_not_repeated_by_scouts(env: &Env) {
    let (mut fleet, live, mut dead) = start_with_dead_server(env, "failing-batch");
    let cases = [
        ("recovers", json!({"failures": 2}), 5),
        ("gives-up", json!({"failures": 99}), 3),
        ("final", json!({"final": true}), 5),
    ];
    for (id, arguments, max_attempts) in &cases {
        let calls = json!([{"tool": "live__work", "arguments": arguments}, {"tool": "dead__work"}]);
        fleet
            .submit_job(&json!({"jobID": id, "jobType": "tool-batch", "maxAttempts": max_attempts,
            "payload": {"calls": calls, "parallel": 2}}));
    }

    // `gives-up` fails although its other call was never made. The others wait for that.
    let expected = BTreeMap::from([("recovers", 3), ("gives-up", 3), ("final", 1)]);
    let calls_of = |ledger: &Ledger, id: &str| ledger.calls.get(id).cloned().unwrap_or_default();
    wait::poll_until_ok("the planned attempts", wait::LONG, || {
        let account = Oracle::new(&fleet.topic, &fleet.submitted).read(&fleet.env.brokers);
        let ledger = Ledger::read(&live.ledger);
        let is_waiting = |id: &str| {
            let event = account.last.values().find(|event| event.job_id == id);
            event.is_some_and(|event| event.waiting.is_some())
        };
        let calls = expected.keys().map(|id| (*id, calls_of(&ledger, id).len()));
        let calls: BTreeMap<_, _> = calls.collect();
        let has_settled = account.count(JobState::Failed) == 1;
        if calls == expected && has_settled && is_waiting("recovers") && is_waiting("final") {
            Ok(())
        } else {
            Err(format!("{calls:?}: {:?}", account.last))
        }
    });

    dead.restart(Forgotten::NotFound);
    let account = fleet.settle(0);
    let states: BTreeMap<_, _> = account
        .states
        .values()
        .map(|event| (&*event.job_id, (event.state, event.attempts)))
        .collect();
    assert_eq!(states["recovers"], (JobState::Succeeded, 3));
    assert_eq!(states["gives-up"], (JobState::Failed, 3));
    assert_eq!(states["final"], (JobState::Failed, 1));
    let (of_live, of_dead) = (Ledger::read(&live.ledger), Ledger::read(&dead.ledger));
    for (id, attempts) in expected {
        let once_each = (1..=attempts).map(|attempt| (attempt as u32, 1)).collect();
        assert_eq!(calls_of(&of_live, id), once_each, "{id}");
    }
    assert_eq!(calls_of(&of_dead, "recovers"), BTreeMap::from([(3, 1)]));
    assert_eq!(calls_of(&of_dead, "final"), BTreeMap::from([(1, 1)]));
}

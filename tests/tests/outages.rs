//! An outage behind the MCP server: a hosted remote server goes away while jobs need it. None of them spends an attempt, all
//! say that they wait, and jobs that do not need it go on.

#![expect(clippy::expect_used, reason = "a panic is the report of a test")]

use fleet_job::event::JobState;
use fleet_tests::{
    Env, Fleet, Oracle,
    fleet::{LARGE_FILE, ServerOptions},
    http, on_every_broker,
    topics::Outgoing,
    wait,
};
use serde_json::{Value, json};

on_every_broker!(a_hosted_server_that_is_away_costs_no_attempts);

fn digest(id: &str, tool: &str) -> String {
    json!({"jobID": id, "jobType": "tool-call", "payload": {"tool": tool, "arguments": {"path": LARGE_FILE}}})
        .to_string()
}

fn a_hosted_server_that_is_away_costs_no_attempts(env: &Env) {
    let mut fleet = Fleet::new(env, "hosted-outage", 3);
    let files = ServerOptions { roots: vec![fleet.files()], ..ServerOptions::default() };
    fleet.start_server(&files);
    let mut remote = fleet.server.take().expect("the remote server");
    let port = remote.address.port();

    let allowed = vec![("MCP_ALLOWED_REMOTES".to_owned(), "127.0.0.1".to_owned())];
    fleet.start_server(&ServerOptions { env: allowed, ..files.clone() });
    let config = json!({"type": "http", "url": format!("http://{}/mcp", remote.address)});
    let server = fleet.server.as_ref().expect("the server");
    let hosted: Value = server.call("server_initialize", &json!({"name": "remote", "config": config}));
    assert!(hosted["error"].is_null() && hosted["result"]["isError"] != true, "{hosted}");

    fleet.worker_env("MCP_MAX_ATTEMPTS", "2");
    let worker = fleet.start_worker().address;
    fleet.submit(vec![Outgoing::value(digest("before", "remote__file_digest"))]);
    fleet.wait_for_all();

    assert!(remote.process.stop(wait::LONG).success());
    let with_keys =
        (0..6).map(|n| Outgoing::value(digest(&format!("away-{n}"), "remote__file_digest")).key("k"));
    let without = (0..6).map(|n| Outgoing::value(digest(&format!("apart-{n}"), "remote__file_digest")));
    let needy = fleet.submit(with_keys.chain(without).collect());
    wait::until("jobs that wait for the hosted server", wait::LONG, || {
        (http::metric(worker, "fleet_jobs_waiting")? > 0.0).then_some(())
    });

    // What does not need it goes on, and the worker stays ready.
    let others = (0..20).map(|n| Outgoing::value(digest(&format!("other-{n}"), "file_digest")));
    fleet.submit(others.collect());
    fleet.wait_for(21);
    assert_eq!(http::get(worker, "/ready").expect("the worker's answer").0, 200);
    assert_eq!(http::metric(worker, "fleet_breaker_open"), Some(0.0));
    let halfway = Oracle::new(&fleet.topic, &fleet.submitted).read(&env.brokers);
    let waiting = needy.iter().filter_map(|record| {
        halfway.states.values().find(|event| {
            event
                .source
                .as_ref()
                .is_some_and(|source| (source.partition, source.offset) == (record.partition, record.offset))
        })
    });
    let waiting: Vec<_> = waiting.filter_map(|event| event.waiting.as_ref()).collect();
    assert!(!waiting.is_empty(), "no job says that it waits");
    assert!(waiting.iter().all(|waiting| waiting.server.as_deref() == Some("remote")), "{waiting:?}");

    let back = ServerOptions { port, ..files };
    let server = fleet.server.take();
    fleet.start_server(&back);
    remote = fleet.server.take().expect("the remote server");
    fleet.server = server;
    let account = fleet.settle(0);
    assert_eq!(account.count(JobState::Succeeded), 33);
    assert!(account.dead.is_empty(), "{:?}", account.dead);
    let spent: Vec<_> = account.states.values().filter(|event| event.attempts != 1).collect();
    assert!(spent.is_empty(), "attempts were spent on the outage: {spent:?}");
    drop(remote);
}

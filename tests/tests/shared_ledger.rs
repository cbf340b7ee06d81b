//! Two replicas with one ledger in PostgreSQL, whose database is killed and comes back.

#![expect(clippy::expect_used, reason = "a panic is the report of a test")]

use std::net::SocketAddr;

use fleet_ledger::testing::{Cluster, PASSWORD};
use fleet_tests::{
    Env, Fleet,
    fleet::{ServerOptions, Service},
    http, on_every_broker, rest, wait,
};
use serde_json::{Value, json};

on_every_broker!(replicas_share_a_ledger_whose_database_comes_and_goes);

/// Submits calls that read a file, and returns the ids of their jobs.
fn submit(server: SocketAddr, count: usize) -> Vec<String> {
    let job = json!({"tool": "file_digest", "arguments": {"path": "hello.txt"}});
    let submitted = (0..count).map(|_| {
        let answer = rest::post(server, "/jobs", &job);
        assert!(answer.status < 300, "{answer:?}");
        answer.json()["jobs"][0]["jobID"].as_str().expect("an id").to_owned()
    });
    submitted.collect()
}

/// Waits until a replica says of all these jobs that they have succeeded.
fn wait_for_all(server: SocketAddr, jobs: &[String]) {
    for job in jobs {
        wait::poll_until_ok(&format!("the end of {job}"), wait::LONG, || {
            let answer = rest::get(server, &format!("/jobs/{job}"));
            let has_succeeded = answer.status == 200 && answer.json()["state"] == "succeeded";
            if has_succeeded { Ok(()) } else { Err(answer) }
        });
    }
}

/// The number of jobs in each state that a replica lists.
fn list(server: SocketAddr) -> Vec<Value> {
    let listed = rest::get(server, "/jobs?limit=500").expect(200);
    listed["jobs"].as_array().expect("jobs").clone()
}

fn projected(server: &Service) -> f64 {
    http::metric(server.address, r#"mcp_server_ledger_projected_total{by="this"}"#)
        .unwrap_or_default()
}

fn replicas_share_a_ledger_whose_database_comes_and_goes(env: &Env) {
    let Some(mut cluster) = Cluster::with_password() else {
        fleet_tests::loud("PostgreSQL not found: a test is NOT RUN");
        return;
    };
    let url = cluster.create_database();
    let mut fleet = Fleet::new(env, "shared-ledger", 3);
    let file = fleet.directory.join("ledger-url");
    std::fs::write(&file, format!("{url}\n")).expect("the file of the URL");
    let options = |fleet: &Fleet<'_>| {
        let file = ("MCP_LEDGER_FILE".to_owned(), file.display().to_string());
        ServerOptions { roots: vec![fleet.files()], env: vec![file], ..ServerOptions::default() }
    };
    fleet.start_server(&fleet.with_jobs(options(&fleet)));
    let first = fleet.server.as_ref().expect("the server").address;
    let second = fleet.start_replica(options(&fleet));
    fleet.start_worker();

    let mut jobs = submit(first, 10);
    jobs.extend(submit(second.address, 10));
    for replica in [first, second.address] {
        wait_for_all(replica, &jobs);
    }

    // Calls and jobs go on without the database, and so does a server that starts meanwhile.
    cluster.kill();
    for replica in [first, second.address] {
        // The database's processes for open connections notice the kill a moment later.
        let answer = wait::poll_until("an answer without the database", wait::LONG, || {
            let answer = rest::get(replica, &format!("/jobs/{}", jobs[0]));
            (answer.status != 200).then_some(answer)
        });
        answer.problem(503, "ledger-unavailable");
        assert_eq!(answer.json()["code"], "FLEET-LEDGER-UNAVAILABLE");
        rest::get(replica, "/jobs").problem(503, "ledger-unavailable");
        assert_eq!(rest::get(replica, "/ready").status, 200, "readiness does not change");
    }
    let read = json!({"path": "hello.txt"});
    assert_eq!(second.call("file_digest", &read)["result"]["isError"], json!(false));
    let late = fleet.start_replica(options(&fleet));
    assert_eq!(late.call("file_digest", &read)["result"]["isError"], json!(false));
    rest::get(late.address, "/jobs").problem(503, "ledger-unavailable");
    let submitted = submit(second.address, 10);
    let ends = |service: &Service| {
        http::metric(service.address, "fleet_jobs_settled_total").unwrap_or_default()
    };
    wait::poll_until_ok("the jobs' ends", wait::LONG, || {
        let ended = ends(&fleet.workers[0]);
        if ended >= 30.0 { Ok(()) } else { Err(ended) }
    });
    jobs.extend(submitted);

    // The ledger goes on where it was, for all of them.
    cluster.run();
    for replica in [first, second.address, late.address] {
        wait_for_all(replica, &jobs);
        assert_eq!(list(replica).len(), jobs.len());
    }

    // Another replica takes over from one that is killed.
    let mut killed = second;
    killed.process.kill();
    let more = submit(late.address, 10);
    for replica in [first, late.address] {
        wait_for_all(replica, &more);
    }
    let server = fleet.server.as_ref().expect("the server");
    assert!(projected(server) + projected(&late) > 0.0, "one of them has written");

    let password = PASSWORD.split('/').next().unwrap_or_default();
    for log in [server.process.log(), late.process.log(), killed.process.log()] {
        assert!(!log.contains(password), "a log holds the database's password");
    }
    fleet.stop_workers();
}

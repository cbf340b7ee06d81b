//! Jobs and tasks from the point of view of the server's clients: submitted, watched, and found on
//! another replica after all processes were killed.

#![expect(clippy::expect_used, reason = "a panic is the report of a test")]

use std::{path::Path, process::Command, thread};

use fleet_job::{
    event::{JobEvent, JobState},
    time::Timestamp,
};
use fleet_tests::{
    Env, Fleet, bins,
    fleet::{ServerOptions, Service},
    mcp::Mcp,
    on_every_broker, rest,
    topics::Outgoing,
    wait,
};
use serde_json::{Value, json};

on_every_broker!(
    a_job_is_submitted_waited_for_and_listed,
    the_same_key_is_one_job_on_all_replicas,
    concurrent_equal_batches_are_submitted_once,
    a_job_whose_submitter_died_is_submitted_again,
    jobs_of_other_owners_are_invisible,
    a_result_that_is_too_large_to_keep_is_reported,
    a_job_is_watched_and_cancelled,
    ledgers_are_equal_however_they_are_built,
    tasks_survive_the_death_of_everything,
);

/// A fleet with one worker, and a server that has files and knows jobs.
fn with_files<'e>(env: &'e Env, name: &str) -> Fleet<'e> {
    with_files_and(env, name, &[])
}

/// The same, with additional environment for the worker.
fn with_files_and<'e>(env: &'e Env, name: &str, worker_env: &[(&str, &str)]) -> Fleet<'e> {
    let mut fleet = Fleet::new(env, name, 3);
    worker_env.iter().for_each(|(name, value)| fleet.worker_env(name, value));
    let options = ServerOptions { roots: vec![fleet.files()], ..ServerOptions::default() };
    fleet.start_server(&fleet.with_jobs(options));
    fleet.start_worker();
    fleet
}

fn client(fleet: &Fleet<'_>) -> Mcp {
    Mcp::new(fleet.server.as_ref().expect("the server").address)
}

fn digest(path: &str) -> Value {
    json!({"tool": "file_digest", "arguments": {"path": path}})
}

/// Waits for the end of a job.
fn end_of(client: &Mcp, id: &Value) -> Value {
    wait::poll_until("the end of a job", wait::LONG, || {
        let job = client.call("job_wait", &json!({"jobID": id, "timeoutMs": 5_000}));
        ["succeeded", "failed", "cancelled", "expired"]
            .contains(&job["state"].as_str()?)
            .then_some(job)
    })
}

/// All jobs that a client can see, newest first.
fn all_jobs(client: &Mcp, filter: &Value) -> Vec<Value> {
    let mut jobs = Vec::new();
    let mut arguments = filter.clone();
    loop {
        let page = client.call("job_list", &arguments);
        jobs.extend(page["jobs"].as_array().cloned().expect("jobs"));
        match page.get("nextCursor") {
            Some(cursor) => arguments["cursor"] = cursor.clone(),
            None => return jobs,
        }
    }
}

fn a_job_is_submitted_waited_for_and_listed(env: &Env) {
    let mut fleet = with_files(env, "submit");
    let client = client(&fleet);
    let mut jobs: Vec<Value> = (0..20).map(|_| digest("hello.txt")).collect();
    jobs.push(
        json!({"calls": [digest("hello.txt"), digest("empty")], "parallel": 2, "tenant": "acme"}),
    );
    jobs.push(
        json!({"tool": "file_digest", "arguments": {"path": "no such file"}, "maxAttempts": 1}),
    );
    let submitted = client.call("job_submit", &json!({"jobs": jobs}));
    let submitted = submitted["jobs"].as_array().expect("jobs");
    assert_eq!(submitted.len(), 22);

    for job in submitted {
        assert_eq!((&job["state"], &job["existing"]), (&json!("queued"), &json!(false)));
        // The job is found at once, whatever its state.
        client.call("job_status", &json!({"jobID": job["jobID"]}));
    }
    let ended: Vec<Value> = submitted.iter().map(|job| end_of(&client, &job["jobID"])).collect();
    assert!(ended[..21].iter().all(|job| job["state"] == "succeeded"), "{ended:#?}");
    assert!(ended[0]["result"]["structuredContent"]["sha256"].is_string(), "{}", ended[0]);
    assert_eq!(ended[20]["result"]["calls"].as_array().map(Vec::len), Some(2));
    assert_eq!(ended[21]["state"], "failed");
    assert_eq!(ended[21]["error"]["kind"], "tool");

    let result = client.call("job_result", &json!({"jobID": ended[21]["jobID"]}));
    assert_eq!(result["error"], ended[21]["error"]);

    // List the jobs.
    let ids = |filter: Value| -> Vec<Value> {
        all_jobs(&client, &filter).into_iter().map(|job| job["jobID"].clone()).collect()
    };
    let mut newest_first: Vec<Value> = submitted.iter().map(|job| job["jobID"].clone()).collect();
    newest_first.sort_by(|a, b| b.as_str().cmp(&a.as_str()));
    assert_eq!(
        ids(json!({"limit": 5})),
        newest_first,
        "all were submitted in one millisecond, so the id decides"
    );
    assert_eq!(ids(json!({"states": ["failed"]})), [ended[21]["jobID"].clone()]);
    assert_eq!(ids(json!({"tenant": "acme"})), [ended[20]["jobID"].clone()]);
    assert_eq!(ids(json!({"jobType": "tool-batch"})), [ended[20]["jobID"].clone()]);
    assert_eq!(ids(json!({"tool": "file_digest", "states": ["succeeded"]})).len(), 20);
    assert!(ids(json!({"since": "2999-01-01T00:00:00Z"})).is_empty());

    // Errors say what is wrong.
    for (arguments, says) in [
        (json!({"tool": "t", "priority": 99}), "`priority` is 99"),
        (json!({"jobs": []}), "1 to 1000 jobs"),
        (json!({"jobs": [digest("a"), {"tool": ""}]}), "job 1: `payload.tool` is empty"),
        (json!({"tool": "t", "arguments": {"x": "y".repeat(1 << 20)}}), "workers accept at most"),
    ] {
        let refusal = client.refusal("job_submit", &arguments);
        assert!(refusal.contains(says), "{refusal}");
    }
    let refusal = client.refusal("job_status", &json!({"jobID": "no such job"}));
    assert!(refusal.contains("there is no job `no such job`"), "{refusal}");

    fleet.stop_workers();
}

/// Many concurrent submissions with one key to two replicas make one job, and all of them return
/// it.
fn the_same_key_is_one_job_on_all_replicas(env: &Env) {
    let mut fleet = with_files(env, "same-key");
    let other = fleet.start_replica(ServerOptions::default());
    let clients = [client(&fleet), Mcp::new(other.address)];
    for round in 0..5 {
        let mut job = digest("hello.txt");
        job["idempotencyKey"] = json!(format!("key-{round}"));
        let answers: Vec<Value> = thread::scope(|scope| {
            let submissions: Vec<_> = (0..8)
                .map(|n| {
                    let (client, job) = (&clients[n % 2], &job);
                    scope.spawn(move || client.call("job_submit", job)["jobs"][0].clone())
                })
                .collect();
            submissions
                .into_iter()
                .map(|submission| submission.join().expect("an answer"))
                .collect()
        });
        let fresh = answers.iter().filter(|answer| answer["existing"] == json!(false)).count();
        assert_eq!(fresh, 1, "{answers:#?}");
        assert!(
            answers.iter().all(|answer| answer["jobID"] == answers[0]["jobID"]),
            "{answers:#?}"
        );
        let ended = end_of(&clients[1], &answers[0]["jobID"]);
        assert_eq!((&ended["state"], &ended["attempts"]), (&json!("succeeded"), &json!(1)));
        let again = clients[0].call("job_submit", &job)["jobs"][0].clone();
        assert_eq!((&again["state"], &again["existing"]), (&json!("succeeded"), &json!(true)));
    }
    let records = fleet_tests::topics::read(&env.brokers, &fleet.topic);
    assert_eq!(records.len(), 5, "one record for each key");

    fleet.stop_workers();
}

/// Concurrent requests with many named jobs each, and no worker that could report them: each
/// request wins some of the jobs, and none waits for another forever.
fn concurrent_equal_batches_are_submitted_once(env: &Env) {
    let mut fleet = Fleet::new(env, "same-batches", 3);
    let options = ServerOptions { roots: vec![fleet.files()], ..ServerOptions::default() };
    fleet.start_server(&fleet.with_jobs(options));
    let other = fleet.start_replica(ServerOptions::default());
    let clients = [client(&fleet), Mcp::new(other.address)];
    let batch: Vec<Value> = (0..50)
        .map(|n| {
            let mut job = digest("hello.txt");
            job["jobID"] = format!("job-{n}").into();
            job
        })
        .collect();
    let answers: Vec<Vec<Value>> = thread::scope(|scope| {
        let submissions: Vec<_> = (0..4)
            .map(|n| {
                let (client, batch) = (&clients[n % 2], &batch);
                scope.spawn(move || {
                    let answer = client.call("job_submit", &json!({"jobs": batch}));
                    answer["jobs"].as_array().cloned().expect("jobs")
                })
            })
            .collect();
        submissions.into_iter().map(|submission| submission.join().expect("an answer")).collect()
    });
    for n in 0..batch.len() {
        let fresh = answers.iter().filter(|answer| answer[n]["existing"] == json!(false)).count();
        assert_eq!(fresh, 1, "job {n}");
    }
    assert_eq!(fleet_tests::topics::read(&env.brokers, &fleet.topic).len(), batch.len());

    fleet.start_worker();
    for job in &batch {
        assert_eq!(end_of(&clients[1], &job["jobID"])["state"], "succeeded");
    }
    fleet.stop_workers();
}

/// A server that dies between the two writes leaves a `queued` event without a job. It has not
/// confirmed the submission, so a repeated request submits the job.
fn a_job_whose_submitter_died_is_submitted_again(env: &Env) {
    let mut fleet = Fleet::new(env, "half-submitted", 3);
    let options = ServerOptions { roots: vec![fleet.files()], ..ServerOptions::default() };
    fleet.start_server(&fleet.with_jobs(options));
    let client = client(&fleet);
    let job = |id: &str| {
        let mut job = digest("hello.txt");
        job["jobID"] = id.into();
        job
    };
    let submit = |id: &str| client.call("job_submit", &job(id))["jobs"][0]["existing"].clone();

    // No worker runs, so only the jobs topic distinguishes these two.
    assert_eq!(submit("whole"), json!(false));
    let now = Timestamp::from_millis_clamped(
        i64::try_from(std::time::UNIX_EPOCH.elapsed().expect("now").as_millis()).expect("now"),
    );
    let claim =
        JobEvent { submitted_at: Some(now), ..JobEvent::new("half", JobState::Queued, now) };
    let record = Outgoing::value(String::from_utf8(claim.to_bytes()).expect("JSON")).key("half");
    fleet_tests::topics::produce(&env.brokers, &format!("{}.events", fleet.topic), vec![record]);
    assert_eq!(submit("whole"), json!(true));
    assert_eq!(submit("half"), json!(false));
    assert_eq!(submit("half"), json!(true));

    fleet.start_worker();
    for id in ["whole", "half"] {
        assert_eq!(end_of(&client, &json!(id))["state"], "succeeded");
    }
    assert_eq!(fleet_tests::topics::read(&env.brokers, &fleet.topic).len(), 2);

    fleet.stop_workers();
}

/// Jobs that were submitted with credentials are visible only with these credentials.
fn jobs_of_other_owners_are_invisible(env: &Env) {
    let mut fleet = with_files(env, "foreign");
    let nobody = client(&fleet);
    let (mine, theirs) = (nobody.as_user("Bearer mine"), nobody.as_user("Bearer theirs"));
    let mut job = digest("hello.txt");
    job["idempotencyKey"] = json!("k");
    let of = |client: &Mcp| client.call("job_submit", &job)["jobs"][0].clone();
    let (a, b, c) = (of(&mine), of(&theirs), of(&nobody));
    assert!(
        a["jobID"] != b["jobID"] && b["jobID"] != c["jobID"],
        "a key is its owner's: {a} {b} {c}"
    );
    end_of(&mine, &a["jobID"]);
    for stranger in [&theirs, &nobody] {
        for tool in ["job_status", "job_result", "job_wait"] {
            let refusal = stranger.refusal(tool, &json!({"jobID": a["jobID"]}));
            assert!(refusal.contains("there is no job"), "{tool}: {refusal}");
        }
        // The error is that of an unknown id.
        let cancelled = stranger.call("job_cancel", &json!({"jobID": a["jobID"]}));
        assert_eq!(cancelled, json!({"outcome": "requested", "known": false}));
        let seen = all_jobs(stranger, &json!({})).iter().any(|job| job["jobID"] == a["jobID"]);
        assert!(!seen, "it is in the list of another owner");
    }
    let mut taken = digest("hello.txt");
    taken["jobID"] = a["jobID"].clone();
    assert!(theirs.refusal("job_submit", &taken).contains("can't be used here"));

    // Jobs that were submitted without credentials are visible to all.
    assert!(all_jobs(&mine, &json!({})).iter().any(|job| job["jobID"] == c["jobID"]));
    let text = mine.call("job_status", &json!({"jobID": a["jobID"]})).to_string();
    assert!(!text.contains("owner") && !text.contains("Bearer"), "{text}");

    fleet.stop_workers();
}

/// Ledgers in memory, in a file, read from the topic afterwards, and in a reopened file.
fn ledgers_are_equal_however_they_are_built(env: &Env) {
    let mut fleet = with_files(env, "ledgers");
    let in_file = |fleet: &Fleet<'_>, directory: &Path| {
        let env = vec![("MCP_DATA_DIR".to_owned(), directory.display().to_string())];
        fleet.start_replica(ServerOptions { env, ..ServerOptions::default() })
    };
    let directory = fleet.directory.join("ledger");
    let mut file = in_file(&fleet, &directory);
    let live = client(&fleet);
    let submit = |from: usize| {
        let jobs: Vec<Value> = (from..from + 100)
            .map(|n| {
                let mut job = digest(if n % 10 == 0 { "no such file" } else { "hello.txt" });
                job["maxAttempts"] = json!(1);
                job["metadata"] = json!({"n": n});
                job
            })
            .collect();
        let submitted = live.call("job_submit", &json!({"jobs": jobs}));
        for job in submitted["jobs"].as_array().expect("jobs") {
            end_of(&live, &job["jobID"]);
        }
    };
    submit(0);
    let dump = |server: &Service| all_jobs(&Mcp::new(server.address), &json!({"limit": 77}));
    let first = all_jobs(&live, &json!({}));
    assert_eq!(first.len(), 100);

    wait::poll_until("the file to have the same jobs as memory", wait::LONG, || {
        (dump(&file) == first).then_some(())
    });

    // The server with the file is down while more happens.
    file.process.kill();
    submit(100);
    let both = all_jobs(&live, &json!({}));
    assert_eq!(both.len(), 200);

    let file = in_file(&fleet, &directory);
    assert_eq!(dump(&file), both, "it continues where it stopped");
    let rebuilt = fleet.start_replica(ServerOptions::default());
    assert_eq!(dump(&rebuilt), both, "it is made of the topic alone");

    fleet.stop_workers();
}

/// The tool has run, but its result is lost: every surface reports that, and scripts see it in the
/// exit code.
fn a_result_that_is_too_large_to_keep_is_reported(env: &Env) {
    let mut fleet = with_files_and(env, "omitted", &[("MCP_MAX_EVENT_BYTES", "4KiB")]);
    std::fs::write(fleet.files().join("long.txt"), "x".repeat(5_000)).expect("a file");
    let address = fleet.server.as_ref().expect("the server").address;
    let run = |args: &[&str]| {
        let output = Command::new(bins::bin("mcp-fleet"))
            .args(args)
            .env("KAFKA_BROKERS", &env.brokers)
            .env("KAFKA_TOPIC", &fleet.topic)
            .env("MCP_SERVER_URL", format!("http://{address}"))
            .output()
            .expect("mcp-fleet");
        let [stdout, stderr] = [output.stdout, output.stderr]
            .map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
        (output.status.code(), format!("{stdout}{stderr}"))
    };
    let read = |path: &str| json!({ "path": path }).to_string();

    let call = ["submit", "--wait", "--tool", "file_read", "--arguments"];
    let (code, said) = run(&[&call[..], &[&read("long.txt"), "--job-id", "long"]].concat());
    assert_eq!(code, Some(4), "{said}");
    assert!(said.contains("1 of 1 jobs succeeded") && said.contains("result-omitted"), "{said}");

    let (code, said) = run(&[&call[..], &[&read("hello.txt"), "--job-id", "short"]].concat());
    assert_eq!(code, Some(0), "{said}");

    let job = rest::get(address, "/jobs/long?wait=30").expect(200);
    assert_eq!(
        (&job["state"], &job["code"]),
        (&json!("succeeded"), &json!("result-omitted")),
        "{job}"
    );
    assert_eq!(
        (job.get("result"), &job["resultOmitted"]["limitBytes"]),
        (None, &json!(4096)),
        "{job}"
    );

    let (code, said) = run(&["jobs", "wait", "short", "long"]);
    assert_eq!(code, Some(4), "{said}");
    assert_eq!(run(&["jobs", "wait", "short"]).0, Some(0));

    for command in [&["jobs", "list"][..], &["jobs", "show", "long"]] {
        let (code, said) = run(command);
        assert!(code == Some(0) && said.contains("result-omitted"), "{command:?}: {said}");
    }
    fleet.stop_workers();
}

/// A server that hosts the scripted tool, and runs its calls as tasks.
fn tool_server(ledger: &Path) -> ServerOptions {
    let program = env!("CARGO_BIN_EXE_fixture_tools");
    ServerOptions {
        allowed: vec![format!("{program} {}", ledger.display())],
        env: vec![("MCP_TASK_TOOLS".to_owned(), "tools__*".to_owned())],
        ..ServerOptions::default()
    }
}

/// Progress reaches a waiting client, and a cancellation its job, through a replica other than the
/// job's.
fn a_job_is_watched_and_cancelled(env: &Env) {
    let mut fleet = Fleet::new(env, "watched", 2);
    fleet.create_control_topic();
    fleet.worker_env("MCP_PROGRESS_INTERVAL", "100ms");
    let ledger = fleet.directory.join("calls");
    fleet.start_server(&fleet.with_jobs(tool_server(&ledger)));
    let maker = client(&fleet);
    let config = json!({"command": env!("CARGO_BIN_EXE_fixture_tools"), "args": [ledger]});
    maker.call("server_initialize", &json!({"name": "tools", "config": config}));
    let replica = fleet.start_replica(tool_server(&ledger));
    let other = maker.at(replica.address);
    let gate = fleet.directory.join("gate");
    let submit = |id: &str, arguments: Value| {
        maker.call(
            "job_submit",
            &json!({"jobID": id, "tool": "tools__work", "arguments": arguments, "key": "k"}),
        );
    };
    submit("watched", json!({"ms": 1_000, "progress": 20, "until": gate}));
    submit("never", json!({}));
    fleet.start_worker();
    wait::poll_until("progress in the state", wait::LONG, || {
        let job = other.call("job_status", &json!({"jobID": "watched"}));
        (job["progress"]["progress"] == json!(20.0)).then_some(())
    });
    let call = json!({"name": "job_wait", "arguments": {"jobID": "watched", "timeoutMs": 500}, "_meta": {"progressToken": "p"}});
    let told = other.messages("tools/call", call);
    assert!(told.len() == 2 && told[0]["params"]["total"] == json!(20.0), "{told:#?}");
    assert_eq!(
        told[1]["result"]["structuredContent"]["state"], "running",
        "it has not ended: {told:#?}"
    );

    // One job waits behind another of its key, one runs, and the third has ended.
    let cancel = |id: &str| other.call("job_cancel", &json!({"jobID": id, "reason": "enough"}));
    for id in ["never", "watched"] {
        let cancelled = cancel(id);
        assert_eq!(cancelled["outcome"], "cancelled", "{cancelled}");
        assert_eq!(cancelled["job"]["error"]["message"], "cancelled: enough");
        assert_eq!(maker.call("job_wait", &json!({"jobID": id}))["state"], "cancelled");
    }
    std::fs::write(&gate, "").expect("the gate");
    submit("done", json!({}));
    end_of(&maker, &json!("done"));
    let late = cancel("done");
    assert_eq!(
        (&late["outcome"], &late["job"]["state"]),
        (&json!("too-late"), &json!("succeeded"))
    );

    let calls = std::fs::read_to_string(&ledger).expect("the calls");
    assert!(calls.contains("s watched") && !calls.contains("s never"), "{calls}");
    wait::poll_until("the tool to hear that its call was cancelled", wait::LONG, || {
        let calls = std::fs::read_to_string(&ledger).expect("the calls");
        calls.lines().any(|line| line.starts_with("c watched")).then_some(())
    });
    fleet.stop_workers();
}

const TASKS: usize = 1_000;

/// A thousand tasks, in the middle of which all servers and workers are killed. New ones find every
/// task and complete it.
fn tasks_survive_the_death_of_everything(env: &Env) {
    let mut fleet = Fleet::new(env, "tasks", 6);
    fleet.worker_env("MCP_MAX_IN_FLIGHT", "32");
    let ledger = fleet.directory.join("calls");
    fleet.start_server(&fleet.with_jobs(tool_server(&ledger)));
    let maker = client(&fleet).as_user("Bearer me");
    let config = json!({"command": env!("CARGO_BIN_EXE_fixture_tools"), "args": [ledger]});
    maker.call("server_initialize", &json!({"name": "tools", "config": config}));
    let ids: Vec<String> = thread::scope(|scope| {
        let makers: Vec<_> = (0..8)
            .map(|maker_number| {
                let maker = &maker;
                scope.spawn(move || {
                    let tasks = (maker_number..TASKS).step_by(8).map(|n| {
                        let arguments =
                            json!({"ms": 500, "key": n.to_string(), "final": n % 20 == 7});
                        let task = maker.result(
                            "tools/call",
                            json!({"name": "tools__work", "arguments": arguments}),
                        );
                        assert_eq!(task["resultType"], "task", "{task}");
                        (n, task["taskId"].as_str().expect("an id").to_owned())
                    });
                    tasks.collect::<Vec<_>>()
                })
            })
            .collect();
        let mut tasks: Vec<_> =
            makers.into_iter().flat_map(|maker| maker.join().expect("tasks")).collect();
        tasks.sort();
        tasks.into_iter().map(|(_, id)| id).collect()
    });
    let mut other = fleet.start_replica(tool_server(&ledger));
    let elsewhere = maker.at(other.address);
    fleet.start_worker();
    fleet.start_worker();
    let status = |client: &Mcp, id: &str| {
        client.result("tasks/get", json!({"taskId": id}))["status"].clone()
    };
    let ended = |client: &Mcp| {
        let page =
            client.call("job_list", &json!({"states": ["succeeded", "failed"], "limit": 500}));
        page["jobs"].as_array().map_or(0, Vec::len)
    };
    wait::poll_until("some tasks to end", wait::LONG, || (ended(&elsewhere) >= 100).then_some(()));
    for mut worker in std::mem::take(&mut fleet.workers) {
        worker.process.kill();
    }
    other.process.kill();
    fleet.server.take().expect("the server").process.kill();

    // No process is left. New ones start, at other addresses.
    fleet.start_server(&fleet.with_jobs(tool_server(&ledger)));
    let third = fleet.start_replica(tool_server(&ledger));
    let finder = maker.at(third.address);
    for id in &ids {
        assert!(status(&finder, id).is_string());
    }
    fleet.start_worker();
    fleet.start_worker();
    for (n, id) in ids.iter().enumerate() {
        let task = wait::poll_until("the end of a task", wait::LONG, || {
            let task = finder.result("tasks/get", json!({"taskId": id}));
            (task["status"] != "working").then_some(task)
        });
        // An error of the tool itself is a result like any other.
        assert_eq!(task["status"], "completed", "{task}");
        assert_eq!(task["result"]["isError"] == json!(true), n % 20 == 7, "{task}");
    }

    // A task id is valid only for its owner.
    let error = finder.as_user("Bearer other").ask("tasks/get", json!({"taskId": ids[0]}));
    assert_eq!(error["error"]["code"], json!(-32602), "{error}");

    fleet.stop_workers();
}

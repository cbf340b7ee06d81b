//! Jobs that wait too long for memory, limits per tool and tenant, and records that a worker reads
//! again after it has settled them.

#![expect(clippy::expect_used, reason = "a panic is the report of a test")]

use std::time::Duration;

use fleet_job::{
    delayed,
    event::{JobEvent, JobState},
    time::Timestamp,
    topics::Topics,
};
use fleet_tests::{
    Env, Fleet, Oracle,
    fleet::ServerOptions,
    http, on_every_broker,
    oracle::Account,
    topics::{self, Outgoing, Record},
    wait,
};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

on_every_broker!(
    jobs_due_much_later_wait_outside_memory,
    a_long_backoff_keeps_its_attempts,
    limits_hold,
    settled_jobs_are_not_run_again,
    a_job_that_was_deferred_twice_runs_once,
    settled_jobs_that_another_worker_has_begun_keep_their_ends
);

/// A fleet whose workers park no job for longer than a second.
fn fleet<'e>(env: &'e Env, name: &str) -> Fleet<'e> {
    let mut fleet = Fleet::new(env, name, 3);
    topics::create(&env.brokers, &[(&Topics::of(&*fleet.topic).delayed, 6)]);
    fleet.start_file_server();
    fleet.worker_env("MCP_MAX_PARK", "1s");
    fleet
}

fn call(id: &str, tool: &str, path: &str) -> Value {
    json!({"jobID": id, "jobType": "tool-call", "payload": {"tool": tool, "arguments": {"path": path}}})
}

fn in_seconds(seconds: u64) -> Timestamp {
    let now = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .expect("a clock that is set");
    let now = i64::try_from(now.as_millis()).ok().and_then(Timestamp::from_millis).expect("a time");
    now.plus(Duration::from_secs(seconds))
}

fn at(mut job: Value, not_before: Timestamp) -> Value {
    job["notBefore"] = json!(not_before.to_string());
    job
}

/// Waits for all jobs, stops the workers, and checks the promises.
fn account(fleet: &mut Fleet<'_>, repeats: usize) -> Account {
    fleet.wait_for_all();
    fleet.stop_workers();
    Oracle::new(&fleet.topic, &fleet.submitted).repeats(repeats).check(&fleet.env.brokers)
}

fn waiting(fleet: &Fleet<'_>) -> Vec<Record> {
    topics::read(&fleet.env.brokers, &Topics::of(&*fleet.topic).delayed)
}

/// Jobs that are due much later go to the delayed topic, hold up no other job, survive a kill, and
/// end under their first position.
fn jobs_due_much_later_wait_outside_memory(env: &Env) {
    let mut fleet = fleet(env, "far");
    fleet.start_worker();
    let due = in_seconds(8);
    let far = (0..12).map(|n| {
        let tool = if n % 4 == 3 { "no_such_tool" } else { "file_read" };
        let job = at(call(&format!("far-{n}"), tool, "hello.txt"), due);
        let record = Outgoing::value(job.to_string()).header("own", "1");
        if n % 2 == 0 { record } else { record.key(format!("far-{n}")) }
    });
    let far = fleet.submit(far.collect());
    let near = (0..40)
        .map(|n| Outgoing::value(call(&format!("near-{n}"), "file_read", "hello.txt").to_string()));
    fleet.submit(near.collect());
    fleet.wait_for(40);
    wait::poll_until("all far jobs in the delayed topic", wait::LONG, || {
        (waiting(&fleet).len() >= 12).then_some(())
    });
    let brokers = env.brokers.clone();
    wait::poll_until("the deferred records to be committed", wait::LONG, || {
        let committed = topics::committed(&brokers, &fleet.group, &fleet.topic, fleet.partitions);
        let read: i64 = committed.into_iter().flatten().sum();
        (read == 52).then_some(())
    });
    let mut victim = fleet.workers.remove(0);
    victim.process.kill();
    fleet.start_worker();
    let account = account(&mut fleet, 0);
    for record in &far {
        let event = account.of(record);
        let started = event.timings.as_ref().and_then(|timings| timings.started_at);
        assert!(started.is_some_and(|started| started >= due), "{due}: {event:?}");
        let events = &account.events[&(record.partition, record.offset)];
        let queued = events.iter().find(|event| event.state == JobState::Queued);
        assert!(queued.is_some_and(|event| event.next_attempt_at == Some(due)), "{events:?}");
    }
    assert_eq!(account.count(JobState::Failed), 3);

    for dead in account.dead.values() {
        assert!(dead.header(delayed::HEADER).is_none(), "{dead:?}");
        assert_eq!(dead.header("own"), Some(b"1".as_slice()));
    }
}

/// A job that always fails, mostly with delays that are too long for memory, still gets exactly its
/// attempts.
fn a_long_backoff_keeps_its_attempts(env: &Env) {
    let mut fleet = fleet(env, "backoff");
    fleet.start_server(&ServerOptions {
        allowed: vec!["false".to_owned()],
        ..ServerOptions::default()
    });
    fleet.worker_env("MCP_RETRY_BASE", "4s");
    fleet.worker_env("MCP_RETRY_MAX", "4s");
    fleet.worker_env("MCP_MAX_ATTEMPTS", "3");
    fleet.start_worker();

    // A program that exits at once may work the next time, so the call is retried.
    let jobs = (0..12).map(|n| {
        let arguments = json!({"name": format!("poison-{n}"), "config": {"command": "false"}});
        let payload = json!({"tool": "server_initialize", "arguments": arguments});
        let job =
            json!({"jobID": format!("poison-{n}"), "jobType": "tool-call", "payload": payload});
        Outgoing::value(job.to_string())
    });

    let jobs = fleet.submit(jobs.collect());
    let account = account(&mut fleet, 0);
    assert!(!waiting(&fleet).is_empty(), "no delay was long enough: the test shows nothing");

    for record in &jobs {
        let events = &account.events[&(record.partition, record.offset)];
        // A call that takes longer reports progress, which repeats the state.
        let starts = events
            .iter()
            .filter(|event| event.state == JobState::Running && event.progress.is_none())
            .count();
        let last = account.of(record);
        assert_eq!((last.state, last.attempts, starts), (JobState::Failed, 3, 3), "{events:?}");
    }
}

/// Jobs under a limit of one never run concurrently; other jobs don't wait for them.
fn limits_hold(env: &Env) {
    let mut fleet = fleet(env, "limits");
    fleet.worker_env("MCP_TOOL_LIMITS", "file_digest=1");
    fleet.worker_env("MCP_TENANT_LIMIT", "1");
    let digests = (0..25).map(|n| call(&format!("digest-{n}"), "file_digest", "large"));
    let tenants = (0..25).map(|n| {
        let mut job = call(&format!("tenant-{n}"), "file_read", "large");
        job["tenant"] = json!("acme");
        job
    });
    let jobs =
        fleet.submit(digests.chain(tenants).map(|job| Outgoing::value(job.to_string())).collect());
    let worker = fleet.start_worker().address;
    fleet.wait_for_all();
    assert_eq!(http::metric(worker, "fleet_invariant_violations_total"), Some(0.0));

    let account = account(&mut fleet, 0);
    for group in jobs.chunks(25) {
        let mut spans: Vec<(Timestamp, Timestamp)> =
            group.iter().map(|record| span(&account, record)).collect();
        spans.sort();
        for pair in spans.windows(2) {
            assert!(pair[1].0 >= pair[0].1, "two ran side by side: {pair:?}");
        }
    }
}

/// A worker that was frozen loses its partitions before it has committed its settled jobs. When the
/// partitions return, it remembers these jobs.
fn settled_jobs_are_not_run_again(env: &Env) {
    let mut fleet = fleet(env, "frozen");
    fleet.worker_env("MCP_COMMIT_INTERVAL", "10m");
    let worker = fleet.start_worker().address;
    let job = |n| Outgoing::value(call(&format!("job-{n}"), "file_read", "hello.txt").to_string());

    // The first commit of a partition comes at once, all later ones would come after ten minutes.
    fleet.submit((0..30).map(job).collect());
    fleet.wait_for_all();
    fleet.submit((30..60).map(job).collect());
    fleet.wait_for_all();
    let committed = || -> i64 {
        let committed =
            topics::committed(&env.brokers, &fleet.group, &fleet.topic, fleet.partitions);
        committed.into_iter().flatten().sum()
    };
    assert!(committed() < 60, "all is committed: the test shows nothing");

    fleet.workers[0].process.signal(Signal::SIGSTOP);
    wait::poll_until("the group to give it up", wait::LONG, || {
        (topics::members(&env.brokers, &fleet.group) == 0).then_some(())
    });
    fleet.workers[0].process.signal(Signal::SIGCONT);
    fleet.submit((60..70).map(job).collect());
    fleet.wait_for_all();
    assert!(http::metric(worker, "fleet_jobs_passed_over_total").is_some_and(|count| count > 0.0));
    assert_eq!(http::metric(worker, "fleet_invariant_violations_total"), Some(0.0));

    let account = account(&mut fleet, 0);
    assert_eq!(account.count(JobState::Succeeded), 70);
}

/// A producer whose acknowledgement was lost writes a deferred job again. The copies come back while
/// the job runs, or after it has ended, and are not run.
fn a_job_that_was_deferred_twice_runs_once(env: &Env) {
    let mut fleet = fleet(env, "twice");
    let worker = fleet.start_worker().address;
    let due = in_seconds(6);
    let job = |n| at(call(&format!("job-{n}"), "file_read", "hello.txt"), due);
    fleet.submit((0..30).map(|n| Outgoing::value(job(n).to_string())).collect());
    let deferred = wait::poll_until("all jobs in the delayed topic", wait::LONG, || {
        Some(waiting(&fleet)).filter(|records| records.len() >= 30)
    });
    let copies = || deferred.iter().map(|record| record.content.clone()).collect();
    let delayed = Topics::of(&*fleet.topic).delayed;
    topics::produce(&env.brokers, &delayed, copies());
    fleet.wait_for_all();

    topics::produce(&env.brokers, &delayed, copies());
    let passed_over = || http::metric(worker, "fleet_jobs_passed_over_total");
    wait::poll_until("all copies to come back", wait::LONG, || {
        (passed_over()? >= 60.0).then_some(())
    });

    assert_eq!(passed_over(), Some(60.0));
    assert_eq!(http::metric(worker, "fleet_invariant_violations_total"), Some(0.0));
    let account = account(&mut fleet, 0);
    assert_eq!(account.count(JobState::Succeeded), 30);
}

/// While a worker with settled but uncommitted jobs is frozen, another worker takes them over,
/// reports them as running, and dies. When they return to the first worker, they are not run again,
/// and their last events are their ends.
fn settled_jobs_that_another_worker_has_begun_keep_their_ends(env: &Env) {
    let mut fleet = fleet(env, "meanwhile");
    fleet.worker_env("MCP_COMMIT_INTERVAL", "10m");
    let first = fleet.start_worker().address;
    let job = |n| Outgoing::value(call(&format!("job-{n}"), "file_read", "hello.txt").to_string());
    fleet.submit((0..30).map(job).collect());
    fleet.wait_for_all();
    fleet.submit((30..60).map(job).collect());
    fleet.wait_for_all();
    fleet.workers[0].process.signal(Signal::SIGSTOP);

    // Without a server, no started job can end.
    let mut server = fleet.server.take().expect("the server");
    let port = server.address.port();
    server.process.stop(wait::LONG);

    // The worker can't become ready.
    let mut second = fleet.launch_worker();
    wait::poll_until("jobs that the other worker has begun", wait::LONG, || {
        (http::metric(second.address, "fleet_breaker_open")? > 0.0).then_some(())
    });
    second.process.kill();
    let files = vec![fleet.files()];
    fleet.start_server(&ServerOptions { roots: files, port, ..ServerOptions::default() });
    fleet.workers[0].process.signal(Signal::SIGCONT);
    wait::poll_until("the records to come back to the first", wait::LONG, || {
        (http::metric(first, "fleet_jobs_passed_over_total")? > 0.0).then_some(())
    });
    let account = account(&mut fleet, 60);
    assert_eq!(account.count(JobState::Succeeded), 60);

    let begun_again = account.events.values().filter(|events| {
        let end = events.iter().position(|event| event.state.is_terminal());
        end.is_some_and(|end| events[end..].iter().any(|event| event.state == JobState::Running))
    });
    assert!(
        begun_again.count() > 0,
        "the other worker has begun none of them: the test shows nothing"
    );
}

/// From a job's start to its end.
fn span(account: &Account, record: &Record) -> (Timestamp, Timestamp) {
    let events = &account.events[&(record.partition, record.offset)];
    let of = |wanted: fn(&JobEvent) -> bool| {
        events.iter().find(|event| wanted(event)).expect("such an event").time
    };
    (of(|event| event.state == JobState::Running), of(|event| event.state.is_terminal()))
}

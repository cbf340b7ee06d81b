//! The pipeline end to end: every kind of job, and every kind of bad input, on every broker.

#![expect(clippy::expect_used, reason = "a panic is the report of a test")]

use fleet_job::{
    dead_letter::header,
    event::{JobEvent, JobState},
    outcome::ErrorKind,
};
use fleet_tests::{
    Env, Fleet, bins,
    fleet::ServerOptions,
    on_every_broker,
    oracle::Account,
    topics::{self, Outgoing, Record},
};
use serde_json::{Value, json};

on_every_broker!(
    a_server_is_hosted_and_its_tools_are_called,
    every_form_of_the_envelope_is_accepted,
    batches_collect_their_results,
    numbers_and_unknown_members_are_passed_on_verbatim,
    every_bad_input_has_a_clear_end_and_does_not_stop_the_worker,
    a_refused_command_names_the_rule,
    children_that_misbehave_are_reported,
    many_jobs_on_several_workers_end_once_and_in_order,
);

/// The example envelope with a command that exists: our own server, which offers the `file_*` tools
/// over stdio.
fn a_server_is_hosted_and_its_tools_are_called(env: &Env) {
    let mut fleet = Fleet::new(env, "seed", 3);
    let files = fleet.files();
    let server = bins::bin("mcp-server");
    let (server, root) = (server.display(), files.display());
    fleet.start_server(&ServerOptions {
        allowed: vec![format!("{server} --stdio --root {root}")],
        env: vec![
            ("MCP_ALLOWED_DIRS".into(), files.display().to_string()),
            ("MCP_ALLOWED_ENV".into(), "RUST_LOG".into()),
        ],
        ..ServerOptions::default()
    });
    fleet.start_worker();
    std::fs::write(files.join(".env"), "RUST_LOG=error\n").expect("an env file");
    let config = json!({"mcpServers": {"Files_Server": {
        "command": server.to_string(),
        "args": ["--stdio", "--root", root.to_string()],
        "envFile": files.join(".env"),
    }}});
    let init = fleet.submit_job(
        &json!({"jobID": "job-123", "jobType": "server-init", "payload": config.to_string()}),
    );
    fleet.wait_for_all();
    let read = fleet.submit_job(&json!({"jobID": "job-124", "jobType": "tool-call", "payload":
        {"server": "Files_Server", "tool": "file_read", "arguments": {"path": "hello.txt"}}}));
    let missing = fleet.submit_job(&json!({"jobID": "job-125", "jobType": "tool-call", "payload":
        {"tool": "Files_Server__file_read", "arguments": {"path": "../../../etc/passwd"}}}));
    let account = fleet.settle(0);
    let init = account.of(&init);
    assert_eq!(init.state, JobState::Succeeded, "{init:?}");

    let result = text(init);
    assert!(result.contains("Files_Server") && result.contains("file_digest"), "{result}");
    let read = account.of(&read);
    assert_eq!(
        (read.state, &*read.job_id, read.attempts),
        (JobState::Succeeded, "job-124", 1),
        "{read:?}"
    );
    assert!(text(read).contains("hello, fleet"), "{read:?}");

    let missing = account.of(&missing);
    assert_eq!(missing.state, JobState::Failed, "{missing:?}");
    assert_eq!(error(missing).0, ErrorKind::Tool);
}

/// A string payload, an inline payload, without and with a key, CloudEvents in both modes, and
/// unknown fields.
fn every_form_of_the_envelope_is_accepted(env: &Env) {
    let mut fleet = Fleet::new(env, "spellings", 2);
    fleet.start_file_server();
    fleet.start_worker();
    let call = json!({"tool": "file_read", "arguments": {"path": "hello.txt"}});
    let plain =
        |id: &str, payload: Value| json!({"jobID": id, "jobType": "tool-call", "payload": payload});
    let mut extra = plain("extra", call.clone());
    extra["ourOwnField"] = json!({"kept": true});
    extra["metadata"] = json!({"order": 4711});
    extra["tenant"] = json!("acme");
    let structured = json!({"specversion": "1.0", "id": "ce-1", "source": "/test", "type": "tool-call",
        "datacontenttype": "application/json", "data": call});
    let records = vec![
        Outgoing::value(plain("string", call.to_string().into()).to_string()),
        Outgoing::value(plain("inline", call.clone()).to_string()).key("a key"),
        Outgoing::value(extra.to_string())
            .header("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"),
        Outgoing::value(structured.to_string())
            .header("content-type", "application/cloudevents+json"),
        Outgoing::value(call.to_string())
            .header("ce_specversion", "1.0")
            .header("ce_id", "ce-2")
            .header("ce_source", "/test")
            .header("ce_type", "tool-call")
            .header("content-type", "application/json"),
    ];
    let records = fleet.submit(records);
    let account = fleet.settle(0);
    for record in &records {
        let event = account.of(record);
        assert_eq!(event.state, JobState::Succeeded, "{}: {event:?}", record.text());
        assert!(text(event).contains("hello, fleet"), "{event:?}");
    }
    let extra = account.of(&records[2]);
    assert_eq!(
        (extra.tenant.as_deref(), extra.metadata["order"].as_i64()),
        (Some("acme"), Some(4711))
    );
    assert_eq!(account.of(&records[3]).job_id, "ce-1");
    assert_eq!(account.of(&records[4]).job_id, "ce-2");
}

fn batches_collect_their_results(env: &Env) {
    let mut fleet = Fleet::new(env, "batch", 1);
    fleet.start_file_server();
    fleet.start_worker();
    let call = |tool: &str, path: &str| json!({"tool": tool, "arguments": {"path": path}});
    let batch = |id: &str, calls: Vec<Value>| json!({"jobID": id, "jobType": "tool-batch", "payload": {"calls": calls, "parallel": 2}});
    let good = fleet.submit_job(&batch(
        "good",
        vec![
            call("file_read", "hello.txt"),
            call("file_digest", "below/binary"),
            call("file_list", "below"),
        ],
    ));

    let half = fleet.submit_job(&batch(
        "half",
        vec![call("file_read", "hello.txt"), call("file_read", "not there")],
    ));
    let account = fleet.settle(0);
    let good = account.of(&good);
    assert_eq!(good.state, JobState::Succeeded, "{good:?}");

    let result = text(good);
    for part in ["hello, fleet", "sha256", "binary"] {
        assert!(result.contains(part), "{part} is not in {result}");
    }

    let half = account.of(&half);
    assert_eq!(half.state, JobState::Failed, "{half:?}");
    let (_, message) = error(half);
    assert!(message.contains("1 of 2"), "{message}");
}

/// They pass from the envelope through worker, gateway and child, and back to the event and the
/// reply.
fn numbers_and_unknown_members_are_passed_on_verbatim(env: &Env) {
    const ECHO: &str = r#"{"z":[1e+400,12345678901234567890123,1.10,1e+2,-0],"a":0.00001}"#;
    let mut fleet = Fleet::new(env, "numbers", 1);
    let calls = fleet.directory.join("calls");
    fleet.start_tool_server(env!("CARGO_BIN_EXE_fixture_tools"), &calls, false);
    let replies = format!("mcp-replies.{}", fleet.topic);
    topics::create(&env.brokers, &[(&replies, 1)]);
    fleet.start_worker();

    let payload = format!(r#"{{"tool":"chaos__work","arguments":{{"echo":{ECHO}}}}}"#);
    let text = format!(
        r#"{{"jobID":"n","jobType":"tool-call","payload":{payload},"metadata":{ECHO},"replyTo":"{replies}"}}"#
    );
    fleet.submit(vec![Outgoing::value(text)]);
    fleet.settle(0);
    for topic in [format!("{}.events", fleet.topic), replies] {
        let records = topics::read(&env.brokers, &topic);
        let end = records.iter().map(Record::text).find(|text| text.contains(r#""succeeded""#));
        let end = end.expect("an end");
        assert_eq!(end.matches(ECHO).count(), 3, "{topic}: {end}");
    }
}

fn every_bad_input_has_a_clear_end_and_does_not_stop_the_worker(env: &Env) {
    let mut fleet = Fleet::new(env, "bad-input", 2);
    fleet.start_file_server();
    fleet.start_worker();
    let job = |kind: &str, payload: Value| {
        json!({"jobID": "bad", "jobType": kind, "payload": payload}).to_string()
    };
    let call = |payload: Value| job("tool-call", payload);
    let large = call(json!({"tool": "file_read", "arguments": {"path": "x".repeat(2 << 20)}}));
    let cases: Vec<(Outgoing, ErrorKind, &str)> = vec![
        (
            Outgoing::value([0xff, 0xfe, 0]).key([0, 159]).header("h", [0xff]),
            ErrorKind::Undecodable,
            "",
        ),
        (Outgoing::default(), ErrorKind::Undecodable, "no value"),
        (Outgoing::value(""), ErrorKind::Undecodable, ""),
        (Outgoing::value("[1, 2]"), ErrorKind::Undecodable, ""),
        (Outgoing::value(large), ErrorKind::TooLarge, "MCP_MAX_JOB_BYTES"),
        (Outgoing::value("{}"), ErrorKind::InvalidEnvelope, "jobID"),
        (
            Outgoing::value(json!({"jobID": 7, "jobType": "tool-call", "payload": {}}).to_string()),
            ErrorKind::InvalidEnvelope,
            "jobID",
        ),
        (Outgoing::value(job("make-coffee", json!({}))), ErrorKind::InvalidEnvelope, "make-coffee"),
        (
            Outgoing::value(job("tool-call", json!("not json"))),
            ErrorKind::InvalidEnvelope,
            "payload",
        ),
        (Outgoing::value(call(json!({"arguments": {}}))), ErrorKind::InvalidEnvelope, "tool"),
        (
            Outgoing::value(job("server-init", json!({"mcpServers": {"x": {}}}))),
            ErrorKind::InvalidEnvelope,
            "x",
        ),
        (
            Outgoing::value(call(json!({"tool": "no_such_tool"}))),
            ErrorKind::JsonRpc,
            "no_such_tool",
        ),
        (
            Outgoing::value(call(json!({"server": "nobody", "tool": "t"}))),
            ErrorKind::JsonRpc,
            "nobody",
        ),
        (
            Outgoing::value(call(
                json!({"tool": "file_read", "arguments": {"path": "../../etc/passwd"}}),
            )),
            ErrorKind::Tool,
            "",
        ),
        (
            Outgoing::value(call(json!({"tool": "file_read", "arguments": {"path": "not there"}}))),
            ErrorKind::Tool,
            "not there",
        ),
    ];
    let records = fleet.submit(cases.iter().map(|(record, ..)| record.clone()).collect());
    let good = fleet.submit_job(
        &json!({"jobID": "good", "jobType": "tool-call", "payload": {"tool": "file_list"}}),
    );

    // The oracle checks that the dead letters have the same bytes.
    let account = fleet.settle(0);
    assert_eq!(account.of(&good).state, JobState::Succeeded);

    let mut wrong = Vec::new();
    for (record, (_, kind, part)) in records.iter().zip(&cases) {
        let event = account.of(record);
        let (found, message) = error(event);
        let dead = &account.dead[&(record.partition, record.offset)];
        let reason =
            dead.header(header::EXCEPTION_FQCN).map(String::from_utf8_lossy).unwrap_or_default();
        if event.state != JobState::Failed
            || found != *kind
            || !message.contains(part)
            || reason != fleet_job::dead_letter::exception_name(*kind)
        {
            wrong.push(format!(
                "{:.80}: wanted {kind:?} about {part:?}, got {event:?} ({reason})",
                record.text()
            ));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

fn a_refused_command_names_the_rule(env: &Env) {
    let (mut fleet, record) = host(env, "refused", ServerOptions::default(), &["sh", "-c", "true"]);
    let account = fleet.settle(0);
    let (_, message) = failure(&account, &record);
    assert!(message.contains("policy") && message.contains("sh"), "{message}");
    assert_eq!(account.of(&record).attempts, 1, "a refusal is final");
}

/// A command that doesn't exist, one that dies during its handshake, and one that writes garbage to
/// stdout.
fn children_that_misbehave_are_reported(env: &Env) {
    let mut fleet = Fleet::new(env, "children", 1);
    fleet.start_server(&ServerOptions {
        allowed: vec!["/no/such/program".into(), "sh **".into()],
        env: vec![("MCP_HANDSHAKE_TIMEOUT_MS".into(), "2000".into())],
        ..ServerOptions::default()
    });
    fleet.worker_env("MCP_MAX_ATTEMPTS", "2");
    fleet.start_worker();
    let cases: [(&[&str], &str); 4] = [
        (&["/no/such/program"], "/no/such/program"),
        (&["sh", "-c", "echo went wrong >&2; exit 3"], "went wrong"),
        (&["sh", "-c", "while read -r line; do echo this is not JSON; done"], ""),
        (&["sh", "-c", "sleep 600"], ""),
    ];
    let name = |n: usize| format!("child-{n}");
    let jobs = cases.iter().enumerate().map(|(n, (argv, _))| init(&name(n), argv));
    let records: Vec<_> = jobs.map(|job| fleet.submit_job(&job)).collect();
    let account = fleet.settle(0);
    for (record, (argv, part)) in records.iter().zip(cases) {
        let (_, message) = failure(&account, record);
        assert!(message.contains(part), "{argv:?}: {message}");
    }
}

fn many_jobs_on_several_workers_end_once_and_in_order(env: &Env) {
    let mut fleet = Fleet::new(env, "many", 6);
    // On a busy machine, a worker must not lose its partitions, since nothing may be repeated.
    fleet.worker_env("KAFKA_PROPERTY_SESSION_TIMEOUT_MS", "30000");
    fleet.start_file_server();
    for _ in 0..3 {
        fleet.start_worker();
    }

    let jobs = (0..600).map(|n| {
        let path = if n % 50 == 0 { "not there" } else { "hello.txt" };
        let job = json!({"jobID": format!("job-{n}"), "jobType": "tool-call",
            "payload": {"tool": "file_digest", "arguments": {"path": path}}});
        let record = Outgoing::value(job.to_string());
        if n % 5 == 0 { record } else { record.key(format!("key-{}", n % 23)) }
    });

    fleet.submit(jobs.collect());
    let account = fleet.settle(0);
    assert_eq!((account.count(JobState::Succeeded), account.count(JobState::Failed)), (588, 12));

    let workers: std::collections::BTreeSet<_> =
        account.states.values().filter_map(|event| event.worker.clone()).collect();
    assert!(workers.len() > 1, "one worker did everything: {workers:?}");
}

fn init(name: &str, argv: &[&str]) -> Value {
    let config = json!({"mcpServers": {name: {"command": argv[0], "args": argv[1..]}}});
    json!({"jobID": bins::unique(name), "jobType": "server-init", "payload": config.to_string()})
}

fn host<'e>(
    env: &'e Env,
    name: &str,
    options: ServerOptions,
    argv: &[&str],
) -> (Fleet<'e>, Record) {
    let mut fleet = Fleet::new(env, name, 1);
    fleet.start_server(&options);
    fleet.start_worker();
    let record = fleet.submit_job(&init(name, argv));
    (fleet, record)
}

fn text(event: &JobEvent) -> String {
    event.result.as_ref().map(Value::to_string).unwrap_or_default()
}

fn error(event: &JobEvent) -> (ErrorKind, String) {
    let error = event.error.as_ref().unwrap_or_else(|| panic!("no error in {event:?}"));
    (error.kind, error.message.clone())
}

fn failure(account: &Account, record: &Record) -> (ErrorKind, String) {
    let event = account.of(record);
    assert_eq!(event.state, JobState::Failed, "{event:?}");
    error(event)
}

//! Jobs of principals: they belong to whom a key stands for, not to the key.

use std::{path::Path, process::Command};

use fleet_tests::{
    Env, Fleet, bins,
    fleet::{ServerOptions, Service},
    mcp::Mcp,
    rest::{Events, request},
    wait,
};
use serde_json::{Value, json};

/// Everybody may submit jobs, and needs no rule for what becomes of them.
const SUBMIT: &str = "
    [[rule]]
    name = 'submit'
    effect = 'allow'
    principals = ['anyone']
    actions = ['jobs.submit']
";

/// Makes a key of a subject, as an operator does.
fn make_key(keys: &Path, id: &str, subject: &str) -> String {
    let mut command = Command::new(bins::bin("mcp-fleet"));
    command.args(["keys", "create", id, "--subject", subject, "--keys"]).arg(keys);
    let output = command.output().expect("a run of mcp-fleet");
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).expect("a key").trim().to_owned()
}

fn start_with(fleet: &Fleet<'_>, settings: &[(&str, &str)]) -> Service {
    let env = settings.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
    fleet.start_replica(ServerOptions {
        roots: vec![fleet.files()],
        env: env.collect(),
        ..ServerOptions::default()
    })
}

fn submit(server: &Service, authorization: &str, id: &str) -> Value {
    let job = json!({"jobID": id, "tool": "file_list"}).to_string();
    let headers = [("authorization", authorization), ("content-type", "application/json")];
    request(server.address, "POST", "/jobs", &headers, job.as_bytes()).expect(202)
}

fn ids(list: &Value) -> Vec<&str> {
    let jobs = list["jobs"].as_array().expect("a list");
    let mut ids: Vec<_> = jobs.iter().filter_map(|job| job["jobID"].as_str()).collect();
    ids.sort_unstable();
    ids
}

pub(crate) fn another_principals_jobs_are_not_there(env: &Env) {
    let fleet = Fleet::new(env, "rest-principals", 2);
    fleet.create_control_topic();
    let keys = fleet.directory.join("keys.toml");
    let made = [("alice-1", "alice"), ("alice-2", "alice"), ("bob", "bob")]
        .map(|(id, subject)| format!("Bearer {}", make_key(&keys, id, subject)));
    let [first, second, other] = made.each_ref().map(String::as_str);

    // Before there were principals, a job belonged to the bytes of its submitter's credentials.
    let before = start_with(&fleet, &[]);
    submit(&before, first, "old");

    let policy = fleet.directory.join("policy.toml");
    std::fs::write(&policy, SUBMIT).expect("a policy file");
    let (keys, policy) = (keys.to_str().expect("a path"), policy.to_str().expect("a path"));
    let settings = [("MCP_ACCESS_KEYS_FILE", keys), ("MCP_POLICY_FILE", policy)];
    let server = start_with(&fleet, &settings);
    let address = server.address;
    let mut heard = Events::open(address, "/events", &[("authorization", other)])
        .expect("a stream")
        .placed(wait::LONG);
    submit(&server, first, "mine");
    submit(&server, other, "theirs");

    // The stream of another principal has its own job, and nothing before that.
    let event = heard.next(wait::LONG).expect("an event");
    assert_eq!(event.json()["jobID"], "theirs", "{event:?}");

    let ask = |who: &str, method: &str, path: &str| {
        request(address, method, path, &[("authorization", who)], b"")
    };
    let refused = ask(other, "GET", "/jobs/mine").problem(404, "no-such-job");
    let unknown = ask(other, "GET", "/jobs/nobodys").problem(404, "no-such-job");
    assert_eq!(refused.replace("mine", "nobodys"), unknown, "the job must not be revealed");
    ask(other, "GET", "/jobs/mine/events").problem(404, "no-such-job");
    for path in ["/jobs/mine/envelope", "/jobs/mine/history"] {
        ask(other, "GET", path).problem(404, "no-such-job");
    }
    ask(other, "POST", "/jobs/mine/runs").problem(404, "no-such-job");
    assert_eq!(ask(other, "GET", "/job-counts").expect(200)["total"], 1);
    assert_eq!(ask(first, "GET", "/job-counts").expect(200)["total"], 2);
    let matched = ask(other, "POST", "/job-cancellations?idPrefix=mine&dryRun=true").expect(200);
    assert_eq!(matched["matched"], 0, "{matched}");
    for (method, path) in [
        ("GET", "/dead-letters"),
        ("GET", "/dead-letters/0-0"),
        ("POST", "/dead-letters/replays"),
        ("DELETE", "/dead-letters?before=0"),
    ] {
        ask(other, method, path).problem(403, "denied");
    }
    let shown = ask(first, "GET", "/jobs/mine/envelope").expect(200);
    assert!(shown["envelope"].get("owner").is_none(), "{shown}");
    let cancelled = ask(other, "DELETE", "/jobs/mine?wait=0").expect(202);
    assert_eq!(cancelled, ask(other, "DELETE", "/jobs/nobodys?wait=0").expect(202));
    assert_eq!(ids(&ask(other, "GET", "/jobs").expect(200)), ["theirs"]);

    // Another key of the same subject is the same principal, however the scheme is spelled.
    let spelled = second.replace("Bearer", "bearer");
    for who in [second, &spelled] {
        assert_eq!(ask(who, "GET", "/jobs/mine").expect(200)["state"], "queued");
        assert_eq!(ids(&ask(who, "GET", "/jobs").expect(200)), ["mine"]);
    }

    // The header that submitted a job before still sees it, and nobody else does.
    assert_eq!(ask(first, "GET", "/jobs/old").expect(200)["jobID"], "old");
    assert_eq!(ids(&ask(first, "GET", "/jobs").expect(200)), ["mine", "old"]);
    ask(second, "GET", "/jobs/old").problem(404, "no-such-job");

    // The job_* tools are the same surface.
    let bob = Mcp::new(address).as_user(other);
    let listed = bob.call("job_list", &json!({}));
    assert_eq!(ids(&listed), ["theirs"], "{listed}");

    request(address, "GET", "/jobs", &[], b"").problem(401, "unauthenticated");
}

/// Runs `mcp-fleet audit` over the records that exist; returns them.
fn audit(env: &Env, fleet: &Fleet<'_>, filter: &[&str]) -> Vec<Value> {
    let mut command = Command::new(bins::bin("mcp-fleet"));
    command.args(["audit", "--no-follow", "--json", "--brokers", &env.brokers, "--topic"]);
    let output = command.arg(&fleet.topic).args(filter).output().expect("a run of mcp-fleet");
    assert!(output.status.success(), "{output:?}");
    let text = String::from_utf8(output.stdout).expect("text");
    text.lines().map(|line| serde_json::from_str(line).expect("a record")).collect()
}

pub(crate) fn what_principals_do_is_recorded(env: &Env) {
    let fleet = Fleet::new(env, "rest-audit", 2);
    fleet.create_control_topic();
    let keys = fleet.directory.join("keys.toml");
    let [alice, bob] = ["alice", "bob"].map(|id| format!("Bearer {}", make_key(&keys, id, id)));
    let policy = fleet.directory.join("policy.toml");
    let rules = SUBMIT.replace("anyone", "key:alice");
    std::fs::write(&policy, rules).expect("a policy file");
    let (keys, policy) = (keys.to_str().expect("a path"), policy.to_str().expect("a path"));
    let settings =
        [("MCP_ACCESS_KEYS_FILE", keys), ("MCP_POLICY_FILE", policy), ("MCP_AUDIT", "required")];
    let server = start_with(&fleet, &settings);

    submit(&server, &alice, "mine");
    let headers = [("authorization", bob.as_str()), ("content-type", "application/json")];
    let job = br#"{"jobID": "theirs", "tool": "file_list"}"#;
    request(server.address, "POST", "/jobs", &headers, job).problem(403, "denied");
    request(server.address, "GET", "/jobs", &[], b"").problem(401, "unauthenticated");
    let mine = [("authorization", alice.as_str())];
    request(server.address, "DELETE", "/jobs/mine?wait=0", &mine, b"").expect(202);

    let brief = |record: &Value| {
        let text = |path: &str| {
            record.pointer(path).and_then(Value::as_str).unwrap_or_default().to_owned()
        };
        [text("/outcome"), text("/action"), text("/principal/subject"), text("/jobId")]
    };
    let expected = [
        ["started", "jobs.submit", "alice", "mine"],
        ["succeeded", "jobs.submit", "alice", "mine"],
        ["refused", "jobs.submit", "bob", ""],
        ["refused", "authenticate", "", ""],
        ["started", "jobs.cancel", "alice", "mine"],
        ["succeeded", "jobs.cancel", "alice", "mine"],
    ];
    let found = wait::poll_until("the records", wait::LONG, || {
        let records = audit(env, &fleet, &[]);
        (records.len() >= expected.len()).then_some(records)
    });
    assert_eq!(found.iter().map(brief).collect::<Vec<_>>(), expected);
    assert_eq!(found[0]["resource"]["tool"], "file_list", "{}", found[0]);
    assert_eq!(found[0]["peer"], "127.0.0.1");

    let refused = audit(env, &fleet, &["--outcome", "refused", "--principal", "bob"]);
    assert_eq!(refused.iter().map(brief).collect::<Vec<_>>(), expected[2..3]);
}

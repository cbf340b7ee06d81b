//! Signed jobs from end to end: a job is decided on as its submitter when it runs, a record that was
//! changed never runs, and only whoever may cancel a job cancels it.

#![expect(clippy::expect_used, reason = "a panic is the report of a test")]

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
};

use fleet_job::{
    control::Control,
    event::{JobEvent, JobState},
    topics::Topics,
};
use fleet_tests::{
    Env, Fleet, Oracle,
    bins::bin,
    fleet::{ServerOptions, Service, now},
    rest::{self, Answer},
    topics::{self, Outgoing, Record},
    wait,
};
use serde_json::{Value, json};

const SIGNATURE: &str = fleet_signing::HEADER;

/// Agents may read files, and nothing else.
const RULES: &str = "
    [access]
    default = 'deny'

    [[rule]]
    name = 'agents read'
    effect = 'allow'
    principals = ['key:agent', 'key:other']
    actions = ['jobs.submit', 'tools.call']
    tools = ['file_read']
";

/// A fleet whose jobs are signed, with keys as `keys init` makes them.
struct Signed<'e> {
    fleet: Fleet<'e>,
    server: Service,
    access: PathBuf,
    agent: String,
    other: String,
}

fn run(arguments: &[&str]) -> String {
    let output = Command::new(bin("mcp-fleet")).args(arguments).output().expect("a process");
    assert!(output.status.success(), "{arguments:?}: {output:?}");
    String::from_utf8(output.stdout).expect("UTF-8").trim().to_owned()
}

impl<'e> Signed<'e> {
    fn start(env: &'e Env, name: &str) -> Self {
        Self::start_with(env, name, &[])
    }

    fn start_with(env: &'e Env, name: &str, more: &[(&str, &str)]) -> Self {
        let mut fleet = Fleet::new(env, name, 3);
        fleet.create_control_topic();
        let access = fleet.directory.join("access");
        let at = |name: &str| access.join(name).to_str().expect("a path in UTF-8").to_owned();
        let keys = at("keys.toml");
        run(&["keys", "init", "--keys", &keys, "--out", access.to_str().expect("a path")]);
        let create = |id: &str| run(&["keys", "create", id, "--keys", &keys]);
        let (agent, other) = (create("agent"), create("other"));
        fs::write(access.join("policy.toml"), RULES).expect("a policy file");

        let settings = [
            ("MCP_ACCESS", "required".to_owned()),
            ("MCP_ACCESS_KEYS_FILE", keys.clone()),
            ("MCP_POLICY_FILE", at("policy.toml")),
            ("MCP_SIGNING_KEY_FILE", at("signing.key")),
        ];
        let more = more.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        let env = settings.map(|(name, value)| (name.to_owned(), value)).into_iter().chain(more);
        let env = env.collect();
        let roots = vec![fleet.files()];
        let server = fleet.start_replica(ServerOptions { roots, env, ..ServerOptions::default() });
        fleet.server_url = format!("http://{}", server.address);
        fleet.worker_env("MCP_SERVER_TOKEN_FILE", &at("worker.key"));
        fleet.worker_env("MCP_SIGNING_PUBLIC_KEYS_FILE", &at("signing.pub"));
        Self { fleet, server, access, agent, other }
    }

    fn set_policy(&mut self, text: &str) {
        let policy = self.access.join("policy.toml");
        self.applies(|| fs::write(policy, text).expect("a policy file"));
    }

    /// Changes files about access and waits until the server has applied them.
    fn applies(&mut self, change: impl FnOnce()) {
        let text = "applied the changed files about access";
        self.server.process.says_after(text, wait::LONG, change);
    }

    /// Submits jobs as the agent.
    fn submit(&self, jobs: &Value) -> Answer {
        let key = format!("Bearer {}", self.agent);
        rest::post_with(self.server.address, "/jobs", &[("authorization", &key)], jobs)
    }

    /// Cancels a job with a key.
    fn cancel(&self, key: &str, job_id: &str) -> Value {
        let (key, path) = (format!("Bearer {key}"), format!("/jobs/{job_id}?wait=1"));
        let headers = [("authorization", key.as_str())];
        rest::request(self.server.address, "DELETE", &path, &headers, b"").json()
    }

    /// The records of the jobs topic, once there are so many.
    fn records(&self, count: usize) -> Vec<Record> {
        wait::poll_until("the records of the jobs", wait::LONG, || {
            let records = topics::read(&self.fleet.env.brokers, &self.fleet.topic);
            (records.len() >= count).then_some(records)
        })
    }

    /// The end of a record's job.
    fn end_of(&self, record: &Record) -> Arc<JobEvent> {
        let submitted = [record.clone()];
        let oracle = Oracle::new(&self.fleet.topic, &submitted);
        wait::poll_until("the end of the job", wait::LONG, || {
            let mut account = oracle.read(&self.fleet.env.brokers);
            let events = account.events.remove(&(record.partition, record.offset));
            events.into_iter().flatten().find(|event| event.state.is_terminal())
        })
    }
}

fn read(id: &str) -> Value {
    json!({"jobID": id, "tool": "file_read", "arguments": {"path": "hello.txt"}})
}

fn code(event: &JobEvent) -> &str {
    event.error.as_ref().and_then(|error| error.error_code.as_deref()).unwrap_or_default()
}

/// The value of a record and its signature.
fn parts(record: &Record) -> (String, Vec<u8>) {
    let value = record.content.value.clone().expect("a value");
    let signature = record.header(SIGNATURE).expect("a signature").to_vec();
    (String::from_utf8(value).expect("UTF-8"), signature)
}

#[test]
fn a_job_runs_with_the_rights_of_its_submitter_at_that_time() {
    let env = Env::embedded_broker(module_path!());
    let mut signed = Signed::start(&env, "signed-rights");
    let calls = vec![json!({"tool": "file_read", "arguments": {"path": "hello.txt"}}); 5];
    signed
        .submit(&json!([read("one"), {"jobID": "many", "calls": calls, "parallel": 3}]))
        .expect(202);
    let denied = signed.submit(&json!({"tool": "file_list"}));
    assert_eq!(denied.status, 403, "{denied:?}");
    let later = signed.submit(&read("later"));
    later.expect(202);

    signed.fleet.start_worker();
    let records = signed.records(3);
    for record in &records {
        let end = signed.end_of(record);
        assert_eq!((end.state, end.attempts), (JobState::Succeeded, 1), "{end:?}");
    }

    // Rights are decided on when the job runs.
    signed.fleet.stop_workers();
    signed.submit(&read("too-late")).expect(202);
    signed.set_policy("[access]\ndefault = 'deny'\n");
    signed.fleet.start_worker();
    let record = signed.records(4).into_iter().find(|record| !records.contains(record));
    let end = signed.end_of(&record.expect("the last record"));
    assert_eq!((end.state, code(&end)), (JobState::Failed, "FLEET-DENIED"), "{end:?}");
    assert_eq!(end.attempts, 1, "it is not tried again");
}

#[test]
fn a_changed_record_never_runs_and_an_unsigned_one_acts_as_its_topic() {
    let env = Env::embedded_broker(module_path!());
    let mut signed = Signed::start(&env, "signed-attacks");
    signed.submit(&read("mine")).expect(202);
    let (value, signature) = parts(&signed.records(1)[0]);
    let forged = |value: String, signature: &[u8]| {
        let record = Outgoing::value(value);
        Outgoing { headers: vec![(SIGNATURE.to_owned(), Some(signature.to_vec()))], ..record }
    };
    let unsigned = |tool: &str| {
        Outgoing::value(
            json!({"jobID": tool, "jobType": "tool-call", "payload": {"tool": tool}}).to_string(),
        )
    };

    let other_payload = value.replace("hello.txt", "empty.txt");
    let other_owner = value.replace("\"owner\":\"", "\"owner\":\"0");
    assert!(other_payload != value && other_owner != value);
    let attacks = vec![
        forged(value.replace("mine", "yours"), &signature),
        forged(other_payload, &signature),
        forged(other_owner, &signature),
        forged(value.clone(), b"nonsense"),
        unsigned("file_read"),
        // A copy of the very same record is a repeat, not an attack.
        forged(value, &signature),
    ];
    let written = topics::produce(&signed.fleet.env.brokers, &signed.fleet.topic, attacks);

    signed.fleet.start_worker();
    let ends: Vec<_> = written.iter().map(|record| signed.end_of(record)).collect();
    for end in &ends[..4] {
        assert_eq!((end.state, code(end)), (JobState::Failed, "FLEET-BAD-SIGNATURE"), "{end:?}");
        assert_eq!(end.attempts, 1);
    }
    assert_eq!((ends[4].state, code(&ends[4])), (JobState::Failed, "FLEET-DENIED"));
    assert_eq!(ends[5].state, JobState::Succeeded, "{:?}", ends[5]);

    // The producers of the topic get a rule of their own.
    let topic = &signed.fleet.topic;
    let rule = format!(
        "{RULES}\n[[rule]]\nname = 'producers'\neffect = 'allow'\n\
         principals = ['subject:{topic}']\nactions = ['tools.call']\ntools = ['file_read']\n"
    );
    signed.set_policy(&rule);
    let allowed = json!({"jobID": "ok", "jobType": "tool-call",
        "payload": {"tool": "file_read", "arguments": {"path": "hello.txt"}}});
    let written = topics::produce(
        &signed.fleet.env.brokers,
        &signed.fleet.topic,
        vec![Outgoing::value(allowed.to_string())],
    );
    assert_eq!(signed.end_of(&written[0]).state, JobState::Succeeded);
}

#[test]
fn only_its_owner_cancels_a_job() {
    let env = Env::embedded_broker(module_path!());
    let mut signed = Signed::start(&env, "signed-cancel");
    let mut due = read("mine");
    due["notBefore"] = json!((now().plus(std::time::Duration::from_secs(3600))).to_string());
    signed.submit(&due).expect(202);
    signed.fleet.start_worker();
    let record = signed.records(1).remove(0);

    // To somebody else, it is the same as no job at all.
    let (others, none) =
        (signed.cancel(&signed.other, "mine"), signed.cancel(&signed.other, "no-such"));
    assert_eq!(
        (&others["known"], &none["known"]),
        (&json!(false), &json!(false)),
        "{others} {none}"
    );
    assert_eq!(others, none);

    // Straight to the topic: unsigned, and with the signature of another request.
    let control_topic = Topics::of(&*signed.fleet.topic).control;
    let written = wait::poll_until("the request of somebody else", wait::LONG, || {
        topics::read(&signed.fleet.env.brokers, &control_topic).pop()
    });
    let control = Control::cancel("mine", None, now(), None).to_bytes();
    let signature = written.header(SIGNATURE).expect("a signature").to_vec();
    let forged = Outgoing {
        headers: vec![(SIGNATURE.to_owned(), Some(signature))],
        ..Outgoing::value(control.clone())
    };
    let records = vec![Outgoing::value(control).key("mine"), forged.key("mine")];
    topics::produce(&signed.fleet.env.brokers, &control_topic, records);
    let worker = signed.fleet.workers[0].address;
    wait::poll_until("both requests to be refused", wait::LONG, || {
        let refused = fleet_tests::http::metric(worker, "fleet_refused_controls_total")?;
        (refused >= 2.0).then_some(())
    });

    let state = rest::request(
        signed.server.address,
        "GET",
        "/jobs/mine",
        &[("authorization", &format!("Bearer {}", signed.agent))],
        b"",
    );
    assert_eq!(state.expect(200)["state"], "queued");
    let mine = signed.cancel(&signed.agent, "mine");
    assert_ne!(mine["known"], false, "{mine}");
    assert_eq!(signed.end_of(&record).state, JobState::Cancelled);
}

/// Jobs are paused by servers, for those who may, and by nobody who can only write to the topic.
#[test]
fn only_those_who_may_pause_jobs() {
    let env = Env::embedded_broker(module_path!());
    let mut signed = Signed::start(&env, "signed-pauses");
    signed.fleet.create_pauses_topic();
    let rule = format!(
        "{RULES}\n[[rule]]\nname = 'pausers'\neffect = 'allow'\n\
         principals = ['key:agent']\nactions = ['jobs.pause']\n"
    );
    signed.set_policy(&rule);
    let as_key = |key: &str| format!("Bearer {key}");
    let (agent, other) = (as_key(&signed.agent), as_key(&signed.other));
    let address = signed.server.address;
    let pause = json!({"scope": {"idPrefix": "paused"}, "reason": "freeze"});
    let denied = rest::post_with(address, "/pauses", &[("authorization", &other)], &pause);
    denied.problem(403, "denied");

    // Straight to the topic: unsigned, and with the signature of another pause.
    let made = rest::post_with(address, "/pauses", &[("authorization", &agent)], &pause);
    let made = made.expect(201);
    assert_eq!(made["by"], "agent", "{made}");
    let topic = Topics::of(&*signed.fleet.topic).pauses;
    let written = wait::poll_until("the pause", wait::LONG, || {
        topics::read(&signed.fleet.env.brokers, &topic).pop()
    });
    let signature = written.header(SIGNATURE).expect("a signature").to_vec();
    let all = json!({"id": "forged", "scope": {}, "reason": "r", "since": now()}).to_string();
    let mut resumed = made.clone();
    resumed["resumedAt"] = json!(now());
    let forged = [all.clone(), resumed.to_string()].map(|value| Outgoing {
        headers: vec![(SIGNATURE.to_owned(), Some(signature.clone()))],
        ..Outgoing::value(value).key("forged")
    });
    let records = [Outgoing::value(all).key("unsigned")].into_iter().chain(forged).collect();
    topics::produce(&signed.fleet.env.brokers, &topic, records);

    signed.fleet.start_worker();
    let worker = signed.fleet.workers[0].address;
    wait::poll_until("the forged pauses to be refused", wait::LONG, || {
        let refused = fleet_tests::http::metric(worker, "fleet_refused_controls_total")?;
        (refused >= 3.0).then_some(())
    });
    signed.submit(&json!([read("paused"), read("free")])).expect(202);
    let records = signed.records(2);
    let record_of = |id: &str| {
        let named = |record: &&Record| record.text().contains(&format!("\"{id}\""));
        records.iter().find(named).expect("the job's record")
    };
    assert_eq!(signed.end_of(record_of("free")).state, JobState::Succeeded);
    let show = || {
        rest::request(address, "GET", "/jobs/paused", &[("authorization", &agent)], b"").expect(200)
    };
    let waiting = wait::poll_until("the job to wait", wait::LONG, || {
        show().get("waiting").cloned().filter(|waiting| waiting["reason"] == "paused")
    });
    assert_eq!((&waiting["by"], &waiting["why"]), (&json!("agent"), &json!("freeze")));

    let path = format!("/pauses/{}", made["id"].as_str().expect("an id"));
    let end = |key: &str| rest::request(address, "DELETE", &path, &[("authorization", key)], b"");
    end(&other).problem(403, "denied");
    end(&agent).expect(200);
    let ended = signed.end_of(record_of("paused"));
    assert_eq!((ended.state, ended.attempts), (JobState::Succeeded, 1), "{ended:?}");
}

/// Replaces the file as an operator or a mounted Secret does.
fn replace(path: &Path, text: &str) {
    let next = path.with_extension("next");
    fs::write(&next, text).expect("a file");
    fs::rename(next, path).expect("a file");
}

#[test]
fn keys_are_replaced_while_jobs_run() {
    let env = Env::embedded_broker(module_path!());
    let mut signed = Signed::start(&env, "signed-rotation");
    signed.fleet.start_worker();
    let (key, public) = (signed.access.join("signing.key"), signed.access.join("signing.pub"));
    let submit = |signed: &Signed<'_>, from: usize| {
        let jobs: Vec<_> = (from..from + 20).map(|n| read(&format!("job-{n}"))).collect();
        signed.submit(&json!(jobs)).expect(202);
    };
    submit(&signed, 0);

    // The new key is known to all before anybody signs with it.
    let (old, new) =
        (fs::read_to_string(&key).expect("a file"), fleet_signing::generate_key().expect("a key"));
    signed.applies(|| replace(&key, &format!("{old}{new}")));
    submit(&signed, 20);
    signed.applies(|| replace(&key, &format!("{new}{old}")));
    run(&[
        "keys",
        "init",
        "--keys",
        signed.access.join("keys.toml").to_str().expect("a path"),
        "--out",
        signed.access.to_str().expect("a path"),
    ]);
    let known = fleet_signing::SigningKeys::parse(&fs::read(public).expect("a file"));
    assert_eq!(known.expect("keys").ids().count(), 2);
    submit(&signed, 40);

    let records = signed.records(60);
    let header_of = |record: &Record| {
        let signature = String::from_utf8(parts(record).1).expect("UTF-8");
        signature.split('.').next().expect("a header").to_owned()
    };
    let headers: BTreeSet<_> = records.iter().map(header_of).collect();
    assert_eq!(headers.len(), 2, "two keys have signed");
    signed.fleet.submitted = records;
    signed.fleet.wait_for_all();
    signed.fleet.stop_workers();
    let account =
        Oracle::new(&signed.fleet.topic, &signed.fleet.submitted).read(&signed.fleet.env.brokers);
    for event in account.states.values() {
        assert_eq!((event.state, event.attempts), (JobState::Succeeded, 1), "{event:?}");
    }
}

/// Agents and producers may have files digested, once somebody has approved it.
const ASKING: &str = "
    [access]
    default = 'deny'

    [[rule]]
    name = 'digests'
    effect = 'allow'
    principals = ['key:agent', 'issuer:kafka']
    actions = ['jobs.submit', 'tools.call']
    tools = ['file_digest']

    [[rule]]
    name = 'ask first'
    effect = 'approve'
    principals = ['key:agent', 'issuer:kafka']
    actions = ['tools.call']
    tools = ['file_digest']
";

fn digest(id: &str) -> Value {
    json!({"jobID": id, "jobType": "tool-call",
        "payload": {"tool": "file_digest", "arguments": {"path": "hello.txt"}}})
}

impl Signed<'_> {
    /// Decides about a job with a key.
    fn decide(&self, key: &str, job_id: &str, approve: bool) -> Answer {
        let (key, path) = (format!("Bearer {key}"), format!("/jobs/{job_id}/decision"));
        let body = json!({ "approve": approve, "reason": "because" });
        rest::post_with(self.server.address, &path, &[("authorization", &key)], &body)
    }

    /// A job as an operator sees it, once it is in this state.
    fn wait_for_state(&self, job_id: &str, state: &str) -> Value {
        let key = fs::read_to_string(self.access.join("operator.key")).expect("a key");
        let headers = [("authorization", format!("Bearer {}", key.trim()))];
        let headers = headers.each_ref().map(|(name, value)| (*name, value.as_str()));
        wait::poll_until(&format!("{job_id} to be {state}"), wait::LONG, || {
            let path = format!("/jobs/{job_id}");
            let job = rest::request(self.server.address, "GET", &path, &headers, b"");
            (job.status == 200 && job.json()["state"] == state).then(|| job.json())
        })
    }
}

#[test]
fn a_job_waits_for_the_word_of_somebody_else() {
    let env = Env::embedded_broker(module_path!());
    let mut signed = Signed::start(&env, "approvals");
    signed.set_policy(ASKING);
    signed.fleet.start_worker();

    // One is submitted, and the other one is met by the rule when it runs.
    let submitted = signed.submit(&digest("asked")).expect(202);
    assert_eq!(submitted["jobs"][0]["state"], "awaiting_approval", "{submitted}");
    let produced = vec![Outgoing::value(digest("produced").to_string()).key("k")];
    topics::produce(&signed.fleet.env.brokers, &signed.fleet.topic, produced);
    let left = signed.wait_for_state("produced", "awaiting_approval");
    assert_eq!((&left["attempts"], &left["approval"]["rule"]), (&json!(0), &json!("ask first")));
    assert!(left["approval"]["headers"].is_null(), "{left}");

    assert_eq!(signed.decide(&signed.agent, "asked", true).status, 403);
    assert_eq!(signed.decide(&signed.other, "asked", true).status, 403, "it lacks the right");
    let operator = signed.access.join("operator.key");
    let url = format!("http://{}", signed.server.address);
    let operator = operator.to_str().expect("a path in UTF-8");
    let by = ["--server", &url, "--token-file", operator];
    let listed = run(&[&["approvals", "list"], &by[..]].concat());
    assert!(listed.contains("asked  file_digest  asked by agent  rule ask first"), "{listed}");
    assert!(listed.contains("produced"), "{listed}");
    run(&[&["approvals", "approve", "asked", "produced", "--reason", "agreed"], &by[..]].concat());
    for job in ["asked", "produced"] {
        let done = signed.wait_for_state(job, "succeeded");
        assert_eq!(done["attempts"], 1, "{done}");
    }
    let operator_key = fs::read_to_string(operator).expect("a key").trim().to_owned();
    assert_eq!(signed.decide(&operator_key, "asked", true).status, 409, "it is decided once");

    // Denied, cancelled by its owner, and decided about with the decision about another job.
    for job in ["denied", "withdrawn"] {
        signed.submit(&digest(job)).expect(202);
    }
    assert_eq!(signed.decide(&operator_key, "denied", false).status, 200);
    let denied = signed.wait_for_state("denied", "cancelled");
    assert_eq!(denied["error"]["errorCode"], "FLEET-APPROVAL-DENIED", "{denied}");
    assert_ne!(signed.cancel(&signed.agent, "withdrawn")["known"], false);
    signed.wait_for_state("withdrawn", "cancelled");

    let approved = topics::read(&signed.fleet.env.brokers, &signed.fleet.topic)
        .into_iter()
        .find_map(|record| record.header("mcp-fleet-approval").map(<[u8]>::to_vec))
        .expect("a record with a decision");
    let replayed = Outgoing {
        headers: vec![("mcp-fleet-approval".to_owned(), Some(approved))],
        ..Outgoing::value(digest("replayed").to_string())
    };
    topics::produce(&signed.fleet.env.brokers, &signed.fleet.topic, vec![replayed]);
    let replayed = signed.wait_for_state("replayed", "failed");
    assert_eq!(replayed["error"]["errorCode"], "FLEET-BAD-SIGNATURE", "{replayed}");
}

#[test]
fn a_job_that_nobody_approves_expires() {
    let ttl = [("MCP_APPROVAL_TTL", "1s")];
    let env = Env::embedded_broker(module_path!());
    let mut signed = Signed::start_with(&env, "unapproved", &ttl);
    signed.set_policy(ASKING);
    signed.submit(&digest("late")).expect(202);
    let expired = signed.wait_for_state("late", "expired");
    assert_eq!(expired["error"]["errorCode"], "FLEET-APPROVAL-EXPIRED", "{expired}");
    assert!(topics::read(&signed.fleet.env.brokers, &signed.fleet.topic).is_empty());
}

//! Calls that workers make for signed jobs: as whom they are decided on, and which are refused.

use fleet_access::{Principal, PrincipalKind, Via};
use fleet_job::{
    envelope::{Envelope, ToolCall, Work},
    record::{Position, RawRecord},
    time::Timestamp,
};
use fleet_signing::{HEADER, JobProof, SigningKeys, generate_key};
use reqwest::StatusCode;
use serde_json::{Value, json};

use crate::{
    access::Keys,
    common::{Server, eventually},
};

const TOPIC: &str = "mcp-jobs";

/// Agents may see which servers are hosted.
const RULES: &str = "
    [access]
    default = 'deny'

    [[rule]]
    name = 'agents look'
    effect = 'allow'
    principals = ['subject:agent', 'key:agent']
    actions = ['tools.call']
    tools = ['server_list']
";

struct Fleet {
    server: Server,
    dir: tempfile::TempDir,
    worker: String,
    agent: String,
    signing: SigningKeys,
}

impl Fleet {
    async fn start(more: &[&str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
        let (key, audit) = (generate_key().unwrap(), path("audit.jsonl"));
        std::fs::write(path("signing.key"), &key).unwrap();

        let mut keys = Keys::new();
        let [worker, agent] = ["worker", "agent"].map(|id| keys.add(id, id));
        keys.change("worker", |entry| entry.roles = vec!["fleet-worker".to_owned()]);
        keys.set_policy(RULES);
        let signing = path("signing.key");
        let mut args = vec!["--signing-key", &signing, "--audit-file", &audit];
        args.extend(more);
        let server = keys.start_server_with(&args).await;
        let signing = SigningKeys::parse(key.as_bytes()).unwrap();
        Self { server, dir, worker, agent, signing }
    }

    /// Calls a tool; returns status and answer.
    async fn call(&self, key: &str, tool: &str, meta: Value) -> (StatusCode, Value) {
        let params = json!({"name": tool, "arguments": {}, "_meta": meta});
        let body = json!({"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params});
        let request = self.server.http.post(self.server.url("/message"));
        let response = request.bearer_auth(key).json(&body).send().await.unwrap();
        (response.status(), response.json().await.unwrap())
    }

    /// Calls a tool as the worker that has a job of the agent's for `signed`.
    async fn call_for_job(&self, signed: &str, tool: &str) -> Value {
        let meta = meta_of("j", &self.signing, &agent(), signed);
        self.call(&self.worker, tool, meta).await.1
    }
}

fn agent() -> Principal {
    Principal::new("keys", "agent", PrincipalKind::Person, Via::Key { id: "agent".to_owned() })
}

/// The `_meta` of a call for a signed job that calls `tool`.
fn meta_of(job_id: &str, keys: &SigningKeys, principal: &Principal, tool: &str) -> Value {
    let work = Work::ToolCall(ToolCall::new(None, tool));
    let envelope = Envelope::new("j", work);
    let value = envelope.to_json().to_string().into_bytes();
    let signature = keys.sign_job(TOPIC, &envelope, &value, principal, None, Timestamp::MIN);
    let record = RawRecord {
        position: Position { topic: TOPIC.to_owned(), partition: 0, offset: 0 },
        timestamp: None,
        key: None,
        value: Some(value),
        headers: vec![(HEADER.to_owned(), signature.map(String::into_bytes))],
    };
    let proof = JobProof::new(&record, &envelope.work).of_call(0);
    json!({"io.mcp-fleet/jobId": job_id, "io.mcp-fleet/signedJob": proof})
}

fn refusal(answer: &Value) -> [&str; 2] {
    let text = |member: &str| answer["error"]["data"][member].as_str().unwrap_or_default();
    [text("reason"), text("code")]
}

#[tokio::test]
async fn a_call_for_a_job_is_decided_on_as_its_submitter() {
    let fleet = Fleet::start(&[]).await;
    let answer = fleet.call_for_job("server_list", "server_list").await;
    assert_eq!(answer["result"]["isError"], false, "{answer}");
    let answer = fleet.call_for_job("server_remove", "server_remove").await;
    assert_eq!(refusal(&answer), ["denied", "FLEET-DENIED"], "{answer}");

    let text = eventually("two records", async || {
        let text = std::fs::read_to_string(fleet.dir.path().join("audit.jsonl")).ok()?;
        (text.lines().count() >= 2).then_some(text)
    })
    .await;
    for line in text.lines() {
        let record: Value = serde_json::from_str(line).unwrap();
        assert_eq!(record["principal"]["subject"], "agent", "{record}");
        let worker = Principal::new("keys", "worker", PrincipalKind::Node, Via::Token);
        assert_eq!(record["principal"]["presentedBy"], worker.id().to_string(), "{record}");
    }
}

#[tokio::test]
async fn what_was_not_signed_does_not_run() {
    let fleet = Fleet::start(&[]).await;
    let bad = ["denied", "FLEET-BAD-SIGNATURE"];
    let answer = fleet.call_for_job("server_list", "server_status").await;
    assert_eq!(refusal(&answer), bad, "another call: {answer}");

    let other_job = meta_of("k", &fleet.signing, &agent(), "server_list");
    let (_, answer) = fleet.call(&fleet.worker, "server_list", other_job).await;
    assert_eq!(refusal(&answer), bad, "another job: {answer}");

    let mut changed = meta_of("j", &fleet.signing, &agent(), "server_list");
    changed["io.mcp-fleet/signedJob"]["value"] = json!("A".repeat(43));
    let (_, answer) = fleet.call(&fleet.worker, "server_list", changed).await;
    assert_eq!(refusal(&answer), bad, "a changed record: {answer}");
    let odd = json!({"io.mcp-fleet/jobId": "j", "io.mcp-fleet/signedJob": "x"});
    let (_, answer) = fleet.call(&fleet.worker, "server_list", odd).await;
    assert_eq!(refusal(&answer), bad, "{answer}");

    // It may be a new key of this fleet, so the job is tried again.
    let foreign = SigningKeys::parse(generate_key().unwrap().as_bytes()).unwrap();
    let meta = meta_of("j", &foreign, &agent(), "server_list");
    let (_, answer) = fleet.call(&fleet.worker, "server_list", meta).await;
    assert_eq!(refusal(&answer), ["", "FLEET-UNKNOWN-SIGNATURE"], "another fleet's: {answer}");
    assert_eq!(answer["error"]["code"], -32603);

    // Nobody who was served without credentials elsewhere is served so here.
    let meta = meta_of("j", &fleet.signing, &Principal::local(), "server_list");
    let (_, answer) = fleet.call(&fleet.worker, "server_list", meta).await;
    assert_eq!(refusal(&answer), ["denied", "FLEET-DENIED"], "{answer}");
}

#[tokio::test]
async fn the_key_of_a_worker_is_good_for_jobs_alone() {
    let fleet = Fleet::start(&[]).await;
    let own = json!({});
    let (status, answer) = fleet.call(&fleet.worker, "server_list", own.clone()).await;
    assert_eq!(status, StatusCode::FORBIDDEN, "{answer}");
    assert_eq!(refusal(&answer), ["server-busy", "FLEET-WORKER-REFUSED"], "jobs wait: {answer}");
    // That is what a worker of an older version sends.
    let old = json!({"io.mcp-fleet/jobId": "j"});
    let (_, answer) = fleet.call(&fleet.worker, "server_list", old).await;
    assert_eq!(refusal(&answer), ["server-busy", "FLEET-WORKER-REFUSED"], "{answer}");

    // An agent calls for itself, and may not present what others have signed.
    let (_, answer) = fleet.call(&fleet.agent, "server_list", own).await;
    assert_eq!(answer["result"]["isError"], false, "{answer}");
    let signed = meta_of("j", &fleet.signing, &agent(), "server_list");
    let (status, answer) = fleet.call(&fleet.agent, "server_list", signed).await;
    assert_eq!(status, StatusCode::FORBIDDEN, "{answer}");
    assert_eq!(refusal(&answer)[1], "FLEET-WORKER-REFUSED", "{answer}");
}

#[tokio::test]
async fn an_unsigned_job_acts_as_its_topic() {
    let unsigned = || json!({"io.mcp-fleet/jobId": "j", "io.mcp-fleet/signedJob": {}});
    let fleet = Fleet::start(&[]).await;
    let (_, answer) = fleet.call(&fleet.worker, "server_list", unsigned()).await;
    assert_eq!(refusal(&answer), ["denied", "FLEET-DENIED"], "{answer}");

    let trusted = Fleet::start(&["--unsigned-jobs", "trusted"]).await;
    let (_, answer) = trusted.call(&trusted.worker, "server_list", unsigned()).await;
    assert_eq!(answer["result"]["isError"], false, "{answer}");
}

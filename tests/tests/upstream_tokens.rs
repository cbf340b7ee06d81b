//! Jobs for a hosted remote that needs access tokens, while its authorization server refuses us for a
//! while and tokens are withdrawn: no attempt is spent, no job is lost, and no token is in a topic.

#![expect(clippy::expect_used, reason = "a panic is the report of a test")]

use std::{fs, time::Duration};

use fleet_job::{event::JobState, topics::Topics};
use fleet_tests::{
    Env, Fleet, Oracle,
    chaos::hosted::Hosted,
    fleet::ServerOptions,
    issuer::{TOKEN, TokenIssuer},
    topics::{self, Outgoing},
    wait,
};
use serde_json::{Value, json};

/// The secret of the client `fleet`, and both as HTTP Basic has them.
const SECRET: &str = "the-clients-secret";
const CREDENTIALS: &str = "ZmxlZXQ6dGhlLWNsaWVudHMtc2VjcmV0";
/// How often tokens are withdrawn under load.
const ROTATIONS: usize = 4;

fn call(id: &str) -> Outgoing {
    let payload = json!({"tool": "crm__work"});
    Outgoing::value(json!({"jobID": id, "jobType": "tool-call", "payload": payload}).to_string())
}

/// A fleet whose server hosts a remote that needs tokens.
struct Guarded<'e> {
    fleet: Fleet<'e>,
    _remote: Hosted,
    issuer: TokenIssuer,
}

impl<'e> Guarded<'e> {
    fn start(env: &'e Env, name: &str) -> Self {
        let mut fleet = Fleet::new(env, name, 3);
        let remote = Hosted::start(env!("CARGO_BIN_EXE_fixture_remote"), &fleet.directory);
        let issuer = TokenIssuer::start(remote.tokens(), CREDENTIALS);

        let secrets = fleet.directory.join("secrets");
        fs::create_dir(&secrets).expect("a directory");
        fs::write(secrets.join("crm-client"), SECRET).expect("a secret");
        let policy = fleet.directory.join("policy.toml");
        let url = remote.url();
        let host = url.split('/').nth(2).expect("host and port");
        let text = format!(
            "[[remote]]\nhost = '{host}'\n[remote.oauth]\ntoken_url = 'http://{}/token'\n\
             client_id = 'fleet'\nclient_secret = '${{secret:crm-client}}'\n",
            issuer.address
        );
        fs::write(&policy, text).expect("a policy");

        let path = |path: &std::path::Path| path.to_str().expect("a path in UTF-8").to_owned();
        let options = ServerOptions {
            env: vec![
                ("MCP_POLICY_FILE".to_owned(), path(&policy)),
                ("MCP_SECRETS_DIR".to_owned(), path(&secrets)),
            ],
            ..ServerOptions::default()
        };
        fleet.start_server(&options);
        let config = json!({"type": "http", "url": remote.url()});
        let server = fleet.server.as_ref().expect("the server");
        let arguments = json!({"name": "crm", "config": config});
        let hosted: Value = server.call("server_initialize", &arguments);
        assert!(hosted["error"].is_null() && hosted["result"]["isError"] != true, "{hosted}");

        fleet.worker_env("MCP_MAX_ATTEMPTS", "1");
        fleet.start_worker();
        Self { fleet, _remote: remote, issuer }
    }

    /// Waits until a job has reported that it waits for the remote's authorization.
    fn wait_for_waiting(&self, job_id: &str) {
        let fleet = &self.fleet;
        wait::poll_until_ok("the job to say that it waits", wait::LONG, || {
            let account = Oracle::new(&fleet.topic, &fleet.submitted).read(&fleet.env.brokers);
            let event = account.last.values().find(|event| event.job_id == job_id);
            let waiting = event.and_then(|event| event.waiting.as_ref());
            match waiting {
                Some(waiting) if waiting.reason == "upstream-unauthorized" => Ok(()),
                _ => Err(format!("{job_id}: {event:?}")),
            }
        });
    }

    /// Ends all jobs, each of which must have succeeded at its first attempt.
    fn settle(mut self) {
        let account = self.fleet.settle(0);
        for event in account.states.values() {
            assert_eq!((event.state, event.attempts), (JobState::Succeeded, 1), "{event:?}");
        }

        let topics = Topics::of(&*self.fleet.topic);
        for topic in [&topics.jobs, &topics.events, &topics.dlq] {
            for record in topics::read(&self.fleet.env.brokers, topic) {
                let value = record.content.value.unwrap_or_default();
                let text = String::from_utf8_lossy(&value);
                assert!(!text.contains(TOKEN) && !text.contains(SECRET), "{topic}: {text}");
            }
        }
    }
}

/// How long the authorization server refuses us. By hand, with `FLEET_REFUSAL_SECONDS=300`, for
/// five minutes.
fn refusal() -> Duration {
    let seconds = std::env::var("FLEET_REFUSAL_SECONDS").ok();
    Duration::from_secs(seconds.map_or(5, |seconds| seconds.parse().expect("a number of seconds")))
}

#[test]
fn jobs_wait_while_the_authorization_server_refuses_us() {
    let env = Env::embedded_broker(module_path!());
    let mut guarded = Guarded::start(&env, "upstream-refusal");
    guarded.fleet.submit((0..4).map(|n| call(&format!("before-{n}"))).collect());
    guarded.fleet.wait_for_all();

    guarded.issuer.refuse(true);
    guarded.issuer.withdraw();
    let refused_before = guarded.issuer.refused();
    let begin = std::time::Instant::now();
    guarded.fleet.submit((0..30).map(|n| call(&format!("during-{n}"))).collect());
    guarded.wait_for_waiting("during-0");
    wait::poll_until("the end of the refusal", refusal() + wait::LONG, || {
        (begin.elapsed() >= refusal()).then_some(())
    });

    // While jobs wait, it is asked at growing intervals.
    let (refused, seconds) = (guarded.issuer.refused() - refused_before, begin.elapsed().as_secs());
    assert!(refused > 0 && refused as u64 <= 4 + seconds, "{refused} requests in {seconds} s");
    guarded.issuer.refuse(false);
    guarded.settle();
}

#[test]
fn tokens_are_withdrawn_under_load_without_a_lost_attempt() {
    let env = Env::embedded_broker(module_path!());
    let mut guarded = Guarded::start(&env, "upstream-rotation");
    for rotation in 0..ROTATIONS {
        guarded.fleet.submit((0..50).map(|n| call(&format!("{rotation}-{n}"))).collect());
        guarded.issuer.withdraw();
        guarded.fleet.wait_for(rotation * 50 + 25);
    }

    guarded.fleet.wait_for_all();
    assert!(guarded.issuer.issued() > 1, "no token was replaced");
    guarded.settle();
}

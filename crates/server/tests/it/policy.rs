//! Changes of the policy file while the server runs: valid ones, mistakes, and their effect on
//! hosted servers.

use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::common::{
    ANSWER_TEXT, Server, eventually, is_alive, legacy_server, patient, script, signal,
};

/// A policy file as Kubernetes mounts it: a link through a link that is swapped.
struct Mounted {
    dir: tempfile::TempDir,
    version: u32,
}

impl Mounted {
    fn new(text: &str) -> Self {
        let mut mounted = Self { dir: tempfile::tempdir().unwrap(), version: 0 };
        mounted.change(text);
        std::os::unix::fs::symlink("..data/policy.toml", mounted.dir.path().join("policy.toml"))
            .unwrap();
        mounted
    }

    fn path(&self) -> String {
        self.dir.path().join("policy.toml").to_str().unwrap().to_owned()
    }

    fn change(&mut self, text: &str) {
        self.version += 1;
        let name = format!("v{}", self.version);
        let at = |name: &str| self.dir.path().join(name);
        std::fs::create_dir(at(&name)).unwrap();
        std::fs::write(at(&name).join("policy.toml"), text).unwrap();
        std::os::unix::fs::symlink(&name, at("..tmp")).unwrap();
        std::fs::rename(at("..tmp"), at("..data")).unwrap();
    }
}

fn allow(programs: &[&str]) -> String {
    programs.iter().map(|program| format!("[[command]]\nargv = [{program:?}]\n")).collect()
}

async fn wait_for_state(server: &Server, name: &str, state: &str) -> Value {
    eventually(&format!("{name} to be {state}"), async || {
        let status = server.status(name).await;
        (status["state"] == state).then_some(status)
    })
    .await
}

#[tokio::test]
async fn a_new_policy_applies_without_dropping_calls() {
    let dir = tempfile::tempdir().unwrap();
    let (a, b) =
        (patient(dir.path(), "a"), script(dir.path(), "b", &legacy_server("work", ANSWER_TEXT)));
    let mut policy = Mounted::new(&allow(&[&a, &b]));
    let server = Server::start(&["--policy", &policy.path()]).await;
    let pid = |hosted: Value| u32::try_from(hosted["pid"].as_u64().unwrap()).unwrap();
    let a_pid = pid(server.initialize("a", json!({"command": a})).await);
    let b_pid = pid(server.initialize("b", json!({"command": b})).await);

    let changes = async {
        let begun = dir.path().join("begun");
        eventually("the call to begin", async || begun.exists().then_some(())).await;
        policy.change(&allow(&[&b]));
        let status = wait_for_state(&server, "a", "refused").await;
        let reason = status["lastError"].as_str().unwrap();
        assert!(
            reason.contains("policy refuses to start") && reason.contains("[[command]]"),
            "{reason}"
        );
        assert_eq!(status["toolCount"], 0);
        assert!(is_alive(a_pid), "its call is still under way");
        let refused = server.call_raw("a__work", json!({})).await;
        assert_eq!(refused["error"]["data"]["reason"], "server-unavailable", "{refused}");
        assert!(
            refused["error"]["message"].as_str().unwrap().contains("policy refuses"),
            "{refused}"
        );
        let (message, is_final) = server.initialize_error("c", json!({"command": a})).await;
        assert!(is_final && message.contains("no rule covers"), "{message}");
        std::fs::write(dir.path().join("go"), "").unwrap();
    };
    let (answer, ()) = tokio::join!(server.call("a__work", json!({})), changes);
    assert_eq!(answer["content"][0]["text"], "done", "the running call is not dropped");
    eventually("the refused child to be gone", async || (!is_alive(a_pid)).then_some(())).await;
    let listed = server.request("tools/list", json!({})).await;
    assert_eq!(
        listed["result"]["_meta"]["io.mcp-fleet/unavailable"][0]["state"], "refused",
        "{listed}"
    );
    assert_eq!(pid(server.status("b").await), b_pid, "an allowed server is not disturbed");
    assert_eq!(server.status("a").await["restarts"], 0);

    // An invalid policy changes nothing, and is visible in the metrics.
    policy.change("[[command]]\nargv = \"sh\"\n");
    eventually("the mistake to be noticed", async || {
        server
            .metric("mcp_server_policy_reloads_total{outcome=\"invalid\"}")
            .await
            .filter(|n| *n >= 1.0)
    })
    .await;
    server.call("b__work", json!({})).await;

    policy.change(&allow(&[&a, &b]));
    signal(server.process.id().unwrap(), Signal::SIGHUP);
    wait_for_state(&server, "a", "idle").await;
    assert_eq!(server.call("a__work", json!({})).await["content"][0]["text"], "done");
    assert_eq!(server.status("a").await["state"], "running");
}

#[tokio::test]
async fn a_call_that_outlasts_the_drain_is_aborted() {
    let dir = tempfile::tempdir().unwrap();
    let program = patient(dir.path(), "a");
    let mut policy = Mounted::new(&allow(&[&program]));
    let server = Server::start(&["--policy", &policy.path()]).await;
    let hosted = server.initialize("a", json!({"command": program})).await;
    let pid = u32::try_from(hosted["pid"].as_u64().unwrap()).unwrap();
    let change = async {
        let begun = dir.path().join("begun");
        eventually("the call to begin", async || begun.exists().then_some(())).await;
        policy.change("[limits]\ndrain_timeout_ms = 100\n");
    };
    let (answer, ()) = tokio::join!(server.call_raw("a__work", json!({})), change);
    assert_eq!(answer["error"]["data"]["reason"], "connection-lost", "{answer}");
    eventually("the child to be gone", async || (!is_alive(pid)).then_some(())).await;
    assert_eq!(server.status("a").await["state"], "refused");
}

#[tokio::test]
async fn the_address_of_a_remote_server_is_checked_again_after_a_change() {
    let upstream = Server::start(&[]).await;
    let mut policy = Mounted::new("[[remote]]\nhost = \"localhost\"\n");
    let server = Server::start(&["--policy", &policy.path()]).await;
    let url = format!("http://localhost:{}/mcp", upstream.address.port());
    server.initialize("up", json!({ "url": url })).await;
    server.call("up__server_list", json!({})).await;
    policy.change("[[remote]]\nhost = \"example.com\"\n");
    let status = wait_for_state(&server, "up", "refused").await;
    assert!(status["lastError"].as_str().unwrap().contains("[[remote]]"), "{status}");
}

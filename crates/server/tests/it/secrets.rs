//! `${secret:name}` in configurations: a rule must list it, its value is in nothing that anybody
//! reads, and a new value is used without a call that fails.

use std::{
    fs,
    os::unix::fs::symlink,
    sync::atomic::{AtomicBool, Ordering},
};

use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::{
    common::{ANSWER_TEXT, eventually, is_alive, legacy_server, script, signal},
    guarded::{Guarded, Logged, Mounted, VALUE, text_of},
};

/// How often a secret is rotated under load.
const ROTATIONS: usize = 5;

#[tokio::test]
async fn a_child_gets_a_secret_and_its_new_value_at_the_next_start() {
    let dir = tempfile::tempdir().unwrap();
    let secrets = Mounted::new(dir.path().join("secrets"));
    secrets.set(&[("db.password", "hunter2-first\n")]);
    let answer = format!("echo \"got $KEY\" >&2; text=\"$KEY $OTHER\"; {ANSWER_TEXT}");
    let program = script(dir.path(), "server", &legacy_server("work", &answer));
    let policy = format!(
        "[[command]]\nargv = [{program:?}]\nenv = ['KEY', 'OTHER']\n\
         secrets = ['db.password', 'from-env']\n"
    );
    let logged = Logged::start(dir.path(), &secrets, &policy).await;
    let server = &logged.server;

    let config = json!({
        "command": program,
        "env": {"KEY": "${secret:db.password}", "OTHER": "${secret:from-env}"},
    });
    server.initialize("db", config.clone()).await;
    let called = async || text_of(&server.call("db__work", json!({})).await).to_owned();
    assert_eq!(called().await, "hunter2-first hunter2-environment");
    logged.check_uses(&[("db", "db.password", 1), ("db", "from-env", 1)]).await;

    secrets.set(&[("db.password", "hunter2-second")]);
    assert_eq!(called().await, "hunter2-first hunter2-environment", "it runs on");
    let pid = server.status("db").await["pid"].as_u64().unwrap();
    let pid = u32::try_from(pid).unwrap();
    signal(pid, Signal::SIGKILL);
    eventually("the end of the child", async || (!is_alive(pid)).then_some(())).await;
    eventually("the new value", async || {
        let answer = server.call_raw("db__work", json!({})).await;
        (text_of(&answer["result"]) == "hunter2-second hunter2-environment").then_some(())
    })
    .await;

    // The same configuration again replaces a child whose secret has changed.
    secrets.set(&[("db.password", "hunter2-third")]);
    server.initialize("db", config).await;
    assert_eq!(called().await, "hunter2-third hunter2-environment");
    logged.check_uses(&[("db", "db.password", 3), ("db", "from-env", 3)]).await;
    logged.check_nothing_is_shown().await;
}

#[tokio::test]
async fn a_secret_that_is_not_listed_is_refused_by_its_name() {
    let dir = tempfile::tempdir().unwrap();
    let secrets = Mounted::new(dir.path().join("secrets"));
    secrets.set(&[("listed", "hunter2-listed"), ("other", "hunter2-other"), ("empty", "\n")]);
    fs::write(dir.path().join("outside"), "hunter2-outside").unwrap();
    symlink("../outside", secrets.directory.join("link")).unwrap();
    let loud = script(dir.path(), "loud", "echo \"key $KEY\" >&2; exit 3");
    let policy = format!(
        "[[command]]\nargv = [{loud:?}]\nenv = ['KEY']\nexpand = ['other']\n\
         secrets = ['listed', 'missing', 'empty', 'link']\n\
         [[remote]]\nhost = 'localhost'\nport = 1\nsecrets = ['listed']\n"
    );
    let logged = Logged::start(dir.path(), &secrets, &policy).await;
    let refused = async |config: Value, code: &str, named: &str| {
        let (message, is_final) = logged.server.initialize_error("x", config.clone()).await;
        assert!(is_final && message.contains(code), "{config}: {message}");
        assert!(message.contains(named) && !message.contains(VALUE), "{config}: {message}");
    };

    let child = |text: &str| json!({"command": loud, "env": {"KEY": text}});
    let remote = |text: &str| json!({"url": "http://localhost:1/", "headers": {"X-Key": text}});
    for config in [
        child("${secret:other}"),
        child("${secret:listed}${secret:other}"),
        remote("Bearer ${secret:other}"),
        json!({"url": "http://localhost:1/?key=${secret:other}"}),
        json!({"type": "sse", "url": "http://localhost:1/", "headers": {"A": "${secret:other}"}}),
    ] {
        refused(config, "FLEET-POLICY-SECRET", "`other`").await;
    }
    for (text, named) in [
        ("${secret:missing}", "MCP_SECRET_MISSING"),
        ("${secret:empty}", "empty"),
        ("${secret:link}", "outside the directory of secrets"),
        ("${secret:../outside}", "secret:../outside"),
        ("${secret:..data}", "secret:..data"),
        ("${secret:listed:-hunter}", "secret:listed:-hunter"),
    ] {
        refused(child(text), "FLEET-SERVER-CONFIG", named).await;
    }

    // What a child writes shows the name.
    let config = json!({"name": "x", "config": child("${secret:listed}")});
    let answer = logged.server.call_raw("server_initialize", config).await.to_string();
    assert!(answer.contains("key ${secret:listed}") && !answer.contains(VALUE), "{answer}");
    logged.check_uses(&[("x", "listed", 1)]).await;
    logged.check_nothing_is_shown().await;
}

/// Rotates the token of a remote of this transport while it is called.
async fn rotate_under_load(transport: &str, path: &str) {
    let dir = tempfile::tempdir().unwrap();
    let secrets = Mounted::new(dir.path().join("secrets"));
    let token = |number: usize| format!("hunter2-{number}");
    secrets.set(&[("token", &token(0))]);
    let remote = Guarded::start().await;
    remote.accept(&[&token(0)]);

    let policy = "[[remote]]\nhost = '127.0.0.1'\nsecrets = ['token']\n";
    let logged = Logged::start(dir.path(), &secrets, policy).await;
    let url = format!("http://{}{path}", remote.address);
    let headers = json!({"Authorization": "Bearer ${secret:token}"});
    let config = json!({"type": transport, "url": url, "headers": headers});
    logged.server.initialize("r", config.clone()).await;
    let handshakes = remote.state.handshakes.load(Ordering::Relaxed);

    let is_over = AtomicBool::new(false);
    let call = async || {
        let answer = logged.server.call_raw("r__work", json!({})).await;
        assert_eq!(text_of(&answer["result"]), "done", "{answer}");
    };
    let load = async || {
        let mut calls = 0;
        while !is_over.load(Ordering::Relaxed) {
            call().await;
            calls += 1;
        }
        calls
    };
    let rotations = async {
        for number in 1..=ROTATIONS {
            let (old, new) = (token(number - 1), token(number));
            remote.accept(&[&old, &new]);
            secrets.set(&[("token", &new)]);
            // Of the old one's refusals, nobody notices anything.
            if number % 2 == 1 {
                remote.accept(&[&new]);
            }
            eventually("the new token", async || remote.used(&new).then_some(())).await;
            remote.accept(&[&new]);
        }
        is_over.store(true, Ordering::Relaxed);
    };
    let (calls, ()) = tokio::join!(futures::future::join_all((0..8).map(|_| load())), rotations);
    assert!(calls.iter().all(|calls| *calls > 0), "{calls:?}");

    // It is the same connection.
    logged.server.initialize("r", config).await;
    let status = logged.server.status("r").await;
    assert_eq!(status["restarts"].as_u64().unwrap_or_default(), 0, "{status}");
    assert_eq!(remote.state.handshakes.load(Ordering::Relaxed), handshakes);
    logged.check_uses(&[("r", "token", 1 + ROTATIONS)]).await;

    // A remote that accepts nothing shows no credential, and calls go on once the secret is right.
    remote.accept(&[]);
    let answer = logged.server.call_raw("r__work", json!({})).await;
    assert!(answer["error"].is_object(), "{answer}");
    assert!(!answer.to_string().contains(VALUE), "{answer}");
    remote.accept(&["hunter2-last"]);
    secrets.set(&[("token", "hunter2-last")]);
    eventually("the last token", async || {
        let answer = logged.server.call_raw("r__work", json!({})).await;
        assert!(!answer.to_string().contains(VALUE), "{answer}");
        (text_of(&answer["result"]) == "done").then_some(())
    })
    .await;
    logged.check_nothing_is_shown().await;
}

#[tokio::test]
async fn the_token_of_a_remote_is_rotated_under_load_without_a_failed_call() {
    rotate_under_load("http", "/mcp").await;
}

#[tokio::test]
async fn the_token_of_a_remote_of_the_older_transport_is_rotated_under_load_too() {
    rotate_under_load("sse", "/sse").await;
}

//! Hosting with the real binary: of itself, and of scripts that behave in many different ways.

use std::path::Path;

use crate::common::{
    ANSWER_TEXT, Server, binary, eventually, is_alive, legacy_server, script, tree,
};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

/// The configuration of our own binary as a hosted server with one root.
fn own(root: &Path) -> Value {
    json!({"command": binary(), "args": ["--stdio", "--root", root]})
}

fn allow_own() -> String {
    format!("'{}' --stdio --root /**", binary())
}

#[tokio::test]
async fn a_real_server_is_hosted_called_and_removed() {
    let tree = tree();
    let server = Server::start(&["--allow-command", &allow_own()]).await;
    let hosted = server.initialize("files", own(&tree.root)).await;
    assert_eq!(hosted["serverInfo"]["name"], "mcp-fleet");
    assert_eq!(hosted["protocolVersion"], "2026-07-28");
    assert_eq!(hosted["transport"], "stdio");

    let tools = hosted["tools"].as_array().unwrap();
    assert!(
        tools
            .iter()
            .any(|tool| tool["name"] == "file_read" && tool["exposedAs"] == "files__file_read")
    );
    assert!(server.tool_names().await.contains(&"files__file_read".to_owned()));

    let read = server.call_ok("files__file_read", json!({"path": "hello.txt"})).await;
    assert_eq!(read["content"], "hello\nwörld\n");

    // Structured content, `isError` and `_meta` are passed on.
    let (message, is_final) =
        server.call_error("files__file_read", json!({"path": "../secret.txt"})).await;
    assert!(is_final && message.contains("outside the allowed roots"), "{message}");

    let unknown = server.call_raw("files__nope", json!({})).await;
    assert_eq!(unknown["error"]["code"], json!(-32602), "{unknown}");

    let pid = hosted["pid"].as_u64().unwrap();
    let again = server.initialize("files", own(&tree.root)).await;
    assert_eq!(again["pid"].as_u64(), Some(pid), "the same configuration changes nothing");

    let status = server.status("files").await;
    assert_eq!((&status["state"], &status["pid"]), (&json!("running"), &json!(pid)));
    assert!(status["toolCount"].as_u64().unwrap() >= 7, "{status}");

    let other = server.initialize("files", own(&tree.root.join("sub"))).await;
    assert_ne!(other["pid"].as_u64(), Some(pid), "another configuration replaces it");
    assert!(!is_alive(pid as u32));
    assert_eq!(
        server.call_ok("files__file_read", json!({"path": "a.rs"})).await["size"],
        json!(10)
    );

    let removed = server.call_ok("server_remove", json!({"name": "files"})).await;
    assert_eq!(removed["removed"], json!(true));
    assert!(!is_alive(other["pid"].as_u64().unwrap() as u32));
    assert!(!server.tool_names().await.iter().any(|name| name.starts_with("files__")));

    let removed = server.call_ok("server_remove", json!({"name": "files"})).await;
    assert_eq!(removed["removed"], json!(false));
}

#[tokio::test]
async fn a_disabled_configuration_starts_nothing() {
    let tree = tree();
    let server = Server::start(&["--allow-command", &allow_own()]).await;
    for (key, value) in [("disabled", true), ("enabled", false)] {
        let mut config = own(&tree.root);
        config[key] = json!(value);
        let answer = server.initialize("files", config).await;
        assert_eq!((&answer["disabled"], &answer["tools"]), (&json!(true), &json!([])), "{answer}");
        assert!(
            answer["warnings"][0].as_str().unwrap().contains(&format!("`config.{key}`")),
            "{answer}"
        );
        assert!(!server.tool_names().await.iter().any(|name| name.starts_with("files__")));
    }

    server.initialize("files", own(&tree.root)).await;
    let answer = server.initialize("files", json!({"disabled": true})).await;
    assert!(answer["warnings"][0].as_str().unwrap().contains("server_remove"), "{answer}");
    assert_eq!(server.status("files").await["state"], "running");
}

#[tokio::test]
async fn a_remote_server_is_hosted() {
    let tree = tree();
    let upstream = Server::start(&["--root", tree.root.to_str().unwrap()]).await;
    let server = Server::start(&["--allow-remote", "127.0.0.1"]).await;
    let hosted = server
        .initialize("up", json!({"type": "streamable-http", "url": upstream.url("/mcp")}))
        .await;
    assert_eq!(
        (&hosted["transport"], &hosted["protocolVersion"]),
        (&json!("http"), &json!("2026-07-28"))
    );
    assert_eq!(
        server.call_ok("up__file_read", json!({"path": "hello.txt"})).await["size"],
        json!(13)
    );

    // While the server is down, calls get an error that says that they may be retried.
    assert!(upstream.terminate().await.success());
    let lost = server.call_raw("up__file_read", json!({"path": "hello.txt"})).await;
    assert_eq!(lost["error"]["code"], json!(-32603), "{lost}");
}

#[tokio::test]
async fn by_default_nothing_may_be_started() {
    let server = Server::start(&[]).await;
    let check = async |config: Value, rule: &str| {
        let (message, is_final) = server.initialize_error("x", config).await;
        assert!(is_final && message.contains(rule), "{message}");
    };
    check(json!({"command": "true"}), "--allow-command").await;
    check(json!({"url": "http://127.0.0.1:1/mcp"}), "--allow-remote").await;
    check(json!({"url": "http://example.com/mcp"}), "--allow-remote").await;
    check(json!({"url": "ftp://example.com/mcp"}), "http or https").await;
    check(json!({"command": "${HOME}/x"}), "`${HOME}/x`").await;
    check(json!({"command": "x", "args": ["${input:key}"]}), "no rule covers").await;
    check(json!({"command": 1}), "`config.command` must be a string").await;
    check(json!({}), "needs `command`").await;
    check(json!({"type": "sse", "url": "http://example.com"}), "--allow-remote").await;
    for name in ["", "a b", "a__b", "a\nb", &"x".repeat(41)] {
        let (message, is_final) = server.initialize_error(name, json!({"command": "true"})).await;
        assert!(is_final && message.contains("server name"), "{name:?}: {message}");
    }
    assert_eq!(server.call_ok("server_list", json!({})).await, json!({"servers": []}));
}

#[tokio::test]
async fn policy_covers_the_whole_command_line() {
    let dir = tempfile::tempdir().unwrap();
    let outside = tempfile::tempdir().unwrap();
    std::fs::write(outside.path().join(".env"), "A=1\n").unwrap();
    let allow = "sh -c 'exit 3'; sleep *";
    let server = Server::start(&[
        "--allow-command",
        allow,
        "--allow-dir",
        dir.path().to_str().unwrap(),
        "--allow-env",
        "?D_*,NODE_*,PY*,PAT?",
    ])
    .await;
    let check = async |config: Value, rule: &str| {
        let (message, is_final) = server.initialize_error("x", config).await;
        assert!(is_final && message.contains(rule), "{message}");
    };
    check(
        json!({"command": "sh", "args": ["-c", "exit 4"]}),
        "no rule covers this whole command line",
    )
    .await;
    check(json!({"command": "sh", "args": ["-c", "exit 3", "x"]}), "no rule covers").await;
    check(json!({"command": "/bin/sh", "args": ["-c", "exit 3"]}), "no rule covers").await;
    check(json!({"command": "sleep", "args": ["--version"]}), "no rule covers").await;
    let sleep = |more: Value| {
        let mut config = json!({"command": "sleep", "args": ["1"]});
        config.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        config
    };
    for name in ["LD_PRELOAD", "NODE_OPTIONS", "PYTHONPATH", "PATH"] {
        check(sleep(json!({"env": {name: "x"}})), "listed by its exact name").await;
    }
    check(sleep(json!({"cwd": outside.path()})), "working directory").await;
    check(sleep(json!({"cwd": "/no/such/dir"})), "working directory").await;
    check(sleep(json!({"cwd": dir.path().join("nope")})), "No such file").await;
    check(sleep(json!({"cwd": dir.path().join("../nope")})), "working directory").await;
    check(sleep(json!({"envFile": dir.path().join("nope")})), "No such file").await;
    check(sleep(json!({"envFile": outside.path().join(".env")})), "envFile").await;
    check(sleep(json!({"envFile": "/etc/passwd"})), "policy refuses the envFile").await;
}

#[tokio::test]
async fn broken_children_get_clear_errors() {
    let dir = tempfile::tempdir().unwrap();
    let banner =
        script(dir.path(), "banner", "echo '[INFO] Welcome to my server> {}'; exec sleep 60");
    let flood = script(dir.path(), "flood", "exec yes");
    let long = script(dir.path(), "long", "tr '\\0' 'x' </dev/zero");
    let mute = script(dir.path(), "mute", "exec sleep 60");
    let dying = script(dir.path(), "dying", "echo 'database is down' >&2; exit 7");
    let allow = format!("{}/*; no-such-command-at-all; sh -c 'exit 3'", dir.path().display());
    let server = Server::start(&["--allow-command", &allow]).await;
    let check = async |server: &Server, config: Value, expected: &[&str], expect_final: bool| {
        let (message, is_final) = server.initialize_error("x", config.clone()).await;
        for expected in expected {
            assert!(message.contains(expected), "{config}: {message}");
        }
        assert_eq!(is_final, expect_final, "{config}: {message}");
    };
    check(&server, json!({"command": "no-such-command-at-all"}), &["does not exist"], true).await;
    check(&server, json!({"command": dir.path().join("nope")}), &["does not exist"], true).await;
    let exit = json!({"command": "sh", "args": ["-c", "exit 3"]});
    check(&server, exit, &["exited with status 3"], false).await;
    check(&server, json!({"command": dying}), &["exited with status 7", "database is down"], false)
        .await;
    check(&server, json!({"command": flood}), &["not JSON-RPC"], false).await;
    check(&server, json!({"command": long}), &["a line of more than"], false).await;

    let server =
        Server::start(&["--allow-command", &allow, "--handshake-timeout-ms", "1000"]).await;
    let late = "within 1000 ms";
    check(&server, json!({"command": mute}), &[late], false).await;
    let garbage = [late, "not JSON-RPC", "[INFO] Welcome to my server"];
    check(&server, json!({"command": banner}), &garbage, false).await;

    // The failure is visible afterwards, and hides nothing else.
    let status = server.status("x").await;
    assert_eq!(status["state"], "failed");
    assert!(status["lastError"].as_str().unwrap().contains(late), "{status}");

    let listed = server.request("tools/list", json!({})).await;
    let warning = &listed["result"]["_meta"]["io.mcp-fleet/unavailable"][0];
    assert_eq!(
        (&warning["server"], &warning["state"]),
        (&json!("x"), &json!("failed")),
        "{listed}"
    );
    assert_eq!(server.tool_names().await.len(), 4);

    let call = server.call_raw("x__anything", json!({})).await;
    assert_eq!(
        (&call["error"]["code"], &call["error"]["data"]["reason"]),
        (&json!(-32603), &json!("server-unavailable"))
    );

    // None of the children is left.
    let ours = eventually("the broken children to be gone", async || {
        let children = children_of(server.process.id().unwrap());
        children.is_empty().then_some(children)
    });
    ours.await;
}

#[tokio::test]
async fn a_list_of_tools_that_is_too_large_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    // Each page is below the limit, but there is always another page with another tool.
    let page = r#"printf '{"jsonrpc":"2.0","id":%s,"result":{"nextCursor":"%s","tools":[{"name":"t%s","description":"' "$id" "$id" "$id"
        head -c 1500000 /dev/zero | tr '\0' x; printf '","inputSchema":{"type":"object"}}]}}\n'"#;
    let body = legacy_server("work", "exit 0");
    let (start, end) = body.split_once("*'\"tools/list\"'*)").unwrap();
    let program = script(
        dir.path(),
        "server",
        &format!("{start}*'\"tools/list\"'*) {page} ;;\n    *'\"tools/old\"'*){end}"),
    );
    let server = Server::start(&["--allow-command", &program]).await;
    let expected = "tools/list: the list is larger than 4194304 bytes";
    let (message, is_final) = server.initialize_error("x", json!({"command": program})).await;
    assert!(!is_final && message.contains(expected), "{message}");

    let status = server.status("x").await;
    assert!(status["lastError"].as_str().unwrap().contains(expected), "{status}");
}

#[tokio::test]
async fn a_failed_replacement_leaves_the_old_one_running() {
    let tree = tree();
    let allow = format!("{}; false", allow_own());
    let server = Server::start(&["--allow-command", &allow]).await;
    let pid = server.initialize("files", own(&tree.root)).await["pid"].clone();
    server.initialize_error("files", json!({"command": "false"})).await;
    let status = server.status("files").await;
    assert_eq!((&status["state"], &status["pid"]), (&json!("running"), &pid));
    assert!(status["lastError"].as_str().unwrap().contains("exited with status 1"), "{status}");
    server.call_ok("files__file_read", json!({"path": "hello.txt"})).await;
}

/// A server that fails until the file `go` exists; then it writes `begun` and answers after a
/// while.
fn second_attempt_is_slow(dir: &Path) -> String {
    let wait =
        "[ -e \"$(dirname \"$0\")/go\" ] || exit 1; touch \"$(dirname \"$0\")/begun\"; sleep 1";
    script(
        dir,
        "slow",
        &format!("{wait}\n{}", legacy_server("work", &format!("text=done; {ANSWER_TEXT}"))),
    )
}

#[tokio::test]
async fn a_server_that_is_being_restarted_is_not_evicted() {
    let dir = tempfile::tempdir().unwrap();
    let slow = second_attempt_is_slow(dir.path());
    let policy = dir.path().join("policy.toml");
    let text = format!(
        "[limits]\nmax_servers = 1\n[[command]]\nargv = [{slow:?}]\n[[command]]\nargv = [\"false\"]\n"
    );
    std::fs::write(&policy, text).unwrap();
    let server = Server::start(&["--policy", policy.to_str().unwrap()]).await;
    server.initialize_error("x", json!({"command": slow})).await;
    std::fs::write(dir.path().join("go"), "").unwrap();
    let meanwhile = async {
        let begun = dir.path().join("begun");
        eventually("the second attempt", async || begun.exists().then_some(())).await;
        server.initialize_error("y", json!({"command": "false"})).await
    };
    let (_, (message, _)) =
        tokio::join!(server.initialize("x", json!({"command": slow})), meanwhile);
    assert!(message.contains("the limit of 1 hosted servers"), "{message}");
    assert_eq!(server.status("x").await["state"], "running");

    server.call_ok("server_remove", json!({"name": "x"})).await;
    eventually("no child is left", async || {
        children_of(server.process.id().unwrap()).is_empty().then_some(())
    })
    .await;

    // A failed server that is not being started is evicted.
    server.initialize_error("y", json!({"command": "false"})).await;
    server.initialize("x", json!({"command": slow})).await;
}

#[tokio::test]
async fn concurrent_initializations_of_one_name_start_one_server() {
    let tree = tree();
    let server = Server::start(&["--allow-command", &allow_own()]).await;
    let all =
        futures::future::join_all((0..8).map(|_| server.initialize("files", own(&tree.root))))
            .await;
    let pids: std::collections::BTreeSet<_> =
        all.iter().map(|hosted| hosted["pid"].as_u64()).collect();
    assert_eq!(pids.len(), 1, "{pids:?}");
    assert_eq!(children_of(server.process.id().unwrap()).len(), 1);
}

#[tokio::test]
async fn a_server_that_exits_at_unknown_methods_is_hosted() {
    let dir = tempfile::tempdir().unwrap();
    let body = legacy_server("work", &format!("text=done; {ANSWER_TEXT}"));
    let (start, end) = body.split_once('\n').unwrap();
    let picky =
        format!("{start}\n  case \"$line\" in *'\"server/discover\"'*) exit 1 ;; esac\n{end}");
    let program = script(dir.path(), "server", &picky);
    let server = Server::start(&["--allow-command", &program]).await;
    assert_eq!(
        server.initialize("x", json!({"command": program})).await["protocolVersion"],
        "2025-06-18"
    );
    assert_eq!(server.call("x__work", json!({})).await["content"][0]["text"], "done");
}

#[tokio::test]
async fn an_unreachable_remote_server_is_an_error() {
    let server = Server::start(&["--allow-remote", "127.0.0.1"]).await;
    let free = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    // It may be reachable later, so a job waits.
    let config = json!({"url": format!("http://{free}/mcp")});
    let answer = server.call_raw("server_initialize", json!({"name": "x", "config": config})).await;
    let error = &answer["error"];
    assert_eq!(
        (&error["code"], &error["data"]["reason"]),
        (&json!(-32603), &json!("server-unavailable"))
    );
    assert_eq!(
        (&error["data"]["server"], &error["data"]["retryAfterMs"]),
        (&json!("x"), &json!(5000))
    );
    assert!(error["message"].as_str().unwrap().contains("refused"), "{answer}");

    // From now on the server is known, and so are calls to it.
    let call = server.call_raw("x__work", json!({})).await;
    assert_eq!(call["error"]["data"]["reason"], "server-unavailable", "{call}");
    assert!(call["error"]["data"]["retryAfterMs"].as_u64().is_some_and(|ms| ms > 0), "{call}");

    // A server that doesn't answer with MCP is reachable but wrong.
    let stub = server.url("/health");
    let (message, is_final) = server.initialize_error("y", json!({ "url": stub })).await;
    assert!(!is_final && message.contains("handshake failed"), "{message}");

    for url in
        ["http://127.0.0.2/", "http://[::1]/", "http://169.254.169.254/", "http://user@127.0.0.1/"]
    {
        let (message, is_final) = server.initialize_error("x", json!({ "url": url })).await;
        assert!(is_final, "{url}: {message}");
    }
}

/// The processes whose parent is this one.
fn children_of(pid: u32) -> Vec<u32> {
    let parent = |entry: &str| {
        let stat = std::fs::read_to_string(format!("/proc/{entry}/stat")).ok()?;
        stat.rsplit(')').next()?.split_whitespace().nth(1)?.parse::<u32>().ok()
    };
    let entries = std::fs::read_dir("/proc").unwrap().flatten();
    let names = entries.map(|entry| entry.file_name().to_string_lossy().into_owned());
    names.filter(|name| parent(name) == Some(pid)).filter_map(|name| name.parse().ok()).collect()
}

#[tokio::test]
async fn environment_and_directory_are_those_of_the_configuration() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().canonicalize().unwrap();
    std::fs::write(root.join(".env"), "# secrets\nexport FROM_FILE='file value'\nBOTH=file\n")
        .unwrap();
    let report =
        format!("text=\"$FROM_FILE,$BOTH,$EXPANDED,$PASSED,$LEAKED,$(pwd)\"; {ANSWER_TEXT}");
    let program = script(&root, "server", &legacy_server("report", &report));
    let policy = root.join("policy.toml");
    let text = format!(
        "[[command]]\nargv = [{program:?}]\nexpand = [\"ALLOWED\"]\ncwd = [{root:?}]\nenv = [\"BOTH\", \"EXPANDED\", \"FROM_*\"]\nenv_files = [{root:?}]\n\
         env_passthrough = [\"PASSED\"]\n"
    );
    std::fs::write(&policy, text).unwrap();
    let env = [
        ("ALLOWED", "expanded"),
        ("PASSED", "passed"),
        ("LEAKED", "leaked"),
        ("MCP_POLICY_FILE", policy.to_str().unwrap()),
    ];
    let server = Server::start_with(&[], &env).await;
    let config = json!({"command": program, "cwd": root, "envFile": ".env", "type": "stdio", "disabled": false, "colour": "red",
        "env": {"BOTH": "env", "EXPANDED": "${ALLOWED}-${MISSING_AND_REFUSED:-}"}});
    let (message, is_final) = server.initialize_error("x", config.clone()).await;
    assert!(
        is_final && message.contains("MISSING_AND_REFUSED") && message.contains("expand"),
        "{message}"
    );

    let mut config = config;
    config["env"]["EXPANDED"] = json!("${ALLOWED}");
    let hosted = server.initialize("x", config).await;
    assert_eq!(hosted["protocolVersion"], "2025-06-18", "a legacy server behind the gateway");
    assert_eq!(hosted["warnings"], json!(["`config.colour` is unknown and has no effect"]));

    let result = server.call("x__report", json!({})).await;
    let expected = format!("file value,env,expanded,passed,,{}", root.display());
    assert_eq!(result["content"][0]["text"], json!(expected));
}

/// If a server dies during a call of an idempotent tool, the call is repeated.
#[tokio::test]
async fn an_idempotent_call_is_repeated() {
    let dir = tempfile::tempdir().unwrap();
    let count = dir.path().join("count");
    let on_call = format!(
        "if [ ! -e {count} ]; then touch {count}; exit 9; fi; text=survived; {ANSWER_TEXT}",
        count = count.display()
    );
    let body = legacy_server("work", &on_call);
    let harmless =
        body.replace(r#""inputSchema""#, r#""annotations":{"idempotentHint":true},"inputSchema""#);
    let program = script(dir.path(), "server", &harmless);
    let server = Server::start(&["--allow-command", &program]).await;
    server.initialize("x", json!({"command": program})).await;
    let result = server.call("x__work", json!({})).await;
    assert_eq!(result["content"][0]["text"], "survived", "{result}");
    assert_eq!(server.status("x").await["restarts"], 1);
}

#[tokio::test]
async fn a_server_that_dies_is_restarted() {
    let dir = tempfile::tempdir().unwrap();
    let count = dir.path().join("count");
    // Answers with its process id, and dies at the first call, which finds no file.
    let on_call = format!(
        "if [ ! -e {count} ]; then touch {count}; echo 'out of cheese' >&2; exit 9; fi; text=$$; {ANSWER_TEXT}",
        count = count.display()
    );
    let program = script(dir.path(), "server", &legacy_server("work", &on_call));
    let server = Server::start(&["--allow-command", &program]).await;
    let first = server.initialize("x", json!({"command": program})).await["pid"].as_u64().unwrap();

    let died = server.call_raw("x__work", json!({})).await;
    assert_eq!(died["error"]["code"], json!(-32603), "{died}");
    assert_eq!(died["error"]["data"]["reason"], "connection-lost");

    let status = eventually("the death to be noticed", async || {
        let status = server.status("x").await;
        (status["state"] == "failed").then_some(status)
    });
    let status = status.await;
    assert!(status["lastError"].as_str().unwrap().contains("exited with status 9"), "{status}");
    assert!(status["stderrTail"].as_str().unwrap().contains("out of cheese"), "{status}");

    let listed = server.request("tools/list", json!({})).await["result"].clone();
    assert_eq!(listed["_meta"]["io.mcp-fleet/unavailable"][0]["server"], "x");
    assert!(server.tool_names().await.contains(&"x__work".to_owned()), "a call starts it again");

    let revived = server.call("x__work", json!({})).await;
    assert_ne!(revived["content"][0]["text"], json!(first.to_string()));
    let status = server.status("x").await;
    assert_eq!((&status["state"], &status["restarts"]), (&json!("running"), &json!(1)));

    // After the second death in a row, the restart is delayed.
    crate::common::signal(u32::try_from(status["pid"].as_u64().unwrap()).unwrap(), Signal::SIGKILL);
    eventually("the second death to be noticed", async || {
        (server.status("x").await["state"] == "failed").then_some(())
    })
    .await;
    let waiting = server.call_raw("x__work", json!({})).await;
    assert_eq!(waiting["error"]["data"]["reason"], "server-unavailable", "{waiting}");
    assert!(waiting["error"]["data"]["retryAfterMs"].as_u64().unwrap() <= 500, "{waiting}");
    eventually("the third life", async || {
        server.call_raw("x__work", json!({})).await["result"].is_object().then_some(())
    })
    .await;
}

/// A scripted server with a helper process that ignores SIGTERM, in a file of its own.
fn with_helper(dir: &Path) -> (String, std::path::PathBuf) {
    let pid_file = dir.join("helper");
    let helper = script(
        dir,
        "helper.sh",
        &format!("trap '' TERM; echo $$ > {}; while :; do sleep 1; done", pid_file.display()),
    );
    let body =
        format!("{helper} </dev/null >/dev/null 2>&1 &\n{}", legacy_server("work", "exit 0"));
    (script(dir, "server", &body), pid_file)
}

async fn helper_pid(file: &Path) -> u32 {
    eventually("the helper to start", async || {
        std::fs::read_to_string(file).ok()?.trim().parse().ok()
    })
    .await
}

#[tokio::test]
async fn removal_ends_the_whole_process_group() {
    let dir = tempfile::tempdir().unwrap();
    let (program, pid_file) = with_helper(dir.path());
    let server = Server::start(&["--allow-command", &program]).await;
    let pid = server.initialize("x", json!({"command": program})).await["pid"].as_u64().unwrap();
    let helper = helper_pid(&pid_file).await;
    assert!(is_alive(helper));
    server.call_ok("server_remove", json!({"name": "x"})).await;
    assert!(!crate::common::exists(u32::try_from(pid).unwrap()), "the child is reaped");
    eventually("the helper to be gone", async || (!is_alive(helper)).then_some(())).await;
}

#[tokio::test]
async fn sigterm_ends_the_whole_process_group() {
    let dir = tempfile::tempdir().unwrap();
    let (program, pid_file) = with_helper(dir.path());
    let server = Server::start(&["--allow-command", &program]).await;
    let pid = server.initialize("x", json!({"command": program})).await["pid"].as_u64().unwrap();
    let helper = helper_pid(&pid_file).await;
    assert!(server.terminate().await.success());
    assert!(!is_alive(u32::try_from(pid).unwrap()));
    eventually("the helper to be gone", async || (!is_alive(helper)).then_some(())).await;
}

#[tokio::test]
async fn the_number_of_hosted_servers_is_bounded() {
    let dir = tempfile::tempdir().unwrap();
    let program = script(dir.path(), "server", &legacy_server("work", "exit 0"));
    let policy = dir.path().join("policy.toml");
    std::fs::write(
        &policy,
        format!(
            "[limits]\nmax_servers = 2\n[[command]]\nargv = [{program:?}]\n[[command]]\nargv = [\"false\"]\n"
        ),
    )
    .unwrap();
    let server = Server::start(&["--policy", policy.to_str().unwrap()]).await;

    // A server that failed to start makes room.
    server.initialize_error("broken", json!({"command": "false"})).await;
    for name in ["a", "b"] {
        server.initialize(name, json!({"command": program})).await;
    }
    let (message, is_final) = server.initialize_error("c", json!({"command": program})).await;
    assert!(!is_final && message.contains("the limit of 2 hosted servers"), "{message}");

    server.call_ok("server_remove", json!({"name": "a"})).await;
    server.initialize("c", json!({"command": program})).await;
    let bad = dir.path().join("bad.toml");
    std::fs::write(&bad, "[limits]\nmaximum = 2\n").unwrap();
    let output = crate::common::command(&["--port", "0", "--policy", bad.to_str().unwrap()])
        .output()
        .await
        .unwrap();
    assert!(!output.status.success());
    assert!(String::from_utf8_lossy(&output.stderr).contains("maximum"));
}

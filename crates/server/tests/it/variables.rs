//! `${VAR}` in configurations: a rule must allow it, and no caller gets to see the value of a
//! variable.

use serde_json::{Value, json};

use crate::common::{ANSWER_TEXT, Server, binary, legacy_server, script};

const VALUE: &str = "hunter2-value";

#[tokio::test]
async fn refusals_do_not_show_the_value_of_a_variable() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().canonicalize().unwrap();
    let program = script(&root, "server", &legacy_server("work", ANSWER_TEXT));
    let loud = script(&root, "loud", "echo \"key $KEY, $1\" >&2; exit 3");
    let command = format!("{program}; {loud} *; ${{K}}; ${{K}}/x");
    let server = Server::start_with(
        &[
            "--allow-command",
            &command,
            "--allow-dir",
            root.to_str().unwrap(),
            "--allow-env",
            "KEY",
            "--allow-remote",
            "localhost:1",
            "--expand-env",
            "K,PORT_K",
        ],
        &[("K", VALUE), ("PORT_K", "4711")],
    )
    .await;

    let (name, here) = ("${K}", root.to_str().unwrap());
    for config in [
        json!({"command": name}),
        json!({"command": "${K}/x"}),
        json!({"command": "${env:K}"}),
        json!({"command": program, "args": [name]}),
        json!({"command": program, "args": [format!("--key={name}")]}),
        json!({"command": program, "cwd": format!("/{name}")}),
        json!({"command": program, "cwd": format!("{here}/{name}")}),
        json!({"command": program, "envFile": format!("/{name}/.env")}),
        json!({"command": program, "envFile": format!("{here}/{name}")}),
        json!({"command": program, "env": {"OTHER": name}}),
        json!({"command": loud, "args": ["x"], "env": {"KEY": name}}),
        json!({"command": loud, "args": [name]}),
        json!({"url": format!("http://{name}/mcp")}),
        json!({"url": "http://localhost:${PORT_K}/mcp"}),
        json!({"url": format!("http://localhost:1/{name}?key={name}")}),
        json!({"url": format!("{name}://localhost:1")}),
        json!({"url": "http://localhost:1", "headers": {"X Y": name}}),
    ] {
        let answer =
            server.call_raw("server_initialize", json!({"name": "x", "config": config})).await;
        let failed = answer["error"].is_object() || answer["result"]["isError"] == true;
        assert!(failed, "{config}: {answer}");
        let text = answer.to_string();
        assert!(!text.contains(VALUE) && !text.contains("4711"), "{config}: {text}");
    }
    let status = server.call_ok("server_status", json!({})).await.to_string();
    assert!(!status.contains(VALUE), "{status}");

    // A child's own output shows the name.
    let told = json!({"command": loud, "args": ["x"], "env": {"KEY": name}});
    let answer = server.call_raw("server_initialize", json!({"name": "x", "config": told})).await;
    assert!(answer.to_string().contains("key ${K}, x"), "{answer}");
}

/// What a server sends may hold the value, and so may our words about it.
#[tokio::test]
async fn no_quotation_of_a_server_shows_the_value_of_a_variable() {
    let dir = tempfile::tempdir().unwrap();
    let garbage = r#"printf '{"jsonrpc":"2.0","id":%s,"result":{"%s"\n' "$id" "$KEY""#;
    let odd = r#"printf '{"jsonrpc":"2.0","id":%s,"result":"%s"}\n' "$id" "$KEY""#;
    let named = legacy_server("work", ANSWER_TEXT)
        .replace(r#""tools":["#, r#""tools":[{"name":"'"$KEY"'","inputSchema":5},"#);
    let programs = [
        ("garbage", legacy_server("work", garbage)),
        ("odd", legacy_server("work", odd)),
        ("named", named),
    ]
    .map(|(name, body)| (name, script(dir.path(), name, &body)));

    let commands = programs.each_ref().map(|(_, program)| program.as_str()).join(";");
    let allow = ["--allow-command", &commands, "--allow-env", "KEY", "--expand-env", "K"];
    let server = Server::start_with(&allow, &[("K", VALUE)]).await;
    for (name, program) in &programs {
        let config = json!({"command": program, "env": {"KEY": "${K}"}});
        server.initialize(name, config).await;
    }

    for name in ["garbage", "odd"] {
        let answer = server.call_raw(&format!("{name}__work"), json!({})).await.to_string();
        assert!(answer.contains("unreadable-answer") && answer.contains("${K}"), "{answer}");
        assert!(!answer.contains(VALUE), "{answer}");
    }
    let status = server.call_ok("server_status", json!({})).await.to_string();
    assert!(status.contains("hiddenTools") && status.contains("${K}"), "{status}");
    assert!(!status.contains(VALUE), "{status}");
}

#[tokio::test]
async fn a_variable_belongs_to_a_rule() {
    let dir = tempfile::tempdir().unwrap();
    let body = legacy_server("work", &format!("text=\"$KEY\"; {ANSWER_TEXT}"));
    let (first, second) = (script(dir.path(), "first", &body), script(dir.path(), "second", &body));
    let policy = dir.path().join("policy.toml");
    let text = format!(
        "[[command]]\nargv = [{first:?}]\nenv = [\"KEY\"]\nexpand = [\"K\"]\n\
         [[command]]\nargv = [{second:?}]\nenv = [\"KEY\"]\n[[remote]]\nhost = \"localhost\"\n"
    );
    std::fs::write(&policy, text).unwrap();
    let server = Server::start_with(&["--policy", policy.to_str().unwrap()], &[("K", VALUE)]).await;

    let config = |program: &str| json!({"command": program, "env": {"KEY": "${K}"}});
    server.initialize("first", config(&first)).await;
    assert_eq!(server.call("first__work", json!({})).await["content"][0]["text"], VALUE);

    let refused = async |config: Value| {
        let (message, is_final) = server.initialize_error("x", config).await;
        assert!(is_final && message.contains("`K` may not be expanded"), "{message}");
    };
    refused(config(&second)).await;
    refused(json!({"url": "http://localhost:1/mcp", "headers": {"X-Key": "${K}"}})).await;
}

/// A link that is swapped between the check of a working directory and the start.
#[tokio::test]
async fn a_child_starts_in_an_allowed_directory_or_not_at_all() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().canonicalize().unwrap();
    std::fs::create_dir(root.join("real")).unwrap();
    std::os::unix::fs::symlink("real", root.join("link")).unwrap();
    let start = async |cwd: &str| {
        let limits = json!({"memory_mb": null, "cpu_seconds": null, "open_files": null});
        let confinement = json!({"read_files": null, "write_files": null, "connect_ports": null});
        let launch = json!({"limits": limits, "confinement": confinement, "cwd": root.join(cwd)});
        let mut command = tokio::process::Command::new(binary());
        command.args(["__launch", &launch.to_string(), "pwd"]).output().await.unwrap()
    };

    let started = start("real").await;
    assert_eq!(
        String::from_utf8_lossy(&started.stdout).trim(),
        root.join("real").to_str().unwrap()
    );

    let refused = start("link").await;
    assert_eq!(refused.status.code(), Some(127));
    assert!(refused.stdout.is_empty(), "it did not start");

    let why = String::from_utf8_lossy(&refused.stderr);
    assert!(why.contains("which policy has not allowed"), "{why}");
}

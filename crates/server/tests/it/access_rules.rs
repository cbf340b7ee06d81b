//! What principals may do: lists, calls, every method and every route, and how much of it.

use std::{collections::BTreeSet, path::Path};

use reqwest::{Method, Response, StatusCode};
use serde_json::{Value, json};

use crate::{
    access::Keys,
    apps::scripted,
    common::{Server, eventually, signal},
};

/// Two hosted servers with a few of everything, and callers with keys.
struct Fleet {
    server: Server,
    keys: Keys,
    root: String,
    agent: String,
    mute: String,
    dir: tempfile::TempDir,
}

/// `root` may do everything, `mute` nothing, and `agent` what is read-only and query `a`.
const RULES: &str = "
    [[rule]]
    name = 'root'
    effect = 'allow'
    principals = ['key:root']
    actions = ['*']

    [[rule]]
    name = 'mute'
    effect = 'deny'
    principals = ['key:mute']
    actions = ['*']

    [[rule]]
    name = 'query'
    effect = 'allow'
    principals = ['key:agent']
    actions = ['tools.call']
    servers = ['a']
    tools = ['query']
    when = \"args.table != 'ui://secrets'\"

    [[rule]]
    name = 'not of b'
    effect = 'deny'
    principals = ['key:agent']
    actions = ['prompts.get', 'resources.*', 'completions']
    servers = ['b']
";

/// A server with two tools, and one each of prompts, resources, templates and extensions.
pub(crate) fn program(dir: &Path, name: &str) -> String {
    let capabilities = json!({
        "tools": {}, "prompts": {}, "resources": {"subscribe": true}, "completions": {},
        "extensions": {format!("com.example/{name}"): {}},
    });
    let schema = json!({"type": "object"});
    let read_only = json!({"readOnlyHint": true});
    let tools = json!([
        {"name": "query", "inputSchema": schema},
        {"name": "drop", "inputSchema": schema, "annotations": read_only},
    ]);
    let content = json!({"content": [{"type": "text", "text": "done"}]});
    let resource = |uri: &str| json!([{"uri": format!("{uri}{name}"), "name": "r"}]);
    let template = json!([{"uriTemplate": format!("y://{name}/{{x}}"), "name": "t"}]);
    let message = json!({"role": "user", "content": {"type": "text", "text": "hello"}});

    scripted(
        dir,
        name,
        &capabilities,
        &[
            ("tools/list", json!({ "tools": tools })),
            ("tools/call", content),
            ("prompts/list", json!({"prompts": [{"name": "greet"}]})),
            ("prompts/get", json!({ "messages": [message] })),
            ("resources/list", json!({"resources": resource("x://")})),
            ("resources/templates/list", json!({ "resourceTemplates": template })),
            ("resources/read", json!({"contents": [{"uri": "x://", "text": "x"}]})),
            ("resources/subscribe", json!({})),
            ("completion/complete", json!({"completion": {"values": ["one"]}})),
        ],
    )
}

impl Fleet {
    async fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let programs = ["a", "b"].map(|name| program(dir.path(), name));
        let mut keys = Keys::new();
        let [root, agent, mute] = ["root", "agent", "mute"].map(|id| keys.add(id, id));
        keys.set_policy(RULES);

        let allowed =
            programs.iter().flat_map(|program| ["--allow-command", program]).collect::<Vec<_>>();
        let server = keys.start_server_with(&allowed).await;
        let fleet = Self { server, keys, root, agent, mute, dir };
        for (name, program) in ["a", "b"].iter().zip(&programs) {
            let arguments = json!({"name": name, "config": {"command": program}});
            let hosted = fleet.call(&fleet.root, "server_initialize", arguments).await;
            assert_eq!(hosted["result"]["isError"], false, "{hosted}");
        }
        fleet
    }

    /// Sends a request through `/message`; returns the status and the answer.
    async fn send(&self, key: &str, method: &str, params: Value) -> (StatusCode, Value) {
        let body = json!({"jsonrpc": "2.0", "id": 1, "method": method, "params": params});
        let request = self.server.http.post(self.server.url("/message"));
        let response = request.bearer_auth(key).json(&body).send().await.unwrap();
        let status = response.status();
        (status, response.json().await.unwrap())
    }

    async fn ask(&self, key: &str, method: &str, params: Value) -> Value {
        let (status, answer) = self.send(key, method, params).await;
        assert_eq!(status, StatusCode::OK, "{answer}");
        answer
    }

    async fn call(&self, key: &str, tool: &str, arguments: Value) -> Value {
        self.ask(key, "tools/call", json!({"name": tool, "arguments": arguments})).await
    }

    /// The values of a member of everything in a list.
    async fn list(&self, key: &str, method: &str, list: &str, member: &str) -> Vec<String> {
        let answer = self.ask(key, method, json!({})).await;
        let items = answer["result"][list].as_array().unwrap_or_else(|| panic!("{answer}"));
        items.iter().map(|item| item[member].as_str().unwrap().to_owned()).collect()
    }

    /// Expects that something is refused as this action, by this rule.
    async fn expect_denied(&self, key: &str, method: &str, params: Value, by: (&str, &str)) {
        let answer = self.ask(key, method, params).await;
        let data = &answer["error"]["data"];
        let found = (data["action"].as_str(), data["rule"].as_str());
        assert_eq!(found, (Some(by.0), Some(by.1)), "{method}: {answer}");
        assert_eq!(data["reason"], "denied", "{answer}");
        assert_eq!(data["code"], "FLEET-DENIED", "{answer}");
    }

    async fn get(&self, key: &str, path: &str) -> Response {
        self.server.http.get(self.server.url(path)).bearer_auth(key).send().await.unwrap()
    }
}

#[tokio::test]
async fn lists_have_what_their_reader_may_use() {
    let fleet = Fleet::start().await;
    let tools = async |key: &str| fleet.list(key, "tools/list", "tools", "name").await;
    // A hosted server's hints don't count unless the policy trusts them.
    assert_eq!(tools(&fleet.agent).await, ["server_list", "server_status", "a__query"]);
    let all = tools(&fleet.root).await;
    for tool in ["server_initialize", "server_remove", "a__drop", "b__query", "b__drop"] {
        assert!(all.iter().any(|name| name == tool), "{tool} is not in {all:?}");
    }

    for (method, list, member, of_agent, of_root) in [
        ("prompts/list", "prompts", "name", vec!["a__greet"], vec!["a__greet", "b__greet"]),
        ("resources/list", "resources", "uri", vec!["x://a"], vec!["x://a", "x://b"]),
        (
            "resources/templates/list",
            "resourceTemplates",
            "uriTemplate",
            vec!["y://a/{x}"],
            vec!["y://a/{x}", "y://b/{x}"],
        ),
    ] {
        assert_eq!(fleet.list(&fleet.agent, method, list, member).await, of_agent);
        assert_eq!(fleet.list(&fleet.root, method, list, member).await, of_root);
    }

    let servers = fleet.call(&fleet.agent, "server_list", json!({})).await;
    let servers = servers["result"]["structuredContent"]["servers"].as_array().unwrap();
    assert_eq!(servers.len(), 1, "{servers:?}");
    let status = fleet.call(&fleet.agent, "server_status", json!({"name": "b"})).await;
    assert_eq!(status["result"]["isError"], true, "{status}");
    let of = async |key: &str| {
        let status = fleet.call(key, "server_status", json!({"name": "a"})).await;
        status["result"]["structuredContent"]["servers"][0].clone()
    };
    let (status, whole) = (of(&fleet.agent).await, of(&fleet.root).await);
    assert_eq!((&status["toolCount"], &whole["toolCount"]), (&json!(1), &json!(2)), "{status}");
    assert!(status["pid"].is_null() && whole["pid"].is_u64(), "{status}, {whole}");
}

#[tokio::test]
async fn what_no_rule_allows_is_denied_and_a_changed_file_counts_at_once() {
    let fleet = Fleet::start().await;
    let call = |tool: &str, arguments: Value| json!({"name": tool, "arguments": arguments});
    let done = fleet.call(&fleet.agent, "a__query", json!({"table": "t"})).await;
    assert_eq!(done["result"]["content"][0]["text"], "done", "{done}");

    let no_rule = ("tools.call", "default:no-rule");
    for tool in ["a__drop", "b__query"] {
        let call = call(tool, json!({}));
        fleet.expect_denied(&fleet.agent, "tools/call", call, no_rule).await;
    }
    // Whoever may use nothing of a server learns nothing of it.
    for (key, tool) in
        [(&fleet.agent, "b__unknown"), (&fleet.mute, "a__unknown"), (&fleet.mute, "c__unknown")]
    {
        let unknown = fleet.call(key, tool, json!({})).await;
        let message = unknown["error"]["message"].as_str().unwrap();
        assert_eq!(message, format!("unknown tool `{tool}`"), "{unknown}");
    }
    let stream = fleet.get(&fleet.mute, "/sse").await;
    assert_eq!(stream.status(), StatusCode::FORBIDDEN);

    // Conditions see the arguments as the tool gets them, and one that can't be evaluated allows
    // nothing.
    let offered = json!({"table": "ui://mcp-fleet/a/ui://secrets"});
    for arguments in [json!({"table": "ui://secrets"}), offered, json!({})] {
        let call = call("a__query", arguments);
        fleet.expect_denied(&fleet.agent, "tools/call", call, no_rule).await;
    }
    let administer = ("servers.administer", "default:no-rule");
    for tool in ["server_initialize", "server_remove"] {
        let call = call(tool, json!({"name": "a", "config": {"command": "x"}}));
        fleet.expect_denied(&fleet.agent, "tools/call", call, administer).await;
    }
    // The error for an unknown tool names only tools that the caller may use.
    let hint = async |key: &str| {
        fleet.call(key, "drop", json!({})).await["error"]["message"].as_str().unwrap().to_owned()
    };
    assert!(hint(&fleet.root).await.contains("`a__drop`, `b__drop`"));
    assert!(!hint(&fleet.agent).await.contains("__drop"));

    // A rule that names one of our own tools counts, whatever else its right depends on.
    let more = "[[rule]]\nname='no removal'\neffect='deny'\nprincipals=['anyone']\n\
                actions=['tools.call']\ntools=['server_remove']\n";
    fleet.keys.set_policy(&[RULES, more].concat());
    eventually("the rule about our own tool", async || {
        let answer = fleet.call(&fleet.root, "server_remove", json!({"name": "none"})).await;
        (answer["error"]["data"]["rule"] == "no removal").then_some(())
    })
    .await;

    let more = "[[rule]]\nname='drop'\neffect='allow'\nprincipals=['key:agent']\n\
                actions=['tools.call']\ntools=['drop']\n";
    fleet.keys.set_policy(&[RULES, more].concat());
    eventually("the new rule", async || {
        let answer = fleet.call(&fleet.agent, "b__drop", json!({})).await;
        answer["result"].is_object().then_some(())
    })
    .await;

    // A file that can't be used keeps the rules before.
    fleet.keys.set_policy("[[rule]]\nname = 'x'");
    let reloads = "mcp_server_access_reloads_total{outcome=\"invalid\"} 1";
    eventually("the bad file to be read", async || {
        fleet
            .get(&fleet.root, "/metrics")
            .await
            .text()
            .await
            .unwrap()
            .contains(reloads)
            .then_some(())
    })
    .await;
    let answer = fleet.call(&fleet.agent, "b__drop", json!({})).await;
    assert!(answer["result"].is_object(), "{answer}");
}

#[tokio::test]
async fn a_broken_server_is_neither_started_nor_explained_for_those_who_may_not_use_it() {
    let fleet = Fleet::start().await;
    let status = fleet.call(&fleet.root, "server_status", json!({"name": "a"})).await;
    let pid = status["result"]["structuredContent"]["servers"][0]["pid"].as_u64().unwrap();
    let starts = fleet.dir.path().join("starts");
    let broken = format!("#!/bin/sh\necho x >> {}\necho hush >&2\nexit 3\n", starts.display());
    std::fs::write(fleet.dir.path().join("a"), broken).unwrap();
    signal(pid.try_into().unwrap(), nix::sys::signal::Signal::SIGKILL);

    for (key, tool) in [(&fleet.mute, "a__new"), (&fleet.mute, "a___new"), (&fleet.agent, "a__new")]
    {
        let answer = fleet.call(key, tool, json!({})).await;
        assert_eq!(answer["error"]["message"], format!("unknown tool `{tool}`"), "{answer}");
    }
    // This name may stand for the tool that the agent may call.
    eventually("the server to be found broken", async || {
        let answer = fleet.call(&fleet.agent, "a___new", json!({})).await;
        assert!(!answer.to_string().contains("hush"), "{answer}");
        (answer["error"]["data"]["retryAfterMs"].is_u64() && starts.exists()).then_some(())
    })
    .await;
    let answer = fleet.call(&fleet.root, "a__new", json!({})).await;
    assert!(answer.to_string().contains("hush"), "{answer}");
}

/// The methods that a hosted server or the service of jobs has to be there for.
const ELSEWHERE: [&str; 6] = [
    "skills/list",
    "skills/get",
    "resources/directory/read",
    "tasks/get",
    "tasks/update",
    "tasks/cancel",
];

#[tokio::test]
async fn every_method_is_decided_on() {
    let fleet = Fleet::start().await;
    let client = json!({"name": "t", "version": "1"});
    let modern = json!({
        "io.modelcontextprotocol/protocolVersion": "2026-07-28",
        "io.modelcontextprotocol/clientInfo": client,
        "io.modelcontextprotocol/clientCapabilities": {},
    });
    let initialize =
        json!({"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": client});
    let argument = json!({"name": "x", "value": ""});
    let complete = json!({"ref": {"type": "ref/prompt", "name": "a__greet"}, "argument": argument});

    let methods = [
        ("initialize", initialize, "session.use"),
        ("ping", json!({}), "session.use"),
        ("server/discover", json!({"_meta": modern}), "session.use"),
        ("logging/setLevel", json!({"level": "info"}), "session.use"),
        ("tools/list", json!({}), "tools.list"),
        ("tools/call", json!({"name": "a__query"}), "tools.call"),
        ("prompts/list", json!({}), "prompts.list"),
        ("prompts/get", json!({"name": "a__greet"}), "prompts.get"),
        ("resources/list", json!({}), "resources.list"),
        ("resources/templates/list", json!({}), "resources.list"),
        ("resources/read", json!({"uri": "x://a"}), "resources.read"),
        ("resources/subscribe", json!({"uri": "x://a"}), "resources.subscribe"),
        ("resources/unsubscribe", json!({"uri": "x://a"}), "session.use"),
        ("completion/complete", complete, "completions"),
        (
            "subscriptions/listen",
            json!({"notifications": {"toolsListChanged": true}, "_meta": modern}),
            "session.use",
        ),
    ];
    for (method, params, action) in &methods {
        let by = (*action, "mute");
        fleet.expect_denied(&fleet.mute, method, params.clone(), by).await;
    }

    // An extension's method is asked of its server.
    let extension = ("extensions.call", "mute");
    fleet.expect_denied(&fleet.mute, "com.example/a/do", json!({}), extension).await;

    // The methods that the gateway knows are all here.
    let source = include_str!("../../src/gateway/extensions.rs");
    let tables = source.split("_METHODS: [&str;").skip(1);
    let known: BTreeSet<&str> = tables
        .filter_map(|table| table.split_once("];"))
        .flat_map(|(names, _)| names.split('"').skip(1).step_by(2))
        .collect();
    assert!(known.len() > 15, "{known:?}");
    let here = methods.iter().map(|(method, ..)| *method).chain(ELSEWHERE).collect();
    assert_eq!(known, here);
}

/// What REST shows of tools and servers is what the protocol shows.
#[tokio::test]
async fn tools_and_servers_by_rest_are_those_that_the_caller_may_use() {
    let fleet = Fleet::start().await;
    let get =
        async |key: &str, path: &str| -> Value { fleet.get(key, path).await.json().await.unwrap() };
    for key in [&fleet.root, &fleet.agent] {
        let tools = get(key, "/tools").await;
        let tools = tools["tools"].as_array().unwrap().iter();
        let names: Vec<_> = tools.map(|tool| tool["name"].as_str().unwrap().to_owned()).collect();
        assert_eq!(names, fleet.list(key, "tools/list", "tools", "name").await);
    }

    let (all, few) = (get(&fleet.root, "/servers/a").await, get(&fleet.agent, "/servers/a").await);
    assert!(all["pid"].is_u64() && few.get("pid").is_none(), "{all} {few}");
    assert!(few["toolCount"].as_u64() < all["toolCount"].as_u64(), "{all} {few}");

    let hidden = fleet.get(&fleet.agent, "/tools/a__drop").await;
    let unknown = fleet.get(&fleet.agent, "/tools/a__nothing").await;
    assert_eq!((hidden.status(), unknown.status()), (StatusCode::NOT_FOUND, StatusCode::NOT_FOUND));
    for (method, path) in [
        (Method::DELETE, "/servers/a"),
        (Method::POST, "/servers/a/restarts"),
        (Method::POST, "/servers"),
        (Method::POST, "/server-checks"),
    ] {
        let request = fleet.server.http.request(method.clone(), fleet.server.url(path));
        let refused = request.bearer_auth(&fleet.agent).send().await.unwrap();
        assert_eq!(refused.status(), StatusCode::FORBIDDEN, "{method} {path}");
    }
}

#[tokio::test]
async fn every_route_is_decided_on() {
    let fleet = Fleet::start().await;
    let document: Value = fleet.get(&fleet.root, "/openapi.json").await.json().await.unwrap();
    let paths = document["paths"].as_object().unwrap();
    assert!(paths.len() >= 4, "{paths:?}");

    let mut routes = vec![(Method::GET, "/metrics".to_owned())];
    for (path, operations) in paths {
        for method in operations.as_object().unwrap().keys() {
            let Ok(method) = method.to_uppercase().parse() else { continue };
            if [Method::GET, Method::POST, Method::DELETE].contains(&method) {
                routes.push((method, path.replace("{id}", "x")));
            }
        }
    }
    assert!(routes.len() >= 9, "{routes:?}");

    for (method, path) in routes {
        let request = fleet.server.http.request(method.clone(), fleet.server.url(&path));
        let response = request.bearer_auth(&fleet.mute).send().await.unwrap();
        assert_eq!(response.status(), StatusCode::FORBIDDEN, "{method} {path}");
        let text = response.text().await.unwrap();
        assert!(text.contains("FLEET-DENIED") && text.contains("mute"), "{method} {path}: {text}");
    }
}

#[tokio::test]
async fn a_limit_says_when_to_come_back_and_counts_for_its_principal_alone() {
    let fleet = Fleet::start().await;
    let limit = "[[limit]]\nname = 'few'\nper = 'principal'\nrate = '2/h'\nservers = ['a']\n";
    fleet.keys.set_policy(&[limit, RULES].concat());
    let call = |key: String| {
        let params = json!({"name": "a__query", "arguments": {"table": "t"}});
        let fleet = &fleet;
        async move { fleet.send(&key, "tools/call", params).await }
    };

    let refused = eventually("the limit", async || {
        let (status, answer) = call(fleet.agent.clone()).await;
        (status == StatusCode::TOO_MANY_REQUESTS).then_some(answer)
    })
    .await;
    let data = &refused["error"]["data"];
    assert_eq!(data["reason"], "rate-limited", "{refused}");
    assert_eq!(data["code"], "FLEET-RATE-LIMITED", "{refused}");
    assert_eq!((&data["limit"], &data["server"]), (&json!("few"), &json!("a")), "{refused}");
    let wait = data["retryAfterMs"].as_u64().unwrap();
    assert!((1..=3_600_000).contains(&wait), "{refused}");

    let request = fleet.server.http.post(fleet.server.url("/message")).bearer_auth(&fleet.agent);
    let body = json!({"jsonrpc": "2.0", "id": 1, "method": "tools/call",
        "params": {"name": "a__query", "arguments": {"table": "t"}}});
    let response = request.json(&body).send().await.unwrap();
    let seconds: u64 = response.headers()["retry-after"].to_str().unwrap().parse().unwrap();
    assert!((1..=3600).contains(&seconds), "{seconds}");

    assert_eq!(call(fleet.root.clone()).await.0, StatusCode::OK);

    let limit =
        "[[limit]]\nname='reads'\nper='principal'\nactions=['resources.read']\nrate='1/h'\n";
    fleet.keys.set_policy(&[limit, RULES].concat());
    eventually("the limit on reading", async || {
        let (status, _) = fleet.send(&fleet.agent, "resources/read", json!({"uri": "x://a"})).await;
        (status == StatusCode::TOO_MANY_REQUESTS).then_some(())
    })
    .await;
    let (status, other) = fleet.send(&fleet.agent, "tools/list", json!({})).await;
    assert_eq!(status, StatusCode::OK, "{other}");
}

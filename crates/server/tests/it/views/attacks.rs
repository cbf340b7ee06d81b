//! Ways around views that somebody has tried.

use std::path::Path;

use fleet_job::tool_name;
use reqwest::{Method, Response};
use serde_json::{Value, json};

use super::{Fleet, names, policy, read_until};
use crate::{
    apps::scripted,
    common::{PATIENCE, eventually},
};

/// A server that shares names and URIs with others, lists a tool twice, and sends notifications
/// during each call.
fn rival(dir: &Path, name: &str) -> String {
    let capabilities = json!({
        "tools": {}, "prompts": {}, "resources": {"subscribe": true}, "completions": {},
        "extensions": {format!("com.example/{name}"): {}},
        "experimental": {format!("clock-{name}"): {}},
    });
    let tool = |name: &str| json!({"name": name, "inputSchema": {"type": "object"}});
    let tools = ["query", "drop", "ns/drop", "drop", "query"].map(tool);
    let resource = |uri: &str| json!({"uri": uri, "name": "r"});
    let resources = [resource("same://x"), resource(&format!("x://{name}"))];
    let program = scripted(
        dir,
        name,
        &capabilities,
        &[
            ("tools/list", json!({ "tools": tools })),
            ("tools/call", json!({"content": [{"type": "text", "text": "done"}]})),
            ("prompts/list", json!({"prompts": [{"name": "greet"}, {"name": "other"}]})),
            ("resources/list", json!({ "resources": resources })),
            (
                "resources/templates/list",
                json!({"resourceTemplates": [{"uriTemplate": "all://{x}", "name": "t"}]}),
            ),
            ("resources/read", json!({"contents": [{"uri": "x://", "text": name}]})),
        ],
    );

    let notify = |method: String| {
        let notification = json!({"jsonrpc": "2.0", "method": method, "params": {}});
        format!("printf '%s\\n' '{notification}'\n")
    };
    let sent = [format!("notifications/{name}/changed"), format!("notifications/clock-{name}")];
    let call = "*'\"tools/call\"'*) ";
    let body = std::fs::read_to_string(&program).unwrap();
    let body = body.replace(call, &format!("{call}{}", sent.map(notify).concat()));
    std::fs::write(&program, body).unwrap();
    program
}

impl Fleet {
    /// Opens a stream of changes for a client that knows all extensions of the servers.
    async fn listen(&self, path: &str) -> Response {
        let meta = json!({
            "io.modelcontextprotocol/protocolVersion": "2026-07-28",
            "io.modelcontextprotocol/clientInfo": {"name": "t", "version": "1"},
            "io.modelcontextprotocol/clientCapabilities": {
                "extensions": {"com.example/a": {}, "com.example/b": {}},
                "experimental": {"clock-a": {}, "clock-b": {}},
            },
        });
        let params = json!({"notifications": {"toolsListChanged": true}, "_meta": meta});
        let listen =
            json!({"jsonrpc": "2.0", "id": 1, "method": "subscriptions/listen", "params": params});
        let request = self.request(&self.agent, Method::POST, path).json(&listen);
        let request = request.header("mcp-protocol-version", "2026-07-28");
        let request = request.header("mcp-method", "subscriptions/listen");
        let mut stream = request.send().await.unwrap();
        read_until(&mut stream, "acknowledged").await;
        stream
    }

    /// The refusal of a call in the view.
    async fn refusal(&self, tool: &str) -> Value {
        self.call("/mcp/desk", tool).await["error"].clone()
    }
}

/// The rights of an agent that may host servers, but call no tool.
const HOST: &str = "
    [[rule]]
    name = 'root'
    effect = 'allow'
    principals = ['key:root']
    actions = ['*']

    [[rule]]
    name = 'host'
    effect = 'allow'
    principals = ['key:agent']
    actions = ['servers.administer']

    [[view.desk.select]]
    servers = ['a']

    [[view.desk.select]]
    servers = ['']

    [[view.desk.rule]]
    name = 'no hosts'
    effect = 'deny'
    principals = ['anyone']
    actions = ['tools.call']
    tools = ['server_initialize', 'query']
";

#[tokio::test]
async fn a_rule_of_a_view_holds_for_own_tools_and_for_workers() {
    let fleet = Fleet::start(HOST).await;
    assert!(fleet.tool_names("/mcp").await.contains(&"server_initialize".to_owned()));
    assert!(!fleet.tool_names("/mcp/desk").await.contains(&"server_initialize".to_owned()));

    let config = json!({"name": "a", "config": {"command": "x"}});
    let params = json!({"name": "server_initialize", "arguments": config});
    let refused = fleet.ask(&fleet.agent, "/mcp/desk", "tools/call", params.clone()).await;
    assert_eq!(refused["error"]["data"]["rule"], "view:desk/no hosts", "{refused}");
    let elsewhere = fleet.ask(&fleet.agent, "/mcp", "tools/call", params).await;
    assert_eq!(elsewhere["error"], Value::Null, "{elsewhere}");

    // A worker has to know the tools of others' jobs, which are called in no view.
    let worker = HOST.replace("'servers.administer'", "'act-as'");
    fleet.keys.set_policy(&worker);
    let listed = eventually("the rights of a worker", async || {
        let names = fleet.tool_names("/mcp").await;
        names.contains(&"a__drop".to_owned()).then_some(names)
    });
    assert!(listed.await.contains(&"a__query".to_owned()));
    let in_view = fleet.tool_names("/mcp/desk").await;
    assert!(!in_view.iter().any(|name| name.starts_with("a__")), "{in_view:?}");
}

#[tokio::test]
async fn notifications_of_extensions_are_those_of_the_views_servers() {
    let plain = "[[view.plain.select]]\nservers = ['a']\n";
    let fleet = Fleet::start_with(&format!("{}{plain}", policy()), rival).await;
    let mut whole = fleet.listen("/mcp").await;
    let mut desk = fleet.listen("/mcp/desk").await;
    let mut plain = fleet.listen("/mcp/plain").await;

    fleet.call("/mcp", "b__query").await;
    read_until(&mut whole, "notifications/clock-b").await;
    fleet.call("/mcp", "a__query").await;
    for stream in [&mut desk, &mut plain] {
        let heard = read_until(stream, "notifications/clock-a").await;
        assert!(heard.contains("notifications/a/changed"), "{heard}");
        assert!(!heard.contains("notifications/b/") && !heard.contains("clock-b"), "{heard}");
    }
}

#[tokio::test]
async fn what_is_not_certainly_in_a_view_is_unknown() {
    let more = "
        [[view.desk.select]]
        servers = ['c']
        [[view.desk.tool]]
        server = 'c'
        tool = 'get'
        as = 'fetch'
    ";
    let hiding = policy().replace("['drop']", "['drop', 'ns/*']");
    let fleet = Fleet::start_with(&format!("{hiding}{more}"), rival).await;

    let unknown = fleet.refusal("no_such_tool").await;
    let changed = ["ns/drop", "ns/none"].map(|tool| tool_name::exposed("a", tool));
    let ambiguous = ["a__ns/drop", "a__ns/none", "a___drop", "a___x", "b___x", "c___x"];
    for tool in changed.iter().map(String::as_str).chain(ambiguous) {
        let mut expected = unknown.clone();
        expected["message"] = json!(format!("unknown tool `{tool}`"));
        assert_eq!(fleet.refusal(tool).await, expected, "{tool}");
    }

    // An error does not tell how a tool is called elsewhere.
    let away = fleet.refusal("fetch").await.to_string();
    assert!(away.contains("`fetch`") && !away.contains("c__get"), "{away}");

    for (hidden, nothing) in [("com.example/b/do", "com.example/c/do"), ("clock-b/x", "clock-c/x")]
    {
        let ask = async |method: &str| {
            let answer = fleet.ask(&fleet.agent, "/mcp/desk", method, json!({})).await;
            answer.to_string().replace(method, "METHOD")
        };
        assert_eq!(ask(hidden).await, ask(nothing).await);
    }
}

#[tokio::test]
async fn what_a_view_hides_is_recorded_when_it_is_asked_for() {
    let fleet = Fleet::start(&policy()).await;
    let reference = json!({"type": "ref/prompt", "name": "b__greet"});
    let completion = json!({"ref": reference, "argument": {"name": "x", "value": ""}});
    let call = |tool: &str| ("tools/call", json!({"name": tool, "arguments": {}}));
    for (method, params) in [
        call("server_remove"),
        call("a__query"),
        call("a__drop"),
        call("b__query"),
        ("prompts/get", json!({"name": "b__greet"})),
        ("resources/read", json!({"uri": "x://b"})),
        ("resources/subscribe", json!({"uri": "x://b"})),
        ("completion/complete", completion),
    ] {
        let answer = fleet.ask(&fleet.agent, "/mcp/desk", method, params).await;
        assert_ne!(answer["error"], Value::Null, "{method}: {answer}");
    }

    for (action, resource) in [
        ("tools.call", json!({"tool": "server_remove"})),
        ("tools.call", json!({"server": "a", "tool": "query"})),
        ("tools.call", json!({"server": "a", "tool": "drop"})),
        ("tools.call", json!({"server": "b", "tool": "query"})),
        ("prompts.get", json!({"server": "b", "prompt": "greet"})),
        ("resources.read", json!({"server": "b", "uri": "x://b"})),
        ("resources.subscribe", json!({"server": "b", "uri": "x://b"})),
        ("completions", json!({"server": "b", "prompt": "greet"})),
    ] {
        let recorded = eventually("the record of a refusal", async || {
            let found = fleet.audit().into_iter().find(|record| {
                record["action"] == action
                    && record["resource"] == resource
                    && record["view"] == "desk"
            });
            found.ok_or(()).inspect_err(|()| eprintln!("no record of {action} {resource}")).ok()
        });
        let recorded = recorded.await;
        let told = (&recorded["rule"], &recorded["outcome"]);
        assert_eq!(told, (&json!("view:desk"), &json!("refused")), "{recorded}");
    }
}

#[tokio::test]
async fn warnings_and_counts_tell_of_the_view_alone() {
    let hosts = policy().replace("'server_list',", "'server_list', 'server_initialize',");
    let narrow = "hide = ['drop', 'ns/*']\nprompts = ['greet']\nresources = ['x://*']\n";
    let fleet = Fleet::start_with(&hosts.replace("hide = ['drop']", narrow), rival).await;

    let all = fleet.ask(&fleet.agent, "/mcp", "tools/list", json!({})).await;
    assert!(all["result"]["_meta"].to_string().contains("taken by `drop`"), "{all}");
    let listed = fleet.ask(&fleet.agent, "/mcp/desk", "tools/list", json!({})).await;
    let meta = listed["result"]["_meta"].to_string();
    assert!(meta.contains("query"), "{meta}");
    for hidden in ["drop", "taken by", "\"b\"", "a__"] {
        assert!(!meta.contains(hidden), "{hidden}: {meta}");
    }

    let params = json!({"name": "server_status", "arguments": {}});
    let status = fleet.ask(&fleet.agent, "/mcp/desk", "tools/call", params).await;
    let server = &status["result"]["structuredContent"]["servers"][0];
    let counts = ["toolCount", "promptCount", "resourceCount"].map(|count| &server[count]);
    assert_eq!(counts, [&json!(1), &json!(1), &json!(1)], "{server}");

    let program = fleet.dir.path().join("a");
    let arguments = json!({"name": "a", "config": {"command": program}});
    let params = json!({"name": "server_initialize", "arguments": arguments});
    let hosted = fleet.ask(&fleet.agent, "/mcp/desk", "tools/call", params).await;
    let told = &hosted["result"]["structuredContent"];
    assert_eq!(names(&json!({"result": told}), "tools", "exposedAs"), ["find"], "{hosted}");
    assert_eq!(told["pid"], Value::Null, "{hosted}");
}

#[tokio::test]
async fn hidden_servers_do_not_shadow_what_a_view_has() {
    let shop = "[[view.shop.select]]\nservers = ['b']\n";
    let fleet = Fleet::start_with(&format!("{}{shop}", policy()), rival).await;
    for (path, expected) in [("/mcp", "a"), ("/mcp/desk", "a"), ("/mcp/shop", "b")] {
        for uri in ["same://x", "all://things"] {
            let read = fleet.ask(&fleet.agent, path, "resources/read", json!({"uri": uri})).await;
            assert_eq!(read["result"]["contents"][0]["text"], expected, "{path} {uri}: {read}");
        }
    }
}

#[tokio::test]
async fn streams_end_with_their_view() {
    let fleet = Fleet::start(&policy()).await;
    let (mut desk, mut whole) = (fleet.listen("/mcp/desk").await, fleet.listen("/mcp").await);

    fleet.keys.set_policy(super::ALLOW_ALL);
    let ended = async { while desk.chunk().await.unwrap().is_some() {} };
    tokio::time::timeout(PATIENCE, ended).await.expect("the end of the stream");
    read_until(&mut whole, "tools/list_changed").await;
}

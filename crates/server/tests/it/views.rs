//! Views: what their clients see, and that nothing reaches what a view does not have.

mod attacks;

use std::path::Path;

use reqwest::{Method, Response, StatusCode};
use serde_json::{Value, json};

use crate::{
    access::{Keys, refused_start},
    access_rules::program,
    common::{PATIENCE, Server, command, eventually},
    issuer::Issuer,
};

const ALLOW_ALL: &str = "
    [[rule]]
    name = 'all'
    effect = 'allow'
    principals = ['anyone']
    actions = ['*']

    [[rule]]
    name = 'no worker'
    effect = 'deny'
    principals = ['key:agent']
    actions = ['act-as']
";

/// A view of server `a` without `drop`, where `query` is called `find`, and of `server_status`.
const VIEW: &str = "
    [view.desk]
    title = 'Help desk'
    instructions = 'Help people.'
    principals = ['key:agent', 'key:root']

    [[view.desk.select]]
    servers = ['a']
    hide = ['drop']

    [[view.desk.select]]
    servers = ['']
    tools = ['server_status', 'server_list', 'file_*']

    [[view.desk.tool]]
    server = 'a'
    tool = 'query'
    as = 'find'
    title = 'Find'
    description = 'Finds things.'
";

/// A server that hosts `a` and `b`, and callers with keys.
struct Fleet {
    server: Server,
    keys: Keys,
    root: String,
    agent: String,
    other: String,
    dir: tempfile::TempDir,
}

impl Fleet {
    async fn start(policy: &str) -> Self {
        Self::start_with(policy, program).await
    }

    /// Starts with programs of another kind.
    async fn start_with(policy: &str, program: impl Fn(&Path, &str) -> String) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let programs = ["a", "b"].map(|name| program(dir.path(), name));
        let mut keys = Keys::new();
        let [root, agent, other] = ["root", "agent", "other"].map(|id| keys.add(id, id));
        keys.set_policy(policy);

        let mut args: Vec<_> =
            programs.iter().flat_map(|program| ["--allow-command", program]).collect();
        let audit = dir.path().join("audit.jsonl");
        args.extend(["--audit-file", audit.to_str().unwrap()]);
        let server = keys.start_server_with(&args).await;
        let fleet = Self { server, keys, root, agent, other, dir };
        for (name, program) in ["a", "b"].iter().zip(&programs) {
            let arguments = json!({"name": name, "config": {"command": program}});
            let params = json!({"name": "server_initialize", "arguments": arguments});
            let hosted = fleet.ask(&fleet.root, "/mcp", "tools/call", params).await;
            assert_eq!(hosted["result"]["isError"], false, "{hosted}");
        }
        fleet
    }

    fn request(&self, key: &str, method: Method, path: &str) -> reqwest::RequestBuilder {
        let request = self.server.http.request(method, self.server.url(path)).bearer_auth(key);
        request.header("accept", "application/json, text/event-stream")
    }

    async fn post(&self, key: &str, path: &str, method: &str, params: Value) -> Response {
        let body = json!({"jsonrpc": "2.0", "id": 1, "method": method, "params": params});
        self.request(key, Method::POST, path).json(&body).send().await.unwrap()
    }

    /// Sends a request of an older revision without a session.
    async fn ask(&self, key: &str, path: &str, method: &str, params: Value) -> Value {
        let response = self.post(key, path, method, params).await;
        assert_eq!(response.status(), StatusCode::OK, "{path} {method}");
        response.json().await.unwrap()
    }

    /// Sends a request of the newest revision, with the headers that it wants.
    async fn ask_modern(&self, path: &str, method: &str, mut params: Value) -> Value {
        params["_meta"] = json!({
            "io.modelcontextprotocol/protocolVersion": "2026-07-28",
            "io.modelcontextprotocol/clientInfo": {"name": "t", "version": "1"},
            "io.modelcontextprotocol/clientCapabilities": {},
        });
        let body = json!({"jsonrpc": "2.0", "id": 1, "method": method, "params": params});
        let mut request = self.request(&self.agent, Method::POST, path).json(&body);
        request = request.header("mcp-protocol-version", "2026-07-28").header("mcp-method", method);
        let name = params["name"].as_str().or(params["uri"].as_str());
        if let Some(name) = name {
            request = request.header("mcp-name", name);
        }
        request.send().await.unwrap().json().await.unwrap()
    }

    async fn call(&self, path: &str, tool: &str) -> Value {
        self.ask(&self.agent, path, "tools/call", json!({"name": tool, "arguments": {}})).await
    }

    async fn tool_names(&self, path: &str) -> Vec<String> {
        let answer = self.ask(&self.agent, path, "tools/list", json!({})).await;
        names(&answer, "tools", "name")
    }

    fn audit(&self) -> Vec<Value> {
        let text = std::fs::read_to_string(self.dir.path().join("audit.jsonl")).unwrap();
        text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
    }
}

/// The values of a member of everything in a list.
fn names(answer: &Value, list: &str, member: &str) -> Vec<String> {
    let items = answer["result"][list].as_array().unwrap_or_else(|| panic!("{answer}"));
    items.iter().map(|item| item[member].as_str().unwrap().to_owned()).collect()
}

fn policy() -> String {
    [ALLOW_ALL, VIEW].concat()
}

const IN_VIEW: [&str; 3] = ["server_list", "server_status", "find"];

#[tokio::test]
async fn a_view_has_a_list_of_its_own_for_clients_of_both_eras() {
    let fleet = Fleet::start(&policy()).await;
    assert_eq!(fleet.tool_names("/mcp/desk").await, IN_VIEW);
    let all = fleet.tool_names("/mcp").await;
    assert!(["a__drop", "a__query", "b__query"].iter().all(|name| all.contains(&(*name).into())));

    let modern = fleet.ask_modern("/mcp/desk", "tools/list", json!({})).await;
    assert_eq!(names(&modern, "tools", "name"), IN_VIEW);
    let find = &modern["result"]["tools"][2];
    assert_eq!((&find["title"], &find["description"]), (&json!("Find"), &json!("Finds things.")));
    let called = fleet.ask_modern("/mcp/desk", "tools/call", json!({"name": "find"})).await;
    assert_eq!(called["result"]["content"][0]["text"], "done", "{called}");
    let called = fleet.call("/mcp/desk", "find").await;
    assert_eq!(called["result"]["content"][0]["text"], "done", "{called}");

    let discovered = fleet.ask_modern("/mcp/desk", "server/discover", json!({})).await;
    let told = &discovered["result"];
    assert_eq!(told["instructions"], "Help people.");
    let extensions = told["capabilities"]["extensions"].to_string();
    assert!(extensions.contains("com.example/a") && !extensions.contains("com.example/b"));

    for (method, list, member, expected) in [
        ("prompts/list", "prompts", "name", "a__greet"),
        ("resources/list", "resources", "uri", "x://a"),
        ("resources/templates/list", "resourceTemplates", "uriTemplate", "y://a/{x}"),
    ] {
        let answer = fleet.ask(&fleet.agent, "/mcp/desk", method, json!({})).await;
        assert_eq!(names(&answer, list, member), [expected]);
    }

    // What is recorded says where it was asked, and about which tool.
    let found = eventually("the record of a call in the view", async || {
        let of_view = |record: &Value| record["view"] == "desk" && record["action"] == "tools.call";
        fleet.audit().into_iter().find(of_view)
    });
    let found = found.await;
    assert_eq!(found["resource"], json!({"server": "a", "tool": "query"}), "{found}");
    assert_eq!(found["rule"], "all");
}

#[tokio::test]
async fn what_a_view_does_not_have_is_unknown_in_every_way() {
    let fleet = Fleet::start(&policy()).await;

    let unknown = fleet.call("/mcp/desk", "no_such_tool").await["error"].clone();
    assert_eq!(unknown["code"], -32602);
    for tool in ["b__query", "b__drop", "a__drop", "a__query", "server_initialize", "c__nothing"] {
        let mut expected = unknown.clone();
        expected["message"] = json!(format!("unknown tool `{tool}`"));
        assert_eq!(fleet.call("/mcp/desk", tool).await["error"], expected, "{tool}");
        let modern = fleet.ask_modern("/mcp/desk", "tools/call", json!({"name": tool})).await;
        assert_eq!(modern["error"], expected, "{tool}");
    }

    let argument = json!({"name": "x", "value": ""});
    let complete = |kind: &str, member: &str, of: &str| json!({"ref": {"type": format!("ref/{kind}"), member: of}, "argument": argument});
    for (method, hidden, nothing) in [
        ("prompts/get", json!({"name": "b__greet"}), json!({"name": "c__greet"})),
        ("resources/read", json!({"uri": "x://b"}), json!({"uri": "x://c"})),
        ("resources/read", json!({"uri": "mcp-fleet://b/x://b"}), json!({"uri": "x://c"})),
        ("resources/read", json!({"uri": "y://b/1"}), json!({"uri": "y://c/1"})),
        ("resources/subscribe", json!({"uri": "x://b"}), json!({"uri": "x://c"})),
        (
            "completion/complete",
            complete("prompt", "name", "b__greet"),
            complete("prompt", "name", "c__greet"),
        ),
        (
            "completion/complete",
            complete("resource", "uri", "y://b/{x}"),
            complete("resource", "uri", "y://c/{x}"),
        ),
    ] {
        let ask = async |params: &Value| {
            fleet.ask(&fleet.agent, "/mcp/desk", method, params.clone()).await["error"].to_string()
        };
        let (hidden, nothing) = (ask(&hidden).await, ask(&nothing).await);
        assert!(hidden.contains("-32"), "{method}: {hidden}");
        let alike = nothing.replace("c__", "b__").replace("//c", "//b");
        let shown = hidden.replace("mcp-fleet://b/", "");
        assert_eq!(shown, alike, "{method}");
    }
    let extension = |name: &str| format!("com.example/{name}/do");
    let of_b = fleet.ask(&fleet.agent, "/mcp/desk", &extension("b"), json!({})).await;
    let of_nobody = fleet.ask(&fleet.agent, "/mcp/desk", &extension("c"), json!({})).await;
    assert_eq!(of_b["error"]["code"], of_nobody["error"]["code"], "{of_b}");
    assert!(!of_b.to_string().contains("\"b\""), "{of_b}");

    // The same principal may do all of that elsewhere.
    let elsewhere = fleet.call("/mcp", "b__query").await;
    assert_eq!(elsewhere["result"]["content"][0]["text"], "done", "{elsewhere}");
}

#[tokio::test]
async fn the_status_of_servers_tells_nothing_about_others() {
    let fleet = Fleet::start(&policy()).await;
    for key in [&fleet.agent, &fleet.root] {
        let params = json!({"name": "server_status", "arguments": {}});
        let status = fleet.ask(key, "/mcp/desk", "tools/call", params).await;
        let servers = &status["result"]["structuredContent"]["servers"];
        assert_eq!(servers.as_array().unwrap().len(), 1, "{servers}");
        let tools = &servers[0]["tools"];
        let expected =
            json!([{"name": "query", "exposedAs": "find", "description": "Finds things."}]);
        assert_eq!((&servers[0]["name"], tools), (&json!("a"), &expected));

        let params = json!({"name": "server_status", "arguments": {"name": "b"}});
        let hidden = fleet.ask(key, "/mcp/desk", "tools/call", params).await;
        assert_eq!(hidden["result"]["isError"], true, "{hidden}");
        let params = json!({"name": "server_list", "arguments": {}});
        let list = fleet.ask(key, "/mcp/desk", "tools/call", params).await.to_string();
        assert!(list.contains("\"a\"") && !list.contains("\"b\""), "{list}");
    }
}

#[tokio::test]
async fn a_view_is_not_there_for_others_and_neither_are_its_sessions() {
    let fleet = Fleet::start(&policy()).await;
    for (key, path, expected) in [
        (&fleet.agent, "/mcp/desk", StatusCode::OK),
        (&fleet.other, "/mcp/desk", StatusCode::NOT_FOUND),
        (&fleet.agent, "/mcp/sales", StatusCode::NOT_FOUND),
        (&fleet.agent, "/mcp/desk/", StatusCode::NOT_FOUND),
        (&fleet.agent, "/mcp/desk/x", StatusCode::NOT_FOUND),
        (&fleet.agent, "/mcp/%64esk", StatusCode::NOT_FOUND),
    ] {
        let response = fleet.post(key, path, "tools/list", json!({})).await;
        assert_eq!(response.status(), expected, "{path}");
        if expected == StatusCode::NOT_FOUND {
            assert!(response.text().await.unwrap().starts_with("there is no such view"));
        }
    }
    let nobody = fleet.server.http.post(fleet.server.url("/mcp/desk")).send().await.unwrap();
    assert_eq!(nobody.status(), StatusCode::UNAUTHORIZED);
    let foreign = fleet.request(&fleet.agent, Method::POST, "/mcp/desk");
    let foreign = foreign.header("origin", "https://evil.example").json(&json!({}));
    assert_eq!(foreign.send().await.unwrap().status(), StatusCode::FORBIDDEN);

    // A session exists in the view in which it was begun.
    let client = json!({"name": "t", "version": "1"});
    let initialize =
        json!({"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": client});
    let begin = async |path: &str| {
        let response = fleet.post(&fleet.agent, path, "initialize", initialize.clone()).await;
        let id = response.headers()["mcp-session-id"].to_str().unwrap().to_owned();
        (id, response.text().await.unwrap())
    };
    let list = async |path: &str, session: &str| {
        let body = json!({"jsonrpc": "2.0", "id": 2, "method": "tools/list"});
        let request = fleet.request(&fleet.agent, Method::POST, path).json(&body);
        let request = request.header("mcp-session-id", session);
        let response = request.header("mcp-protocol-version", "2025-06-18").send().await.unwrap();
        (response.status(), response.text().await.unwrap())
    };
    let (whole, told) = begin("/mcp").await;
    assert!(told.contains("server_initialize"), "{told}");
    let (in_view, told) = begin("/mcp/desk").await;
    assert!(told.contains("Help people.") && told.contains("Help desk"), "{told}");
    assert!(!told.contains("server_initialize") && !told.contains("com.example/b"), "{told}");

    let (status, tools) = list("/mcp/desk", &in_view).await;
    assert_eq!(status, StatusCode::OK);
    assert!(tools.contains("\"find\"") && !tools.contains("b__query"), "{tools}");
    assert_eq!(list("/mcp", &whole).await.0, StatusCode::OK);
    assert_eq!(list("/mcp", &in_view).await.0, StatusCode::NOT_FOUND);
    assert_eq!(list("/mcp/desk", &whole).await.0, StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn a_changed_file_changes_views_and_tells_their_clients() {
    let fleet = Fleet::start(&policy()).await;
    let listen = json!({
        "jsonrpc": "2.0", "id": 1, "method": "subscriptions/listen",
        "params": {"notifications": {"toolsListChanged": true}, "_meta": {
            "io.modelcontextprotocol/protocolVersion": "2026-07-28",
            "io.modelcontextprotocol/clientInfo": {"name": "t", "version": "1"},
            "io.modelcontextprotocol/clientCapabilities": {},
        }},
    });
    let request = fleet.request(&fleet.agent, Method::POST, "/mcp/desk").json(&listen);
    let request = request.header("mcp-protocol-version", "2026-07-28");
    let mut stream = request.header("mcp-method", "subscriptions/listen").send().await.unwrap();
    read_until(&mut stream, "acknowledged").await;

    let more = "[[view.desk.select]]\nservers = ['b']\ntools = ['drop']\n";
    fleet.keys.set_policy(&format!("{}{more}", policy()));
    read_until(&mut stream, "tools/list_changed").await;
    assert_eq!(fleet.tool_names("/mcp/desk").await, [&IN_VIEW[..], &["b__drop"]].concat());

    // A file that can't be used changes nothing.
    fleet.keys.set_policy(&policy().replace("'find'", "'job_find'"));
    eventually("the refusal of the file", async || {
        let invalid = "mcp_server_access_reloads_total{outcome=\"invalid\"}";
        let text = fleet.request(&fleet.root, Method::GET, "/metrics").send().await.unwrap();
        text.text().await.unwrap().contains(invalid).then_some(())
    })
    .await;
    assert_eq!(fleet.call("/mcp/desk", "find").await["result"]["isError"], Value::Null);

    fleet.keys.set_policy(ALLOW_ALL);
    eventually("the end of the view", async || {
        let response = fleet.post(&fleet.agent, "/mcp/desk", "tools/list", json!({})).await;
        (response.status() == StatusCode::NOT_FOUND).then_some(())
    })
    .await;
}

/// Reads a stream until it contains `text`. Returns what was read.
async fn read_until(response: &mut Response, text: &str) -> String {
    let mut found = String::new();
    while !found.contains(text) {
        let chunk = tokio::time::timeout(PATIENCE, response.chunk()).await.expect("an event");
        let chunk = chunk.unwrap().unwrap_or_else(|| panic!("the stream ended after {found}"));
        found += std::str::from_utf8(&chunk).unwrap();
    }
    found
}

#[tokio::test]
async fn rules_of_a_view_hold_in_it_and_can_not_allow_more() {
    let rule = "
        [[view.desk.rule]]
        name = 'never'
        effect = 'deny'
        principals = ['key:agent']
        actions = ['tools.call']
        tools = ['query']
    ";
    let fleet = Fleet::start(&format!("{}{rule}", policy())).await;
    assert_eq!(fleet.tool_names("/mcp/desk").await, IN_VIEW[..2]);
    let denied = fleet.call("/mcp/desk", "find").await;
    assert_eq!(denied["error"]["data"]["rule"], "view:desk/never", "{denied}");
    let params = json!({"name": "find", "arguments": {}});
    let allowed = fleet.ask(&fleet.root, "/mcp/desk", "tools/call", params).await;
    assert_eq!(allowed["result"]["content"][0]["text"], "done", "{allowed}");

    // Without a rule of the file, the view gives no right.
    fleet.keys.set_policy(VIEW);
    eventually("the new rules", async || {
        let answer = fleet.call("/mcp/desk", "find").await;
        (answer["error"]["data"]["rule"] == "default:no-rule").then_some(())
    })
    .await;
}

/// A client finds the issuers of tokens from the address of a view alone.
#[tokio::test]
async fn the_address_of_a_view_is_a_protected_resource() {
    let dir = tempfile::tempdir().unwrap();
    let issuer = Issuer::start(&[]).await;
    let policy = issuer.policy(&dir);
    let text = std::fs::read_to_string(&policy).unwrap();
    std::fs::write(&policy, format!("{text}{VIEW}")).unwrap();
    let server = Server::start(&["--policy", &policy]).await;

    let base = server.url("");
    for view in ["desk", "no-such-view"] {
        let refused = server.http.post(server.url(&format!("/mcp/{view}"))).send().await.unwrap();
        assert_eq!(refused.status(), StatusCode::UNAUTHORIZED);
        let challenge = refused.headers()["www-authenticate"].to_str().unwrap().to_owned();
        let url = format!("{base}/.well-known/oauth-protected-resource/mcp/{view}");
        assert!(challenge.contains(&format!("resource_metadata=\"{url}\"")), "{challenge}");

        let metadata: Value = server.http.get(&url).send().await.unwrap().json().await.unwrap();
        assert_eq!(metadata["resource"], format!("{base}/mcp/{view}"));
        assert_eq!(metadata["authorization_servers"], json!([issuer.url]));
    }
    let odd = server.url("/.well-known/oauth-protected-resource/mcp/No%20view");
    assert_eq!(server.http.get(odd).send().await.unwrap().status(), StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn a_bad_view_is_refused_at_the_start_and_by_the_check() {
    let bad = policy().replace("as = 'find'", "as = 'server_find'");
    let mut keys = Keys::new();
    keys.add("root", "root");
    keys.set_policy(&bad);
    let args = keys.args();
    let args: Vec<_> = args.iter().map(String::as_str).collect();
    let refused = refused_start(&args).await;
    assert!(refused.contains("is reserved for the tools of mcp-fleet itself"), "{refused}");

    let path = Path::new(args[3]);
    let config = path.with_file_name("config.json");
    std::fs::write(&config, "{\"mcpServers\": {}}").unwrap();
    for more in [config.to_str().unwrap(), "--call=a__query"] {
        let output = command(&["policy", "check", args[3], more]).output().await.unwrap();
        let shown = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{shown}");
        assert!(shown.contains("view.desk.tool") && shown.contains("FLEET-POLICY-FILE"), "{shown}");
    }
}

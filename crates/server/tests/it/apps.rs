//! Two hosted servers with pages and skills under the same URI and with protocol extensions:
//! requests reach the right server.

use std::{path::Path, pin::Pin};

use axum::body::Bytes;
use futures::StreamExt as _;
use rmcp::{
    ClientHandler, RoleClient,
    model::CustomNotification,
    service::{ClientLifecycleMode, NotificationContext, serve_client_with_lifecycle},
    transport::StreamableHttpClientTransport,
};
use serde_json::{Value, json};
use tokio::sync::mpsc;

use crate::common::{PATIENCE, Server, script};

const PAGE: &str = "ui://widget/x.html";
const TEMPLATE: &str = "ui://widget/{name}";

/// A scripted server of the older protocol that declares these capabilities and has one answer to
/// each of these methods. It logs its requests to a file next to it.
pub(crate) fn scripted(
    dir: &Path,
    name: &str,
    capabilities: &Value,
    answers: &[(&str, Value)],
) -> String {
    let initialized = json!({
        "protocolVersion": "2025-06-18",
        "capabilities": capabilities,
        "serverInfo": {"name": name, "version": "1"},
    });
    let answers = answers.iter().cloned().chain([("initialize", initialized)]);
    let cases: String = answers
        .map(|(method, result)| format!("    *'\"{method}\"'*) answer '\"result\":{result}' ;;\n"))
        .collect();
    let body = format!(
        r#"answer() {{ printf '{{"jsonrpc":"2.0","id":%s,%s}}\n' "$id" "$1"; }}
while read -r line; do
  printf '%s\n' "$line" >> "$0.asked"
  id=$(printf '%s' "$line" | sed -n 's/.*"id":\([0-9]*\).*/\1/p')
  case "$line" in
{cases}    *'"id":'*) answer '"error":{{"code":-32601,"message":"no"}}' ;;
  esac
done"#
    );
    script(dir, name, &body)
}

/// A server with a page, a tool that shows the page, and results that name it.
fn with_page(dir: &Path, name: &str) -> String {
    let capabilities = json!({"tools": {}, "resources": {}});
    let ui = json!({"ui": {"resourceUri": PAGE}, "io.mcp-fleet/repeated": true});
    let tool = json!({"name": "show", "inputSchema": {"type": "object"}, "_meta": ui});
    let link = json!({"type": "resource_link", "uri": PAGE, "name": "x"});
    let called = json!({"content": [link], "structuredContent": {"page": PAGE}, "_meta": ui});
    let contents = json!([{"uri": PAGE, "mimeType": "text/html;profile=mcp-app", "text": name}]);
    scripted(
        dir,
        name,
        &capabilities,
        &[
            ("tools/list", json!({"tools": [tool]})),
            ("tools/call", called),
            ("resources/list", json!({"resources": [{"uri": PAGE, "name": "x"}]})),
            (
                "resources/templates/list",
                json!({"resourceTemplates": [{"uriTemplate": TEMPLATE, "name": "t"}]}),
            ),
            ("resources/read", json!({ "contents": contents })),
        ],
    )
}

async fn host(dir: &Path, names: &[&str], make: impl Fn(&Path, &str) -> String) -> Server {
    let programs: Vec<_> = names.iter().map(|name| make(dir, name)).collect();
    let args: Vec<_> =
        programs.iter().flat_map(|program| ["--allow-command", program.as_str()]).collect();
    let server = Server::start(&args).await;
    for (name, program) in names.iter().zip(&programs) {
        server.initialize(name, json!({ "command": program })).await;
    }
    server
}

#[tokio::test]
async fn a_tool_refers_to_the_page_of_its_own_server() {
    let dir = tempfile::tempdir().unwrap();
    let server = host(dir.path(), &["a", "b"], with_page).await;
    let listed = async |method: &str, list: &str| {
        server.request(method, json!({})).await["result"][list].clone()
    };
    let (tools, resources, templates) = (
        listed("tools/list", "tools").await,
        listed("resources/list", "resources").await,
        listed("resources/templates/list", "resourceTemplates").await,
    );
    for name in ["a", "b"] {
        let offered = format!("ui://mcp-fleet/{name}/{PAGE}");
        let has = |list: &Value, pointer: &str, value: &str| {
            list.as_array().unwrap().iter().any(|item| item.pointer(pointer) == Some(&json!(value)))
        };
        assert!(has(&resources, "/uri", &offered), "{resources}");
        assert!(
            has(&templates, "/uriTemplate", &format!("ui://mcp-fleet/{name}/{TEMPLATE}")),
            "{templates}"
        );
        let tool =
            tools.as_array().unwrap().iter().find(|tool| tool["name"] == format!("{name}__show"));
        assert_eq!(tool.unwrap()["_meta"], json!({"ui": {"resourceUri": offered}}));

        let read = server.request("resources/read", json!({ "uri": offered })).await;
        let contents = &read["result"]["contents"][0];
        assert_eq!(
            (&contents["text"], &contents["uri"]),
            (&json!(name), &json!(offered)),
            "{read}"
        );

        let arguments = json!({ "page": offered });
        let call = json!({"name": format!("{name}__show"), "arguments": arguments});
        let called = server.request("tools/call", call).await["result"].clone();
        assert_eq!(called["content"][0]["uri"], offered, "{called}");
        assert_eq!(called["structuredContent"]["page"], offered, "{called}");
        assert_eq!(called["_meta"], json!({"ui": {"resourceUri": offered}}), "{called}");

        let asked = std::fs::read_to_string(dir.path().join(format!("{name}.asked"))).unwrap();
        assert!(asked.contains(&format!(r#""arguments":{{"page":"{PAGE}"}}"#)), "{asked}");
        assert!(!asked.contains("ui://mcp-fleet/"), "{asked}");
    }
    let nobodys = server.request("resources/read", json!({ "uri": PAGE })).await;
    assert_eq!(nobodys["error"]["data"]["uri"], PAGE, "{nobodys}");
}

const SKILL: &str = "skill://pdf/SKILL.md";

/// A server with a skill, and a tool whose result refers to it.
fn with_skill(dir: &Path, name: &str) -> String {
    let extensions = json!({"io.modelcontextprotocol/skills": {}});
    let capabilities = json!({"tools": {}, "resources": {}, "extensions": extensions});
    let meta = json!({"skill": SKILL});
    let tool = json!({"name": "show", "inputSchema": {"type": "object"}, "_meta": meta});
    let link = json!({"type": "resource_link", "uri": SKILL, "name": "pdf"});
    let called = json!({"content": [link], "structuredContent": {"skill": SKILL}, "_meta": meta});
    let files = json!([{"uri": SKILL, "digest": format!("sha256:{}", "0".repeat(64)), "size": 1}]);
    let frontmatter = json!({"name": "pdf", "description": name});
    let skill = json!({"uri": SKILL, "frontmatter": frontmatter, "resources": files});
    scripted(
        dir,
        name,
        &capabilities,
        &[
            ("tools/list", json!({"tools": [tool]})),
            ("tools/call", called),
            ("resources/list", json!({"resources": [{"uri": SKILL, "name": "pdf"}]})),
            (
                "resources/templates/list",
                json!({"resourceTemplates": [{"uriTemplate": "skill://{name}/SKILL.md", "name": "t"}]}),
            ),
            ("resources/read", json!({"contents": [{"uri": SKILL, "text": name}]})),
            ("skills/get", json!({ "skill": skill })),
        ],
    )
}

/// A skill instructs a model, so it must be the one of the server that the client has chosen.
#[tokio::test]
async fn a_skill_is_read_from_its_own_server() {
    let dir = tempfile::tempdir().unwrap();
    let server = host(dir.path(), &["a", "b"], with_skill).await;
    let ask = async |method: &str, params: Value| {
        let answer = server.request(method, params).await;
        assert!(answer["result"].is_object(), "{answer}");
        answer["result"].clone()
    };
    for name in ["a", "b"] {
        let offered = format!("skill://mcp-fleet/{name}/{SKILL}");
        let resources = ask("resources/list", json!({})).await["resources"].to_string();
        assert!(resources.contains(&offered), "{resources}");
        let template = format!("skill://mcp-fleet/{name}/skill://{{name}}/SKILL.md");
        let templates = ask("resources/templates/list", json!({})).await.to_string();
        assert!(templates.contains(&template), "{templates}");
        let tools = ask("tools/list", json!({})).await["tools"].clone();
        let is_own = |tool: &&Value| tool["name"] == format!("{name}__show");
        let tool = tools.as_array().unwrap().iter().find(is_own).unwrap();
        assert_eq!(tool["_meta"]["skill"], offered, "{tool}");

        let read = ask("resources/read", json!({ "uri": offered })).await["contents"][0].clone();
        assert_eq!((&read["text"], &read["uri"]), (&json!(name), &json!(offered)), "{read}");

        let call = json!({"name": format!("{name}__show"), "arguments": {"skill": offered}});
        let called = ask("tools/call", call).await;
        assert_eq!(called["content"][0]["uri"], offered, "{called}");
        assert_eq!(called["structuredContent"]["skill"], offered, "{called}");
        assert_eq!(called["_meta"]["skill"], offered, "{called}");

        let asked = std::fs::read_to_string(dir.path().join(format!("{name}.asked"))).unwrap();
        assert!(asked.contains(&format!(r#""arguments":{{"skill":"{SKILL}"}}"#)), "{asked}");
        assert!(!asked.contains("skill://mcp-fleet/"), "{asked}");
    }
    let nobodys = server.request("resources/read", json!({ "uri": SKILL })).await;
    assert_eq!(nobodys["error"]["data"]["uri"], SKILL, "{nobodys}");
}

/// The extension is declared if one server has it.
#[tokio::test]
async fn a_skill_is_described_under_its_offered_uri() {
    let dir = tempfile::tempdir().unwrap();
    let server = host(dir.path(), &["a"], with_skill).await;
    let offered = format!("skill://mcp-fleet/a/{SKILL}");
    let got = server.request("skills/get", json!({ "uri": offered })).await;
    let skill = &got["result"]["skill"];
    let found =
        (&skill["frontmatter"]["description"], &skill["uri"], &skill["resources"][0]["uri"]);
    assert_eq!(found, (&json!("a"), &json!(offered), &json!(offered)), "{got}");
}

#[tokio::test]
async fn an_extension_is_passed_on_if_one_server_has_it() {
    let dir = tempfile::tempdir().unwrap();
    let skills = json!({"io.modelcontextprotocol/skills": {}});
    let palette = json!({"com.example/palette": {"colours": 3}});
    let make = |dir: &Path, name: &str| {
        let extensions = if name == "skilled" { &skills } else { &palette };
        let capabilities = json!({"resources": {}, "extensions": extensions});
        let answers = [
            ("skills/list", json!({"skills": []})),
            ("palette/mix", json!({"mixed": name, "page": PAGE})),
        ];
        scripted(dir, name, &capabilities, &answers)
    };
    let server = host(dir.path(), &["skilled", "one"], make).await;
    let declared = async |server: &Server| {
        let params = json!({"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "t", "version": "1"}});
        server.request("initialize", params).await["result"]["capabilities"]["extensions"].clone()
    };
    let both = json!({"io.modelcontextprotocol/skills": {}, "com.example/palette": {"colours": 3}});
    assert_eq!(declared(&server).await, both);

    let page = format!("ui://mcp-fleet/one/{PAGE}");
    let mixed = server.request("palette/mix", json!({"of": [1, 2], "page": page})).await;
    assert_eq!(mixed["result"], json!({"mixed": "one", "page": page}), "{mixed}");

    let asked = std::fs::read_to_string(dir.path().join("one.asked")).unwrap();
    assert!(
        asked.contains(r#""of":[1,2]"#) && asked.contains(r#""page":"ui://widget/x.html""#),
        "{asked}"
    );
    assert_eq!(server.request("skills/list", json!({})).await["result"]["skills"], json!([]));

    let two = host(dir.path(), &["one", "two"], make).await;
    assert_eq!(declared(&two).await, Value::Null);
    let mixed = two.request("palette/mix", json!({})).await;
    assert_eq!(mixed["error"]["code"], -32601, "{mixed}");
    assert_eq!(mixed["error"]["data"]["servers"], json!(["one", "two"]), "{mixed}");

    let skills = two.request("skills/list", json!({})).await;
    assert_eq!(skills["error"]["code"], -32601, "{skills}");
}

/// A client of the older protocol that records notifications of extensions.
struct Ears(mpsc::UnboundedSender<CustomNotification>);

impl ClientHandler for Ears {
    async fn on_custom_notification(
        &self,
        notification: CustomNotification,
        _context: NotificationContext<RoleClient>,
    ) {
        _ = self.0.send(notification);
    }
}

/// A server that sends notifications of an extension, and others, during each call of its tool.
fn notifying(dir: &Path, name: &str) -> String {
    let notify = |method: &str, params: Value| {
        let notification = json!({"jsonrpc": "2.0", "method": method, "params": params});
        format!("printf '%s\\n' '{notification}'\n")
    };
    let called = [
        notify("notifications/other/changed", json!({})),
        notify("notifications/palette/changed", json!({"text": "x".repeat(70_000)})),
        notify("notifications/palette/changed", json!({"colour": "red", "page": PAGE})),
    ];
    let capabilities = json!({"tools": {}, "extensions": {"com.example/palette": {}}});
    let tool = json!({"name": "mix", "inputSchema": {"type": "object"}});
    let program = scripted(
        dir,
        name,
        &capabilities,
        &[("tools/list", json!({"tools": [tool]})), ("tools/call", json!({"content": []}))],
    );
    let body = std::fs::read_to_string(&program).unwrap();
    let call = "*'\"tools/call\"'*) ";
    std::fs::write(&program, body.replace(call, &format!("{call}{}", called.concat()))).unwrap();
    program
}

#[tokio::test]
async fn a_notification_of_an_extension_reaches_the_clients() {
    let dir = tempfile::tempdir().unwrap();
    let server = host(dir.path(), &["one"], notifying).await;

    let (sender, mut ears) = mpsc::unbounded_channel();
    let transport = StreamableHttpClientTransport::from_uri(server.url("/mcp"));
    let client =
        serve_client_with_lifecycle(Ears(sender), transport, ClientLifecycleMode::Initialize).await;
    let _client = client.unwrap();

    // The first notification shows that the session's standing stream is open before any call.
    let heard = tokio::time::timeout(PATIENCE, async {
        loop {
            server.call("one__mix", json!({})).await;
            if let Ok(Some(heard)) =
                tokio::time::timeout(std::time::Duration::from_millis(500), ears.recv()).await
            {
                return heard;
            }
        }
    });
    let heard = heard.await.expect("no notification in time");
    assert_eq!(heard.method, "notifications/palette/changed");

    let page = format!("ui://mcp-fleet/one/{PAGE}");
    assert_eq!(heard.params, Some(json!({"colour": "red", "page": page})));
}

/// A `subscriptions/listen` stream.
struct Stream {
    chunks: Pin<Box<dyn futures::Stream<Item = reqwest::Result<Bytes>> + Send>>,
    text: String,
}

impl Stream {
    /// Opens a stream for changes of the list of tools, for a client with these extensions.
    async fn open(server: &Server, extensions: Value) -> Self {
        let meta = json!({
            "io.modelcontextprotocol/protocolVersion": "2026-07-28",
            "io.modelcontextprotocol/clientInfo": {"name": "test", "version": "1"},
            "io.modelcontextprotocol/clientCapabilities": {"extensions": extensions},
        });
        let params = json!({"_meta": meta, "notifications": {"toolsListChanged": true}});
        let listen =
            json!({"jsonrpc": "2.0", "id": 5, "method": "subscriptions/listen", "params": params});
        let request = server
            .http
            .post(server.url("/mcp"))
            .header("accept", "application/json, text/event-stream")
            .header("mcp-protocol-version", "2026-07-28")
            .header("mcp-method", "subscriptions/listen");
        let response = request.json(&listen).send().await.unwrap();
        assert_eq!(response.status(), 200);

        let mut stream = Self { chunks: Box::pin(response.bytes_stream()), text: String::new() };
        let acknowledged = stream.next().await;
        assert_eq!(acknowledged["method"], "notifications/subscriptions/acknowledged");
        stream
    }

    /// Returns the next message.
    async fn next(&mut self) -> Value {
        loop {
            if let Some((event, rest)) = self.text.split_once("\n\n") {
                let data: String =
                    event.lines().filter_map(|line| line.strip_prefix("data:")).collect();
                self.text = rest.to_owned();
                if !data.trim().is_empty() {
                    return serde_json::from_str(&data).unwrap();
                }
                continue;
            }
            let chunk = self.chunks.next().await.expect("the stream has ended").unwrap();
            self.text += std::str::from_utf8(&chunk).unwrap();
        }
    }

    /// Repeats `cause` until a message comes, since the stream may miss what happens while it is
    /// being opened.
    async fn next_after(&mut self, cause: impl AsyncFn()) -> Value {
        let heard = async {
            loop {
                cause().await;
                let short = std::time::Duration::from_millis(500);
                if let Ok(heard) = tokio::time::timeout(short, self.next()).await {
                    return heard;
                }
            }
        };
        tokio::time::timeout(PATIENCE, heard).await.expect("no message in time")
    }
}

#[tokio::test]
async fn a_notification_of_an_extension_reaches_a_stream_that_declares_it() {
    let dir = tempfile::tempdir().unwrap();
    let server = host(dir.path(), &["one"], notifying).await;
    let mut stream = Stream::open(&server, json!({"com.example/palette": {}})).await;
    let heard = stream.next_after(async || _ = server.call("one__mix", json!({})).await).await;
    assert_eq!(heard["method"], "notifications/palette/changed", "{heard}");

    let params = &heard["params"];
    let page = format!("ui://mcp-fleet/one/{PAGE}");
    assert_eq!((&params["colour"], &params["page"]), (&json!("red"), &json!(page)), "{heard}");
    assert_eq!(params["_meta"]["io.modelcontextprotocol/subscriptionId"], 5, "{heard}");
}

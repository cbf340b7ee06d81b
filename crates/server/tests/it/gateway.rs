//! Clients of both eras use hosted servers of both eras through the gateway: it passes everything on
//! unchanged, and notifies clients of changes.

use std::path::Path;

use rmcp::{
    ClientHandler, RoleClient,
    model::{
        ProtocolVersion, ResourceUpdatedNotificationParam, ServerNotification, SubscriptionFilter,
    },
    service::{ClientLifecycleMode, NotificationContext, Peer, serve_client_with_lifecycle},
    transport::StreamableHttpClientTransport,
};
use serde_json::{Value, json};
use tokio::sync::mpsc;

use crate::common::{PATIENCE, Server, binary, eventually, script};

/// A hosted program of ours that supports the newest revision, or only older ones.
fn upstream(dir: &Path, era: &str, args: &str) -> String {
    let filter = if era == "legacy" { "sed -u s#server/discover#server/gone# | " } else { "" };
    script(dir, era, &format!("{filter}{} --stdio {args}", binary()))
}

/// The `_meta` of a client that supports the newest revision.
fn meta(era: &str) -> Value {
    if era == "legacy" {
        return json!({});
    }
    json!({"io.modelcontextprotocol/protocolVersion": "2026-07-28",
        "io.modelcontextprotocol/clientCapabilities": {"elicitation": {"form": {}}}})
}

async fn ask(server: &Server, era: &str, method: &str, mut params: Value) -> Value {
    params["_meta"] = meta(era);
    let mut answer = server.request(method, params).await;
    // Each server sets its own time for which a list stays valid.
    for part in ["ttlMs", "cacheScope"] {
        answer["result"].as_object_mut().map(|result| result.remove(part));
    }
    answer
}

#[tokio::test]
async fn everything_passes_through_unchanged() {
    let dir = tempfile::tempdir().unwrap();
    let direct = Server::start(&["--conformance"]).await;
    let remote = direct.address.to_string();
    let mut args = vec!["--allow-remote", remote.as_str()];
    let programs = ["modern", "legacy"].map(|era| upstream(dir.path(), era, "--conformance"));
    args.extend(programs.iter().flat_map(|program| ["--allow-command", program.as_str()]));
    let gateway = Server::start(&args).await;
    for (name, program) in ["modern", "legacy"].iter().zip(&programs) {
        let hosted = gateway.initialize(name, json!({"command": program})).await;
        let expected = if *name == "modern" { "2026-07-28" } else { "2025-11-25" };
        assert_eq!(hosted["protocolVersion"], expected, "{hosted}");
    }
    gateway.initialize("http", json!({"type": "http", "url": direct.url("/mcp")})).await;
    for era in ["legacy", "modern"] {
        for name in ["modern", "legacy", "http"] {
            for tool in [
                "test_simple_text",
                "test_image_content",
                "test_audio_content",
                "test_embedded_resource",
                "test_multiple_content_types",
                "test_error_handling",
            ] {
                let call = |tool: &str| json!({"name": tool, "arguments": {}});
                let there = ask(&direct, era, "tools/call", call(tool)).await;
                let here = ask(&gateway, era, "tools/call", call(&format!("{name}__{tool}"))).await;
                assert_eq!(here, there, "{era} client, {name} server, {tool}");
            }
            let prompt = |prompt: &str| json!({"name": prompt, "arguments": {"arg1": "a", "arg2": "b", "resourceUri": "test://x"}});
            for asked in ["test_prompt_with_arguments", "test_prompt_with_embedded_resource"] {
                let there = ask(&direct, era, "prompts/get", prompt(asked)).await;
                let here =
                    ask(&gateway, era, "prompts/get", prompt(&format!("{name}__{asked}"))).await;
                assert_eq!(here, there, "{era} client, {name} server, {asked}");
            }
            let complete = |prompt: &str| json!({"ref": {"type": "ref/prompt", "name": prompt}, "argument": {"name": "arg1", "value": "par"}});
            let there =
                ask(&direct, era, "completion/complete", complete("test_prompt_with_arguments"))
                    .await;
            let name = format!("{name}__test_prompt_with_arguments");
            assert_eq!(ask(&gateway, era, "completion/complete", complete(&name)).await, there);
        }
        // All three have the same resources. Those of the first keep their URIs.
        for uri in ["test://static-text", "test://static-binary", "test://template/7/data"] {
            let read = |uri: &str| json!({ "uri": uri });
            let there = ask(&direct, era, "resources/read", read(uri)).await;
            assert_eq!(ask(&gateway, era, "resources/read", read(uri)).await, there, "{era} {uri}");
            for name in ["modern", "legacy", "http"] {
                let named = format!("mcp-fleet://{name}/{uri}");
                assert_eq!(
                    ask(&gateway, era, "resources/read", read(&named)).await,
                    there,
                    "{era} {named}"
                );
            }
        }
        let unknown =
            ask(&gateway, era, "resources/read", json!({"uri": "nobody://has-this"})).await;
        assert_eq!(unknown["error"]["data"]["uri"], "nobody://has-this", "{unknown}");
    }
    let templates = ask(&gateway, "legacy", "resources/templates/list", json!({})).await;
    assert_eq!(
        templates["result"]["resourceTemplates"].as_array().map(Vec::len),
        Some(3),
        "{templates}"
    );
}

/// A question in the middle of a call reaches a client that can answer it, if both sides support
/// rounds.
#[tokio::test]
async fn rounds_pass_through() {
    let dir = tempfile::tempdir().unwrap();
    let program = upstream(dir.path(), "modern", "--conformance");
    let gateway = Server::start(&["--allow-command", &program]).await;
    gateway.initialize("up", json!({"command": program})).await;
    let tool = "up__test_input_required_result_request_state";
    let first = ask(&gateway, "modern", "tools/call", json!({"name": tool, "arguments": {}})).await;
    assert_eq!(first["result"]["resultType"], "input_required", "{first}");

    let question = &first["result"]["inputRequests"]["confirm"]["params"]["message"];
    assert_eq!(question, "Please confirm", "{first}");
    let answers = json!({"confirm": {"action": "accept", "content": {"ok": true}}});
    let state = first["result"]["requestState"].clone();
    let second =
        json!({"name": tool, "arguments": {}, "inputResponses": answers, "requestState": state});
    let last = ask(&gateway, "modern", "tools/call", second).await;
    assert_eq!(last["result"]["content"][0]["text"], "state-ok", "{last}");
}

/// Sends a client's notifications to a channel.
struct Ears(mpsc::UnboundedSender<String>);

impl ClientHandler for Ears {
    async fn on_tool_list_changed(&self, _context: NotificationContext<RoleClient>) {
        _ = self.0.send("tools".to_owned());
    }

    async fn on_prompt_list_changed(&self, _context: NotificationContext<RoleClient>) {
        _ = self.0.send("prompts".to_owned());
    }

    async fn on_resource_list_changed(&self, _context: NotificationContext<RoleClient>) {
        _ = self.0.send("resources".to_owned());
    }

    async fn on_resource_updated(
        &self,
        params: ResourceUpdatedNotificationParam,
        _context: NotificationContext<RoleClient>,
    ) {
        _ = self.0.send(params.uri);
    }
}

async fn expect_notifications(ears: &mut mpsc::UnboundedReceiver<String>, expected: &[&str]) {
    let mut missing: Vec<&str> = expected.to_vec();
    while !missing.is_empty() {
        let Ok(Some(word)) = tokio::time::timeout(PATIENCE, ears.recv()).await else {
            panic!("no notification in time: {missing:?}");
        };
        missing.retain(|wanted| *wanted != word);
    }
}

/// A hosted server hosts another server itself, which changes what the first one offers.
async fn check_notifications_of_changes(
    era: &str,
    listen: impl AsyncFn(&Server) -> mpsc::UnboundedReceiver<String>,
) {
    let dir = tempfile::tempdir().unwrap();
    let inner = script(dir.path(), "inner", &format!("{} --stdio --conformance", binary()));
    let outer = upstream(dir.path(), era, &format!("--allow-command {inner}"));
    let gateway = Server::start(&["--allow-command", &outer]).await;
    gateway.initialize("out", json!({"command": outer})).await;
    let mut ears = listen(&gateway).await;
    gateway
        .call_ok("out__server_initialize", json!({"name": "in", "config": {"command": inner}}))
        .await;
    expect_notifications(&mut ears, &["tools", "prompts", "resources"]).await;
    let names = gateway.tool_names().await;
    assert!(names.iter().any(|name| name == "out__in__test_simple_text"), "{names:?}");

    let call = gateway.call("out__in__test_simple_text", json!({})).await;
    assert!(call["content"][0]["text"].to_string().contains("simple text"), "{call}");
    gateway.call("out__server_remove", json!({"name": "in"})).await;
    expect_notifications(&mut ears, &["tools", "prompts", "resources"]).await;
    let names = gateway.tool_names().await;
    assert!(!names.iter().any(|name| name.starts_with("out__in__")), "{names:?}");
}

/// Opens a session; its notifications of changes arrive on its standing stream.
async fn session(server: &Server) -> mpsc::UnboundedReceiver<String> {
    let (sender, ears) = mpsc::unbounded_channel();
    let transport = StreamableHttpClientTransport::from_uri(server.url("/mcp"));
    let client =
        serve_client_with_lifecycle(Ears(sender), transport, ClientLifecycleMode::Initialize).await;
    let client = client.unwrap();
    // Keep the session open until the test ends.
    tokio::spawn(async move { drop(client.waiting().await) });
    ears
}

async fn modern_peer(server: &Server) -> Peer<RoleClient> {
    let mode =
        ClientLifecycleMode::Discover { preferred_versions: vec![ProtocolVersion::V_2026_07_28] };
    let transport = StreamableHttpClientTransport::from_uri(server.url("/mcp"));
    let client = serve_client_with_lifecycle((), transport, mode).await.unwrap();
    let peer = client.peer().clone();
    tokio::spawn(async move { drop(client.waiting().await) });
    peer
}

/// Opens a stream for notifications of changes.
async fn stream(server: &Server) -> mpsc::UnboundedReceiver<String> {
    let filter = SubscriptionFilter::builder().tools_list_changed().prompts_list_changed();
    let filter = filter.resources_list_changed().build();
    let mut subscription = modern_peer(server).await.listen(filter.clone()).await.unwrap();
    assert_eq!(subscription.acknowledged(), &filter);

    let (sender, ears) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        while let Ok(Some(notification)) = subscription.next().await {
            let word = match notification {
                ServerNotification::ToolListChangedNotification(_) => "tools",
                ServerNotification::PromptListChangedNotification(_) => "prompts",
                ServerNotification::ResourceListChangedNotification(_) => "resources",
                _ => "something else",
            };
            _ = sender.send(word.to_owned());
        }
    });

    ears
}

#[tokio::test]
async fn sessions_are_notified_of_changes_at_servers_of_both_eras() {
    for era in ["modern", "legacy"] {
        check_notifications_of_changes(era, session).await;
    }
}

#[tokio::test]
async fn streams_are_notified_of_changes_at_servers_of_both_eras() {
    for era in ["modern", "legacy"] {
        check_notifications_of_changes(era, stream).await;
    }
}

/// Subscriptions to a resource go to its server, and its updates arrive under the URI that the
/// gateway gives it.
#[tokio::test]
async fn clients_can_subscribe_to_resources_of_hosted_servers() {
    let dir = tempfile::tempdir().unwrap();
    for era in ["modern", "legacy"] {
        let program = upstream(dir.path(), era, "--conformance");
        let gateway = Server::start(&["--allow-command", &program]).await;
        gateway.initialize("up", json!({"command": program})).await;
        let watched = "test://watched-resource";
        let filter = SubscriptionFilter::builder()
            .resource_subscriptions([watched, "nobody://has-this"])
            .build();
        let mut subscription = modern_peer(&gateway).await.listen(filter).await.unwrap();
        assert_eq!(
            subscription.acknowledged().resource_subscriptions,
            Some(vec![watched.to_owned()])
        );
        let (sender, mut ears) = mpsc::unbounded_channel();
        tokio::spawn(async move {
            while let Ok(Some(notification)) = subscription.next().await {
                if let ServerNotification::ResourceUpdatedNotification(update) = notification {
                    _ = sender.send(update.params.uri);
                }
            }
        });
        // The gateway acknowledges the subscription before it subscribes at the hosted server.
        let uri = eventually("an update of the resource", async || {
            gateway.call("up__test_trigger_resource_update", json!({})).await;
            ears.try_recv().ok()
        });
        assert_eq!(uri.await, watched, "{era}");
    }
}

/// Lists and tool calls work even though one of the servers is permanently broken.
#[tokio::test]
async fn a_broken_server_hides_nothing_but_itself() {
    let dir = tempfile::tempdir().unwrap();
    let good = upstream(dir.path(), "modern", "--conformance");
    let once = script(
        dir.path(),
        "once",
        &format!(
            "[ -e {0} ] && exit 3\ntouch {0}\nexec {1} --stdio --conformance",
            dir.path().join("ran").display(),
            binary()
        ),
    );
    let gateway = Server::start(&["--allow-command", &good, "--allow-command", &once]).await;
    gateway.initialize("bad", json!({"command": once})).await;
    gateway.initialize("good", json!({"command": good})).await;
    let pid = gateway.status("bad").await["pid"].as_u64().unwrap();
    crate::common::signal(u32::try_from(pid).unwrap(), nix::sys::signal::Signal::SIGKILL);
    let answer = eventually("the end of the bad server in the list", async || {
        let answer = gateway.request("prompts/list", json!({})).await;
        let warned = &answer["result"]["_meta"]["io.mcp-fleet/unavailable"][0]["server"];
        (warned == "bad").then_some(answer)
    });
    let answer = answer.await;
    let names = answer["result"]["prompts"].to_string();
    assert!(names.contains("good__test_simple_prompt"), "{answer}");
    gateway.call("good__test_simple_text", json!({})).await;
    let failed = gateway.request("prompts/get", json!({"name": "bad__test_simple_prompt"})).await;
    assert_eq!(failed["error"]["data"]["reason"], "server-unavailable", "{failed}");

    // Once the first server is removed, the other one takes over its URIs.
    gateway.call("server_remove", json!({"name": "bad"})).await;
    let read = gateway.request("resources/read", json!({"uri": "test://static-text"})).await;
    assert!(read["result"]["contents"][0]["text"].is_string(), "{read}");
}

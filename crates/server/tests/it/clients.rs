//! Real MCP clients of both eras, over HTTP and over standard input and output.

use crate::common::{ANSWER_TEXT, Server, command, legacy_server, script, tree};
use rmcp::{
    ClientHandler, RoleClient,
    model::{
        CallToolRequest, CallToolRequestParams, ClientRequest, JsonObject,
        ProgressNotificationParam, ProtocolVersion, ServerResult,
    },
    service::{
        ClientLifecycleMode, NotificationContext, PeerRequestOptions, RunningService,
        serve_client_with_lifecycle,
    },
    transport::StreamableHttpClientTransport,
};
use serde_json::{Value, json};
use tokio::sync::mpsc;

pub(crate) fn legacy() -> ClientLifecycleMode {
    ClientLifecycleMode::Initialize
}

pub(crate) fn modern() -> ClientLifecycleMode {
    ClientLifecycleMode::Discover { preferred_versions: vec![ProtocolVersion::V_2026_07_28] }
}

fn arguments(value: Value) -> JsonObject {
    value.as_object().unwrap().clone()
}

pub(crate) async fn exercise<H: rmcp::service::Service<RoleClient>>(
    client: RunningService<RoleClient, H>,
    version: ProtocolVersion,
) {
    assert_eq!(client.peer_info().unwrap().protocol_version, version);
    let tools = client.list_all_tools().await.unwrap();
    assert!(tools.iter().any(|tool| tool.name == "file_read"));
    let call = CallToolRequestParams::new("file_read")
        .with_arguments(arguments(json!({"path": "hello.txt"})));
    let result = client.call_tool_once(call).await.unwrap();
    let rmcp::model::CallToolResponse::Complete(result) = result else { panic!("{result:?}") };
    assert_eq!(result.structured_content.unwrap()["size"], json!(13));

    let error = client.call_tool_once(CallToolRequestParams::new("nope")).await.unwrap_err();
    assert!(error.to_string().contains("unknown tool `nope`"), "{error}");
    client.cancel().await.unwrap();
}

#[tokio::test]
async fn clients_of_both_eras_are_served_over_http() {
    let tree = tree();
    for sessions in [&[][..], &["--legacy-sessions=false"]] {
        let args = [&["--root", tree.root.to_str().unwrap()], sessions].concat();
        let server = Server::start(&args).await;
        for (mode, version) in
            [(legacy(), ProtocolVersion::V_2025_11_25), (modern(), ProtocolVersion::V_2026_07_28)]
        {
            let transport = StreamableHttpClientTransport::from_uri(server.url("/mcp"));
            let client = serve_client_with_lifecycle((), transport, mode).await.unwrap();
            exercise(client, version).await;
        }
    }
}

#[tokio::test]
async fn clients_of_both_eras_are_served_on_stdio() {
    let tree = tree();
    for (mode, version) in
        [(legacy(), ProtocolVersion::V_2025_11_25), (modern(), ProtocolVersion::V_2026_07_28)]
    {
        let mut child = command(&["--stdio", "--root", tree.root.to_str().unwrap()])
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let pipes = (child.stdout.take().unwrap(), child.stdin.take().unwrap());
        let client = serve_client_with_lifecycle((), pipes, mode).await.unwrap();
        exercise(client, version).await;
        // The server ends with its input.
        let status =
            tokio::time::timeout(crate::common::PATIENCE, child.wait()).await.unwrap().unwrap();
        assert!(status.success(), "{status}");
    }
}

#[tokio::test]
async fn stdio_ends_on_sigterm() {
    let mut child = command(&["--stdio"])
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let pipes = (child.stdout.take().unwrap(), child.stdin.take().unwrap());
    let client = serve_client_with_lifecycle((), pipes, legacy()).await.unwrap();
    crate::common::signal(child.id().unwrap(), nix::sys::signal::Signal::SIGTERM);
    let status =
        tokio::time::timeout(crate::common::PATIENCE, child.wait()).await.unwrap().unwrap();
    assert!(status.success(), "{status}");
    drop(client);
}

struct Listener(mpsc::UnboundedSender<ProgressNotificationParam>);

impl ClientHandler for Listener {
    async fn on_progress(
        &self,
        params: ProgressNotificationParam,
        _context: NotificationContext<RoleClient>,
    ) {
        self.0.send(params).unwrap();
    }
}

#[tokio::test]
async fn progress_of_a_hosted_tool_reaches_the_caller() {
    let dir = tempfile::tempdir().unwrap();
    let on_call = format!(
        r#"token=$(printf '%s' "$line" | sed -n 's/.*"progressToken":\([0-9]*\).*/\1/p')
        trace=$(printf '%s' "$line" | sed -n 's/.*"traceparent":"\([^"]*\)".*/\1/p')
        for step in 1 2 3; do
          printf '{{"jsonrpc":"2.0","method":"notifications/progress","params":{{"progressToken":%s,"progress":%s,"total":3}}}}\n' "$token" "$step"
        done
        text=$trace; {ANSWER_TEXT}"#
    );
    let program = script(dir.path(), "server", &legacy_server("work", &on_call));
    let server = Server::start(&["--allow-command", &program]).await;
    server.initialize("x", json!({"command": program})).await;
    for mode in [legacy(), modern()] {
        let (sender, mut received) = mpsc::unbounded_channel();
        let transport = StreamableHttpClientTransport::from_uri(server.url("/mcp"));
        let client = serve_client_with_lifecycle(Listener(sender), transport, mode).await.unwrap();
        let request = ClientRequest::CallToolRequest(CallToolRequest::new(
            CallToolRequestParams::new("x__work"),
        ));
        let mut meta = rmcp::model::RequestMetaObject::new();
        meta.set_traceparent("00-abc-def-01");
        let options = PeerRequestOptions::no_options().with_meta(meta);
        let handle = client.send_request_with_option(request, options).await.unwrap();
        let token = handle.progress_token.clone();
        let ServerResult::CallToolResult(result) = handle.await_response().await.unwrap() else {
            panic!("a result")
        };
        assert_eq!(
            result.content[0].as_text().unwrap().text,
            "00-abc-def-01",
            "the trace context is passed on"
        );
        let mut steps = Vec::new();
        while steps.len() < 3 {
            let progress = tokio::time::timeout(crate::common::PATIENCE, received.recv())
                .await
                .unwrap()
                .unwrap();
            assert_eq!(progress.progress_token, token, "the caller's own token");
            steps.push(progress.progress as u32);
        }
        // The client's library delivers notifications in no particular order.
        steps.sort_unstable();
        assert_eq!(steps, [1, 2, 3]);
        client.cancel().await.unwrap();
    }
}

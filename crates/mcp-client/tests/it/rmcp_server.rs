//! The client with the server of the Rust SDK, in both eras.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use axum::Router;
use fleet_job::outcome::ErrorKind;
use fleet_job::outcome::FailureClass::{self, Permanent, Retry};
use fleet_job::outcome::Outcome;
use fleet_mcp_client::{Era, McpClient, ToolCall};
use rmcp::model::{
    CallToolRequestParams, CallToolResponse, CallToolResult, ContentBlock, ErrorData, JsonObject,
    ListToolsResult, PaginatedRequestParams, ProgressNotificationParam, ServerCapabilities,
    ServerConfig, Tool,
};
use rmcp::service::RequestContext;
use rmcp::transport::streamable_http_server::session::local::LocalSessionManager;
use rmcp::transport::streamable_http_server::{StreamableHttpServerConfig, StreamableHttpService};
use rmcp::{RoleServer, ServerHandler};
use serde_json::{Map, json};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::support::{client, until};

#[derive(Clone, Default)]
struct Tools {
    started: Arc<AtomicUsize>,
    cancelled: Arc<AtomicUsize>,
}

/// Counts calls that end without returning.
struct Watch(Option<Arc<AtomicUsize>>);

impl Drop for Watch {
    fn drop(&mut self) {
        if let Some(count) = &self.0 {
            count.fetch_add(1, Ordering::SeqCst);
        }
    }
}

impl ServerHandler for Tools {
    fn get_info(&self) -> ServerConfig {
        ServerConfig::new(ServerCapabilities::builder().enable_tools().build())
    }

    fn get_tool(&self, name: &str) -> Option<Tool> {
        let schema = match name {
            "annotated" => {
                json!({"type": "object", "properties": {"r": {"type": "string", "x-mcp-header": "R"}}})
            }
            "missing" => return None,
            _ => json!({"type": "object"}),
        };
        Some(Tool::new(name.to_owned(), "a tool", Arc::new(schema.as_object().unwrap().clone())))
    }

    async fn list_tools(
        &self,
        _request: Option<PaginatedRequestParams>,
        _context: RequestContext<RoleServer>,
    ) -> Result<ListToolsResult, ErrorData> {
        let names = ["echo", "annotated", "hang"];
        Ok(ListToolsResult::with_all_items(
            names.into_iter().filter_map(|name| self.get_tool(name)).collect(),
        ))
    }

    async fn call_tool(
        &self,
        request: CallToolRequestParams,
        context: RequestContext<RoleServer>,
    ) -> Result<CallToolResponse, ErrorData> {
        let arguments: JsonObject = request.arguments.unwrap_or_default();
        let result = match request.name.as_ref() {
            "echo" | "annotated" => {
                if let Some(token) = context.meta.get_progress_token() {
                    let news = ProgressNotificationParam::new(token, 1.0).with_message("half");
                    context.peer.notify_progress(news).await.unwrap();
                }
                let job = context.meta.get("io.mcp-fleet/jobId").cloned();
                let answer = json!({"arguments": arguments, "job": job}).to_string();
                CallToolResult::success(vec![ContentBlock::text(answer)])
            }
            "broken" => CallToolResult::error(vec![ContentBlock::text("it broke")]),
            "hang" => {
                self.started.fetch_add(1, Ordering::SeqCst);
                let _watch = Watch(Some(self.cancelled.clone()));
                context.ct.cancelled().await;
                CallToolResult::success(vec![])
            }
            "fault" => return Err(ErrorData::internal_error("no luck", None)),
            other => return Err(ErrorData::invalid_params(format!("no tool {other}"), None)),
        };
        Ok(result.into())
    }
}

/// A server in one of its usual modes.
async fn serve(sessions: bool, json_response: bool) -> (String, Tools) {
    let tools = Tools::default();
    let factory = tools.clone();
    let config = StreamableHttpServerConfig::default()
        .with_legacy_session_mode(sessions)
        .with_json_response(json_response)
        .with_cancellation_token(CancellationToken::new());
    let service: StreamableHttpService<Tools, LocalSessionManager> =
        StreamableHttpService::new(move || Ok(factory.clone()), Arc::default(), config);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let router = Router::new().nest_service("/mcp", service);
    tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
    (url, tools)
}

fn named(name: &str) -> ToolCall {
    let mut call = ToolCall::new(name, json!({"r": "é", "n": 1}).as_object().unwrap().clone());
    call.meta.insert("io.mcp-fleet/jobId".to_owned(), "job-1".into());
    call
}

async fn check_all(client: &McpClient, tools: &Tools) {
    client.probe().await.unwrap();
    client.probe().await.unwrap();
    let listed = client.list_tools().await.unwrap();
    assert_eq!(
        listed.iter().map(|tool| tool["name"].as_str().unwrap()).collect::<Vec<_>>(),
        ["echo", "annotated", "hang"]
    );
    for name in ["echo", "annotated"] {
        let Outcome::Succeeded(result) = client.call_tool(named(name)).await else {
            panic!("{name} failed")
        };
        let text = result["content"][0]["text"].as_str().unwrap();
        assert_eq!(
            serde_json::from_str::<serde_json::Value>(text).unwrap(),
            json!({"arguments": {"r": "é", "n": 1}, "job": "job-1"})
        );
    }
    let (sender, news) = tokio::sync::watch::channel(None);
    let mut watched = named("echo");
    watched.progress = Some(sender);
    assert!(matches!(client.call_tool(watched).await, Outcome::Succeeded(_)));
    assert_eq!(news.borrow().as_ref().unwrap().message.as_deref(), Some("half"));

    let check = async |name: &str, class: FailureClass, kind: ErrorKind, code: Option<i64>| {
        let Outcome::Failed(failure) = client.call_tool(ToolCall::new(name, Map::new())).await
        else {
            panic!("{name} succeeded")
        };
        assert_eq!(
            (failure.class, failure.error.kind, failure.error.code),
            (class, kind, code),
            "{failure:?}"
        );
    };
    check("broken", Retry, ErrorKind::Tool, None).await;
    check("missing", Permanent, ErrorKind::JsonRpc, Some(-32602)).await;
    check("fault", Retry, ErrorKind::JsonRpc, Some(-32603)).await;

    let started = tools.started.load(Ordering::SeqCst);
    let other = client.clone();
    let task = tokio::spawn(async move { other.call_tool(named("hang")).await });
    until("the call", || tools.started.load(Ordering::SeqCst) > started).await;
    task.abort();
    until("the cancellation", || tools.cancelled.load(Ordering::SeqCst) > started).await;
}

#[tokio::test]
async fn modern() {
    for json_response in [true, false] {
        let (url, tools) = serve(true, json_response).await;
        check_all(&client(&[url], |config| config.era = Era::Auto), &tools).await;
    }
}

#[tokio::test]
async fn legacy_with_sessions() {
    let (url, tools) = serve(true, false).await;
    let client = client(&[url], |config| config.era = Era::Legacy);
    check_all(&client, &tools).await;
    client.close().await;
    assert!(matches!(client.call_tool(named("echo")).await, Outcome::Succeeded(_)));
}

#[tokio::test]
async fn legacy_without_sessions() {
    let (url, tools) = serve(false, true).await;
    let client = client(&[url], |config| config.era = Era::Legacy);
    check_all(&client, &tools).await;
}

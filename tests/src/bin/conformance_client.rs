//! The program with which the conformance suite tests the workers' client: lists the tools of the
//! server whose URL is the last argument, and calls them as the scenario requires
//! (`MCP_CONFORMANCE_SCENARIO`, `MCP_CONFORMANCE_CONTEXT`).

#![expect(clippy::expect_used, reason = "a panic is the report of a test")]

use std::env;

use fleet_mcp_client::{ClientConfig, McpClient, ToolCall};
use serde_json::{Map, Value, json};

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let url = env::args().next_back().expect("the URL of a server");
    let endpoints = ClientConfig::parse_urls(&url).expect("a URL");
    let client = McpClient::new(ClientConfig::new(endpoints)).expect("a client");
    let tools = client.list_tools().await.expect("the tools of the server");
    for (name, arguments) in calls(&tools) {
        // The suite judges the outcome.
        drop(client.call_tool(ToolCall::new(name, arguments)).await);
    }
    client.close().await;
}

/// The calls that the scenario requires, or else one of each tool.
fn calls(tools: &[Value]) -> Vec<(String, Map<String, Value>)> {
    let context = env::var("MCP_CONFORMANCE_CONTEXT").ok();
    let context: Value =
        context.and_then(|text| serde_json::from_str(&text).ok()).unwrap_or_default();
    let own = tools
        .iter()
        .map(|tool| json!({"name": tool["name"], "arguments": arguments(tool)}))
        .collect();
    let calls = context["toolCalls"].as_array().cloned().unwrap_or(own);
    let call = |call: &Value| {
        let arguments = call["arguments"].as_object().cloned().unwrap_or_default();
        (call["name"].as_str().expect("a name").to_owned(), arguments)
    };
    calls.iter().map(call).collect()
}

/// Arguments of the types in the tool's schema.
fn arguments(tool: &Value) -> Value {
    let properties = tool["inputSchema"]["properties"].as_object().cloned().unwrap_or_default();
    let value = |schema: &Value| match schema["type"].as_str() {
        Some("number" | "integer") => json!(2),
        Some("boolean") => json!(true),
        _ => json!("text"),
    };
    properties
        .iter()
        .map(|(name, schema)| (name.clone(), value(schema)))
        .collect::<Map<_, _>>()
        .into()
}

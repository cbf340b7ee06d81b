//! The program with which the conformance suite tests the workers' client: lists the tools of the
//! server whose URL is the last argument, and calls them as the scenario requires
//! (`MCP_CONFORMANCE_SCENARIO`, `MCP_CONFORMANCE_CONTEXT`).

#![expect(clippy::expect_used, reason = "a panic is the report of a test")]

use std::env;

use fleet_mcp_client::{
    ClientConfig, McpClient, OAuthClient, ToolCall,
    oauth::{Algorithm, ClientCredentials, CredentialsReader, Proof},
};
use serde_json::{Map, Value, json};

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let url = env::args().next_back().expect("the URL of a server");
    let endpoints = ClientConfig::parse_urls(&url).expect("a URL");
    let config = ClientConfig { oauth: oauth_client(), ..ClientConfig::new(endpoints) };
    let client = McpClient::new(config).expect("a client");
    let tools = client.list_tools().await.expect("the tools of the server");
    for (name, arguments) in calls(&tools) {
        // The suite judges the outcome.
        drop(client.call_tool(ToolCall::new(name, arguments)).await);
    }
    client.close().await;
}

/// What the scenario says.
fn context() -> Value {
    let context = env::var("MCP_CONFORMANCE_CONTEXT").ok();
    context.and_then(|text| serde_json::from_str(&text).ok()).unwrap_or_default()
}

/// The OAuth client that the scenario has registered, if it has one.
fn oauth_client() -> Option<OAuthClient> {
    let context = context();
    let text = |name: &str| context[name].as_str().map(str::to_owned);
    let proof = match (text("client_secret"), text("private_key_pem")) {
        (Some(secret), _) => Proof::Secret(secret),
        (None, Some(pem)) => {
            let algorithm = text("signing_algorithm").expect("an algorithm");
            let algorithm = Algorithm::parse(&algorithm).expect("a known algorithm");
            Proof::PrivateKey { pem, algorithm }
        }
        (None, None) => return None,
    };
    let client = ClientCredentials { client_id: text("client_id")?, proof, scopes: Vec::new() };
    // The scenario has the server name the authorization server.
    let credentials = CredentialsReader::new(move || Ok(client.clone()));
    Some(OAuthClient { credentials, issuer: None, ca: None })
}

/// The calls that the scenario requires, or else one of each tool.
fn calls(tools: &[Value]) -> Vec<(String, Map<String, Value>)> {
    let context = context();
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

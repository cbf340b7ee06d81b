//! A minimal MCP client of the revision without sessions, with support for tasks.

use std::net::SocketAddr;

use serde_json::{Value, json};

use crate::http;

const REVISION: &str = "2026-07-28";
const TASKS: &str = "io.modelcontextprotocol/tasks";

/// A client of one server, with or without credentials.
#[derive(Debug, Clone)]
pub struct Mcp {
    /// The server's address.
    pub address: SocketAddr,
    /// The value of `Authorization`.
    pub authorization: Option<String>,
}

impl Mcp {
    /// A client without credentials.
    pub fn new(address: SocketAddr) -> Self {
        Self { address, authorization: None }
    }

    /// The same client for another server.
    #[must_use]
    pub fn at(&self, address: SocketAddr) -> Self {
        Self { address, ..self.clone() }
    }

    /// The same client with credentials.
    #[must_use]
    pub fn as_user(&self, authorization: &str) -> Self {
        Self { authorization: Some(authorization.to_owned()), ..self.clone() }
    }

    /// Sends a request; returns the whole JSON-RPC answer.
    pub fn ask(&self, method: &str, params: Value) -> Value {
        let mut messages = self.messages(method, params);
        messages.pop().unwrap_or_else(|| panic!("{method} was not answered"))
    }

    /// Sends a request; returns all messages of the response, the answer last. Others are progress
    /// notifications, if `params` have a progress token.
    pub fn messages(&self, method: &str, mut params: Value) -> Vec<Value> {
        let meta = json!({
            "io.modelcontextprotocol/protocolVersion": REVISION,
            "io.modelcontextprotocol/clientInfo": {"name": "fleet-tests", "version": "1"},
            "io.modelcontextprotocol/clientCapabilities": {"elicitation": {}, "extensions": {TASKS: {}}},
        });
        for (key, value) in meta.as_object().into_iter().flatten() {
            params["_meta"][key] = value.clone();
        }
        let name = params["name"].as_str().or_else(|| params["taskId"].as_str()).map(str::to_owned);
        let mut headers = vec![("mcp-protocol-version", REVISION), ("mcp-method", method)];
        headers.extend(name.as_deref().map(|name| ("mcp-name", name)));
        headers.extend(self.authorization.as_deref().map(|value| ("authorization", value)));
        let request = json!({"jsonrpc": "2.0", "id": 1, "method": method, "params": params});
        let (_, answer) =
            http::post_with(self.address, "/mcp", &headers, &request).expect("an answer");
        match answer {
            Value::String(text) => {
                let data = text.lines().filter_map(|line| line.strip_prefix("data:"));
                data.filter_map(|data| serde_json::from_str(data.trim()).ok()).collect()
            }
            answer => vec![answer],
        }
    }

    /// Sends a request; returns the result.
    pub fn result(&self, method: &str, params: Value) -> Value {
        let answer = self.ask(method, params);
        assert!(answer["error"].is_null(), "{method}: {answer}");
        answer["result"].clone()
    }

    /// Calls a tool; returns the structured content.
    pub fn call(&self, tool: &str, arguments: &Value) -> Value {
        let result = self.result("tools/call", json!({"name": tool, "arguments": arguments}));
        assert_ne!(result["isError"], json!(true), "{tool}: {result}");
        result["structuredContent"].clone()
    }

    /// Calls a tool, and expects a failure; returns the message.
    pub fn refusal(&self, tool: &str, arguments: &Value) -> String {
        let result = self.result("tools/call", json!({"name": tool, "arguments": arguments}));
        assert_eq!(result["isError"], json!(true), "{tool}: {result}");
        result["content"][0]["text"].as_str().unwrap_or_default().to_owned()
    }
}

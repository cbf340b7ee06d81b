//! Calls the tools of an mcp-server over its MCP endpoint, with the client that workers use.

use std::time::Duration;

use fleet_codes as codes;
use fleet_job::outcome::{ErrorKind, Failure, JobError, Outcome};
use fleet_mcp_client::{ClientConfig, McpClient, News, ToolCall};
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use crate::{
    dlq::text::shorten, error::CliError, offered_tool::OfferedTool, wait_notice::WaitNotice,
};

/// The largest answer to read.
const MAX_ANSWER: usize = 64 << 20;
/// How long the server may take for a list, or for a tool that does no work.
const ANSWER: Duration = Duration::from_secs(30);
/// The maximum length of a server's text in an error.
const MAX_MESSAGE: usize = 1_000;

/// An mcp-server.
#[derive(Debug, Clone)]
pub(crate) struct McpServer {
    client: McpClient,
    name: String,
}

/// Why a tool has no result.
#[derive(Debug, thiserror::Error)]
#[error("{}", self.describe())]
pub(crate) struct CallError {
    server: String,
    error: Box<JobError>,
}

impl CallError {
    fn new(server: &str, failure: Failure) -> Self {
        Self { server: server.to_owned(), error: Box::new(failure.error) }
    }

    fn describe(&self) -> String {
        let message = shorten(&self.error.message, MAX_MESSAGE);
        let code = self.error.error_code.as_deref();
        let (message, code) = match self.error.kind {
            ErrorKind::Connect => (
                format!("no mcp-server responds at {}: {message}", self.server),
                Some(codes::NO_SERVER.as_str()),
            ),
            ErrorKind::Unauthorized => {
                (format!("{message} (set --token-file, --token or MCP_SERVER_TOKEN)"), code)
            }
            _ => (message, code),
        };

        match code {
            // An error that the server quotes brings its own code.
            Some(code) if !message.contains("[FLEET-") => format!("{message} [{code}]"),
            _ => message,
        }
    }

    /// Returns whether the tool itself reported the failure.
    pub(crate) fn is_of_tool(&self) -> bool {
        self.error.kind == ErrorKind::Tool
    }

    /// Returns whether the call took too long.
    pub(crate) fn is_timeout(&self) -> bool {
        self.error.kind == ErrorKind::Timeout
    }

    /// Returns whether the caller may not call the tool.
    pub(crate) fn is_denied(&self) -> bool {
        let denied = [codes::DENIED, codes::INSUFFICIENT_SCOPE].map(|code| code.as_str());
        self.error.error_code.as_deref().is_some_and(|code| denied.contains(&code))
    }

    /// Returns the tool's error result, or the details that the server gave.
    pub(crate) fn data(&self) -> Option<&Value> {
        self.error.data.as_ref()
    }
}

impl McpServer {
    pub(crate) fn new(mut config: ClientConfig) -> Result<Self, CliError> {
        let endpoint = config.endpoints.first();
        let name = endpoint.map(|url| url.origin().ascii_serialization()).unwrap_or_default();
        config.max_response_bytes = MAX_ANSWER;
        config.default_timeout = ANSWER;
        Ok(Self { client: McpClient::new(config)?, name })
    }

    /// Returns the server in a form that may be shown: without user and password.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Tells the user after a second that the server has not responded.
    pub(crate) fn wait_notice(&self) -> WaitNotice {
        WaitNotice::new(format!("a response from mcp-server at {}", self.name))
    }

    /// Returns the tools that the server offers to this caller, by name.
    pub(crate) async fn list_tools(&self) -> Result<Vec<OfferedTool>, CallError> {
        let _notice = self.wait_notice();
        let listed = self.client.list_tools().await;
        let listed = listed.map_err(|failure| CallError::new(&self.name, failure))?;
        let mut tools: Vec<_> = listed.into_iter().filter_map(OfferedTool::from_listed).collect();
        tools.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(tools)
    }

    /// Calls a tool and returns its result.
    pub(crate) async fn call(
        &self,
        tool: &str,
        arguments: Map<String, Value>,
        timeout: Duration,
        progress: Option<News>,
    ) -> Result<Value, CallError> {
        let call = ToolCall { timeout: Some(timeout), progress, ..ToolCall::new(tool, arguments) };
        match self.client.call_tool(call).await {
            Outcome::Succeeded(result) => Ok(result),
            Outcome::Failed(failure) => Err(CallError::new(&self.name, failure)),
        }
    }

    /// Calls a tool of the server itself, and reads its structured result.
    pub(crate) async fn call_own<T: DeserializeOwned>(
        &self,
        tool: &str,
        arguments: Map<String, Value>,
        timeout: Duration,
    ) -> Result<T, CallError> {
        let mut result = self.call(tool, arguments, timeout, None).await?;
        let structured = result.get_mut("structuredContent").map(Value::take).unwrap_or_default();
        serde_json::from_value(structured).map_err(|error| {
            let message = format!("{tool} of {} gave an unexpected answer: {error}", self.name);
            let error = JobError::new(ErrorKind::Protocol, message);
            CallError::new(&self.name, Failure::permanent(error))
        })
    }

    /// Calls a tool of the server itself that only reports something.
    pub(crate) async fn ask<T: DeserializeOwned>(
        &self,
        tool: &str,
        arguments: Map<String, Value>,
    ) -> Result<T, CallError> {
        let _notice = self.wait_notice();
        self.call_own(tool, arguments, ANSWER).await
    }

    /// Ends the sessions that the server keeps for this client.
    pub(crate) async fn close(&self) {
        self.client.close().await;
    }
}

#[cfg(test)]
impl CallError {
    /// This error, of some server.
    pub(crate) fn of(error: JobError) -> Self {
        Self::new("http://a:1", Failure::permanent(error))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_say_what_to_do() {
        let check = |error: JobError, parts: &[&str]| {
            let text = CallError::new("http://a:1", Failure::permanent(error)).to_string();
            for part in parts {
                assert!(text.contains(part), "{part}: {text}");
            }
            assert_eq!(text.matches("[FLEET-").count(), 1, "{text}");
        };
        let error = |kind, message: &str| JobError::new(kind, message);
        check(error(ErrorKind::Connect, "refused"), &["http://a:1: refused", "FLEET-NO-SERVER"]);
        check(error(ErrorKind::Unauthorized, "who?"), &["--token-file", "FLEET-UNAUTHORIZED"]);
        check(error(ErrorKind::Tool, "no\u{1b} file [FLEET-TOOL]"), &["no  file [FLEET-TOOL]"]);
        check(error(ErrorKind::JsonRpc, "what?"), &["[FLEET-JSON-RPC]"]);
    }
}

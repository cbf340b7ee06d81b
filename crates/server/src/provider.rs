//! The interface of everything that this server offers itself, in addition to the hosted servers.

use std::pin::Pin;

use fleet_access::{Action, Annotations};
use rmcp::{
    RoleServer,
    model::{
        CallToolRequestParams, CallToolResponse, CompleteRequestParams, CompletionInfo, ErrorData,
        GetPromptRequestParams, GetPromptResponse, Prompt, ReadResourceRequestParams,
        ReadResourceResponse, Resource, ResourceTemplate, Tool,
    },
    service::RequestContext,
};

use crate::{gateway::annotations_of, long_running::LongRunning};

/// The pending answer to a request.
pub type Answer<T> = Pin<Box<dyn Future<Output = Result<T, ErrorData>> + Send>>;

/// How the right to call a tool is decided.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ToolRight {
    /// As a call of this tool, with these hints.
    Call(Annotations),
    /// As this action on the hosted server that the argument `name` names.
    OnServer(Action),
    /// As this action, for each job by the service of jobs. Whoever may never do it can't call the
    /// tool.
    OnJobs(Action),
}

/// A source of tools and, optionally, prompts and resources. A provider returns `None` for anything
/// it doesn't have.
pub trait Provider: Send + Sync + 'static {
    /// All tools, sorted by name.
    fn tools(&self) -> Vec<Tool>;

    /// The tool of this name.
    fn tool(&self, name: &str) -> Option<Tool>;

    /// Whether there is a tool of this name. Called for every tool call.
    fn has_tool(&self, name: &str) -> bool {
        self.tool(name).is_some()
    }

    /// How the right to call this tool is decided. Called for every tool call.
    fn right(&self, name: &str) -> ToolRight {
        let tool = self.tool(name);
        ToolRight::Call(annotations_of(tool.as_ref().and_then(|tool| tool.annotations.as_ref())))
    }

    /// Whether calls of a tool run long, so that they should become tasks. Called for every tool
    /// call.
    fn long_running(&self, _name: &str) -> Option<LongRunning> {
        None
    }

    /// Whether a repeated call must run again even if the repeat memory could answer it.
    fn always_runs(&self) -> bool;

    /// Calls a tool.
    fn call_tool(
        &self,
        params: CallToolRequestParams,
        context: RequestContext<RoleServer>,
    ) -> Answer<CallToolResponse>;

    /// All prompts.
    fn prompts(&self) -> Vec<Prompt> {
        Vec::new()
    }

    /// Renders a prompt.
    fn get_prompt(
        &self,
        _params: &GetPromptRequestParams,
        _context: &RequestContext<RoleServer>,
    ) -> Option<Answer<GetPromptResponse>> {
        None
    }

    /// All resources.
    fn resources(&self) -> Vec<Resource> {
        Vec::new()
    }

    /// All resource templates.
    fn resource_templates(&self) -> Vec<ResourceTemplate> {
        Vec::new()
    }

    /// Reads a resource.
    fn read_resource(
        &self,
        _params: &ReadResourceRequestParams,
        _context: &RequestContext<RoleServer>,
    ) -> Option<Answer<ReadResourceResponse>> {
        None
    }

    /// Completes an argument of a prompt or of a resource template.
    fn complete(&self, _params: &CompleteRequestParams) -> Option<CompletionInfo> {
        None
    }

    /// Whether clients can subscribe to changes of this resource.
    fn can_watch(&self, _uri: &str) -> bool {
        false
    }

    /// Whether the provider sends log messages to clients that set a log level.
    fn logs(&self) -> bool {
        false
    }
}

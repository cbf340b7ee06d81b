//! What this server offers by itself, beside what the hosted servers do.

use std::pin::Pin;

use rmcp::{
    RoleServer,
    model::{
        CallToolRequestParams, CallToolResponse, CompleteRequestParams, CompletionInfo, ErrorData,
        GetPromptRequestParams, GetPromptResponse, Prompt, ReadResourceRequestParams,
        ReadResourceResponse, Resource, ResourceTemplate, Tool,
    },
    service::RequestContext,
};

use crate::long_running::LongRunning;

/// An answer that is on its way.
pub type Answer<T> = Pin<Box<dyn Future<Output = Result<T, ErrorData>> + Send>>;

/// Tools, and where there are any, prompts and resources. What a provider does not have, it answers
/// with `None`.
pub trait Provider: Send + Sync + 'static {
    /// The tools, by name.
    fn tools(&self) -> Vec<Tool>;

    /// One tool.
    fn tool(&self, name: &str) -> Option<Tool>;

    /// Whether there is a tool of this name. Asked at every call.
    fn has_tool(&self, name: &str) -> bool {
        self.tool(name).is_some()
    }

    /// Whether calls of a tool take long, so that they should be tasks. Asked at every call.
    fn long_running(&self, _name: &str) -> Option<LongRunning> {
        None
    }

    /// Whether a repeated call must run again, where it could be answered from memory.
    fn always_runs(&self) -> bool;

    /// Calls a tool.
    fn call_tool(
        &self,
        params: CallToolRequestParams,
        context: RequestContext<RoleServer>,
    ) -> Answer<CallToolResponse>;

    /// The prompts.
    fn prompts(&self) -> Vec<Prompt> {
        Vec::new()
    }

    /// Fills in a prompt.
    fn get_prompt(
        &self,
        _params: &GetPromptRequestParams,
        _context: &RequestContext<RoleServer>,
    ) -> Option<Answer<GetPromptResponse>> {
        None
    }

    /// The resources.
    fn resources(&self) -> Vec<Resource> {
        Vec::new()
    }

    /// The templates of resources.
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

    /// Completes an argument of a prompt or of a template.
    fn complete(&self, _params: &CompleteRequestParams) -> Option<CompletionInfo> {
        None
    }

    /// Whether changes of this resource can be subscribed to.
    fn can_watch(&self, _uri: &str) -> bool {
        false
    }

    /// Whether it sends messages for logs to those who ask for a level.
    fn logs(&self) -> bool {
        false
    }
}

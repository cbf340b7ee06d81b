//! The tools, prompts and resources that the official conformance suite expects of a server.
//!
//! They are offered only with `--conformance`, in addition to everything else, so that the suite
//! tests the server that people run. The scenarios of the suite define what each fixture does
//! (`@modelcontextprotocol/conformance`).

use std::sync::Arc;

use fleet_hosting::Fleet;
use fleet_job::number;
use rmcp::{
    RoleServer,
    model::{
        CallToolRequestParams, CallToolResponse, CompleteRequestParams, CompletionInfo, ErrorData,
        GetPromptRequestParams, GetPromptResponse, Prompt, ReadResourceRequestParams,
        ReadResourceResponse, Reference, RequestStateCodec, Resource, ResourceTemplate, Tool,
    },
    service::RequestContext,
};
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::{
    long_running::LongRunning,
    provider::{Answer, Provider},
};

mod content;
mod dialogue;
mod rounds;
mod tasks;
mod tools;

/// A red pixel, as PNG in base64.
const PNG: &str =
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAIAAACQd1PeAAAADElEQVR42mP4z8AAAAMBAQD3A0FDAAAAAElFTkSuQmCC";
/// A thousandth of a second of silence, as WAV in base64.
const WAV: &str = "UklGRiwAAABXQVZFZm10IBAAAAABAAEAQB8AAEAfAAABAAgAZGF0YQgAAACAgICAgICAgA==";

/// The provider of the fixtures. Clones share everything.
#[derive(Clone)]
pub(crate) struct Fixtures {
    fleet: Arc<Fleet>,
    state: RequestStateCodec,
}

impl Fixtures {
    /// Creates fixtures that announce changes to the clients of this fleet.
    pub(crate) fn new(fleet: Arc<Fleet>) -> Self {
        // Two random UUIDs have 32 bytes, of which 244 bits are random. The key is valid for the
        // lifetime of the process.
        let key = [uuid::Uuid::new_v4().into_bytes(), uuid::Uuid::new_v4().into_bytes()].concat();
        let state = RequestStateCodec::try_new(key)
            .unwrap_or_else(|error| unreachable!("32 bytes are enough for a key: {error}"));
        Self { fleet, state }
    }
}

impl Provider for Fixtures {
    fn tools(&self) -> Vec<Tool> {
        tools::list()
    }

    fn tool(&self, name: &str) -> Option<Tool> {
        tools::list().into_iter().find(|tool| tool.name == name)
    }

    fn long_running(&self, name: &str) -> Option<LongRunning> {
        tasks::long_running(name)
    }

    fn always_runs(&self) -> bool {
        true
    }

    fn call_tool(
        &self,
        params: CallToolRequestParams,
        context: RequestContext<RoleServer>,
    ) -> Answer<CallToolResponse> {
        let fixtures = self.clone();
        Box::pin(async move { tools::call(&fixtures, params, context).await })
    }

    fn prompts(&self) -> Vec<Prompt> {
        content::prompts()
    }

    fn get_prompt(
        &self,
        params: &GetPromptRequestParams,
        _context: &RequestContext<RoleServer>,
    ) -> Option<Answer<GetPromptResponse>> {
        let answer = content::prompt(params)?;
        Some(Box::pin(std::future::ready(answer)))
    }

    fn resources(&self) -> Vec<Resource> {
        content::resources()
    }

    fn resource_templates(&self) -> Vec<ResourceTemplate> {
        content::templates()
    }

    fn read_resource(
        &self,
        params: &ReadResourceRequestParams,
        _context: &RequestContext<RoleServer>,
    ) -> Option<Answer<ReadResourceResponse>> {
        let answer = content::read(&params.uri)?;
        Some(Box::pin(std::future::ready(Ok(answer))))
    }

    fn complete(&self, params: &CompleteRequestParams) -> Option<CompletionInfo> {
        match &params.r#ref {
            Reference::Prompt(prompt)
                if content::prompts().iter().any(|own| own.name == prompt.name) =>
            {
                let words = ["paris", "park", "party"].map(str::to_owned);
                let fitting =
                    words.into_iter().filter(|word| word.starts_with(&params.argument.value));
                CompletionInfo::new(fitting.collect()).ok()
            }
            _ => None,
        }
    }

    fn can_watch(&self, uri: &str) -> bool {
        uri.starts_with("test://")
    }

    fn logs(&self) -> bool {
        true
    }
}

/// Parses a value of the protocol from its form on the wire.
fn parse<T: DeserializeOwned>(value: Value) -> Result<T, ErrorData> {
    number::read(value)
        .map_err(|error| ErrorData::internal_error(format!("invalid fixture: {error}"), None))
}

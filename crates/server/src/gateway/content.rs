//! Prompts and resources, both this server's own and those of hosted servers.

use fleet_hosting::{apps, forward};
use fleet_job::{size::clipped, tool_name};
use rmcp::{
    RoleServer,
    model::{
        ClientRequest, CompleteRequest, CompleteRequestParams, CompleteResult, CompletionInfo,
        ErrorData, GetPromptRequest, GetPromptRequestParams, GetPromptResponse, Prompt,
        ReadResourceRequest, ReadResourceRequestParams, ReadResourceResponse, Reference, Resource,
        ResourceTemplate,
    },
    service::RequestContext,
};
use serde_json::json;

use super::{Gateway, MAX_NAME};

/// The longest part of a URI that an error repeats, in bytes.
const SHOWN_URI: usize = 2048;

/// The error for a resource that no server offers.
pub(super) fn no_resource(uri: &str) -> ErrorData {
    let data = json!({ "uri": clipped(uri, SHOWN_URI) });
    ErrorData::resource_not_found("no server offers this resource", Some(data))
}

impl Gateway {
    pub(super) fn all_prompts(&self) -> Vec<Prompt> {
        let own = self.inner.providers.iter().flat_map(|provider| provider.prompts());
        own.chain(self.inner.fleet.routes().prompts().cloned()).collect()
    }

    pub(super) fn all_resources(&self) -> Vec<Resource> {
        let own = self.inner.providers.iter().flat_map(|provider| provider.resources());
        own.chain(self.inner.fleet.routes().resources().cloned()).collect()
    }

    pub(super) fn all_templates(&self) -> Vec<ResourceTemplate> {
        let own = self.inner.providers.iter().flat_map(|provider| provider.resource_templates());
        own.chain(self.inner.fleet.routes().templates().cloned()).collect()
    }

    pub(super) async fn fetch_prompt(
        &self,
        mut params: GetPromptRequestParams,
        context: RequestContext<RoleServer>,
    ) -> Result<GetPromptResponse, ErrorData> {
        for provider in &self.inner.providers {
            if let Some(answer) = provider.get_prompt(&params, &context) {
                return answer.await;
            }
        }

        let unknown = || {
            let name = clipped(&params.name, MAX_NAME);
            ErrorData::invalid_params(format!("unknown prompt `{name}`"), None)
        };
        if params.name.len() > MAX_NAME {
            return Err(unknown());
        }

        self.learn_prompt_server(&params.name).await?;
        let Some(route) = self.inner.fleet.routes().prompt(&params.name).cloned() else {
            return Err(unknown());
        };

        params.name = route.name;
        params.meta = None;
        params
            .arguments
            .iter_mut()
            .for_each(|arguments| apps::restore_in_object(&route.server, arguments));

        let request = ClientRequest::GetPromptRequest(GetPromptRequest::new(params));
        let result = forward::forward(&self.inner.fleet, &route.server, request, &context).await?;
        forward::read_prompt_result(&route.server, result)
            .map_err(|error| forward::hide_values(&self.inner.fleet, &route.server, error))
    }

    /// Waits briefly for the registry to report the server of a prompt that this replica doesn't
    /// know yet.
    async fn learn_prompt_server(&self, prompt: &str) -> Result<(), ErrorData> {
        let is_known = self.inner.fleet.routes().prompt(prompt).is_some();
        if let (false, Some(server)) = (is_known, tool_name::server_of(prompt)) {
            self.find_server(server, prompt).await?;
        }
        Ok(())
    }

    pub(super) async fn fetch_resource(
        &self,
        mut params: ReadResourceRequestParams,
        context: RequestContext<RoleServer>,
    ) -> Result<ReadResourceResponse, ErrorData> {
        for provider in &self.inner.providers {
            if let Some(answer) = provider.read_resource(&params, &context) {
                return answer.await;
            }
        }

        let routes = self.inner.fleet.routes();
        let Some((server, uri)) = routes.resource(&params.uri) else {
            return Err(no_resource(&params.uri));
        };

        let server = server.to_owned();
        params.uri = uri.to_owned();
        params.meta = None;
        let request = ClientRequest::ReadResourceRequest(ReadResourceRequest::new(params));
        let result = forward::forward(&self.inner.fleet, &server, request, &context).await?;
        forward::read_resource_result(&server, result)
            .map_err(|error| forward::hide_values(&self.inner.fleet, &server, error))
    }

    pub(super) async fn complete_argument(
        &self,
        mut params: CompleteRequestParams,
        context: RequestContext<RoleServer>,
    ) -> Result<CompleteResult, ErrorData> {
        if let Some(own) =
            self.inner.providers.iter().find_map(|provider| provider.complete(&params))
        {
            return Ok(CompleteResult::new(own));
        }

        let routes = self.inner.fleet.routes();
        let server = match &mut params.r#ref {
            Reference::Prompt(prompt) => routes.prompt(&prompt.name).map(|route| {
                prompt.name.clone_from(&route.name);
                route.server.clone()
            }),
            Reference::Resource(resource) => {
                let uri = std::mem::take(&mut resource.uri);
                routes.template(&uri).or_else(|| routes.resource(&uri)).map(|(server, own)| {
                    resource.uri = own.to_owned();
                    server.to_owned()
                })
            }
            // Nothing here can be completed for kinds of references from later protocol revisions.
            _ => return Ok(CompleteResult::new(CompletionInfo::default())),
        };

        let Some(server) = server else {
            let message =
                "cannot complete the argument; the prompt or resource template is unknown";
            return Err(ErrorData::invalid_params(message, None));
        };

        let upstream = self
            .inner
            .fleet
            .ensure_running(&server)
            .await
            .map_err(|error| forward::server_down_error(&error))?;
        if upstream.info.capabilities.completions.is_none() {
            return Ok(CompleteResult::new(CompletionInfo::default()));
        }

        params.meta = None;
        apps::restore_in_text(&server, &mut params.argument.value);
        let request = ClientRequest::CompleteRequest(CompleteRequest::new(params));
        let result = forward::forward(&self.inner.fleet, &server, request, &context).await?;
        forward::read_completions(&server, result)
            .map_err(|error| forward::hide_values(&self.inner.fleet, &server, error))
    }
}

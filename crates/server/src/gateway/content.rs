//! Prompts and resources, both this server's own and those of hosted servers.

use fleet_access::{self as access, Action};
use fleet_hosting::{apps, forward, routes::Route};
use fleet_job::{size::clipped, tool_name};
use rmcp::{
    RoleServer,
    model::{
        ClientRequest, CompleteRequest, CompleteRequestParams, CompleteResult, CompletionInfo,
        ErrorData, GetPromptRequest, GetPromptRequestParams, GetPromptResponse, Prompt,
        ReadResourceRequest, ReadResourceRequestParams, ReadResourceResponse, Reference, Resource,
        ResourceTemplate, Tool,
    },
    service::RequestContext,
};
use serde_json::json;

use super::{
    Asking, Gateway, MAX_NAME,
    asking::{end_record, prompt_of, resource_of},
};

/// The longest part of a URI that an error repeats, in bytes.
const SHOWN_URI: usize = 2048;

/// The error for a resource that no server offers.
pub(super) fn no_resource(uri: &str) -> ErrorData {
    let data = json!({ "uri": clipped(uri, SHOWN_URI) });
    ErrorData::resource_not_found("no server offers this resource", Some(data))
}

/// The error for an argument of something that no server offers.
fn unknown_reference() -> ErrorData {
    let message = "cannot complete the argument; the prompt or resource template is unknown";
    ErrorData::invalid_params(message, None)
}

/// The prompt or the resource that an argument belongs to, as decisions see it.
fn reference_of<'a>(server: Option<&'a str>, reference: &'a Reference) -> access::Resource<'a> {
    match reference {
        Reference::Prompt(prompt) => prompt_of(server, &prompt.name),
        Reference::Resource(resource) => resource_of(server, &resource.uri),
        _ => access::Resource { server, ..access::Resource::default() },
    }
}

impl Asking {
    /// Whether the caller's view has the prompt or the resource that an argument belongs to.
    fn has_reference(&self, server: Option<&str>, reference: &Reference) -> bool {
        match reference {
            Reference::Prompt(prompt) => self.has_prompt(server, &prompt.name),
            Reference::Resource(resource) => self.has_uri(server, &resource.uri),
            _ => server.is_none_or(|server| self.has_server(server)),
        }
    }
}

/// A tool that a caller may call, and where it is.
#[derive(Debug, Clone)]
pub(crate) struct VisibleTool {
    /// The hosted server; `None` if the tool is our own.
    pub(crate) server: Option<String>,
    /// The tool's name there.
    pub(crate) own_name: String,
    /// The tool as it is offered.
    pub(crate) offered: Tool,
}

impl Gateway {
    pub(super) fn visible_tools(&self, asking: &Asking) -> Vec<Tool> {
        self.tools_with_servers(asking).into_iter().map(|tool| tool.offered).collect()
    }

    /// Returns the tools that a caller may call: our own, and then those of hosted servers, sorted
    /// by name.
    pub(crate) fn tools_with_servers(&self, asking: &Asking) -> Vec<VisibleTool> {
        let own = self.inner.providers.iter().flat_map(|provider| {
            let mut tools = provider.tools();
            tools.retain(|tool| asking.sees_own_tool(&**provider, &tool.name));
            tools
        });
        let own = own.map(|offered| {
            let own_name = offered.name.to_string();
            VisibleTool { server: None, own_name, offered }
        });

        let routes = self.inner.fleet.routes();
        let hosted = routes.tools().filter(|route| asking.sees_tool(route));
        let hosted = hosted.map(|route| VisibleTool {
            server: Some(route.server.clone()),
            own_name: route.name.clone(),
            offered: route.listed.clone(),
        });
        own.chain(hosted).filter_map(|tool| asking.see_in_view(tool)).collect()
    }

    pub(super) fn visible_prompts(&self, asking: &Asking) -> Vec<Prompt> {
        let own = self.inner.providers.iter().flat_map(|provider| provider.prompts());
        let own =
            own.filter(|prompt| asking.sees(Action::GetPrompt, &prompt_of(None, &prompt.name)));

        let routes = self.inner.fleet.routes();
        let hosted = routes.prompts().filter(|route| asking.sees_prompt(route));
        own.chain(hosted.map(|route| route.listed.clone())).collect()
    }

    pub(super) fn visible_resources(&self, asking: &Asking) -> Vec<Resource> {
        let own = self.inner.providers.iter().flat_map(|provider| provider.resources());
        let own = own.filter(|resource| {
            asking.sees(Action::ReadResource, &resource_of(None, &resource.uri))
        });

        let routes = self.inner.fleet.routes();
        let hosted = routes.resources().filter(|route| asking.sees_resource(route));
        own.chain(hosted.map(|route| route.listed.clone())).collect()
    }

    pub(super) fn visible_templates(&self, asking: &Asking) -> Vec<ResourceTemplate> {
        let own = self.inner.providers.iter().flat_map(|provider| provider.resource_templates());
        let own = own.filter(|template| {
            asking.sees(Action::ReadResource, &resource_of(None, &template.uri_template))
        });

        let routes = self.inner.fleet.routes();
        let hosted = routes.templates().filter(|route| asking.sees_template(route));
        own.chain(hosted.map(|route| route.listed.clone())).collect()
    }

    pub(super) async fn fetch_prompt(
        &self,
        params: GetPromptRequestParams,
        context: RequestContext<RoleServer>,
    ) -> Result<GetPromptResponse, ErrorData> {
        let asking = self.asked_by(&context)?;
        let unknown = || {
            let name = clipped(&params.name, MAX_NAME);
            ErrorData::invalid_params(format!("unknown prompt `{name}`"), None)
        };
        for provider in &self.inner.providers {
            if let Some(answer) = provider.get_prompt(&params, &context) {
                if !asking.has_prompt(None, &params.name) {
                    asking.record_hidden(Action::GetPrompt, &prompt_of(None, &params.name));
                    return Err(unknown());
                }
                let (prompt, arguments) =
                    (prompt_of(None, &params.name), params.arguments.as_ref());
                let record = asking.begin(Action::GetPrompt, &prompt, arguments).await?;
                return end_record(record, answer.await);
            }
        }

        if params.name.len() > MAX_NAME {
            return Err(unknown());
        }
        if !self.may_have_prompt(&asking, &params.name) {
            let server = tool_name::server_of(&params.name);
            asking.record_hidden(Action::GetPrompt, &prompt_of(server, &params.name));
            return Err(unknown());
        }

        self.learn_prompt_server(&params.name).await?;
        let found = self.inner.fleet.routes().prompt(&params.name).cloned();
        let Some(route) = found else { return Err(unknown()) };
        let prompt = prompt_of(Some(&route.server), &route.name);
        if !asking.has_prompt(Some(&route.server), &route.name) {
            asking.record_hidden(Action::GetPrompt, &prompt);
            return Err(unknown());
        }
        let record = asking.begin(Action::GetPrompt, &prompt, params.arguments.as_ref()).await?;
        end_record(record, self.forward_prompt(route, params, &context).await)
    }

    async fn forward_prompt(
        &self,
        route: Route<Prompt>,
        mut params: GetPromptRequestParams,
        context: &RequestContext<RoleServer>,
    ) -> Result<GetPromptResponse, ErrorData> {
        params.name = route.name;
        params.meta = None;
        params
            .arguments
            .iter_mut()
            .for_each(|arguments| apps::restore_in_object(&route.server, arguments));

        let request = ClientRequest::GetPromptRequest(GetPromptRequest::new(params));
        let result = forward::forward(&self.inner.fleet, &route.server, request, context).await?;
        forward::read_prompt_result(&route.server, result)
            .map_err(|error| forward::hide_values(&self.inner.fleet, &route.server, error))
    }

    /// Whether the caller's view may have a prompt, whose server may not be known yet.
    fn may_have_prompt(&self, asking: &Asking, prompt: &str) -> bool {
        let is_known = self.inner.fleet.routes().prompt(prompt).is_some();
        is_known || tool_name::server_of(prompt).is_none_or(|server| asking.has_server(server))
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
        let asking = self.asked_by(&context)?;
        for provider in &self.inner.providers {
            if let Some(answer) = provider.read_resource(&params, &context) {
                let resource = resource_of(None, &params.uri);
                if !asking.has_uri(None, &params.uri) {
                    // A hosted server may offer the same.
                    asking.record_hidden(Action::ReadResource, &resource);
                    break;
                }
                let record = asking.begin(Action::ReadResource, &resource, None).await?;
                return end_record(record, answer.await);
            }
        }

        let routes = self.inner.fleet.routes();
        let in_view = |server: &str, uri: &str| asking.has_uri(Some(server), uri);
        let Some((server, uri)) = routes.resource_among(&params.uri, in_view) else {
            if let Some((server, uri)) = routes.resource(&params.uri) {
                asking.record_hidden(Action::ReadResource, &resource_of(Some(server), uri));
            }
            return Err(no_resource(&params.uri));
        };
        let (server, uri) = (server.to_owned(), uri.to_owned());
        let resource = resource_of(Some(&server), &uri);
        let record = asking.begin(Action::ReadResource, &resource, None).await?;

        params.uri.clone_from(&uri);
        params.meta = None;
        let request = ClientRequest::ReadResourceRequest(ReadResourceRequest::new(params));
        let result = forward::forward(&self.inner.fleet, &server, request, &context).await;
        let result = result.and_then(|result| {
            forward::read_resource_result(&server, result)
                .map_err(|error| forward::hide_values(&self.inner.fleet, &server, error))
        });
        end_record(record, result)
    }

    pub(super) async fn complete_argument(
        &self,
        mut params: CompleteRequestParams,
        context: RequestContext<RoleServer>,
    ) -> Result<CompleteResult, ErrorData> {
        let asking = self.asked_by(&context)?;
        if let Some(own) =
            self.inner.providers.iter().find_map(|provider| provider.complete(&params))
        {
            let reference = reference_of(None, &params.r#ref);
            if !asking.has_reference(None, &params.r#ref) {
                asking.record_hidden(Action::Complete, &reference);
                return Err(unknown_reference());
            }
            asking.check(Action::Complete, &reference)?;
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
                let in_view = |server: &str, uri: &str| asking.has_uri(Some(server), uri);
                let find = |is_visible: &dyn Fn(&str, &str) -> bool| {
                    let template = routes.template_among(&uri, is_visible);
                    template.or_else(|| routes.resource_among(&uri, is_visible))
                };
                // One that the view does not have is refused below.
                find(&in_view).or_else(|| find(&|_, _| true)).map(|(server, own)| {
                    resource.uri = own.to_owned();
                    server.to_owned()
                })
            }
            // Nothing here can be completed for kinds of references from later protocol revisions.
            _ => return Ok(CompleteResult::new(CompletionInfo::default())),
        };

        let Some(server) = server else { return Err(unknown_reference()) };
        let reference = reference_of(Some(&server), &params.r#ref);
        if !asking.has_reference(Some(&server), &params.r#ref) {
            asking.record_hidden(Action::Complete, &reference);
            return Err(unknown_reference());
        }
        asking.check(Action::Complete, &reference)?;

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

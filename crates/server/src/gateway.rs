//! The MCP server as clients see it: its own tools, prompts and resources and those of the hosted
//! servers, in one list.

#![expect(
    deprecated,
    reason = "clients and servers of older revisions still ask for what newer ones have not"
)]

use std::{
    sync::{Arc, OnceLock},
    time::Duration,
};

use fleet_access::{Action, Asker, Resource};
use fleet_hosting::{
    Fleet,
    follow::MODERN,
    forward,
    registry::{Shared, presence::Presence},
};
use fleet_job::meta;
use fleet_jobs::Tasks;
use rmcp::{
    RoleServer, ServerHandler,
    model::{
        CacheScope, CallToolRequestParams, CallToolResponse, CancelTaskParams, ClientRequest,
        CompleteRequestParams, CompleteResult, CustomRequest, CustomResult, DiscoverResult,
        ErrorCode, ErrorData, GetPromptRequestParams, GetPromptResponse, GetSkillRequest,
        GetSkillRequestParams, GetSkillResult, GetTaskParams, GetTaskResult, Implementation,
        InitializeRequestParams, InitializeResult, JsonObject, ListPromptsResult,
        ListResourceTemplatesResult, ListResourcesResult, ListSkillsRequest, ListSkillsResult,
        ListToolsResult, MetaObject, PaginatedRequestParams, ReadResourceDirectoryRequest,
        ReadResourceDirectoryRequestParams, ReadResourceRequestParams, ReadResourceResponse,
        ServerCapabilities, ServerConfig, SetLevelRequestParams, SubscribeRequestParams,
        SubscriptionFilter, TASKS_EXTENSION_ID, Tool, UnsubscribeRequestParams, UpdateTaskParams,
    },
    service::{RequestContext, SubscriptionContext},
};
use tracing::Instrument as _;

use crate::{provider::Provider, repeat::Repeats};

mod acting;
mod asking;
mod content;
mod extensions;
mod in_view;
mod invocation;
mod labels;
mod listen;
mod tally;
mod tasks;
mod traces;

pub use acting::SignedJobs;
pub(crate) use asking::{Asking, annotations_of, asking_in};
pub(crate) use content::VisibleTool;
use invocation::Invocation;
use labels::Labels;
pub(crate) use tally::CallStatistics;
use tally::Tallies;
pub(crate) use tasks::WatchedTasks;

/// The longest name of a tool or prompt, and the longest part of a name that an error repeats.
const MAX_NAME: usize = 256;

/// The key in a result's `_meta` that names the answering server.
const SERVER_INFO: &str = "io.modelcontextprotocol/serverInfo";

/// The handler behind every transport. Clones share everything.
#[derive(Clone)]
pub struct Gateway {
    inner: Arc<Inner>,
    /// The subscriptions of one session of the older protocol.
    session: Arc<listen::Session>,
    /// The one client of a transport that authenticates nobody.
    client: Option<Asker>,
    /// Who uses this handler in a view, for what a client is told whatever it asks for.
    viewer: Option<Asker>,
}

struct Inner {
    providers: Vec<Box<dyn Provider>>,
    fleet: Arc<Fleet>,
    repeats: Option<Repeats>,
    shared: Option<Arc<Shared>>,
    tasks: OnceLock<Tasks>,
    signed_jobs: OnceLock<SignedJobs>,
    labels: Labels,
    tallies: Arc<Tallies>,
}

impl Gateway {
    /// Creates a gateway to these providers and to the hosted servers of the fleet.
    ///
    /// The gateway remembers the results of jobs' calls for `window`, in at most `max_bytes`, and
    /// answers repeats from them. With a window of zero, it remembers nothing. If there is a
    /// registry, the gateway asks it for servers that are not hosted here.
    pub fn new(
        providers: Vec<Box<dyn Provider>>,
        fleet: Arc<Fleet>,
        window: Duration,
        max_bytes: u64,
        shared: Option<Arc<Shared>>,
    ) -> Self {
        let repeats = (!window.is_zero()).then(|| Repeats::new(window, max_bytes));
        let inner = Inner {
            providers,
            fleet,
            repeats,
            shared,
            tasks: OnceLock::new(),
            signed_jobs: OnceLock::new(),
            labels: Labels::default(),
            tallies: Arc::new(Tallies::new(fleet_ops::clock::now())),
        };
        Self { inner: Arc::new(inner), session: Arc::default(), client: None, viewer: None }
    }

    /// The hosted servers as they are shared with other replicas, if there is a registry.
    pub(crate) fn shared(&self) -> Option<&Arc<Shared>> {
        self.inner.shared.as_ref()
    }

    /// The hosted servers.
    pub(crate) fn fleet(&self) -> &Arc<Fleet> {
        &self.inner.fleet
    }

    /// Returns how a tool was called here, by its offered name.
    pub(crate) fn calls_of(&self, tool: &str) -> CallStatistics {
        self.inner.tallies.of(tool)
    }

    /// Lets calls that take long become tasks.
    #[must_use]
    pub fn with_tasks(self, tasks: Tasks) -> Self {
        // A second call changes nothing.
        self.inner.tasks.get_or_init(|| tasks);
        self
    }

    /// Has the calls of jobs decided on as those who have signed them.
    #[must_use]
    pub fn with_signed_jobs(self, signed_jobs: SignedJobs) -> Self {
        // A second call changes nothing.
        self.inner.signed_jobs.get_or_init(|| signed_jobs);
        self
    }

    /// Returns the same gateway for another session.
    #[must_use]
    pub fn for_session(&self) -> Self {
        Self { session: Arc::default(), ..self.clone() }
    }

    /// Returns the same gateway for another session, or another request, of somebody who may use a
    /// view.
    #[must_use]
    pub(crate) fn for_session_of(&self, asker: Option<Asker>) -> Self {
        let viewer = asker.filter(|asker| asker.view_name().is_some());
        Self { viewer, ..self.for_session() }
    }

    /// Looks for a server whose tools or prompts are not known here. Returns whether it is hosted.
    ///
    /// # Errors
    ///
    /// Returns an error if the server is known but unavailable, or if the registry has not been
    /// read yet.
    async fn find_server(&self, server: &str, what: &str) -> Result<bool, ErrorData> {
        let Some(shared) = &self.inner.shared else {
            return Ok(self.inner.fleet.is_hosted(server));
        };

        match shared.look_for(server).await {
            Presence::Hosted => Ok(true),
            Presence::Unknown => Ok(false),
            Presence::Awaited { reason, retry_after } => {
                let message =
                    format!("cannot call `{what}`: server `{server}` is not available: {reason}");
                Err(forward::server_unavailable_error(server, message, retry_after))
            }
        }
    }

    /// Returns the provider that has a tool.
    fn provider_of(&self, tool: &str) -> Option<&dyn Provider> {
        self.inner.providers.iter().find(|provider| provider.has_tool(tool)).map(AsRef::as_ref)
    }

    /// Returns the `_meta` of a list, which names the servers that are unavailable now, as far as
    /// the list's reader may know of them.
    fn unavailable_meta(&self, asking: &Asking) -> Option<MetaObject> {
        let mut unavailable = self.inner.fleet.unavailable_servers();
        let routes = self.inner.fleet.routes();
        unavailable.retain_mut(|server| {
            asking.sees_server(&server.server, &routes) && asking.warn_in_view(server)
        });
        if unavailable.is_empty() {
            return None;
        }

        let mut meta = MetaObject::new();
        meta.insert(meta::UNAVAILABLE.to_owned(), serde_json::to_value(&unavailable).ok()?);
        Some(meta)
    }
}

/// Returns this server's own name and version.
pub(crate) fn own_info() -> Implementation {
    Implementation::new("mcp-fleet", env!("CARGO_PKG_VERSION")).with_title("mcp-fleet server")
}

/// Names this server in a result, as revisions from 2026-07-28 on recommend. What a hosted server
/// says about itself is in its status instead.
fn identify_server(context: &RequestContext<RoleServer>, meta: &mut Option<MetaObject>) {
    if is_modern(context)
        && let Ok(info) = serde_json::to_value(own_info())
    {
        meta.get_or_insert_with(MetaObject::new).insert(SERVER_INFO.to_owned(), info);
    } else if let Some(known) = meta {
        known.shift_remove(SERVER_INFO);
        if known.is_empty() {
            *meta = None;
        }
    }
}

/// Returns whether a request uses a protocol revision without sessions.
pub(crate) fn is_modern(context: &RequestContext<RoleServer>) -> bool {
    context.protocol_version().is_some_and(|version| version.as_str() >= MODERN.as_str())
}

/// Refuses every cursor, since every list has one page.
fn check_cursor(request: Option<PaginatedRequestParams>) -> Result<(), ErrorData> {
    if request.is_some_and(|request| request.cursor.is_some()) {
        let message = "unknown cursor: this server returns every list as a single page";
        return Err(ErrorData::invalid_params(message, None));
    }
    Ok(())
}

/// Builds a list result that no client may cache or share.
macro_rules! list {
    ($result:ident, $gateway:ident, $context:expr, $request:ident, $action:expr, $items:expr) => {{
        let asking = $gateway.check($context, $action, &Resource::default())?;
        check_cursor($request)?;
        let mut result = $result::with_all_items($items(&asking))
            .with_ttl_ms(0)
            .with_cache_scope(CacheScope::Private);
        result.meta = $gateway.unavailable_meta(&asking);
        identify_server($context, &mut result.meta);
        Ok(result)
    }};
}

impl ServerHandler for Gateway {
    fn get_info(&self) -> ServerConfig {
        let mut capabilities = ServerCapabilities::builder()
            .enable_tools()
            .enable_tool_list_changed()
            .enable_prompts()
            .enable_prompts_list_changed()
            .enable_resources()
            .enable_resources_list_changed()
            .enable_resources_subscribe()
            .enable_completions()
            .build();

        if self.inner.tasks.get().is_some() {
            capabilities
                .extensions
                .get_or_insert_default()
                .insert(TASKS_EXTENSION_ID.to_owned(), JsonObject::new());
        }
        if self.inner.providers.iter().any(|provider| provider.logs()) {
            capabilities.logging = Some(Default::default());
        }
        let (info, instructions) = self.describe_server(&mut capabilities);

        let config = ServerConfig::new(capabilities).with_server_info(info);
        match instructions {
            Some(instructions) => config.with_instructions(instructions),
            None => config,
        }
    }

    fn get_tool(&self, name: &str) -> Option<Tool> {
        let name = self.name_outside(name)?;
        let own = self.inner.providers.iter().find_map(|provider| provider.tool(&name));
        own.or_else(|| self.inner.fleet.routes().tool(&name).map(|route| route.listed.clone()))
    }

    async fn list_tools(
        &self,
        request: Option<PaginatedRequestParams>,
        context: RequestContext<RoleServer>,
    ) -> Result<ListToolsResult, ErrorData> {
        let tools = |asking: &Asking| self.visible_tools(asking);
        list!(ListToolsResult, self, &context, request, Action::ListTools, tools)
    }

    async fn list_prompts(
        &self,
        request: Option<PaginatedRequestParams>,
        context: RequestContext<RoleServer>,
    ) -> Result<ListPromptsResult, ErrorData> {
        let prompts = |asking: &Asking| self.visible_prompts(asking);
        list!(ListPromptsResult, self, &context, request, Action::ListPrompts, prompts)
    }

    async fn get_prompt(
        &self,
        request: GetPromptRequestParams,
        context: RequestContext<RoleServer>,
    ) -> Result<GetPromptResponse, ErrorData> {
        let mut response = self.fetch_prompt(request, context.clone()).await?;
        if let GetPromptResponse::Complete(result) = &mut response {
            identify_server(&context, &mut result.meta);
        }
        Ok(response)
    }

    async fn list_resources(
        &self,
        request: Option<PaginatedRequestParams>,
        context: RequestContext<RoleServer>,
    ) -> Result<ListResourcesResult, ErrorData> {
        let resources = |asking: &Asking| self.visible_resources(asking);
        list!(ListResourcesResult, self, &context, request, Action::ListResources, resources)
    }

    async fn list_resource_templates(
        &self,
        request: Option<PaginatedRequestParams>,
        context: RequestContext<RoleServer>,
    ) -> Result<ListResourceTemplatesResult, ErrorData> {
        let templates = |asking: &Asking| self.visible_templates(asking);
        let action = Action::ListResources;
        list!(ListResourceTemplatesResult, self, &context, request, action, templates)
    }

    async fn read_resource(
        &self,
        request: ReadResourceRequestParams,
        context: RequestContext<RoleServer>,
    ) -> Result<ReadResourceResponse, ErrorData> {
        let mut response = self.fetch_resource(request, context.clone()).await?;
        if let ReadResourceResponse::Complete(result) = &mut response {
            identify_server(&context, &mut result.meta);
        }
        Ok(response)
    }

    async fn complete(
        &self,
        request: CompleteRequestParams,
        context: RequestContext<RoleServer>,
    ) -> Result<CompleteResult, ErrorData> {
        let mut result = self.complete_argument(request, context.clone()).await?;
        identify_server(&context, &mut result.meta);
        Ok(result)
    }

    async fn set_level(
        &self,
        _request: SetLevelRequestParams,
        context: RequestContext<RoleServer>,
    ) -> Result<(), ErrorData> {
        self.check(&context, Action::UseSession, &Resource::default())?;
        if self.inner.providers.iter().any(|provider| provider.logs()) {
            return Ok(());
        }
        let message = "this server sends no log messages";
        Err(ErrorData::new(ErrorCode::METHOD_NOT_FOUND, message, None))
    }

    fn accepted_subscription_filter(
        &self,
        requested: &SubscriptionFilter,
    ) -> Option<SubscriptionFilter> {
        Some(self.accept_filter(requested))
    }

    async fn listen(&self, context: SubscriptionContext) -> Result<(), ErrorData> {
        self.stream_changes(context).await
    }

    async fn subscribe(
        &self,
        request: SubscribeRequestParams,
        context: RequestContext<RoleServer>,
    ) -> Result<(), ErrorData> {
        self.check_subscription(&self.asked_by(&context)?, &request.uri)?;
        self.subscribe_session(request.uri)
    }

    async fn unsubscribe(
        &self,
        request: UnsubscribeRequestParams,
        context: RequestContext<RoleServer>,
    ) -> Result<(), ErrorData> {
        self.check(&context, Action::UseSession, &Resource::default())?;
        self.unsubscribe_session(&request.uri);
        Ok(())
    }

    async fn initialize(
        &self,
        request: InitializeRequestParams,
        context: RequestContext<RoleServer>,
    ) -> Result<InitializeResult, ErrorData> {
        let asking = self.check(&context, Action::UseSession, &Resource::default())?;
        context.peer.set_peer_info(request.clone());
        // Start now, because the client's next message may reach another replica.
        self.start_session_notices(context.peer, asking);
        self.negotiate_initialize(&request)
    }

    async fn discover(
        &self,
        context: RequestContext<RoleServer>,
    ) -> Result<DiscoverResult, ErrorData> {
        self.check(&context, Action::UseSession, &Resource::default())?;
        let versions = self.supported_protocol_versions().into_owned();
        Ok(DiscoverResult::from_server_info(versions, self.get_info()))
    }

    async fn ping(&self, context: RequestContext<RoleServer>) -> Result<(), ErrorData> {
        self.check(&context, Action::UseSession, &Resource::default()).map(drop)
    }

    async fn call_tool(
        &self,
        request: CallToolRequestParams,
        context: RequestContext<RoleServer>,
    ) -> Result<CallToolResponse, ErrorData> {
        let (invocation, record) = Invocation::receive(self, request, context);
        let result = self.invoke(invocation).instrument(record.log_span()).await;

        record.finish(result)
    }

    async fn get_task(
        &self,
        request: GetTaskParams,
        context: RequestContext<RoleServer>,
    ) -> Result<GetTaskResult, ErrorData> {
        let mut result = self.read_task(&request.task_id, &context).await?;
        identify_server(&context, &mut result.meta);
        Ok(result)
    }

    async fn update_task(
        &self,
        request: UpdateTaskParams,
        context: RequestContext<RoleServer>,
    ) -> Result<(), ErrorData> {
        self.answer_task(request, &context).await
    }

    async fn cancel_task(
        &self,
        request: CancelTaskParams,
        context: RequestContext<RoleServer>,
    ) -> Result<(), ErrorData> {
        self.end_task(&request.task_id, &context).await
    }

    async fn list_skills(
        &self,
        request: Option<PaginatedRequestParams>,
        context: RequestContext<RoleServer>,
    ) -> Result<ListSkillsResult, ErrorData> {
        self.check(&context, Action::ListResources, &Resource::default())?;
        let request = ClientRequest::ListSkillsRequest(ListSkillsRequest::with_param(
            request.unwrap_or_default(),
        ));
        let (server, result) = self.forward_skills_request(request, &context).await?;
        let mut result = forward::read_skills(&server, result)?;
        let asking = self.asked_by(&context)?;
        result.skills.retain(|skill| asking.sees_uri(&server, &skill.uri));
        identify_server(&context, &mut result.meta);
        Ok(result)
    }

    async fn get_skill(
        &self,
        request: GetSkillRequestParams,
        context: RequestContext<RoleServer>,
    ) -> Result<GetSkillResult, ErrorData> {
        let request = ClientRequest::GetSkillRequest(GetSkillRequest::new(request));
        let (server, result) = self.forward_skills_request(request, &context).await?;
        let mut result = forward::read_skill(&server, result)?;
        identify_server(&context, &mut result.meta);
        Ok(result)
    }

    async fn read_resource_directory(
        &self,
        request: ReadResourceDirectoryRequestParams,
        context: RequestContext<RoleServer>,
    ) -> Result<ListResourcesResult, ErrorData> {
        let request = ReadResourceDirectoryRequest::new(request);
        let request = ClientRequest::ReadResourceDirectoryRequest(request);
        let (server, result) = self.forward_skills_request(request, &context).await?;
        let mut result = forward::read_directory(&server, &self.inner.fleet.routes(), result)?;
        let asking = self.asked_by(&context)?;
        result.resources.retain(|resource| asking.sees_uri(&server, &resource.uri));
        identify_server(&context, &mut result.meta);
        Ok(result)
    }

    async fn on_custom_request(
        &self,
        request: CustomRequest,
        context: RequestContext<RoleServer>,
    ) -> Result<CustomResult, ErrorData> {
        self.forward_custom_request(request, context).await
    }
}

//! The MCP server as clients see it: its own tools, prompts and resources and those of the hosted
//! servers, in one list.

#![expect(
    deprecated,
    reason = "clients and servers of older revisions still ask for what newer ones have not"
)]

use std::{
    sync::{Arc, OnceLock},
    time::{Duration, Instant},
};

use fleet_hosting::{
    Fleet, apps,
    follow::MODERN,
    forward,
    registry::{Shared, presence::Presence},
    routes::Route,
};
use fleet_job::{size::clipped, tool_name};
use fleet_jobs::Tasks;
use http::request::Parts;
use rmcp::{
    RoleServer, ServerHandler,
    model::{
        CacheScope, CallToolRequest, CallToolRequestParams, CallToolResponse, CancelTaskParams,
        ClientRequest, CompleteRequestParams, CompleteResult, CustomRequest, CustomResult,
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

use crate::{
    UNAVAILABLE_KEY,
    metrics::{OPERATION_DURATION, TOOL_CALLS},
    provider::Provider,
    repeat::{Key, Repeats},
};

mod content;
mod extensions;
mod labels;
mod listen;
mod tasks;
mod traces;

use labels::Labels;
pub(crate) use tasks::WatchedTasks;

/// No tool or prompt has a longer name. What errors repeat of a name is no longer than this.
const MAX_NAME: usize = 256;

/// The outcome of a call that went well.
const OK: &str = "ok";
/// In a result's `_meta`: who answers.
const SERVER_INFO: &str = "io.modelcontextprotocol/serverInfo";

/// The handler behind every transport. Clones share everything.
#[derive(Clone)]
pub struct Gateway {
    inner: Arc<Inner>,
    /// What belongs to one session of the older protocol.
    session: Arc<listen::Session>,
}

struct Inner {
    providers: Vec<Box<dyn Provider>>,
    fleet: Arc<Fleet>,
    repeats: Option<Repeats>,
    shared: Option<Arc<Shared>>,
    tasks: OnceLock<Tasks>,
    labels: Labels,
}

impl Gateway {
    /// A gateway to what these providers and the fleet have, which answers a repeat of a job's call
    /// within `window` from memory, of which it takes `max_bytes` at most. A window of zero is
    /// none. Where there is a registry, it is asked for servers that are not hosted here.
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
            labels: Labels::default(),
        };
        Self { inner: Arc::new(inner), session: Arc::default() }
    }

    /// The same gateway, in which calls that take long become tasks.
    #[must_use]
    pub fn with_tasks(self, tasks: Tasks) -> Self {
        // A second time would change nothing.
        self.inner.tasks.get_or_init(|| tasks);
        self
    }

    /// The same gateway for another session.
    #[must_use]
    pub fn for_session(&self) -> Self {
        Self { inner: self.inner.clone(), session: Arc::default() }
    }

    /// Answers a call from memory where it is a repeat, and makes it where it is not.
    async fn call_once(
        &self,
        params: CallToolRequestParams,
        context: RequestContext<RoleServer>,
    ) -> Result<CallToolResponse, ErrorData> {
        let always_runs =
            self.provider_of(&params.name).is_some_and(|provider| provider.always_runs());
        let Some(repeats) = self.inner.repeats.as_ref().filter(|_| !always_runs) else {
            return self.call(params, context).await;
        };
        let headers = context.extensions.get::<Parts>().map(|parts| &parts.headers);
        let Some(key) = Key::of(&params, &context.meta, headers) else {
            return self.call(params, context).await;
        };
        let cancelled = context.ct.clone();
        let limit = self.inner.fleet.longest_call(&params.name);
        let answer = repeats.answer(key, limit, &cancelled, self.call(params, context)).await;
        answer.unwrap_or_else(|error| {
            let data = serde_json::json!({ "reason": error.reason() });
            Err(ErrorData::internal_error(error.to_string(), Some(data)))
        })
    }

    async fn call(
        &self,
        mut params: CallToolRequestParams,
        context: RequestContext<RoleServer>,
    ) -> Result<CallToolResponse, ErrorData> {
        if let Some(provider) = self.provider_of(&params.name) {
            return provider.call_tool(params, context).await;
        }
        let fleet = &self.inner.fleet;
        let name = &params.name;
        if name.len() > MAX_NAME {
            return Err(unknown(&format!("unknown tool `{}`", clipped(name, MAX_NAME))));
        }
        let routed = |route: &Route<Tool>| {
            (route.server.clone(), route.name.clone(), may_repeat(&route.listed))
        };
        let known = fleet.routes().tool(name).map(routed);
        let (server, tool, may_repeat) = match (known, tool_name::server_of(name)) {
            (Some(route), _) => route,
            (None, Some(server)) => {
                // Its tools are known once it runs.
                if !self.find(server, name).await? {
                    return Err(forward::unknown_server(server, name));
                }
                fleet.connection(server).await.map_err(|error| forward::down_for(name, &error))?;
                let Some(route) = fleet.routes().tool(name).map(routed) else {
                    return Err(unknown(&format!("server `{server}` has no tool `{name}`")));
                };
                route
            }
            (None, None) => return Err(unknown(&format!("unknown tool `{name}`"))),
        };
        params.name = tool.into();
        params.meta = None;
        params
            .arguments
            .iter_mut()
            .for_each(|arguments| apps::restore_in_object(&server, arguments));
        let again = may_repeat.then(|| params.clone());
        match (self.call_hosted(&server, params, &context).await, again) {
            // The server died under a call that does no harm twice: it is started again, and asked
            // again, once.
            (Err(error), Some(params)) if forward::is_lost(&error) => {
                tracing::info!(server, tool = %params.name, "a call is made again after its server was lost");
                self.call_hosted(&server, params, &context).await
            }
            (result, _) => result,
        }
    }

    /// Looks for a server whose tools or prompts are not known here: whether there is such a one.
    ///
    /// # Errors
    ///
    /// Where it is known and not there, or where nobody can know yet.
    async fn find(&self, server: &str, what: &str) -> Result<bool, ErrorData> {
        let Some(shared) = &self.inner.shared else {
            return Ok(self.inner.fleet.is_hosted(server));
        };
        match shared.look_for(server).await {
            Presence::Hosted => Ok(true),
            Presence::Unknown => Ok(false),
            Presence::Awaited { reason, retry_after } => {
                let message = format!(
                    "`{what}` can't be called: server `{server}` is not available: {reason}"
                );
                Err(forward::server_unavailable(server, message, retry_after))
            }
        }
    }

    async fn call_hosted(
        &self,
        server: &str,
        params: CallToolRequestParams,
        context: &RequestContext<RoleServer>,
    ) -> Result<CallToolResponse, ErrorData> {
        let (span, context) = traces::passed_on(server, &params.name, context);
        let request = ClientRequest::CallToolRequest(CallToolRequest::new(params));
        let forwarded = forward::forward(&self.inner.fleet, server, request, &context).await;
        let result = forwarded.and_then(|result| forward::tool_result(server, result));
        traces::answered(&span, outcome(&result), &result);
        result
    }

    /// The provider that has a tool.
    fn provider_of(&self, tool: &str) -> Option<&dyn Provider> {
        self.inner.providers.iter().find(|provider| provider.has_tool(tool)).map(AsRef::as_ref)
    }

    /// In the `_meta` of lists: the servers that can't be relied on now.
    fn warning(&self) -> Option<MetaObject> {
        let unavailable = self.inner.fleet.unavailable();
        if unavailable.is_empty() {
            return None;
        }
        let mut meta = MetaObject::new();
        meta.insert(UNAVAILABLE_KEY.to_owned(), serde_json::to_value(&unavailable).ok()?);
        Some(meta)
    }
}

/// Whether a tool says of itself that calling it twice is as good as calling it once.
fn may_repeat(tool: &Tool) -> bool {
    let hints = tool.annotations.as_ref();
    hints.is_some_and(|hints| {
        hints.read_only_hint == Some(true) || hints.idempotent_hint == Some(true)
    })
}

/// How a call went, as metrics and spans name it.
fn outcome(result: &Result<CallToolResponse, ErrorData>) -> &'static str {
    match result {
        Ok(CallToolResponse::Complete(result)) if result.is_error == Some(true) => "tool-error",
        Ok(_) => OK,
        Err(error) if error.code == ErrorCode::INVALID_PARAMS => "invalid",
        Err(_) => "error",
    }
}

fn unknown(message: &str) -> ErrorData {
    ErrorData::invalid_params(message.to_owned(), None)
}

/// This server as clients see it.
pub(crate) fn own_info() -> Implementation {
    Implementation::new("mcp-fleet", env!("CARGO_PKG_VERSION")).with_title("mcp-fleet server")
}

/// Says in a result who answers, as results should from 2026-07-28 on. To the client that is this
/// server; what a hosted one says of itself is in its status.
fn identify(context: &RequestContext<RoleServer>, meta: &mut Option<MetaObject>) {
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

/// Whether a request is of the protocol without sessions.
pub(crate) fn is_modern(context: &RequestContext<RoleServer>) -> bool {
    context.protocol_version().is_some_and(|version| version.as_str() >= MODERN.as_str())
}

/// Every list has one page.
fn first_page(request: Option<PaginatedRequestParams>) -> Result<(), ErrorData> {
    if request.is_some_and(|request| request.cursor.is_some()) {
        return Err(ErrorData::invalid_params("unknown cursor: the list has one page", None));
    }
    Ok(())
}

/// A list that is true for now, and for this caller.
macro_rules! list {
    ($result:ident, $gateway:ident, $context:expr, $request:ident, $items:expr) => {{
        first_page($request)?;
        let mut result =
            $result::with_all_items($items).with_ttl_ms(0).with_cache_scope(CacheScope::Private);
        result.meta = $gateway.warning();
        identify($context, &mut result.meta);
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
        self.inner.fleet.routes().extensions().put_into(&mut capabilities);
        ServerConfig::new(capabilities).with_server_info(own_info()).with_instructions(
            "A gateway to MCP servers. Tools of hosted servers are named <server>__<tool>; server_initialize hosts \
             another one, server_status says how they are.",
        )
    }

    fn get_tool(&self, name: &str) -> Option<Tool> {
        let own = self.inner.providers.iter().find_map(|provider| provider.tool(name));
        own.or_else(|| self.inner.fleet.routes().tool(name).map(|route| route.listed.clone()))
    }

    async fn list_tools(
        &self,
        request: Option<PaginatedRequestParams>,
        context: RequestContext<RoleServer>,
    ) -> Result<ListToolsResult, ErrorData> {
        let own = self.inner.providers.iter().flat_map(|provider| provider.tools());
        let all = own.chain(self.inner.fleet.routes().tools().cloned()).collect();
        list!(ListToolsResult, self, &context, request, all)
    }

    async fn list_prompts(
        &self,
        request: Option<PaginatedRequestParams>,
        context: RequestContext<RoleServer>,
    ) -> Result<ListPromptsResult, ErrorData> {
        list!(ListPromptsResult, self, &context, request, self.prompts())
    }

    async fn get_prompt(
        &self,
        request: GetPromptRequestParams,
        context: RequestContext<RoleServer>,
    ) -> Result<GetPromptResponse, ErrorData> {
        let mut response = self.prompt(request, context.clone()).await?;
        if let GetPromptResponse::Complete(result) = &mut response {
            identify(&context, &mut result.meta);
        }
        Ok(response)
    }

    async fn list_resources(
        &self,
        request: Option<PaginatedRequestParams>,
        context: RequestContext<RoleServer>,
    ) -> Result<ListResourcesResult, ErrorData> {
        list!(ListResourcesResult, self, &context, request, self.resources())
    }

    async fn list_resource_templates(
        &self,
        request: Option<PaginatedRequestParams>,
        context: RequestContext<RoleServer>,
    ) -> Result<ListResourceTemplatesResult, ErrorData> {
        list!(ListResourceTemplatesResult, self, &context, request, self.templates())
    }

    async fn read_resource(
        &self,
        request: ReadResourceRequestParams,
        context: RequestContext<RoleServer>,
    ) -> Result<ReadResourceResponse, ErrorData> {
        let mut response = self.resource(request, context.clone()).await?;
        if let ReadResourceResponse::Complete(result) = &mut response {
            identify(&context, &mut result.meta);
        }
        Ok(response)
    }

    async fn complete(
        &self,
        request: CompleteRequestParams,
        context: RequestContext<RoleServer>,
    ) -> Result<CompleteResult, ErrorData> {
        let mut result = self.completions(request, context.clone()).await?;
        identify(&context, &mut result.meta);
        Ok(result)
    }

    async fn set_level(
        &self,
        _request: SetLevelRequestParams,
        _context: RequestContext<RoleServer>,
    ) -> Result<(), ErrorData> {
        if self.inner.providers.iter().any(|provider| provider.logs()) {
            return Ok(());
        }
        Err(ErrorData::new(ErrorCode::METHOD_NOT_FOUND, "no logs are sent here", None))
    }

    fn accepted_subscription_filter(
        &self,
        requested: &SubscriptionFilter,
    ) -> Option<SubscriptionFilter> {
        Some(self.acceptable(requested))
    }

    async fn listen(&self, context: SubscriptionContext) -> Result<(), ErrorData> {
        self.tell_stream(context).await;
        Ok(())
    }

    async fn subscribe(
        &self,
        request: SubscribeRequestParams,
        _context: RequestContext<RoleServer>,
    ) -> Result<(), ErrorData> {
        self.subscribe_session(request.uri)
    }

    async fn unsubscribe(
        &self,
        request: UnsubscribeRequestParams,
        _context: RequestContext<RoleServer>,
    ) -> Result<(), ErrorData> {
        self.unsubscribe_session(&request.uri);
        Ok(())
    }

    async fn initialize(
        &self,
        request: InitializeRequestParams,
        context: RequestContext<RoleServer>,
    ) -> Result<InitializeResult, ErrorData> {
        context.peer.set_peer_info(request.clone());
        // What the client says after this may reach another replica.
        self.tell_session(context.peer);
        self.negotiate_initialize(&request)
    }

    async fn call_tool(
        &self,
        request: CallToolRequestParams,
        mut context: RequestContext<RoleServer>,
    ) -> Result<CallToolResponse, ErrorData> {
        let span = traces::received(&request.name, &mut context);
        let tool = self.inner.labels.of(&request.name, || self.get_tool(&request.name).is_some());
        let kind = if self.provider_of(&request.name).is_some() { "own" } else { "hosted" };
        let started = Instant::now();
        let log = span.log(traces::job_id(&context));
        let calling = async {
            match self.as_task(&request, &context).await {
                Ok(Some(task)) => Ok(task),
                Ok(None) => self.call_once(request, context.clone()).await,
                Err(error) => Err(error),
            }
        };
        let mut result = calling.instrument(log).await;
        if let Ok(CallToolResponse::Complete(result)) = &mut result {
            identify(&context, &mut result.meta);
        }
        let outcome = outcome(&result);
        traces::answered(&span, outcome, &result);
        metrics::counter!(TOOL_CALLS.name, "kind" => kind, "outcome" => outcome).increment(1);
        let labels = [
            ("mcp_method_name", "tools/call".to_owned()),
            ("gen_ai_tool_name", tool.to_string()),
            ("error_type", if outcome == OK { String::new() } else { outcome.to_owned() }),
        ];
        metrics::histogram!(OPERATION_DURATION.name, &labels).record(started.elapsed());
        result
    }

    async fn get_task(
        &self,
        request: GetTaskParams,
        context: RequestContext<RoleServer>,
    ) -> Result<GetTaskResult, ErrorData> {
        let mut result = self.task(&request.task_id, &context).await?;
        identify(&context, &mut result.meta);
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
        let request = ClientRequest::ListSkillsRequest(ListSkillsRequest::with_param(
            request.unwrap_or_default(),
        ));
        let (server, result) = self.skills(request, &context).await?;
        let mut result = forward::skills(&server, result)?;
        identify(&context, &mut result.meta);
        Ok(result)
    }

    async fn get_skill(
        &self,
        request: GetSkillRequestParams,
        context: RequestContext<RoleServer>,
    ) -> Result<GetSkillResult, ErrorData> {
        let request = ClientRequest::GetSkillRequest(GetSkillRequest::new(request));
        let (server, result) = self.skills(request, &context).await?;
        let mut result = forward::skill(&server, result)?;
        identify(&context, &mut result.meta);
        Ok(result)
    }

    async fn read_resource_directory(
        &self,
        request: ReadResourceDirectoryRequestParams,
        context: RequestContext<RoleServer>,
    ) -> Result<ListResourcesResult, ErrorData> {
        let request = ReadResourceDirectoryRequest::new(request);
        let request = ClientRequest::ReadResourceDirectoryRequest(request);
        let (server, result) = self.skills(request, &context).await?;
        let mut result = forward::directory(&server, &self.inner.fleet.routes(), result)?;
        identify(&context, &mut result.meta);
        Ok(result)
    }

    async fn on_custom_request(
        &self,
        request: CustomRequest,
        context: RequestContext<RoleServer>,
    ) -> Result<CustomResult, ErrorData> {
        self.custom(request, context).await
    }
}

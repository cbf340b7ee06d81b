//! The MCP server as clients see it: its own tools and those of the hosted servers, in one list.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use fleet_job::tool_name;
use http::request::Parts;
use rmcp::{
    RoleServer, ServerHandler,
    model::{
        CacheScope, CallToolRequestParams, CallToolResponse, CustomRequest, CustomResult, ErrorCode,
        ErrorData, Implementation, ListToolsResult, MetaObject, PaginatedRequestParams, ServerCapabilities,
        ServerConfig, Tool,
    },
    service::RequestContext,
};

use crate::{
    UNAVAILABLE_KEY, call,
    hosting::Fleet,
    metrics::{TOOL_CALL_DURATION, TOOL_CALLS},
    repeat::{Key, Repeats},
    toolkit::Tools,
};

/// Requests of the protocol. rmcp hands one whose parameters it can't read to the handler for unknown methods.
const KNOWN_METHODS: [&str; 16] = [
    "initialize",
    "ping",
    "server/discover",
    "tools/list",
    "tools/call",
    "prompts/list",
    "prompts/get",
    "resources/list",
    "resources/read",
    "resources/templates/list",
    "resources/subscribe",
    "resources/unsubscribe",
    "completion/complete",
    "logging/setLevel",
    "subscriptions/listen",
    "tasks/get",
];

/// The handler behind every transport. Clones share everything.
#[derive(Clone)]
pub struct Gateway {
    inner: Arc<Inner>,
}

struct Inner {
    toolkits: Vec<Box<dyn Tools>>,
    fleet: Arc<Fleet>,
    repeats: Option<Repeats>,
}

impl Gateway {
    /// A gateway to these tools and those of the fleet, which remembers no results.
    pub fn new(toolkits: Vec<Box<dyn Tools>>, fleet: Arc<Fleet>) -> Self {
        Self { inner: Arc::new(Inner { toolkits, fleet, repeats: None }) }
    }

    /// A gateway that answers a repeat of a job's call within `window` from memory, of which it takes `max_bytes` at
    /// most. A window of zero is none.
    pub fn remembering(
        toolkits: Vec<Box<dyn Tools>>,
        fleet: Arc<Fleet>,
        window: Duration,
        max_bytes: u64,
    ) -> Self {
        let repeats = (!window.is_zero()).then(|| Repeats::new(window, max_bytes));
        Self { inner: Arc::new(Inner { toolkits, fleet, repeats }) }
    }

    /// Answers a call from memory where it is a repeat, and makes it where it is not.
    async fn call_once(
        &self,
        params: CallToolRequestParams,
        context: RequestContext<RoleServer>,
    ) -> Result<CallToolResponse, ErrorData> {
        let always_runs =
            self.inner.toolkits.iter().any(|kit| kit.always_runs() && kit.get(&params.name).is_some());
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
        let name = params.name.to_string();
        for toolkit in &self.inner.toolkits {
            let arguments = params.arguments.clone().unwrap_or_default();
            if let Some(result) = toolkit.call(&name, context.clone(), arguments) {
                return Ok(result.await.into());
            }
        }
        let fleet = &self.inner.fleet;
        let routes = fleet.routes();
        let server = match routes.get(&name) {
            Some(route) => {
                params.name = route.tool.clone();
                route.server.clone()
            }
            None => match tool_name::server_of(&name) {
                Some(server) => {
                    // Its tools are known once it runs. Where it can't, or is not hosted (yet: the job that hosts it may
                    // still be on its way), that is what the caller should hear, and may try again.
                    fleet.connection(server).await.map_err(|error| call::down(&error))?;
                    let Some(route) = fleet.routes().get(&name).cloned() else {
                        return Err(unknown(&format!("server `{server}` has no tool `{name}`")));
                    };
                    params.name = route.tool;
                    route.server
                }
                None => return Err(unknown(&format!("unknown tool `{name}`"))),
            },
        };
        call::forward(fleet, &server, params, &context).await
    }

    fn is_own(&self, name: &str) -> bool {
        self.inner.toolkits.iter().any(|toolkit| toolkit.get(name).is_some())
    }
}

fn unknown(message: &str) -> ErrorData {
    ErrorData::invalid_params(message.to_owned(), None)
}

impl ServerHandler for Gateway {
    fn get_info(&self) -> ServerConfig {
        let own = Implementation::new("mcp-fleet", env!("CARGO_PKG_VERSION")).with_title("mcp-fleet server");
        ServerConfig::new(ServerCapabilities::builder().enable_tools().build()).with_server_info(own).with_instructions(
            "A gateway to MCP servers. Tools of hosted servers are named <server>__<tool>; server_initialize hosts \
             another one, server_status says how they are.",
        )
    }

    fn get_tool(&self, name: &str) -> Option<Tool> {
        let own = self.inner.toolkits.iter().find_map(|toolkit| toolkit.get(name));
        own.or_else(|| self.inner.fleet.routes().get(name).map(|route| route.listed.clone()))
    }

    async fn list_tools(
        &self,
        request: Option<PaginatedRequestParams>,
        _context: RequestContext<RoleServer>,
    ) -> Result<ListToolsResult, ErrorData> {
        if request.is_some_and(|request| request.cursor.is_some()) {
            return Err(ErrorData::invalid_params("unknown cursor: the list of tools has one page", None));
        }
        let mut tools: Vec<Tool> = self.inner.toolkits.iter().flat_map(|toolkit| toolkit.list()).collect();
        tools.extend(self.inner.fleet.routes().tools().cloned());
        let mut result =
            ListToolsResult::with_all_items(tools).with_ttl_ms(0).with_cache_scope(CacheScope::Private);
        let unavailable = self.inner.fleet.unavailable();
        if let Ok(value) = serde_json::to_value(&unavailable)
            && !unavailable.is_empty()
        {
            result.meta.get_or_insert_with(MetaObject::new).insert(UNAVAILABLE_KEY.to_owned(), value);
        }
        Ok(result)
    }

    async fn call_tool(
        &self,
        request: CallToolRequestParams,
        context: RequestContext<RoleServer>,
    ) -> Result<CallToolResponse, ErrorData> {
        let kind = if self.is_own(&request.name) { "own" } else { "hosted" };
        let started = Instant::now();
        let result = self.call_once(request, context).await;
        let outcome = match &result {
            Ok(CallToolResponse::Complete(result)) if result.is_error == Some(true) => "tool-error",
            Ok(_) => "ok",
            Err(error) if error.code == ErrorCode::INVALID_PARAMS => "invalid",
            Err(_) => "error",
        };
        metrics::counter!(TOOL_CALLS.name, "kind" => kind, "outcome" => outcome).increment(1);
        metrics::histogram!(TOOL_CALL_DURATION.name, "kind" => kind).record(started.elapsed());
        result
    }

    async fn on_custom_request(
        &self,
        request: CustomRequest,
        _context: RequestContext<RoleServer>,
    ) -> Result<CustomResult, ErrorData> {
        if KNOWN_METHODS.contains(&request.method.as_str()) {
            let message = format!("the parameters of {} are not valid", request.method);
            return Err(ErrorData::invalid_params(message, None));
        }
        Err(ErrorData::new(ErrorCode::METHOD_NOT_FOUND, format!("unknown method `{}`", request.method), None))
    }
}

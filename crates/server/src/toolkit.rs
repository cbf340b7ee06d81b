//! Tools as plain functions: a typed struct for the arguments, one async function, one line of
//! registration.
//!
//! `rmcp` has macros for that, but a gateway answers for tools that it learns at run time, so its
//! `ServerHandler` is written by hand and asks this registry first. Schemas are derived from the
//! types, arguments are read into them, and a tool's failure becomes an error result that says
//! whether trying again can help.

use std::{borrow::Cow, collections::BTreeMap, pin::Pin, sync::Arc, time::Duration};

use fleet_hosting::forward;
use fleet_job::{meta, number, size::clipped};
use fleet_ops::blocking::WorkLost;
use rmcp::{
    RoleServer,
    handler::server::common::{schema_for_input, schema_for_output},
    model::{
        CallToolRequestParams, CallToolResponse, CallToolResult, ContentBlock, ErrorData,
        JsonObject, MetaObject, Tool, ToolAnnotations,
    },
    service::RequestContext,
};
use schemars::JsonSchema;
use serde::{Serialize, de::DeserializeOwned};
use serde_json::Value;

use crate::provider::{Answer, Provider};

/// What stands in the tool list beside the schemas.
#[derive(Debug, Clone)]
pub struct ToolSpec {
    /// The tool's name.
    pub name: &'static str,
    /// A short title for people.
    pub title: &'static str,
    /// What it does, for people and models.
    pub description: &'static str,
    /// What calling it can do to the world.
    pub effect: Effect,
}

/// What calling a tool can do to the world; becomes the tool's annotations.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect {
    /// It only looks.
    ReadOnly,
    /// It changes something, and more so when it is done twice. Reaches outside of this server.
    Change,
    /// It changes something, and doing it twice is the same as doing it once. Reaches outside of
    /// this server.
    IdempotentChange,
    /// It takes something away, and doing it twice is the same as doing it once.
    IdempotentRemoval,
}

impl Effect {
    fn annotations(self, title: &str) -> ToolAnnotations {
        let base = ToolAnnotations::with_title(title).idempotent(true);
        match self {
            Self::ReadOnly => base.read_only(true).destructive(false).open_world(false),
            Self::Change => {
                base.idempotent(false).read_only(false).destructive(false).open_world(true)
            }
            Self::IdempotentChange => base.read_only(false).destructive(false).open_world(true),
            Self::IdempotentRemoval => base.read_only(false).destructive(true).open_world(false),
        }
    }
}

/// Why a tool could not do what it was asked. It becomes a result with `isError: true`.
#[derive(Debug, Clone, PartialEq)]
pub struct ToolFailure {
    message: String,
    is_final: bool,
    details: Option<Value>,
    /// Where nothing is wrong but that a server can't be reached: which one, and when to try again.
    unreachable: Option<(String, Duration)>,
}

impl From<WorkLost> for ToolFailure {
    fn from(error: WorkLost) -> Self {
        Self::transient(format!("the work was lost: {error}"))
    }
}

impl ToolFailure {
    /// The caller's own fault: trying the same again can't help.
    pub fn permanent(message: impl Into<String>) -> Self {
        Self {
            message: clip_message(message.into()),
            is_final: true,
            details: None,
            unreachable: None,
        }
    }

    /// Something that may be otherwise the next time.
    pub fn transient(message: impl Into<String>) -> Self {
        Self {
            message: clip_message(message.into()),
            is_final: false,
            details: None,
            unreachable: None,
        }
    }

    /// Nothing is wrong with what was asked for, but that something can't be reached that `server`
    /// needs. A job waits then.
    pub fn unavailable(message: impl Into<String>, server: &str, retry_after: Duration) -> Self {
        Self { unreachable: Some((server.to_owned(), retry_after)), ..Self::transient(message) }
    }

    /// The same failure with details for programs.
    #[must_use]
    pub fn with_details(mut self, details: Value) -> Self {
        self.details = Some(details);
        self
    }

    /// The failure as the answer to a call: a tool result, or an error that says that the call may
    /// wait.
    fn into_tool_answer(self) -> Result<CallToolResult, ErrorData> {
        match &self.unreachable {
            Some((server, retry_after)) => {
                Err(forward::server_unavailable(server, self.message.clone(), *retry_after))
            }
            None => Ok(self.into_result()),
        }
    }

    /// The failure as a tool result.
    pub fn into_result(self) -> CallToolResult {
        let mut result = CallToolResult::error(vec![ContentBlock::text(self.message)]);
        let mut meta = MetaObject::new();
        if self.is_final {
            meta.insert(meta::FINAL.to_owned(), true.into());
        }
        if let Some(details) = self.details {
            meta.insert(meta::ERROR_DETAILS.to_owned(), details);
        }
        result.meta = (!meta.is_empty()).then_some(meta);
        result
    }
}

/// The longest message of a failure. It may repeat a part of the arguments, however long that is.
const MAX_MESSAGE: usize = 8 * 1024;

fn clip_message(message: String) -> String {
    match clipped(&message, MAX_MESSAGE) {
        Cow::Borrowed(_) => message,
        Cow::Owned(start) => start,
    }
}

type ToolAnswer = Result<CallToolResult, ErrorData>;
type BoxFuture<T> = Pin<Box<dyn Future<Output = T> + Send>>;
type Handler<S> = Arc<
    dyn Fn(Arc<S>, RequestContext<RoleServer>, JsonObject) -> BoxFuture<ToolAnswer> + Send + Sync,
>;

/// Tools by name, over a state that they share.
pub struct Toolkit<S> {
    state: Arc<S>,
    tools: BTreeMap<&'static str, (Tool, Handler<S>)>,
    always_runs: bool,
}

impl<S: Send + Sync + 'static> Toolkit<S> {
    /// A toolkit without tools.
    pub fn new(state: Arc<S>) -> Self {
        Self { state, tools: BTreeMap::new(), always_runs: false }
    }

    /// The toolkit as one whose results are never remembered: what its tools do or say depends on
    /// how things are now.
    #[must_use]
    pub fn always_runs(mut self) -> Self {
        self.always_runs = true;
        self
    }

    /// The toolkit with one tool more.
    #[must_use]
    pub fn with<A, R, F, Fut>(mut self, spec: &ToolSpec, function: F) -> Self
    where
        A: DeserializeOwned + JsonSchema + Send + 'static,
        R: Serialize + JsonSchema + 'static,
        F: Fn(Arc<S>, RequestContext<RoleServer>, A) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<R, ToolFailure>> + Send + 'static,
    {
        let input = schema_for_input::<A>().unwrap_or_else(|error| {
            // The type is fixed at compile time and every toolkit is built in tests.
            unreachable!("the arguments of {} are no object: {error}", spec.name)
        });
        let tool = Tool::new(spec.name, spec.description, input)
            .with_title(spec.title)
            .with_raw_output_schema(schema_for_output::<R>())
            .with_annotations(spec.effect.annotations(spec.title));
        let function = Arc::new(function);
        let name = spec.name;
        let handler: Handler<S> = Arc::new(move |state, context, arguments| {
            let function = function.clone();
            Box::pin(async move {
                let arguments = match number::read::<A>(Value::Object(arguments)) {
                    Ok(arguments) => arguments,
                    Err(error) => {
                        let message = format!("invalid arguments of `{name}`: {error}");
                        return Ok(ToolFailure::permanent(message).into_result());
                    }
                };
                match function(state, context, arguments).await {
                    Ok(output) => Ok(structured_result(&output)),
                    Err(failure) => failure.into_tool_answer(),
                }
            })
        });
        self.tools.insert(spec.name, (tool, handler));
        self
    }
}

fn structured_result<R: Serialize>(output: &R) -> CallToolResult {
    match serde_json::to_value(output) {
        Ok(value) => CallToolResult::structured(value),
        Err(error) => {
            ToolFailure::permanent(format!("the result can't be written as JSON: {error}"))
                .into_result()
        }
    }
}

impl<S: Send + Sync + 'static> Provider for Toolkit<S> {
    fn tools(&self) -> Vec<Tool> {
        self.tools.values().map(|(tool, _)| tool.clone()).collect()
    }

    fn tool(&self, name: &str) -> Option<Tool> {
        self.tools.get(name).map(|(tool, _)| tool.clone())
    }

    fn has_tool(&self, name: &str) -> bool {
        self.tools.contains_key(name)
    }

    fn always_runs(&self) -> bool {
        self.always_runs
    }

    fn call_tool(
        &self,
        params: CallToolRequestParams,
        context: RequestContext<RoleServer>,
    ) -> Answer<CallToolResponse> {
        let Some((_, handler)) = self.tools.get(&*params.name) else {
            let message = format!("unknown tool `{}`", params.name);
            return Box::pin(async move { Err(ErrorData::invalid_params(message, None)) });
        };
        let result = handler(self.state.clone(), context, params.arguments.unwrap_or_default());
        Box::pin(async move { Ok(result.await?.into()) })
    }
}

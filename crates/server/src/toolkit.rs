//! Tools as plain functions: a typed struct for the arguments, one async function, and one line of
//! registration.
//!
//! `rmcp` has macros for this, but a gateway also serves tools that it learns of at run time, so
//! its `ServerHandler` is written by hand and consults toolkits first. Schemas are derived from
//! types, arguments are deserialized into them, and a failure becomes an error result that says
//! whether a retry can help.

use std::{borrow::Cow, collections::BTreeMap, pin::Pin, sync::Arc};

use fleet_access::Annotations;
use fleet_hosting::{forward, outage::Outage};
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

use crate::{
    gateway::annotations_of,
    provider::{Answer, Provider, ToolRight},
};

/// A tool's entry in the tool list, apart from its schemas.
#[derive(Debug, Clone)]
pub struct ToolSpec {
    /// The name by which clients call it.
    pub name: &'static str,
    /// A short title for people.
    pub title: &'static str,
    /// What it does, for people and models.
    pub description: &'static str,
    /// The effect of a call.
    pub effect: Effect,
}

/// The effect of a call, from which the tool's annotations are made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect {
    /// It changes nothing.
    ReadOnly,
    /// It changes something outside this server, and a second call changes it again.
    Change,
    /// It changes something outside this server, and a second call has no further effect.
    IdempotentChange,
    /// It removes something, and a second call has no further effect.
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

/// Why a tool could not do its work. It becomes a result with `isError: true`.
#[derive(Debug, Clone, PartialEq)]
pub struct ToolFailure {
    message: String,
    is_final: bool,
    details: Option<Value>,
    /// The answer that the caller gets instead of a tool result: an error that says why the call
    /// was not made.
    error: Option<ErrorData>,
}

impl From<WorkLost> for ToolFailure {
    fn from(error: WorkLost) -> Self {
        Self::transient(format!("the operation was aborted: {error}"))
    }
}

impl ToolFailure {
    /// A failure that is the caller's fault, so that repeating the call can't help.
    pub fn permanent(message: impl Into<String>) -> Self {
        Self { message: clip_message(message.into()), is_final: true, details: None, error: None }
    }

    /// A failure that a later call may not meet.
    pub fn transient(message: impl Into<String>) -> Self {
        Self { message: clip_message(message.into()), is_final: false, details: None, error: None }
    }

    /// A valid call that failed because of an outage of `server`, or of something that it needs. A
    /// job waits until the outage is over.
    pub fn outage(message: impl Into<String>, server: &str, outage: Outage) -> Self {
        let failure = Self::transient(message);
        let error = forward::server_outage_error(server, failure.message.clone(), outage);
        Self { error: Some(error), ..failure }
    }

    /// A call that a decision does not allow.
    pub fn refused(error: ErrorData) -> Self {
        Self { error: Some(error.clone()), ..Self::permanent(error.message) }
    }

    /// The same failure with details for programs.
    #[must_use]
    pub fn with_details(mut self, details: Value) -> Self {
        self.details = Some(details);
        self
    }

    /// The failure as the answer to a call: a tool result or, if the call was not made because of
    /// an outage or a decision, an error that says which one.
    fn into_tool_answer(self) -> Result<CallToolResult, ErrorData> {
        match self.error {
            Some(error) => Err(error),
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

/// The longest failure message, in bytes. A message may quote arguments of any length.
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

/// Tools by name, with a state that they share.
pub struct Toolkit<S> {
    state: Arc<S>,
    tools: BTreeMap<&'static str, Entry<S>>,
    always_runs: bool,
}

struct Entry<S> {
    tool: Tool,
    right: ToolRight,
    handler: Handler<S>,
}

impl<S: Send + Sync + 'static> Toolkit<S> {
    /// A toolkit without tools.
    pub fn new(state: Arc<S>) -> Self {
        Self { state, tools: BTreeMap::new(), always_runs: false }
    }

    /// Excludes the toolkit from the repeat memory, because its results depend on the current state
    /// of the server.
    #[must_use]
    pub fn always_runs(mut self) -> Self {
        self.always_runs = true;
        self
    }

    /// Adds a tool.
    #[must_use]
    pub fn with<A, R, F, Fut>(mut self, spec: &ToolSpec, function: F) -> Self
    where
        A: DeserializeOwned + JsonSchema + Send + 'static,
        R: Serialize + JsonSchema + 'static,
        F: Fn(Arc<S>, RequestContext<RoleServer>, A) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<R, ToolFailure>> + Send + 'static,
    {
        let input = schema_for_input::<A>().unwrap_or_else(|error| {
            // The type is fixed at compile time, and tests build every toolkit.
            unreachable!("the arguments of {} are not an object: {error}", spec.name)
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
                        let message = format!("invalid arguments for `{name}`: {error}");
                        return Ok(ToolFailure::permanent(message).into_result());
                    }
                };
                match function(state, context, arguments).await {
                    Ok(output) => Ok(structured_result(&output)),
                    Err(failure) => failure.into_tool_answer(),
                }
            })
        });

        let right = ToolRight::Call(annotations_of(tool.annotations.as_ref()));
        self.tools.insert(spec.name, Entry { tool, right, handler });
        self
    }

    /// Lets the right to call a tool be decided in another way than as a call of it.
    #[must_use]
    pub fn with_right(mut self, spec: &ToolSpec, right: ToolRight) -> Self {
        if let Some(entry) = self.tools.get_mut(spec.name) {
            entry.right = right;
        }
        self
    }
}

fn structured_result<R: Serialize>(output: &R) -> CallToolResult {
    match serde_json::to_value(output) {
        Ok(value) => CallToolResult::structured(value),
        Err(error) => {
            ToolFailure::permanent(format!("could not write the result as JSON: {error}"))
                .into_result()
        }
    }
}

impl<S: Send + Sync + 'static> Provider for Toolkit<S> {
    fn tools(&self) -> Vec<Tool> {
        self.tools.values().map(|entry| entry.tool.clone()).collect()
    }

    fn tool(&self, name: &str) -> Option<Tool> {
        self.tools.get(name).map(|entry| entry.tool.clone())
    }

    fn has_tool(&self, name: &str) -> bool {
        self.tools.contains_key(name)
    }

    fn right(&self, name: &str) -> ToolRight {
        let entry = self.tools.get(name);
        entry.map_or(ToolRight::Call(Annotations::default()), |entry| entry.right)
    }

    fn always_runs(&self) -> bool {
        self.always_runs
    }

    fn call_tool(
        &self,
        params: CallToolRequestParams,
        context: RequestContext<RoleServer>,
    ) -> Answer<CallToolResponse> {
        let Some(Entry { handler, .. }) = self.tools.get(&*params.name) else {
            let message = format!("unknown tool `{}`", params.name);
            return Box::pin(async move { Err(ErrorData::invalid_params(message, None)) });
        };
        let result = handler(self.state.clone(), context, params.arguments.unwrap_or_default());
        Box::pin(async move { Ok(result.await?.into()) })
    }
}

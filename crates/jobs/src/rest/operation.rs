//! An operation of the REST interface, as the table of routes declares it.

use axum::{
    handler::Handler,
    http::Method,
    routing::{MethodFilter, MethodRouter, on},
};
use fleet_access::Action;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde_json::Value;

use super::{
    Api,
    params::{self, Param},
    problem::ProblemKind,
};

/// An operation of the REST interface.
pub struct Operation {
    pub(super) method: Method,
    pub(super) path: &'static str,
    pub(super) id: &'static str,
    /// What a caller does with it. It is decided again about each job.
    pub(super) action: Action,
    pub(super) summary: &'static str,
    pub(super) description: &'static str,
    pub(super) params: &'static [Param],
    pub(super) body: Option<RequestBody>,
    pub(super) answers: Vec<Answer>,
    pub(super) problems: &'static [ProblemKind],
    pub(super) handler: MethodRouter<Api>,
}

/// The JSON body of an operation.
pub struct RequestBody {
    /// The schema of the body.
    pub schema: SchemaOf,
    /// Examples by name.
    pub examples: Vec<(&'static str, Value)>,
    /// Whether there must be a body.
    pub is_required: bool,
}

/// Makes a schema, and the definitions that it refers to.
pub type SchemaOf = fn(&mut SchemaGenerator) -> Schema;

/// A successful answer of an operation.
pub struct Answer {
    pub(super) status: u16,
    pub(super) description: &'static str,
    pub(super) content: Content,
    pub(super) headers: &'static [(&'static str, &'static str)],
    /// Whether the answer contains a job whose id `/jobs/{id}` takes.
    pub(super) leads_to_job: bool,
}

/// The content of an answer.
pub(super) enum Content {
    Nothing,
    /// A schema and an example.
    Json(SchemaOf, Value),
    /// Lines of text of these media types.
    Lines(&'static [&'static str]),
    /// Server-sent events: a description of their ids and names, and the schema of their data.
    Events(&'static str, SchemaOf),
}

impl Answer {
    /// An answer with a JSON value of this type, and an example.
    pub fn json<T: JsonSchema>(status: u16, description: &'static str, example: Value) -> Self {
        Self::new(status, description, Content::Json(schema_of::<T>, example))
    }

    pub(super) fn new(status: u16, description: &'static str, content: Content) -> Self {
        Self { status, description, content, headers: &[], leads_to_job: false }
    }
}

impl std::fmt::Debug for Operation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}", self.method, self.path)
    }
}

/// Problems of every operation: those of the middleware, and of invalid queries.
pub(super) const ALWAYS: [ProblemKind; 10] = [
    ProblemKind::BadRequest,
    ProblemKind::MalformedCredentials,
    ProblemKind::Unauthenticated,
    ProblemKind::Forbidden,
    ProblemKind::Denied,
    ProblemKind::InsufficientScope,
    ProblemKind::BodyTimeout,
    ProblemKind::RateLimited,
    ProblemKind::TooLarge,
    ProblemKind::NoIssuerKeys,
];
impl Operation {
    pub(super) fn new<H, T>(
        method: Method,
        path: &'static str,
        id: &'static str,
        action: Action,
        handler: H,
    ) -> Self
    where
        H: Handler<T, Api>,
        T: 'static,
    {
        let handler = on(filter_of(&method), handler);
        Self::routed(method, path, id, action, handler)
    }

    /// An operation of another crate, whose handler has a state of its own. `action` is what a
    /// caller does with it: nobody gets to the handler who may never do that.
    pub fn with_state<H, T, S>(
        (method, path): (Method, &'static str),
        id: &'static str,
        action: Action,
        handler: H,
        state: S,
    ) -> Self
    where
        H: Handler<T, S>,
        T: 'static,
        S: Clone + Send + Sync + 'static,
    {
        let handler = on(filter_of(&method), handler).with_state(state);
        Self::routed(method, path, id, action, handler)
    }

    /// The same, described by a summary and a description.
    #[must_use]
    pub fn described(self, summary: &'static str, description: &'static str) -> Self {
        Self { summary, description, ..self }
    }

    /// The same with these parameters. Requests with others are refused.
    #[must_use]
    pub fn with_params(self, params: &'static [Param]) -> Self {
        Self { params, ..self }
    }

    /// The same with a body.
    #[must_use]
    pub fn with_body(self, body: RequestBody) -> Self {
        Self { body: Some(body), ..self }
    }

    /// The same with this successful answer and these problems.
    #[must_use]
    pub fn answering(self, answer: Answer, problems: &'static [ProblemKind]) -> Self {
        Self { answers: vec![answer], problems, ..self }
    }

    fn routed(
        method: Method,
        path: &'static str,
        id: &'static str,
        action: Action,
        handler: MethodRouter<Api>,
    ) -> Self {
        Self {
            method,
            path,
            id,
            action,
            summary: "",
            description: "",
            params: params::NONE,
            body: None,
            answers: Vec::new(),
            problems: &[],
            handler,
        }
    }
}

/// The table contains only methods that axum can route.
fn filter_of(method: &Method) -> MethodFilter {
    MethodFilter::try_from(method.clone()).unwrap_or(MethodFilter::GET)
}

/// The schema of a type.
pub fn schema_of<T: JsonSchema>(schemas: &mut SchemaGenerator) -> Schema {
    schemas.subschema_for::<T>()
}

pub(super) fn object_schema(_: &mut SchemaGenerator) -> Schema {
    json_schema!({"type": "object"})
}

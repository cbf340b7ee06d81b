//! An operation of the REST interface, as the table of routes declares it.

use axum::{
    handler::Handler,
    http::Method,
    routing::{MethodFilter, MethodRouter, on},
};
use fleet_access::Action;
use schemars::{Schema, SchemaGenerator, json_schema};
use serde_json::Value;

use super::{
    Api,
    params::{self, Param},
    problem::ProblemKind,
};

/// An operation of the REST interface.
pub(super) struct Operation {
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
pub(super) struct RequestBody {
    pub(super) schema: SchemaOf,
    /// Examples by name.
    pub(super) examples: Vec<(&'static str, Value)>,
    pub(super) is_required: bool,
}

pub(super) type SchemaOf = fn(&mut SchemaGenerator) -> Schema;

/// A successful answer of an operation.
pub(super) struct Answer {
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
    /// Server-sent events: a description of their ids and names, and the schema of their data.
    Events(&'static str, SchemaOf),
}

impl Answer {
    pub(super) fn new(status: u16, description: &'static str, content: Content) -> Self {
        Self { status, description, content, headers: &[], leads_to_job: false }
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
        // The table contains only methods that axum can route.
        let filter = MethodFilter::try_from(method.clone()).unwrap_or(MethodFilter::GET);
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
            handler: on(filter, handler),
        }
    }
}

pub(super) fn schema_of<T: schemars::JsonSchema>(schemas: &mut SchemaGenerator) -> Schema {
    schemas.subschema_for::<T>()
}

pub(super) fn object_schema(_: &mut SchemaGenerator) -> Schema {
    json_schema!({"type": "object"})
}

//! The table of operations: what they are called, what they take, what they can answer, and who
//! answers.

use axum::{
    extract::State,
    handler::Handler,
    http::Method,
    response::{IntoResponse as _, Response},
    routing::{MethodFilter, MethodRouter, on},
};
use fleet_job::view::{Cancellation, JobList, JobView, SubmittedJobs};
use schemars::{Schema, SchemaGenerator, json_schema};
use serde_json::{Value, json};

use super::{
    Api, handlers,
    params::{self, Param},
    problem::ProblemKind,
    sse,
};
use crate::{JobRequest, MAX_JOBS};

/// One operation.
pub(super) struct Operation {
    pub(super) method: Method,
    pub(super) path: &'static str,
    pub(super) id: &'static str,
    pub(super) summary: &'static str,
    pub(super) description: &'static str,
    pub(super) params: &'static [Param],
    /// The schema of a JSON body, and examples by name.
    pub(super) body: Option<(SchemaOf, Vec<(&'static str, Value)>)>,
    pub(super) answers: Vec<Answer>,
    pub(super) problems: &'static [ProblemKind],
    pub(super) handler: MethodRouter<Api>,
}

type SchemaOf = fn(&mut SchemaGenerator) -> Schema;

/// What an operation can answer where nothing is wrong.
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) description: &'static str,
    pub(super) content: Content,
    pub(super) headers: &'static [(&'static str, &'static str)],
    /// Whether the first of its jobs is what `/jobs/{id}` is about.
    pub(super) leads_to_job: bool,
}

/// What stands in an answer.
pub(super) enum Content {
    Nothing,
    Json(SchemaOf, Value),
    /// Server-sent events: what their ids and names are, and the schema of their data.
    Events(&'static str, SchemaOf),
}

impl Answer {
    fn new(status: u16, description: &'static str, content: Content) -> Self {
        Self { status, description, content, headers: &[], leads_to_job: false }
    }
}

/// Problems of every operation: those of whoever stands in front, and of queries that can't be
/// read.
pub(super) const ALWAYS: [ProblemKind; 4] = [
    ProblemKind::BadRequest,
    ProblemKind::Forbidden,
    ProblemKind::BodyTimeout,
    ProblemKind::TooLarge,
];
const LOCATION: &[(&str, &str)] = &[("Location", "Where the job is, where the body had one.")];
const ETAG: &[(&str, &str)] = &[("ETag", "Different for whatever is different about the job.")];

impl Operation {
    fn new<H, T>(method: Method, path: &'static str, id: &'static str, handler: H) -> Self
    where
        H: Handler<T, Api>,
        T: 'static,
    {
        // Only methods that axum routes stand in the table.
        let filter = MethodFilter::try_from(method.clone()).unwrap_or(MethodFilter::GET);
        Self {
            method,
            path,
            id,
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

/// All operations.
pub(super) fn operations() -> Vec<Operation> {
    vec![
        submit_operation(),
        list_operation(),
        show_operation(),
        cancel_operation(),
        watch_operation(),
        follow_operation(),
        openapi_operation(),
        asyncapi_operation(),
    ]
}

fn submit_operation() -> Operation {
    let submitted =
        |existing| json!({"jobs": [{"jobID": "job-123", "state": "queued", "existing": existing}]});
    let answer = |status, description, existing| Answer {
        headers: LOCATION,
        leads_to_job: true,
        ..Answer::new(
            status,
            description,
            Content::Json(schema_of::<SubmittedJobs>, submitted(existing)),
        )
    };
    let call = || json!({"tool": "files__file_digest", "arguments": {"path": "README.md"}});
    let batch = json!({"calls": [call(), call()], "parallel": 2, "timeoutMs": 60_000});
    Operation {
        summary: "Submit jobs",
        description: "Puts one job or many (at most 1,000) on the queue. The answer comes when none of them can be lost \
                      any more. All of them are checked before the first one is written. A job with a `jobID` or an \
                      `idempotencyKey` is not submitted twice, so the same request can be made again.",
        params: params::SUBMIT,
        body: Some((
            submission_schema,
            vec![
                ("call", call()),
                ("batch", batch),
                ("many", json!({"jobs": [call(), {"jobID": "job-123", "tool": "server_list"}]})),
            ],
        )),
        answers: vec![
            answer(202, "The jobs are on the queue.", false),
            answer(200, "All of the jobs had been submitted before.", true),
        ],
        problems: &[
            ProblemKind::JobsOff,
            ProblemKind::UnsupportedMediaType,
            ProblemKind::BadJob,
            ProblemKind::KafkaRefused,
            ProblemKind::NotReady,
            ProblemKind::KafkaUnavailable,
            ProblemKind::Internal,
        ],
        ..Operation::new(Method::POST, "/jobs", "submitJobs", handlers::submit_jobs)
    }
}

fn list_operation() -> Operation {
    let page = json!({"jobs": [example_job()], "nextCursor": "AAABmqJ2rAFqb2ItMTIz"});
    let content = Content::Json(schema_of::<JobList>, page);
    Operation {
        summary: "List jobs",
        description: "Jobs that the caller may see, those that were submitted last first, without their results. All \
                      conditions must hold.",
        params: params::LIST,
        answers: vec![Answer::new(200, "A page of jobs.", content)],
        problems: &[ProblemKind::JobsOff, ProblemKind::NotReady, ProblemKind::Internal],
        ..Operation::new(Method::GET, "/jobs", "listJobs", handlers::list_jobs)
    }
}

fn show_operation() -> Operation {
    let found = Content::Json(schema_of::<JobView>, example_job());
    Operation {
        summary: "Ask for a job",
        description: "The job's state, with its result where there is one. With `wait`, the answer comes when the job has \
                      ended or the time is over. A job that was written to Kafka directly is `queued` until a worker comes \
                      to it; it is looked for in the first 32 MiB of the backlog, for 5 s at most.",
        params: params::SHOW,
        answers: vec![
            Answer { headers: ETAG, ..Answer::new(200, "The job.", found) },
            Answer {
                headers: ETAG,
                ..Answer::new(304, "The job is as `If-None-Match` has it.", Content::Nothing)
            },
        ],
        problems: &[
            ProblemKind::JobsOff,
            ProblemKind::NoSuchJob,
            ProblemKind::NotReady,
            ProblemKind::Internal,
        ],
        ..Operation::new(Method::GET, "/jobs/{id}", "getJob", handlers::show_job)
    }
}

fn cancel_operation() -> Operation {
    let came_to = |outcome: &str, state: &str| {
        let mut job = example_job();
        job["state"] = state.into();
        Content::Json(
            schema_of::<Cancellation>,
            json!({"outcome": outcome, "known": true, "job": job}),
        )
    };
    Operation {
        summary: "Cancel a job",
        description: "A job that waits never starts; the call of one that runs is cancelled. The answer comes when the job \
                      has ended or the time is over. An id that nothing is known of is answered with 202 and `known: false`: \
                      if a job of that id was written to Kafka before, the workers drop it when they come to it.",
        params: params::CANCEL,
        answers: vec![
            Answer::new(200, "The job is cancelled.", came_to("cancelled", "cancelled")),
            Answer::new(
                202,
                "The workers know; the job has not ended yet.",
                came_to("requested", "running"),
            ),
        ],
        problems: &[
            ProblemKind::JobsOff,
            ProblemKind::TooLate,
            ProblemKind::KafkaRefused,
            ProblemKind::NotReady,
            ProblemKind::KafkaUnavailable,
            ProblemKind::Internal,
        ],
        ..Operation::new(Method::DELETE, "/jobs/{id}", "cancelJob", handlers::cancel_job)
    }
}

fn watch_operation() -> Operation {
    let events = "Each event is named after the job's state; its data is the job as `GET /jobs/{id}` has it; its id is \
                  `<partition>-<offset>`, after `waiting-` if the job waits in the jobs topic and has no event yet. A silent \
                  stream has a comment now and then.";
    Operation {
        summary: "Follow a job",
        description: "The job's present state, unless `Last-Event-ID` says that it was heard, and every later one. The \
                      stream ends after the last state.",
        params: params::WATCH,
        answers: vec![
            Answer::new(
                200,
                "The job's states as they come.",
                Content::Events(events, schema_of::<JobView>),
            ),
            Answer::new(
                204,
                "The job has ended, and `Last-Event-ID` says that this was heard.",
                Content::Nothing,
            ),
        ],
        problems: &[
            ProblemKind::JobsOff,
            ProblemKind::NoSuchJob,
            ProblemKind::NotReady,
            ProblemKind::TooManyStreams,
            ProblemKind::Internal,
        ],
        ..Operation::new(Method::GET, "/jobs/{id}/events", "watchJob", sse::watch_job)
    }
}

fn follow_operation() -> Operation {
    let events = "Each event is named after the job's state; its data is the job as `GET /jobs/{id}` has it; its id is the \
                  vector of next offsets, `partition:offset`, comma-separated. An event `reset` (`{\"reason\": …}`) says \
                  that events before it are missing: ask for the jobs of interest anew.";
    Operation {
        summary: "Follow all jobs",
        description: "Every state of the jobs that the caller may see, as they come; from where `Last-Event-ID` says on, \
                      at any replica, as far back as it remembers.",
        params: params::FOLLOW,
        answers: vec![Answer::new(
            200,
            "States of jobs as they come.",
            Content::Events(events, schema_of::<JobView>),
        )],
        problems: &[
            ProblemKind::JobsOff,
            ProblemKind::NotReady,
            ProblemKind::TooManyStreams,
            ProblemKind::Internal,
        ],
        ..Operation::new(Method::GET, "/events", "followJobs", sse::follow_jobs)
    }
}

fn openapi_operation() -> Operation {
    let content = Content::Json(object_schema, json!({"openapi": "3.1.0"}));
    Operation {
        summary: "This document",
        description: "The OpenAPI document of these operations.",
        answers: vec![Answer::new(200, "An OpenAPI 3.1 document.", content)],
        ..Operation::new(Method::GET, "/openapi.json", "getOpenapi", serve_openapi)
    }
}

fn asyncapi_operation() -> Operation {
    let content = Content::Json(object_schema, json!({"asyncapi": "3.0.0"}));
    Operation {
        summary: "The document of the topics",
        description: "The AsyncAPI document of the Kafka topics, for producers and consumers that talk to Kafka directly.",
        answers: vec![Answer::new(200, "An AsyncAPI 3 document.", content)],
        ..Operation::new(Method::GET, "/asyncapi.json", "getAsyncapi", serve_asyncapi)
    }
}

async fn serve_openapi(State(api): State<Api>) -> Response {
    handlers::serve_document(&api.openapi).into_response()
}

async fn serve_asyncapi(State(api): State<Api>) -> Response {
    handlers::serve_document(&api.asyncapi).into_response()
}

fn schema_of<T: schemars::JsonSchema>(schemas: &mut SchemaGenerator) -> Schema {
    schemas.subschema_for::<T>()
}

fn object_schema(_: &mut SchemaGenerator) -> Schema {
    json_schema!({"type": "object"})
}

/// One job, an array of jobs, or an object with `jobs`.
fn submission_schema(schemas: &mut SchemaGenerator) -> Schema {
    let job = schemas.subschema_for::<JobRequest>();
    // What says that it is one way must not be null: then it would be absent.
    let way = |field: &str, kinds: Value| json!({"required": [field], "properties": {field: {"type": kinds}}});
    let one = json!({
        "allOf": [job],
        "not": {"required": ["jobs"]},
        "oneOf": [
            way("tool", json!("string")),
            way("calls", json!("array")),
            way("mcpServers", json!("object")),
            way("payload", json!(["string", "object"])),
        ],
    });
    schemas.definitions_mut().insert("OneJob".to_owned(), one);
    let jobs = json!({"type": "array", "minItems": 1, "maxItems": MAX_JOBS, "items": {"$ref": "#/components/schemas/OneJob"}});
    json_schema!({
        "anyOf": [
            {"$ref": "#/components/schemas/OneJob"},
            jobs,
            {"type": "object", "required": ["jobs"], "properties": {"jobs": jobs}, "additionalProperties": false},
        ]
    })
}

/// A job as an example.
fn example_job() -> Value {
    json!({
        "jobID": "job-123",
        "state": "succeeded",
        "time": "2026-11-21T08:00:01.250Z",
        "jobType": "tool-call",
        "tool": "files__file_digest",
        "submittedAt": "2026-11-21T08:00:00.000Z",
        "attempts": 1,
        "worker": "worker-1",
        "result": {"content": [{"type": "text", "text": "9f86d081…"}]},
    })
}

/// The path under which a request is counted, where it is one of these operations'; below `/jobs`
/// what there is not counts as a job's.
pub fn path_label(path: &str) -> Option<&'static str> {
    let mut segments = path.strip_prefix('/')?.split('/');
    match (segments.next()?, segments.next(), segments.next(), segments.next()) {
        ("jobs", None, ..) => Some("/jobs"),
        ("jobs", Some(_), Some("events"), None) => Some("/jobs/{id}/events"),
        ("jobs", ..) => Some("/jobs/{id}"),
        ("events", ..) => Some("/events"),
        ("openapi.json", ..) => Some("/openapi.json"),
        ("asyncapi.json", ..) => Some("/asyncapi.json"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_operation_has_a_label_and_a_name_of_its_own() {
        let operations = operations();
        for operation in &operations {
            let path = operation.path.replace("{id}", "a%2Fb");
            assert_eq!(path_label(&path), Some(operation.path));
            assert!(MethodFilter::try_from(operation.method.clone()).is_ok());
            assert!(!operation.answers.is_empty() && !operation.summary.is_empty());
        }
        let ids: BTreeSet<_> = operations.iter().map(|operation| operation.id).collect();
        assert_eq!(ids.len(), operations.len());
    }

    #[test]
    fn labels_are_bounded() {
        for (path, expected) in [
            ("/jobs/a/b/c", Some("/jobs/{id}")),
            ("/jobs/", Some("/jobs/{id}")),
            ("/jobsx", None),
            ("/mcp", None),
            ("", None),
        ] {
            assert_eq!(path_label(path), expected, "{path}");
        }
    }
}

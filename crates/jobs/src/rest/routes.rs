//! The table of operations: their names, parameters, answers and handlers.

use axum::{
    extract::State,
    http::Method,
    response::{IntoResponse as _, Response},
};
use fleet_access::Action;
use fleet_job::view::{Cancellation, JobList, JobView, SubmittedJobs};
use schemars::{Schema, SchemaGenerator, json_schema};
use serde_json::{Value, json};

use super::{
    Api, handlers,
    operation::{Answer, Content, Operation, RequestBody, object_schema, schema_of},
    params,
    problem::ProblemKind,
    sse,
};
use crate::{JobRequest, MAX_JOBS};

mod approvals;
mod bulk;
mod dead_letters;
mod fleet;
mod inspection;
mod pauses;

use approvals::decision_operation;
use inspection::{
    counts_operation, envelope_operation, export_operation, history_operation, run_operation,
};

const LOCATION: &[(&str, &str)] = &[("Location", "The path of the job, if the body had only one.")];
const ETAG: &[(&str, &str)] = &[("ETag", "Changes with every change of the job.")];

/// Returns all operations.
pub(super) fn operations() -> Vec<Operation> {
    vec![
        submit_operation(),
        list_operation(),
        show_operation(),
        cancel_operation(),
        watch_operation(),
        envelope_operation(),
        history_operation(),
        run_operation(),
        decision_operation(),
        counts_operation(),
        export_operation(),
        bulk::cancel_operation(),
        bulk::run_operation(),
        dead_letters::list_operation(),
        dead_letters::show_operation(),
        dead_letters::replay_operation(),
        dead_letters::purge_operation(),
        pauses::list_operation(),
        pauses::pause_operation(),
        pauses::resume_operation(),
        fleet::workers_operation(),
        fleet::lag_operation(),
        follow_operation(),
        openapi_operation(),
        asyncapi_operation(),
    ]
}

/// The answers to a submission.
fn submission_answers() -> Vec<Answer> {
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
    vec![
        answer(202, "The jobs are on the queue.", false),
        answer(200, "All of the jobs were submitted before.", true),
    ]
}

fn submit_operation() -> Operation {
    let call = || json!({"tool": "files__file_digest", "arguments": {"path": "README.md"}});
    let batch = json!({"calls": [call(), call()], "parallel": 2, "timeoutMs": 60_000});
    Operation {
        summary: "Submit jobs",
        description: "Puts up to 1,000 jobs on the queue. All jobs are checked before the first one is written. The answer \
                      comes once all of them are stored durably. A job with a `jobID` or an `idempotencyKey` is not \
                      submitted twice, so the request can be repeated.",
        params: params::SUBMIT,
        body: Some(RequestBody {
            schema: submission_schema,
            examples: vec![
                ("call", call()),
                ("batch", batch),
                ("many", json!({"jobs": [call(), {"jobID": "job-123", "tool": "server_list"}]})),
            ],
            is_required: true,
        }),
        answers: submission_answers(),
        problems: &[
            ProblemKind::JobsOff,
            ProblemKind::ApprovalRequired,
            ProblemKind::UnsupportedMediaType,
            ProblemKind::BadJob,
            ProblemKind::KafkaRefused,
            ProblemKind::NotReady,
            ProblemKind::LedgerUnavailable,
            ProblemKind::KafkaUnavailable,
            ProblemKind::Internal,
        ],
        ..Operation::new(
            Method::POST,
            "/jobs",
            "submitJobs",
            Action::SubmitJob,
            handlers::submit_jobs,
        )
    }
}

fn list_operation() -> Operation {
    let page = json!({"jobs": [example_job()], "nextCursor": "AAABmqJ2rAFqb2ItMTIz"});
    let content = Content::Json(schema_of::<JobList>, page);
    Operation {
        summary: "List jobs",
        description: "The jobs that the caller may see, the most recently submitted first, without their results. A job \
                      must match all filters.",
        params: params::LIST,
        answers: vec![Answer::new(200, "A page of jobs.", content)],
        problems: &[
            ProblemKind::JobsOff,
            ProblemKind::NotReady,
            ProblemKind::LedgerUnavailable,
            ProblemKind::Internal,
        ],
        ..Operation::new(Method::GET, "/jobs", "listJobs", Action::ReadJob, handlers::list_jobs)
    }
}

fn show_operation() -> Operation {
    let found = Content::Json(schema_of::<JobView>, example_job());
    Operation {
        summary: "Get a job",
        description: "The state of a job, with its result if there is one. With `wait`, the answer comes when the job has \
                      ended or the time is over. A job that was written to Kafka directly is `queued` until a worker reads \
                      it; the first 32 MiB of the backlog are searched for it, for at most 5 s.",
        params: params::SHOW,
        answers: vec![
            Answer { headers: ETAG, ..Answer::new(200, "The job.", found) },
            Answer {
                headers: ETAG,
                ..Answer::new(
                    304,
                    "The job has not changed since the `ETag` in `If-None-Match`.",
                    Content::Nothing,
                )
            },
        ],
        problems: &[
            ProblemKind::JobsOff,
            ProblemKind::NoSuchJob,
            ProblemKind::NotReady,
            ProblemKind::LedgerUnavailable,
            ProblemKind::Internal,
        ],
        ..Operation::new(Method::GET, "/jobs/{id}", "getJob", Action::ReadJob, handlers::show_job)
    }
}

fn cancel_operation() -> Operation {
    let cancellation = |outcome: &str, state: &str| {
        let mut job = example_job();
        job["state"] = state.into();
        Content::Json(
            schema_of::<Cancellation>,
            json!({"outcome": outcome, "known": true, "job": job}),
        )
    };
    Operation {
        summary: "Cancel a job",
        description: "A job that waits will not start; the call of a running job is cancelled. The answer comes when the job \
                      has ended or the time is over. For an unknown id, the answer is 202 with `known: false`: if a job with \
                      that id was written to Kafka before, workers cancel it when they read it.",
        params: params::CANCEL,
        answers: vec![
            Answer::new(200, "The job is cancelled.", cancellation("cancelled", "cancelled")),
            Answer::new(
                202,
                "The workers were told; the job has not ended yet.",
                cancellation("requested", "running"),
            ),
        ],
        problems: &[
            ProblemKind::JobsOff,
            ProblemKind::ApprovalRequired,
            ProblemKind::TooLate,
            ProblemKind::KafkaRefused,
            ProblemKind::NotReady,
            ProblemKind::LedgerUnavailable,
            ProblemKind::KafkaUnavailable,
            ProblemKind::Internal,
        ],
        ..Operation::new(
            Method::DELETE,
            "/jobs/{id}",
            "cancelJob",
            Action::CancelJob,
            handlers::cancel_job,
        )
    }
}

fn watch_operation() -> Operation {
    let events = "Each event is named after the state of the job. Its data is the job as returned by `GET /jobs/{id}`, its id \
                  is `<partition>-<offset>`, prefixed with `waiting-` if the job waits in the jobs topic and has no event yet. \
                  A silent stream contains a comment now and then.";
    Operation {
        summary: "Follow a job",
        description: "The present state of a job, unless `Last-Event-ID` names it, and every later state. The stream ends \
                      after the terminal state.",
        params: params::WATCH,
        answers: vec![
            Answer::new(
                200,
                "The states of the job as they come.",
                Content::Events(events, schema_of::<JobView>),
            ),
            Answer::new(
                204,
                "The job has ended, and `Last-Event-ID` names its terminal state.",
                Content::Nothing,
            ),
        ],
        problems: &[
            ProblemKind::JobsOff,
            ProblemKind::NoSuchJob,
            ProblemKind::NotReady,
            ProblemKind::LedgerUnavailable,
            ProblemKind::TooManyStreams,
            ProblemKind::Internal,
        ],
        ..Operation::new(
            Method::GET,
            "/jobs/{id}/events",
            "watchJob",
            Action::ReadJob,
            sse::watch_job,
        )
    }
}

fn follow_operation() -> Operation {
    let events = "Each event is named after the state of the job. Its data is the job as returned by `GET /jobs/{id}`, its id \
                  the next offset of each partition as comma-separated `partition:offset` pairs. An event `reset` \
                  (`{\"reason\": …}`) means that earlier events are missing: get the jobs of interest again.";
    Operation {
        summary: "Follow all jobs",
        description: "Every new state of the jobs that the caller may see. With `Last-Event-ID`, the stream resumes after \
                      that event on any replica, as far back as the replica remembers.",
        params: params::FOLLOW,
        answers: vec![Answer::new(
            200,
            "States of jobs as they come.",
            Content::Events(events, schema_of::<JobView>),
        )],
        problems: &[
            ProblemKind::JobsOff,
            ProblemKind::NotReady,
            ProblemKind::LedgerUnavailable,
            ProblemKind::TooManyStreams,
            ProblemKind::Internal,
        ],
        ..Operation::new(Method::GET, "/events", "followJobs", Action::ReadJob, sse::follow_jobs)
    }
}

fn openapi_operation() -> Operation {
    let content = Content::Json(object_schema, json!({"openapi": "3.1.0"}));
    Operation {
        summary: "Get this document",
        description: "The OpenAPI document of these operations.",
        answers: vec![Answer::new(200, "An OpenAPI 3.1 document.", content)],
        ..Operation::new(
            Method::GET,
            "/openapi.json",
            "getOpenapi",
            Action::UseSession,
            serve_openapi,
        )
    }
}

fn asyncapi_operation() -> Operation {
    let content = Content::Json(object_schema, json!({"asyncapi": "3.0.0"}));
    Operation {
        summary: "Get the document of the topics",
        description: "The AsyncAPI document of the Kafka topics, for producers and consumers that talk to Kafka directly.",
        answers: vec![Answer::new(200, "An AsyncAPI 3 document.", content)],
        ..Operation::new(
            Method::GET,
            "/asyncapi.json",
            "getAsyncapi",
            Action::UseSession,
            serve_asyncapi,
        )
    }
}

async fn serve_openapi(State(api): State<Api>) -> Response {
    handlers::serve_document(&api.openapi).into_response()
}

async fn serve_asyncapi(State(api): State<Api>) -> Response {
    handlers::serve_document(&api.asyncapi).into_response()
}

/// The schema of one job, an array of jobs, or an object with `jobs`.
fn submission_schema(schemas: &mut SchemaGenerator) -> Schema {
    let job = schemas.subschema_for::<JobRequest>();
    // The field that decides the form must not be null, which would mean that it is absent.
    let form = |field: &str, kinds: Value| json!({"required": [field], "properties": {field: {"type": kinds}}});
    let one = json!({
        "allOf": [job],
        "not": {"required": ["jobs"]},
        "oneOf": [
            form("tool", json!("string")),
            form("calls", json!("array")),
            form("mcpServers", json!("object")),
            form("payload", json!(["string", "object"])),
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

/// An example of a job.
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

/// Returns the label for the path of a request in metrics; `None` if the path belongs to no
/// operation here. Unknown paths below `/jobs` count as those of a job.
pub fn path_label(path: &str) -> Option<&'static str> {
    let mut segments = path.strip_prefix('/')?.split('/');
    match (segments.next()?, segments.next(), segments.next(), segments.next()) {
        ("jobs", None, ..) => Some("/jobs"),
        ("jobs", Some(_), Some("events"), None) => Some("/jobs/{id}/events"),
        ("jobs", Some(_), Some("envelope"), None) => Some("/jobs/{id}/envelope"),
        ("jobs", Some(_), Some("history"), None) => Some("/jobs/{id}/history"),
        ("jobs", Some(_), Some("decision"), None) => Some("/jobs/{id}/decision"),
        ("jobs", Some(_), Some("runs"), None) => Some("/jobs/{id}/runs"),
        ("job-counts", ..) => Some("/job-counts"),
        ("job-exports", ..) => Some("/job-exports"),
        ("workers", ..) => Some("/workers"),
        ("lag", ..) => Some("/lag"),
        ("dead-letters", None, ..) => Some("/dead-letters"),
        ("dead-letters", Some("replays"), None, _) => Some("/dead-letters/replays"),
        ("dead-letters", ..) => Some("/dead-letters/{id}"),
        ("pauses", None, ..) => Some("/pauses"),
        ("pauses", ..) => Some("/pauses/{id}"),
        ("job-cancellations", ..) => Some("/job-cancellations"),
        ("job-runs", ..) => Some("/job-runs"),
        ("jobs", ..) => Some("/jobs/{id}"),
        ("tools", None, ..) => Some("/tools"),
        ("tools", ..) => Some("/tools/{id}"),
        ("servers", None, ..) => Some("/servers"),
        ("servers", Some(_), Some("restarts"), None) => Some("/servers/{id}/restarts"),
        ("servers", Some(_), Some("pins"), None) => Some("/servers/{id}/pins"),
        ("servers", Some(_), Some("pins"), Some(_)) => Some("/servers/{id}/pins/{tool}/decision"),
        ("servers", ..) => Some("/servers/{id}"),
        ("server-checks", ..) => Some("/server-checks"),
        ("events", ..) => Some("/events"),
        ("openapi.json", ..) => Some("/openapi.json"),
        ("asyncapi.json", ..) => Some("/asyncapi.json"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use axum::routing::MethodFilter;

    use super::*;

    #[test]
    fn every_operation_has_a_label_and_a_unique_id() {
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

//! The operations that look into jobs and run them again.

use axum::http::Method;
use fleet_access::Action;
use fleet_job::view::{JobCounts, JobHistory, JobRecord};
use serde_json::{Value, json};

use super::{example_job, submission_answers};
use crate::{
    RunRequest,
    rest::{
        export, inspection,
        operation::{Answer, Content, Operation, RequestBody, schema_of},
        params,
        problem::ProblemKind,
    },
};

pub(super) fn counts_operation() -> Operation {
    let example = json!({
        "states": {
            "queued": 12, "running": 4, "retrying": 1, "succeeded": 90_113, "failed": 17,
            "cancelled": 3, "expired": 0,
        },
        "total": 90_150,
        "completeSince": "2026-11-21T08:00:00.000Z",
    });
    Operation {
        summary: "Count jobs by state",
        description: "How many of the jobs that the caller may see are in each state. Only jobs that the ledger holds are \
                      counted; `completeSince` says whether it has forgotten older ones.",
        answers: vec![Answer::new(
            200,
            "The numbers of jobs.",
            Content::Json(schema_of::<JobCounts>, example),
        )],
        problems: &[
            ProblemKind::JobsOff,
            ProblemKind::NotReady,
            ProblemKind::LedgerUnavailable,
            ProblemKind::Internal,
        ],
        ..Operation::new(
            Method::GET,
            "/job-counts",
            "countJobs",
            Action::ReadJob,
            inspection::count_jobs,
        )
    }
}

pub(super) fn export_operation() -> Operation {
    Operation {
        summary: "Export jobs",
        description: "All jobs that the caller may see and that match the filters, with their results, the most recently \
                      submitted first: as one JSON object per line, or as CSV whose first line names the columns. In CSV, \
                      cells that begin like a formula of a spreadsheet have an apostrophe in front. The answer is made \
                      while it is read. If the server has to end early, it closes the connection in the middle of the \
                      body; continue with `until` one millisecond after the `submittedAt` of the last job, and leave out \
                      the jobs of that millisecond which are there already.",
        params: params::EXPORT,
        answers: vec![Answer::new(
            200,
            "The jobs.",
            Content::Lines(&["application/x-ndjson", "text/csv"]),
        )],
        problems: &[
            ProblemKind::JobsOff,
            ProblemKind::TooManyStreams,
            ProblemKind::NotReady,
            ProblemKind::LedgerUnavailable,
            ProblemKind::Internal,
        ],
        ..Operation::new(
            Method::GET,
            "/job-exports",
            "exportJobs",
            Action::ReadJob,
            export::export_jobs,
        )
    }
}

fn example_envelope() -> Value {
    json!({
        "jobID": "job-123",
        "jobType": "tool-call",
        "payload": {"server": "files", "tool": "file_digest", "arguments": {"path": "README.md"}},
        "maxAttempts": 3,
    })
}

pub(super) fn envelope_operation() -> Operation {
    let example = json!({
        "jobID": "job-123",
        "source": {"topic": "mcp-jobs", "partition": 0, "offset": 17},
        "time": "2026-11-21T08:00:00.000Z",
        "key": "customer-7",
        "envelope": example_envelope(),
    });
    Operation {
        summary: "Get what a job was asked to do",
        description: "The job's record in the jobs topic, with its arguments. The topic keeps a record for as long as its \
                      retention says, which may be shorter than the ledger remembers the job. A job that no worker has \
                      reported yet is searched for, for at most 10 s. The values of environment variables and headers of \
                      servers to host are `***`; another run of the job has them.",
        params: params::ONE_JOB,
        answers: vec![Answer::new(
            200,
            "The record.",
            Content::Json(schema_of::<JobRecord>, example),
        )],
        problems: &[
            ProblemKind::JobsOff,
            ProblemKind::NoSuchJob,
            ProblemKind::RecordGone,
            ProblemKind::BadJob,
            ProblemKind::KafkaRefused,
            ProblemKind::NotReady,
            ProblemKind::LedgerUnavailable,
            ProblemKind::KafkaUnavailable,
            ProblemKind::Internal,
        ],
        ..Operation::new(
            Method::GET,
            "/jobs/{id}/envelope",
            "getJobEnvelope",
            Action::ReadJob,
            inspection::show_envelope,
        )
    }
}

pub(super) fn history_operation() -> Operation {
    let mut event = example_job();
    event["state"] = "running".into();
    let example = json!({"events": [event, example_job()], "complete": true});
    Operation {
        summary: "Get the history of a job",
        description: "The events of a job that compaction has left in the events topic, oldest first and without results: \
                      each attempt with its worker and its error. The last one is the state of the job. At most 64 MiB of \
                      the topic are read, for at most 5 s, and at most 1,000 events are returned; `complete` says whether \
                      that was enough.",
        params: params::ONE_JOB,
        answers: vec![Answer::new(
            200,
            "The events.",
            Content::Json(schema_of::<JobHistory>, example),
        )],
        problems: &[
            ProblemKind::JobsOff,
            ProblemKind::NoSuchJob,
            ProblemKind::KafkaRefused,
            ProblemKind::NotReady,
            ProblemKind::LedgerUnavailable,
            ProblemKind::KafkaUnavailable,
            ProblemKind::Internal,
        ],
        ..Operation::new(
            Method::GET,
            "/jobs/{id}/history",
            "getJobHistory",
            Action::ReadJob,
            inspection::show_history,
        )
    }
}

pub(super) fn run_operation() -> Operation {
    Operation {
        summary: "Run a job again",
        description: "Submits a new job that does what this one did, or what the body changes about it, whatever the state \
                      of this one. The new job is its submitter's, has an id of its own, and names this job in its \
                      metadata (`io.mcp-fleet/runOf`). With a `jobID` or an `idempotencyKey`, the request can be repeated.",
        params: params::RUN,
        body: Some(RequestBody {
            schema: schema_of::<RunRequest>,
            examples: vec![
                ("as it was", json!({})),
                ("other arguments", json!({"arguments": {"path": "LICENSE"}, "timeoutMs": 60_000})),
            ],
            is_required: false,
        }),
        answers: submission_answers(),
        problems: &[
            ProblemKind::JobsOff,
            ProblemKind::ApprovalRequired,
            ProblemKind::NoSuchJob,
            ProblemKind::RecordGone,
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
            "/jobs/{id}/runs",
            "runJobAgain",
            Action::SubmitJob,
            inspection::run_again,
        )
    }
}

//! The operations on all jobs that match a filter.

use axum::http::Method;
use fleet_access::Action;
use fleet_job::bulk::BulkReport;
use serde_json::{Value, json};

use crate::rest::{
    bulk,
    operation::{Answer, Content, Operation, schema_of},
    params,
    problem::ProblemKind,
};

fn report(job: Value, operation: Option<&str>) -> Content {
    let mut example = json!({
        "dryRun": false, "matched": 1, "done": 1, "failed": 0, "jobs": [job], "complete": false,
        "nextCursor": "AAABmqJ2rAFqb2ItMTIz", "retryStep": false,
    });
    if let Some(operation) = operation {
        example["operation"] = operation.into();
    }
    Content::Json(schema_of::<BulkReport>, example)
}

pub(super) fn cancel_operation() -> Operation {
    let job = json!({
        "jobID": "job-123", "state": "queued", "tool": "files__file_digest", "outcome": "done",
    });
    Operation {
        summary: "Cancel all jobs that match a filter",
        description: "Requests the cancellation of the jobs on one page of the list, as far as they have not ended and the \
                      caller may cancel them; `nextCursor` leads to the next step. With `dryRun`, nothing is done: the \
                      answer counts the jobs of all steps, for at most 2 s, and names the first 50. A step can be repeated.",
        params: params::CANCEL_ALL,
        answers: vec![Answer::new(200, "What was done, or would be.", report(job, None))],
        problems: &[
            ProblemKind::JobsOff,
            ProblemKind::NotReady,
            ProblemKind::LedgerUnavailable,
            ProblemKind::Internal,
        ],
        ..Operation::new(
            Method::POST,
            "/job-cancellations",
            "cancelJobs",
            Action::CancelJob,
            bulk::cancel_jobs,
        )
    }
}

pub(super) fn run_operation() -> Operation {
    let job = json!({
        "jobID": "job-123", "state": "failed", "tool": "files__file_digest", "outcome": "done",
        "newJobID": "run-5c2f1f0cbb6a4f0f8f0b1f6f0d6b8a11",
    });
    Operation {
        summary: "Run all jobs again that match a filter",
        description: "Submits the jobs on one page of the list again, as far as they have ended; `nextCursor` leads to the \
                      next step. With `dryRun`, nothing is done: the answer counts the jobs of all steps, for at most 2 s, \
                      and names the first 50. Steps of one `operation` can be repeated: no job runs again twice.",
        params: params::RUN_ALL,
        answers: vec![Answer::new(
            200,
            "What was done, or would be.",
            report(job, Some("nightly-repair")),
        )],
        problems: &[
            ProblemKind::JobsOff,
            ProblemKind::NotReady,
            ProblemKind::LedgerUnavailable,
            ProblemKind::Internal,
        ],
        ..Operation::new(
            Method::POST,
            "/job-runs",
            "runJobsAgain",
            Action::SubmitJob,
            bulk::run_jobs,
        )
    }
}

//! The operation that decides about jobs that await approval.

use axum::http::Method;
use fleet_access::Action;
use fleet_job::view::JobView;
use serde_json::json;

use super::example_job;
use crate::rest::{
    approvals::{DecisionRequest, decide_job},
    operation::{Answer, Content, Operation, RequestBody, schema_of},
    params,
    problem::ProblemKind,
};

pub(super) fn decision_operation() -> Operation {
    Operation {
        summary: "Approve a job, or deny it",
        description: "Decides about a job in the state `awaiting_approval`, once. Whoever has submitted the job can't decide. \
                      An approved job is `queued` and runs; one that is denied is `cancelled`. \
                      `GET /jobs?state=awaiting_approval` lists the jobs that wait.",
        params: params::ONE_JOB,
        body: Some(RequestBody {
            schema: schema_of::<DecisionRequest>,
            examples: vec![
                ("approve", json!({"approve": true, "reason": "agreed in #ops"})),
                ("deny", json!({"approve": false, "reason": "not during the freeze"})),
            ],
            is_required: true,
        }),
        answers: vec![Answer::new(
            200,
            "The job as it is now.",
            Content::Json(schema_of::<JobView>, example_job()),
        )],
        problems: &[
            ProblemKind::JobsOff,
            ProblemKind::OwnApproval,
            ProblemKind::NoSuchJob,
            ProblemKind::NotPending,
            ProblemKind::UnsupportedMediaType,
            ProblemKind::KafkaRefused,
            ProblemKind::NotReady,
            ProblemKind::LedgerUnavailable,
            ProblemKind::KafkaUnavailable,
            ProblemKind::Internal,
        ],
        ..Operation::new(
            Method::POST,
            "/jobs/{id}/decision",
            "decideJob",
            Action::ApproveJob,
            decide_job,
        )
    }
}

//! The operations on pauses.

use axum::http::Method;
use fleet_access::Action;
use fleet_job::pause::{Pause, PauseList, PauseRequest};
use serde_json::{Value, json};

use crate::rest::{
    operation::{Answer, Content, Operation, RequestBody, schema_of},
    params, pauses,
    problem::ProblemKind,
};

const PROBLEMS: &[ProblemKind] = &[
    ProblemKind::JobsOff,
    ProblemKind::KafkaRefused,
    ProblemKind::NotReady,
    ProblemKind::KafkaUnavailable,
    ProblemKind::Internal,
];
const PROBLEMS_OF_NEW: &[ProblemKind] = &[
    ProblemKind::JobsOff,
    ProblemKind::ApprovalRequired,
    ProblemKind::UnsupportedMediaType,
    ProblemKind::BadPause,
    ProblemKind::KafkaRefused,
    ProblemKind::NotReady,
    ProblemKind::KafkaUnavailable,
    ProblemKind::Internal,
];
const PROBLEMS_OF_END: &[ProblemKind] = &[
    ProblemKind::JobsOff,
    ProblemKind::ApprovalRequired,
    ProblemKind::NoSuchPause,
    ProblemKind::KafkaRefused,
    ProblemKind::NotReady,
    ProblemKind::KafkaUnavailable,
    ProblemKind::Internal,
];

fn example_pause() -> Value {
    json!({
        "id": "0b8ef8a4-7bd5-4a3e-9a76-0f6f2b0f7f0e", "scope": {"server": "db"},
        "by": "ada", "reason": "migration", "since": "2026-11-21T08:00:00.000Z",
        "until": "2026-11-21T09:00:00.000Z",
    })
}

pub(super) fn list_operation() -> Operation {
    let example = json!({"pauses": [example_pause()]});
    Operation {
        summary: "List pauses",
        description: "The pauses in force that the caller may end, the oldest first.",
        answers: vec![Answer::new(
            200,
            "The pauses.",
            Content::Json(schema_of::<PauseList>, example),
        )],
        problems: PROBLEMS,
        ..Operation::new(
            Method::GET,
            "/pauses",
            "listPauses",
            Action::PauseJobs,
            pauses::list_pauses,
        )
    }
}

pub(super) fn pause_operation() -> Operation {
    Operation {
        summary: "Pause jobs",
        description: "Keeps jobs from starting: all, or those for which all of the scope holds. They wait without a slot and \
                      without spending an attempt; running jobs go on, and deadlines still end jobs. Every worker obeys \
                      within a second. A pause of one tenant's jobs takes the right in that tenant, any other the right for \
                      all tenants.",
        body: Some(RequestBody {
            schema: schema_of::<PauseRequest>,
            examples: vec![
                (
                    "server",
                    json!({"scope": {"server": "db"}, "reason": "migration", "forMs": 3_600_000}),
                ),
                ("all", json!({"scope": {}, "reason": "incident 17"})),
            ],
            is_required: true,
        }),
        answers: vec![Answer::new(
            201,
            "The pause.",
            Content::Json(schema_of::<Pause>, example_pause()),
        )],
        problems: PROBLEMS_OF_NEW,
        ..Operation::new(
            Method::POST,
            "/pauses",
            "pauseJobs",
            Action::PauseJobs,
            pauses::pause_jobs,
        )
    }
}

pub(super) fn resume_operation() -> Operation {
    let mut example = example_pause();
    example["resumedAt"] = "2026-11-21T08:30:00.000Z".into();
    example["resumedBy"] = "grace".into();
    Operation {
        summary: "Resume jobs",
        description: "Ends a pause, so that its jobs start, unless another pause covers them.",
        params: params::ONE_PAUSE,
        answers: vec![Answer::new(
            200,
            "The pause that has ended.",
            Content::Json(schema_of::<Pause>, example),
        )],
        problems: PROBLEMS_OF_END,
        ..Operation::new(
            Method::DELETE,
            "/pauses/{id}",
            "resumeJobs",
            Action::PauseJobs,
            pauses::resume_jobs,
        )
    }
}

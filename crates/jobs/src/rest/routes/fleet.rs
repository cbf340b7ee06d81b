//! The operations on the fleet: its workers, and how far they have come.

use axum::http::Method;
use fleet_access::Action;
use fleet_lag::{Lag, WorkerList};
use serde_json::json;

use crate::rest::{
    fleet,
    operation::{Answer, Content, Operation, schema_of},
    problem::ProblemKind,
};

pub(super) fn workers_operation() -> Operation {
    let worker = json!({
        "name": "worker-1", "version": "0.1.0", "host": "10.0.0.7", "partitions": [0, 1, 2],
        "delayedPartitions": [0], "inFlight": 16,
    });
    let example = json!({
        "group": "mcp-workers", "state": "Stable", "workers": [worker], "countedAll": true,
    });
    Operation {
        summary: "List the workers",
        description: "The members of the workers' consumer group: their versions, the partitions that they have, and how many \
                      jobs each is running. A worker that has died is in the list until the group's session timeout has \
                      passed. `inFlight` counts the newest running jobs of the ledger, at most 10,000 of all workers; \
                      `countedAll` says whether these were all.",
        answers: vec![Answer::new(
            200,
            "The workers.",
            Content::Json(schema_of::<WorkerList>, example),
        )],
        problems: &[
            ProblemKind::JobsOff,
            ProblemKind::KafkaRefused,
            ProblemKind::NotReady,
            ProblemKind::LedgerUnavailable,
            ProblemKind::KafkaUnavailable,
            ProblemKind::Internal,
        ],
        ..Operation::new(
            Method::GET,
            "/workers",
            "listWorkers",
            Action::ReadFleet,
            fleet::list_workers,
        )
    }
}

pub(super) fn lag_operation() -> Operation {
    let partition = json!({
        "partition": 0, "end": 4800, "committed": 4711, "lag": 89, "done": 9, "remaining": 80,
        "open": 4, "retried": 1, "stalled": false, "oldest": "2026-11-21T08:00:00.000Z",
        "oldestAgeMs": 1250,
    });
    let example = json!({
        "topic": "mcp-jobs", "group": "mcp-workers", "partitions": [partition], "lag": 89,
        "done": 9, "remaining": 80, "open": 4, "retried": 1, "stalled": 0, "oldestAgeMs": 1250,
    });
    Operation {
        summary: "Get the lag",
        description: "How far the workers have come on each partition of the jobs topic, as of their last commits. The \
                      numbers are those of `mcp-fleet lag`.",
        answers: vec![Answer::new(200, "The lag.", Content::Json(schema_of::<Lag>, example))],
        problems: &[
            ProblemKind::JobsOff,
            ProblemKind::KafkaRefused,
            ProblemKind::NotReady,
            ProblemKind::KafkaUnavailable,
            ProblemKind::Internal,
        ],
        ..Operation::new(Method::GET, "/lag", "getLag", Action::ReadFleet, fleet::show_lag)
    }
}

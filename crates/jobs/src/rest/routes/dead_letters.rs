//! The operations on dead letters.

use axum::http::Method;
use fleet_access::Action;
use fleet_dead_letters::Details;
use serde_json::{Value, json};

use crate::{
    LetterList, PurgeReport, ReplayReport,
    rest::{
        dead_letters,
        operation::{Answer, Content, Operation, schema_of},
        params,
        problem::ProblemKind,
    },
};

const PROBLEMS: &[ProblemKind] = &[
    ProblemKind::JobsOff,
    ProblemKind::KafkaRefused,
    ProblemKind::NotReady,
    ProblemKind::KafkaUnavailable,
    ProblemKind::Internal,
];
const PROBLEMS_OF_ONE: &[ProblemKind] = &[
    ProblemKind::JobsOff,
    ProblemKind::NoSuchLetter,
    ProblemKind::KafkaRefused,
    ProblemKind::NotReady,
    ProblemKind::KafkaUnavailable,
    ProblemKind::Internal,
];
const PROBLEMS_OF_CHANGES: &[ProblemKind] = &[
    ProblemKind::JobsOff,
    ProblemKind::ApprovalRequired,
    ProblemKind::KafkaRefused,
    ProblemKind::NotReady,
    ProblemKind::KafkaUnavailable,
    ProblemKind::Internal,
];

fn example_letter() -> Value {
    json!({
        "letter": "mcp-jobs.dlq/0/17", "jobID": "job-123", "kind": "tool",
        "message": "no such file", "what": "files__file_digest", "attempts": 3,
        "time": "2026-11-21T08:00:01.250Z", "worker": "worker-1", "replayCount": 0,
        "replayed": false,
    })
}

pub(super) fn list_operation() -> Operation {
    let time = |minute: u32| format!("2026-11-21T08:{minute:02}:00.000Z");
    let slot = json!({"start": time(0), "end": time(1), "letters": 12});
    let reason = json!({
        "kind": "tool", "about": "files__file_digest", "count": 12, "replayed": 3,
        "oldest": "2026-11-21T08:00:01.250Z", "newest": "2026-11-21T08:00:41.000Z",
        "slots": [slot],
    });
    let example = json!({
        "topic": "mcp-jobs.dlq", "letters": 12, "replayed": 3, "reasons": [reason],
        "newestLetters": [example_letter()], "complete": true,
    });
    Operation {
        summary: "Count and list dead letters",
        description: "The dead letters that the caller may see: counted by kind of error, by tool (or by the beginning of \
                      the message) and over time, and the newest of them. The topic is read for at most 20 s; `complete` \
                      says whether that was enough.",
        params: params::LETTERS,
        answers: vec![Answer::new(
            200,
            "The letters.",
            Content::Json(schema_of::<LetterList>, example),
        )],
        problems: PROBLEMS,
        ..Operation::new(
            Method::GET,
            "/dead-letters",
            "listDeadLetters",
            Action::ReadDeadLetters,
            dead_letters::list_letters,
        )
    }
}

pub(super) fn show_operation() -> Operation {
    let mut example = example_letter();
    example["origin"] = json!({
        "topic": "mcp-jobs", "partition": 0, "offset": 4711,
        "timestamp": "2026-11-21T08:00:00.000Z",
    });
    example["group"] = "mcp-workers".into();
    example["headers"] = json!([{"name": "kafka_dlt-original-offset", "value": 4711}]);
    example["value"] = json!({"text": "{\"jobID\":\"job-123\",…}"});
    Operation {
        summary: "Get a dead letter",
        description: "Everything about a dead letter, with the key, the headers and the value of the original record. If the job \
                      hosts servers, the values of their environment variables and headers are `***`.",
        params: params::ONE_LETTER,
        answers: vec![Answer::new(
            200,
            "The letter.",
            Content::Json(schema_of::<Details>, example),
        )],
        problems: PROBLEMS_OF_ONE,
        ..Operation::new(
            Method::GET,
            "/dead-letters/{id}",
            "getDeadLetter",
            Action::ReadDeadLetters,
            dead_letters::show_letter,
        )
    }
}

pub(super) fn replay_operation() -> Operation {
    let letter = json!({
        "letter": "mcp-jobs.dlq/0/17", "jobID": "job-123", "kind": "tool", "verdict": "replay",
        "replayCount": 0, "replayedTo": "mcp-jobs/0/4712",
    });
    let example = json!({
        "dryRun": false, "maxReplays": 3, "verdicts": {"replay": 1, "parked": 2}, "toReplay": 1,
        "replayed": 1, "failed": 0, "left": 0, "letters": [letter],
    });
    Operation {
        summary: "Replay dead letters",
        description: "Writes the original records of letters back to the jobs topic, oldest first, with one more in their \
                      count of replays; letters that have reached `maxReplays` are left alone. Of a job with several \
                      letters only the newest is replayed. Replayed letters are marked, so a request that is repeated \
                      continues with those that are `left`. A server runs one replay at a time, and stops it after the \
                      letter at hand if the client disconnects; replays by several servers at the same time can replay \
                      a letter twice. One letter is replayed by `letter`, a group by `kind` and \
                      `about`. With `dryRun`, nothing is written.",
        params: params::REPLAY,
        answers: vec![Answer::new(
            200,
            "What was done, or would be.",
            Content::Json(schema_of::<ReplayReport>, example),
        )],
        problems: PROBLEMS_OF_CHANGES,
        ..Operation::new(
            Method::POST,
            "/dead-letters/replays",
            "replayDeadLetters",
            Action::ReplayDeadLetters,
            dead_letters::replay_letters,
        )
    }
}

pub(super) fn purge_operation() -> Operation {
    let example = json!({"topic": "mcp-jobs.dlq", "dryRun": false, "letters": 1200});
    Operation {
        summary: "Delete dead letters",
        description: "Deletes the letters that were written before a time for good, whosever they are: within one tenant, \
                      the right to do so is not enough. Kafka can't delete records from the middle of a partition, so \
                      there is no filter. With `dryRun`, nothing is deleted.",
        params: params::PURGE,
        answers: vec![Answer::new(
            200,
            "What was done, or would be.",
            Content::Json(schema_of::<PurgeReport>, example),
        )],
        problems: PROBLEMS_OF_CHANGES,
        ..Operation::new(
            Method::DELETE,
            "/dead-letters",
            "purgeDeadLetters",
            Action::DeleteDeadLetters,
            dead_letters::purge_letters,
        )
    }
}

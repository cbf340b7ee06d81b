//! Pins of hosted servers' tools: what has changed, and decisions about it.

use axum::{
    Json,
    body::Bytes,
    extract::{Path, State},
    response::{IntoResponse as _, Response},
};
use fleet_access::{Action, Arguments, AuditOutcome, Context, Decision, Resource};
use fleet_hosting::pins::{PinError, PinReview, ToolReview};
use fleet_jobs::rest::{
    Answer, Operation, Param, ParamLocation, Problem, ProblemKind, RequestBody, parse_body,
    schema_of,
};
use fleet_ops::clock;
use fleet_pins::{Digest, PinDecision};
use http::{HeaderMap, Method};
use schemars::{JsonSchema, json_schema};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::Caller;
use crate::gateway::{Asking, Gateway};

/// The longest part of a name that an error repeats, in characters.
const SHOWN_NAME: usize = 64;

/// A decision about a tool that is not as pinned.
#[derive(Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct PinVerdict {
    /// Whether the definition is accepted. If not, the tool stays as it is until it changes again or
    /// somebody approves it after all.
    approve: bool,
    /// The digest of the definition that was looked at. If the tool has another one by now, nothing
    /// is decided.
    digest: Digest,
    /// Why, for the audit log.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1024))]
    reason: Option<String>,
}

const NAME: Param = Param {
    name: "id",
    location: ParamLocation::Path,
    many: false,
    required: true,
    description: "The name of the server.",
    schema: |_| json_schema!({"type": "string", "minLength": 1}),
    example: "files",
};
const TOOL: Param = Param {
    name: "tool",
    location: ParamLocation::Path,
    many: false,
    required: true,
    description: "The tool's own name.",
    schema: |_| json_schema!({"type": "string", "minLength": 1}),
    example: "file_digest",
};
const PROBLEMS: &[ProblemKind] = &[
    ProblemKind::ApprovalRequired,
    ProblemKind::NoSuchServer,
    ProblemKind::NoSuchTool,
    ProblemKind::PinConflict,
    ProblemKind::UnsupportedMediaType,
    ProblemKind::Internal,
    ProblemKind::ServerUnavailable,
    ProblemKind::AuditUnavailable,
];

pub(super) fn operations(gateway: &Gateway) -> Vec<Operation> {
    let action = Action::DecidePins;
    let review = json!({"server": "files", "mode": "approve", "tools": [example()]});
    vec![
        Operation::with_state(
            (Method::GET, "/servers/{id}/pins"),
            "listPins",
            action,
            list_pins,
            gateway.clone(),
        )
        .described(
            "List the pins of a server's tools",
            "How the tools that a hosted server has now stand to their pins, and what differs.",
        )
        .with_params(&[NAME])
        .answering(
            Answer::json::<PinReview>(200, "The tools.", review),
            &[ProblemKind::NoSuchServer, ProblemKind::Internal],
        ),
        Operation::with_state(
            (Method::POST, "/servers/{id}/pins/{tool}/decision"),
            "decidePin",
            action,
            decide_pin,
            gateway.clone(),
        )
        .described(
            "Decide about a changed tool",
            "Approves or rejects the definition that a tool has now, for all replicas. It is bound to \
             the digest that was looked at. In the mode `block`, and where the policy file names \
             digests of the tool, only the file decides.",
        )
        .with_params(&[NAME, TOOL])
        .with_body(RequestBody {
            schema: schema_of::<PinVerdict>,
            examples: vec![("approval", json!({"approve": true, "digest": digest()}))],
            is_required: true,
        })
        .answering(Answer::json::<ToolReview>(200, "The tool.", example()), PROBLEMS),
    ]
}

fn digest() -> String {
    "5f0e".repeat(16)
}

fn example() -> Value {
    json!({
        "tool": "file_digest", "standing": "changed", "withheld": true, "digest": digest(),
        "pinned": "0b1c".repeat(16), "byFile": false,
        "changes": [{"path": "/description", "old": "Computes a digest.", "new": "Computes a digest. Send …"}],
    })
}

/// `GET /servers/{id}/pins`.
async fn list_pins(
    State(gateway): State<Gateway>,
    Caller(asking): Caller,
    Path(name): Path<String>,
) -> Result<Response, Problem> {
    decide(&asking, &server(&name))?;
    let review = gateway.fleet().review_pins(&name).ok_or_else(|| unknown_server(&name))?;
    Ok(Json(review).into_response())
}

/// `POST /servers/{id}/pins/{tool}/decision`.
async fn decide_pin(
    State(gateway): State<Gateway>,
    Caller(asking): Caller,
    Path((name, tool)): Path<(String, String)>,
    headers: HeaderMap,
    body: Bytes,
) -> Result<Response, Problem> {
    let verdict: PinVerdict =
        parse_body(&headers, &body, ("the decision", ProblemKind::BadRequest))?;
    let resource = Resource { tool: Some(&tool), ..server(&name) };
    let decision = decide(&asking, &resource)?;
    let (asker, action) = (asking.asker(), Action::DecidePins);

    let said = match serde_json::to_value(&verdict) {
        Ok(Value::Object(members)) => members,
        _ => serde_json::Map::new(),
    };
    let record = asker.begin_record(action, &resource, &decision, Arguments::Known(&said)).await;
    let record =
        record.map_err(|gap| Problem::new(ProblemKind::AuditUnavailable, gap.to_string()))?;

    let PinVerdict { approve, digest, .. } = verdict;
    let by = asker.principal().id().to_string();
    let decided = PinDecision { approve, by, at: clock::now() };
    let result = gateway.fleet().decide_pin(&name, &tool, &digest, decided).await;
    record.end(if result.is_ok() { AuditOutcome::Succeeded } else { AuditOutcome::Failed }, None);
    result.map_err(|error| failed(&name, &tool, &error))?;

    tracing::info!(server = name, tool, approve, %digest, "somebody has decided about a changed tool");
    let review = gateway.fleet().review_pins(&name).ok_or_else(|| unknown_server(&name))?;
    let found = review.tools.into_iter().find(|found| found.tool == tool);
    found.map(|tool| Json(tool).into_response()).ok_or_else(|| unknown_tool(&name, &tool))
}

fn decide(asking: &Asking, resource: &Resource<'_>) -> Result<Decision, Problem> {
    let action = Action::DecidePins;
    asking.asker().check(action, resource, &Context::default()).map_err(|decision| {
        let detail = decision.message(action.as_str()).unwrap_or_default();
        Problem::denied(decision, detail)
    })
}

fn server(name: &str) -> Resource<'_> {
    Resource { server: Some(name), ..Resource::default() }
}

fn failed(server: &str, tool: &str, error: &PinError) -> Problem {
    let kind = match error {
        PinError::NoServer => return unknown_server(server),
        PinError::NoTool => return unknown_tool(server, tool),
        PinError::Off | PinError::ByFile | PinError::Decide(_) => ProblemKind::PinConflict,
        PinError::Unread | PinError::NoRoom | PinError::Unwritten(_) => {
            ProblemKind::ServerUnavailable
        }
    };
    Problem::new(kind, error.to_string())
}

fn unknown_server(name: &str) -> Problem {
    let name: String = name.chars().take(SHOWN_NAME).collect();
    Problem::new(ProblemKind::NoSuchServer, format!("no server `{name}` is hosted"))
}

fn unknown_tool(server: &str, tool: &str) -> Problem {
    let [server, tool] =
        [server, tool].map(|name| name.chars().take(SHOWN_NAME).collect::<String>());
    Problem::new(ProblemKind::NoSuchTool, format!("server `{server}` has no tool `{tool}` now"))
}

//! Tools: what can be called, and how that has gone.

use axum::{
    Json,
    extract::{Path, State},
    response::{IntoResponse as _, Response},
};
use fleet_access::Action;
use fleet_jobs::rest::{Answer, Operation, Param, ParamLocation, Parameters, Problem, ProblemKind};
use http::Method;
use rmcp::model::Tool;
use schemars::{JsonSchema, json_schema};
use serde::Serialize;
use serde_json::{Value, json};

use super::Caller;
use crate::gateway::{CallStatistics, Gateway, VisibleTool};

/// The most tools in a list.
const MAX_LISTED: usize = 2_000;
/// The longest name of a server, in characters.
const MAX_SERVER_NAME: usize = 40;
/// The longest part of a name that an error repeats, in characters.
const SHOWN_NAME: usize = 256;

/// A tool in a list.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
struct ListedTool {
    /// The name under which the tool is offered.
    name: String,
    /// The hosted server that has the tool; absent if it is the server's own.
    #[serde(skip_serializing_if = "Option::is_none")]
    server: Option<String>,
    /// The tool's name at that server.
    tool: String,
    /// The title for people.
    #[serde(skip_serializing_if = "Option::is_none")]
    title: Option<String>,
    /// What the tool does.
    #[serde(skip_serializing_if = "Option::is_none")]
    description: Option<String>,
    /// What the tool says of itself: `readOnlyHint`, `destructiveHint` and others.
    #[serde(default, skip_serializing_if = "Value::is_null")]
    annotations: Value,
    /// How calls at this replica have gone.
    calls: CallStatistics,
}

/// The tools that the caller may call.
#[derive(Debug, Serialize, JsonSchema)]
struct ToolPage {
    /// The tools: the server's own, and then those of hosted servers.
    tools: Vec<ListedTool>,
    /// Whether these are all.
    complete: bool,
}

/// A tool with its schemas.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
struct ShownTool {
    /// The tool as in a list.
    #[serde(flatten)]
    listed: ListedTool,
    /// The schema of the arguments.
    input_schema: Value,
    /// The schema of structured results.
    #[serde(default, skip_serializing_if = "Value::is_null")]
    output_schema: Value,
}

const SERVER: Param = Param {
    name: "server",
    location: ParamLocation::Query,
    many: false,
    required: false,
    description: "Only tools of this hosted server.",
    schema: |_| json_schema!({"type": "string", "minLength": 1, "maxLength": MAX_SERVER_NAME}),
    example: "files",
};
const NAME: Param = Param {
    name: "id",
    location: ParamLocation::Path,
    many: false,
    required: true,
    description: "The name under which the tool is offered.",
    schema: |_| json_schema!({"type": "string", "minLength": 1}),
    example: "files__file_digest",
};

pub(super) fn operations(gateway: &Gateway) -> Vec<Operation> {
    let route = |path, id| ((Method::GET, path), id);
    let (list, list_id) = route("/tools", "listTools");
    let (show, show_id) = route("/tools/{id}", "getTool");
    let state = || gateway.clone();
    vec![
        Operation::with_state(list, list_id, Action::ListTools, list_tools, state())
            .described(
                "List tools",
                "The tools that the caller may call, without their schemas, and how calls of them at this replica have gone.",
            )
            .with_params(&[SERVER])
            .answering(
                Answer::json::<ToolPage>(
                    200,
                    "The tools.",
                    json!({"tools": [example()], "complete": true}),
                ),
                &[ProblemKind::Internal],
            ),
        Operation::with_state(show, show_id, Action::ListTools, show_tool, state())
            .described("Get a tool", "A tool that the caller may call, with its schemas.")
            .with_params(&[NAME])
            .answering(
                Answer::json::<ShownTool>(200, "The tool.", shown_example()),
                &[ProblemKind::NoSuchTool, ProblemKind::Internal],
            ),
    ]
}

fn example() -> Value {
    json!({
        "name": "files__file_digest", "server": "files", "tool": "file_digest",
        "description": "Computes the digest of a file.", "annotations": {"readOnlyHint": true},
        "calls": {
            "since": "2026-11-21T08:00:00.000Z", "calls": 412, "errorShare": 0.01, "meanMs": 3.4,
            "p50Ms": 4, "p95Ms": 16,
        },
    })
}

fn shown_example() -> Value {
    let mut tool = example();
    tool["inputSchema"] = json!({"type": "object", "properties": {"path": {"type": "string"}}});
    tool
}

/// `GET /tools`.
async fn list_tools(
    State(gateway): State<Gateway>,
    Caller(asking): Caller,
    parameters: Parameters,
) -> Result<Response, Problem> {
    let server = parameters.get("server");
    if server.is_some_and(|name| !(1..=MAX_SERVER_NAME).contains(&name.chars().count())) {
        let why = format!("must be 1 to {MAX_SERVER_NAME} characters long");
        return Err(Problem::parameter("server", why));
    }

    let mut tools = gateway.tools_with_servers(&asking);
    tools.retain(|tool| server.is_none() || tool.server.as_deref() == server);
    let complete = tools.len() <= MAX_LISTED;

    let listed = tools.into_iter().take(MAX_LISTED);
    let tools = listed.map(|tool| listed_tool(&gateway, &tool)).collect();
    Ok(Json(ToolPage { tools, complete }).into_response())
}

/// `GET /tools/{id}`.
async fn show_tool(
    State(gateway): State<Gateway>,
    Caller(asking): Caller,
    Path(name): Path<String>,
) -> Result<Response, Problem> {
    let mut tools = gateway.tools_with_servers(&asking).into_iter();
    let tool = tools.find(|tool| tool.offered.name == name).ok_or_else(|| {
        let name: String = name.chars().take(SHOWN_NAME).collect();
        let detail = format!("there is no tool `{name}`, or the caller may not call it");
        Problem::new(ProblemKind::NoSuchTool, detail)
    })?;

    let listed = listed_tool(&gateway, &tool);
    let of = |field: &str| as_json(&tool.offered)[field].take();
    let shown =
        ShownTool { listed, input_schema: of("inputSchema"), output_schema: of("outputSchema") };
    Ok(Json(shown).into_response())
}

fn listed_tool(gateway: &Gateway, tool: &VisibleTool) -> ListedTool {
    let offered = as_json(&tool.offered);
    let text = |field: &str| offered[field].as_str().map(str::to_owned);
    ListedTool {
        name: tool.offered.name.to_string(),
        server: tool.server.clone(),
        tool: tool.own_name.clone(),
        title: text("title"),
        description: text("description"),
        annotations: offered["annotations"].clone(),
        calls: gateway.calls_of(&tool.offered.name),
    }
}

fn as_json(tool: &Tool) -> Value {
    // What came as JSON becomes JSON again.
    serde_json::to_value(tool).unwrap_or_default()
}

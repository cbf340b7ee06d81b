//! Long-running tools, which become tasks (SEP-2663), and one that never does.

use std::time::Duration;

use fleet_job::meta::LONG_RUNNING;
use rmcp::{
    RoleServer,
    model::{
        CallToolRequestParams, CallToolResponse, CallToolResult, ContentBlock, ErrorData,
        InputResponses,
    },
    service::RequestContext,
};
use serde_json::{Value, json};

use super::rounds::{ask_client, elicitation_request, elicited_value};
use crate::long_running::LongRunning;

/// The longest duration of a call, in seconds.
const LONGEST: f64 = 3600.0;

/// The tools, with their arguments and metadata.
pub(super) fn list() -> Vec<Value> {
    let text = json!({"type": "string"});
    let tool = |name: &str, properties: Value, long_running: Option<&str>| {
        let schema = json!({"type": "object", "properties": properties});
        let mut tool = json!({
            "name": name,
            "description": "A tool of the conformance suite.",
            "inputSchema": schema,
        });
        if let Some(kind) = long_running {
            tool["_meta"] = json!({LONG_RUNNING: kind});
        }
        tool
    };
    vec![
        tool("greet", json!({"name": text}), None),
        tool(
            "slow_compute",
            json!({"seconds": {"type": "number"}, "label": text}),
            Some("optional"),
        ),
        tool("failing_job", json!({}), Some("required")),
        tool("protocol_error_job", json!({}), Some("optional")),
        tool("confirm_delete", json!({"filename": text}), Some("optional")),
        tool("multi_input", json!({}), Some("optional")),
        tool("test_tool_with_task", json!({}), Some("after-input")),
    ]
}

pub(super) fn long_running(name: &str) -> Option<LongRunning> {
    match name {
        "failing_job" => Some(LongRunning::Required),
        "slow_compute" | "protocol_error_job" | "confirm_delete" | "multi_input" => {
            Some(LongRunning::Optional)
        }
        "test_tool_with_task" => Some(LongRunning::AfterInput),
        _ => None,
    }
}

/// Answers a call; `None` if the tool is not one of these.
pub(super) async fn call(
    params: &CallToolRequestParams,
    context: &RequestContext<RoleServer>,
) -> Option<Result<CallToolResponse, ErrorData>> {
    let argument = |name: &str| params.arguments.as_ref().and_then(|arguments| arguments.get(name));
    let text = |name: &str| argument(name).and_then(Value::as_str).unwrap_or_default().to_owned();
    let answers = params.input_responses.as_ref();

    Some(match &*params.name {
        "greet" => text_answer(format!("Hello, {}!", text("name"))),
        "slow_compute" => {
            let seconds =
                argument("seconds").and_then(Value::as_f64).unwrap_or_default().clamp(0.0, LONGEST);
            tokio::select! {
                () = tokio::time::sleep(Duration::from_secs_f64(seconds)) => {
                    text_answer(format!("{} is computed", text("label")))
                }
                () = context.ct.cancelled() => {
                    Err(ErrorData::internal_error("the call was cancelled", None))
                }
            }
        }
        "failing_job" => {
            tokio::time::sleep(Duration::from_millis(500)).await;
            Ok(CallToolResult::error(vec![ContentBlock::text("This job always fails.")]).into())
        }
        "protocol_error_job" => {
            Err(ErrorData::invalid_request("This job always breaks the protocol.", None))
        }
        "confirm_delete" => match elicited_value(answers, "confirm", "confirm") {
            Some(confirmed) => text_answer(format!("Deleting {}: {confirmed}", text("filename"))),
            None => ask_questions(
                json!({"confirm": elicitation_request("Delete it?", "confirm", "boolean")}),
            ),
        },
        "multi_input" => {
            let answered = |question: &str| {
                answers.is_some_and(|answers: &InputResponses| answers.contains_key(question))
            };
            if answered("first") && answered("second") {
                text_answer("Both are answered.".to_owned())
            } else {
                let question = |text: &str| elicitation_request(text, "name", "string");
                ask_questions(
                    json!({"first": question("The first?"), "second": question("The second?")}),
                )
            }
        }
        "test_tool_with_task" => match elicited_value(answers, "user_name", "name") {
            Some(name) => text_answer(format!("Hello, {name}!")),
            None => ask_questions(
                json!({"user_name": elicitation_request("What is your name?", "name", "string")}),
            ),
        },
        _ => return None,
    })
}

fn text_answer(text: String) -> Result<CallToolResponse, ErrorData> {
    Ok(CallToolResult::success(vec![ContentBlock::text(text)]).into())
}

fn ask_questions(questions: Value) -> Result<CallToolResponse, ErrorData> {
    Ok(ask_client(questions, None)?.into())
}

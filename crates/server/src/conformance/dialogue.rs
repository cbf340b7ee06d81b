//! Tools that send messages to the client of a session while they run: logging, sampling and
//! elicitation of the older revisions.

#![expect(
    deprecated,
    reason = "the suite tests features of older revisions that the newest one has removed"
)]

use std::time::Duration;

use rmcp::{
    RoleServer,
    model::{
        CallToolRequestParams, CallToolResponse, CallToolResult, ClientResult, ContentBlock,
        ElicitRequest, ElicitRequestParams, ErrorData, LoggingLevel,
        LoggingMessageNotificationParam, ServerRequest,
    },
    service::{RequestContext, ServiceError},
};
use serde_json::{Value, json};

use super::parse;
use crate::gateway::is_modern;

pub(super) async fn call(
    params: &CallToolRequestParams,
    context: &RequestContext<RoleServer>,
) -> Result<CallToolResponse, ErrorData> {
    let argument = |name: &str| {
        let value = params.arguments.as_ref().and_then(|all| all.get(name)?.as_str());
        value.unwrap_or_default().to_owned()
    };

    let text = match &*params.name {
        "test_tool_with_logging" | "test_logging_tool" => {
            send_log_messages(context).await;
            "The messages are sent.".to_owned()
        }
        "test_sampling" => {
            let message =
                json!({"role": "user", "content": {"type": "text", "text": argument("prompt")}});
            let request = parse(json!({"messages": [message], "maxTokens": 100}))?;
            let sampled = context.peer.create_message(request).await.map_err(error_data)?;
            let answer = serde_json::to_value(&sampled.message.content).unwrap_or_default();
            let first = if answer.is_array() { &answer[0] } else { &answer };
            format!("LLM response: {}", first["text"].as_str().unwrap_or_default())
        }
        "test_elicitation" => {
            let word = |what: &str| json!({"type": "string", "description": what});
            let properties =
                json!({"username": word("User's response"), "email": word("User's email address")});
            let (action, content) =
                elicit(context, &argument("message"), properties, json!(["username", "email"]))
                    .await?;
            format!("User response: action={action}, content={content}")
        }
        "test_elicitation_sep1034_defaults" => {
            let properties = json!({
                "name": {"type": "string", "default": "John Doe"},
                "age": {"type": "integer", "default": 30},
                "score": {"type": "number", "default": 95.5},
                "status": {"type": "string", "enum": ["active", "inactive", "pending"], "default": "active"},
                "verified": {"type": "boolean", "default": true},
            });
            let (action, content) =
                elicit(context, "Please look at the defaults.", properties, json!([])).await?;
            format!("Elicitation completed: action={action}, content={content}")
        }
        "test_elicitation_sep1330_enums" => {
            let options = json!(["option1", "option2", "option3"]);
            let titled = json!([{"const": "value1", "title": "First Option"},
                {"const": "value2", "title": "Second Option"}, {"const": "value3", "title": "Third Option"}]);
            let properties = json!({
                "untitledSingle": {"type": "string", "enum": options},
                "titledSingle": {"type": "string", "oneOf": titled},
                "legacyEnum": {"type": "string", "enum": ["opt1", "opt2", "opt3"],
                    "enumNames": ["Option One", "Option Two", "Option Three"]},
                "untitledMulti": {"type": "array", "items": {"type": "string", "enum": options}},
                "titledMulti": {"type": "array", "items": {"anyOf": titled}},
            });
            let (action, content) =
                elicit(context, "Please choose.", properties, json!([])).await?;
            format!("Elicitation completed: action={action}, content={content}")
        }
        name => return Err(ErrorData::invalid_params(format!("unknown tool `{name}`"), None)),
    };

    Ok(CallToolResult::success(vec![ContentBlock::text(text)]).into())
}

/// Sends three log messages. From revision 2026-07-28 on, only if the request sets a log level.
async fn send_log_messages(context: &RequestContext<RoleServer>) {
    let wanted =
        !is_modern(context) || context.meta.contains_key("io.modelcontextprotocol/logLevel");
    for message in ["Tool execution started", "Tool processing data", "Tool execution completed"] {
        if wanted {
            let message = LoggingMessageNotificationParam::new(LoggingLevel::Info, message.into());
            // A client that has left needs no messages.
            _ = context.peer.notify_logging_message(message).await;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

async fn elicit(
    context: &RequestContext<RoleServer>,
    message: &str,
    properties: Value,
    required: Value,
) -> Result<(Value, Value), ErrorData> {
    let schema = json!({"type": "object", "properties": properties, "required": required});
    let request: ElicitRequestParams =
        parse(json!({"mode": "form", "message": message, "requestedSchema": schema}))?;
    let request = ServerRequest::ElicitRequest(ElicitRequest::new(request));
    match context.peer.send_request(request).await.map_err(error_data)? {
        ClientResult::ElicitResult(result) => {
            let action = serde_json::to_value(&result.action).unwrap_or_default();
            Ok((action, result.content.unwrap_or_default()))
        }
        _ => {
            Err(ErrorData::internal_error("the client's answer is not an elicitation result", None))
        }
    }
}

fn error_data(error: ServiceError) -> ErrorData {
    match error {
        ServiceError::McpError(error) => error,
        error => ErrorData::internal_error(error.to_string(), None),
    }
}

//! The tools of the conformance suite: their list, and those that answer at once.

use std::time::Duration;

use fleet_hosting::changes::{Change, Lists};
use rmcp::{
    RoleServer,
    model::{
        CallToolRequestParams, CallToolResponse, CallToolResult, ClientCapabilities, ContentBlock,
        ErrorData, ProgressNotificationParam, Tool,
    },
    service::RequestContext,
};
use serde_json::{Value, json};

use super::{Fixtures, PNG, WAV, dialogue, parse, rounds, tasks};

/// The duration of each step of tools that report progress.
const STEP: Duration = Duration::from_millis(50);

/// Tools without arguments.
const PLAIN: [&str; 25] = [
    "test_audio_content",
    "test_elicitation_sep1034_defaults",
    "test_elicitation_sep1330_enums",
    "test_embedded_resource",
    "test_error_handling",
    "test_image_content",
    "test_input_required_result_capabilities",
    "test_input_required_result_elicitation",
    "test_input_required_result_list_roots",
    "test_input_required_result_multi_round",
    "test_input_required_result_multiple_inputs",
    "test_input_required_result_request_state",
    "test_input_required_result_sampling",
    "test_input_required_result_tampered_state",
    "test_logging_tool",
    "test_missing_capability",
    "test_multiple_content_types",
    "test_reconnection",
    "test_simple_text",
    "test_streaming_elicitation",
    "test_tool_with_logging",
    "test_tool_with_progress",
    "test_trigger_prompt_change",
    "test_trigger_resource_update",
    "test_trigger_tool_change",
];

pub(super) fn list() -> Vec<Tool> {
    let tool = |name: &str, schema: Value| {
        json!({
            "name": name,
            "description": "A tool of the conformance suite.",
            "inputSchema": schema,
        })
    };
    let text = |name: &str| json!({"type": "object", "properties": {name: {"type": "string"}}, "required": [name]});
    let mut tools: Vec<Value> =
        PLAIN.iter().map(|name| tool(name, json!({"type": "object"}))).collect();
    tools.push(tool("json_schema_2020_12_tool", json_schema()));
    tools.push(tool("test_custom_header", header_schema()));
    tools.push(tool("test_elicitation", text("message")));
    tools.push(tool("test_sampling", text("prompt")));
    tools.extend(tasks::list());
    parse(Value::Array(tools)).unwrap_or_default()
}

/// A schema with an argument that must also be in a header (SEP-2243).
fn header_schema() -> Value {
    json!({"type": "object", "properties": {"region": {"type": "string", "x-mcp-header": "Region"}}})
}

/// A schema with keywords that must all reach the client.
fn json_schema() -> Value {
    let text = json!({"type": "string"});
    json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "type": "object",
        "$defs": {"address": {
            "$anchor": "addressDef",
            "type": "object",
            "properties": {"street": text, "city": text},
        }},
        "properties": {
            "name": text,
            "address": {"$ref": "#/$defs/address"},
            "contactMethod": {"type": "string", "enum": ["phone", "email"]},
            "phone": text,
            "email": text,
        },
        "allOf": [{"anyOf": [{"required": ["phone"]}, {"required": ["email"]}]}],
        "if": {"properties": {"contactMethod": {"const": "phone"}}, "required": ["contactMethod"]},
        "then": {"required": ["phone"]},
        "else": {"required": ["email"]},
        "additionalProperties": false,
    })
}

pub(super) async fn call(
    fixtures: &Fixtures,
    params: CallToolRequestParams,
    context: RequestContext<RoleServer>,
) -> Result<CallToolResponse, ErrorData> {
    if let Some(answer) = tasks::call(&params, &context).await {
        return answer;
    }

    let text = |text: &str| json!({"type": "text", "text": text});
    let image = json!({"type": "image", "data": PNG, "mimeType": "image/png"});
    let resource = |uri: &str, kind: &str, text: &str| json!({"type": "resource", "resource": {"uri": uri, "mimeType": kind, "text": text}});

    let content = match &*params.name {
        "test_simple_text" => vec![text("This is a simple text response for testing.")],
        "test_image_content" => vec![image],
        "test_audio_content" => {
            vec![json!({"type": "audio", "data": WAV, "mimeType": "audio/wav"})]
        }
        "test_embedded_resource" => {
            let words = "This is an embedded resource content.";
            vec![resource("test://embedded-resource", "text/plain", words)]
        }
        "test_multiple_content_types" => {
            let data = json!({"test": "data", "value": 123}).to_string();
            let mixed = resource("test://mixed-content-resource", "application/json", &data);
            vec![text("Multiple content types test:"), image, mixed]
        }
        "test_error_handling" => {
            let words = "This tool intentionally returns an error for testing";
            return Ok(CallToolResult::error(vec![ContentBlock::text(words)]).into());
        }
        "test_tool_with_progress" => {
            send_progress(&context).await;
            vec![text("It is done.")]
        }
        "test_trigger_tool_change" => {
            fixtures.fleet.announce(Change::Lists(Lists { tools: true, ..Lists::default() }));
            vec![text("The tools are said to have changed.")]
        }
        "test_trigger_prompt_change" => {
            fixtures.fleet.announce(Change::Lists(Lists { prompts: true, ..Lists::default() }));
            vec![text("The prompts are said to have changed.")]
        }
        // Used by our own tests, not by the suite.
        "test_trigger_resource_update" => {
            fixtures.fleet.announce(Change::Resource("test://watched-resource".into()));
            vec![text("The watched resource is said to have changed.")]
        }
        "test_missing_capability" => {
            let declared = context.client_capabilities().is_some_and(|has| has.sampling.is_some());
            if !declared {
                let needed: ClientCapabilities = parse(json!({"sampling": {}}))?;
                return Err(ErrorData::missing_required_client_capability(needed));
            }
            vec![text("The client can sample.")]
        }
        // A client whose stream breaks off can resume it.
        "test_reconnection" | "test_custom_header" | "json_schema_2020_12_tool" => {
            vec![text("The call has ended.")]
        }
        name if name.starts_with("test_input_required_result_")
            || name == "test_streaming_elicitation" =>
        {
            return rounds::call(fixtures, &params, &context);
        }
        _ => return dialogue::call(&params, &context).await,
    };
    Ok(CallToolResult::success(parse(Value::Array(content))?).into())
}

async fn send_progress(context: &RequestContext<RoleServer>) {
    for step in [0.0, 50.0, 100.0] {
        if let Some(token) = context.meta.get_progress_token() {
            let progress = ProgressNotificationParam::new(token, step).with_total(100.0);
            // A client that has left needs no progress.
            _ = context.peer.notify_progress(progress).await;
        }
        tokio::time::sleep(STEP).await;
    }
}

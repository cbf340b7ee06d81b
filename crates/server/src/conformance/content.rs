//! The prompts and resources of the conformance suite.

use rmcp::model::{
    ErrorData, GetPromptRequestParams, GetPromptResponse, GetPromptResult, Prompt,
    ReadResourceResponse, ReadResourceResult, Resource, ResourceTemplate,
};
use serde_json::{Value, json};

use super::{PNG, parse, rounds};

pub(super) fn prompts() -> Vec<Prompt> {
    let argument =
        |name: &str| json!({"name": name, "description": "An argument.", "required": true});
    let prompt = |name: &str, arguments: Vec<Value>| {
        json!({
            "name": name,
            "description": "A prompt of the conformance suite.",
            "arguments": arguments,
        })
    };

    let all = json!([
        prompt("test_input_required_result_prompt", vec![]),
        prompt("test_prompt_with_arguments", vec![argument("arg1"), argument("arg2")]),
        prompt("test_prompt_with_embedded_resource", vec![argument("resourceUri")]),
        prompt("test_prompt_with_image", vec![]),
        prompt("test_simple_prompt", vec![]),
    ]);

    parse(all).unwrap_or_default()
}

pub(super) fn prompt(
    params: &GetPromptRequestParams,
) -> Option<Result<GetPromptResponse, ErrorData>> {
    let argument = |name: &str| {
        let value = params.arguments.as_ref().and_then(|all| all.get(name)?.as_str());
        value.unwrap_or_default().to_owned()
    };
    let text = |text: &str| json!({"role": "user", "content": {"type": "text", "text": text}});

    let messages = match params.name.as_str() {
        "test_simple_prompt" => json!([text("This is a simple prompt for testing.")]),
        "test_prompt_with_arguments" => {
            let (first, second) = (argument("arg1"), argument("arg2"));
            json!([text(&format!("Prompt with arguments: arg1='{first}', arg2='{second}'"))])
        }
        "test_prompt_with_embedded_resource" => {
            let resource = json!({"uri": argument("resourceUri"), "mimeType": "text/plain",
                "text": "Embedded resource content for testing."});
            let embedded =
                json!({"role": "user", "content": {"type": "resource", "resource": resource}});
            json!([embedded, text("Please process the embedded resource above.")])
        }
        "test_prompt_with_image" => {
            let image = json!({"type": "image", "data": PNG, "mimeType": "image/png"});
            json!([{"role": "user", "content": image}, text("Please analyze the image above.")])
        }
        "test_input_required_result_prompt" => {
            let answers = params.input_responses.as_ref();
            let Some(context) = rounds::elicited_value(answers, "user_context", "context") else {
                let ask = rounds::elicitation_request(
                    "What context should the prompt use?",
                    "context",
                    "string",
                );
                return Some(
                    rounds::ask_client(json!({"user_context": ask}), None)
                        .map(GetPromptResponse::from),
                );
            };
            json!([text(&format!("A prompt for {context}."))])
        }
        _ => return None,
    };

    let result = parse::<GetPromptResult>(json!({"resultType": "complete", "messages": messages}));
    Some(result.map(GetPromptResponse::Complete))
}

pub(super) fn resources() -> Vec<Resource> {
    let resource = |uri: &str, kind: &str| {
        Resource::new(uri, uri).with_description("A resource.").with_mime_type(kind)
    };
    vec![
        resource("test://static-binary", "image/png"),
        resource("test://static-text", "text/plain"),
        resource("test://watched-resource", "text/plain"),
    ]
}

pub(super) fn templates() -> Vec<ResourceTemplate> {
    let template = ResourceTemplate::new("test://template/{id}/data", "template");
    vec![template.with_description("A template.").with_mime_type("application/json")]
}

pub(super) fn read(uri: &str) -> Option<ReadResourceResponse> {
    let content = match uri {
        "test://static-text" | "test://watched-resource" => {
            json!({"uri": uri, "mimeType": "text/plain",
            "text": "This is the content of the static text resource."})
        }
        "test://static-binary" => json!({"uri": uri, "mimeType": "image/png", "blob": PNG}),
        _ => {
            let id = uri.strip_prefix("test://template/")?.strip_suffix("/data")?;
            let data =
                json!({"id": id, "templateTest": true, "data": format!("Data for ID: {id}")});
            json!({"uri": uri, "mimeType": "application/json", "text": data.to_string()})
        }
    };

    let result: ReadResourceResult =
        parse(json!({"resultType": "complete", "contents": [content]})).ok()?;
    Some(result.into())
}

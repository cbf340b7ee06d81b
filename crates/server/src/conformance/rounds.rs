//! Tools that need input from the client before they can answer, in rounds (SEP-2322).

use rmcp::{
    RoleServer,
    model::{
        CallToolRequestParams, CallToolResponse, CallToolResult, ContentBlock, ErrorData,
        InputRequiredResult, InputResponses,
    },
    service::RequestContext,
};
use serde_json::{Value, json};

use super::{Fixtures, parse};

/// A question to the user, with one field.
pub(super) fn elicitation_request(message: &str, field: &str, kind: &str) -> Value {
    json!({"method": "elicitation/create", "params": {"mode": "form", "message": message, "requestedSchema":
        {"type": "object", "properties": {field: {"type": kind}}, "required": [field]}}})
}

fn sampling_request(text: &str, max_tokens: u32) -> Value {
    json!({"method": "sampling/createMessage", "params": {"maxTokens": max_tokens,
        "messages": [{"role": "user", "content": {"type": "text", "text": text}}]}})
}

fn roots_request() -> Value {
    json!({"method": "roots/list", "params": {}})
}

/// The result of a round that asks the client for input.
pub(super) fn ask_client(
    requests: Value,
    state: Option<String>,
) -> Result<InputRequiredResult, ErrorData> {
    Ok(InputRequiredResult::new(Some(parse(requests)?), state))
}

/// The user's value for a field.
pub(super) fn elicited_value(
    answers: Option<&InputResponses>,
    question: &str,
    field: &str,
) -> Option<String> {
    let answer = answers?.get(question)?;
    let value = answer.get("content")?.get(field)?;
    Some(value.as_str().map_or_else(|| value.to_string(), str::to_owned))
}

/// Whether the answer to a question has this member.
fn has_answer(answers: Option<&InputResponses>, question: &str, member: &str) -> bool {
    answers.is_some_and(|all| all.get(question).is_some_and(|answer| answer.get(member).is_some()))
}

pub(super) fn call(
    fixtures: &Fixtures,
    params: &CallToolRequestParams,
    context: &RequestContext<RoleServer>,
) -> Result<CallToolResponse, ErrorData> {
    let answers = params.input_responses.as_ref();
    let state = || fixtures.state.seal(params.name.as_bytes());
    let round = match &*params.name {
        "test_input_required_result_elicitation" | "test_streaming_elicitation" => {
            match elicited_value(answers, "user_name", "name") {
                Some(name) => Ok(format!("Hello, {name}!")),
                None => Err((
                    json!({"user_name": elicitation_request("What is your name?", "name", "string")}),
                    None,
                )),
            }
        }
        "test_input_required_result_sampling" => {
            let answer = answers.and_then(|all| all.get("capital_question")?.get("content"));
            match answer {
                Some(answer) => Ok(answer["text"].as_str().unwrap_or_default().to_owned()),
                None => {
                    let question = sampling_request("What is the capital of France?", 100);
                    Err((json!({"capital_question": question}), None))
                }
            }
        }
        "test_input_required_result_list_roots" => {
            let roots_of =
                |all: &InputResponses| Some(all.get("client_roots")?.get("roots")?.to_string());
            answers
                .and_then(roots_of)
                .ok_or_else(|| (json!({"client_roots": roots_request()}), None))
        }
        "test_input_required_result_request_state"
        | "test_input_required_result_tampered_state" => {
            if let Some(state) = &params.request_state {
                open_state(fixtures, state, &params.name)?;
            }
            match elicited_value(answers, "confirm", "ok") {
                Some(_) if params.request_state.is_some() => Ok("state-ok".to_owned()),
                _ => {
                    let question = elicitation_request("Please confirm", "ok", "boolean");
                    Err((json!({"confirm": question}), Some(state())))
                }
            }
        }
        "test_input_required_result_multiple_inputs" => {
            let all = elicited_value(answers, "user_name", "name").is_some()
                && has_answer(answers, "greeting", "content")
                && has_answer(answers, "client_roots", "roots");
            if all {
                Ok("All is there.".to_owned())
            } else {
                let questions = json!({
                    "user_name": elicitation_request("What is your name?", "name", "string"),
                    "greeting": sampling_request("Generate a greeting", 50),
                    "client_roots": roots_request(),
                });
                Err((questions, Some(state())))
            }
        }
        "test_input_required_result_multi_round" => ask_two_questions(fixtures, params)?,
        // Ask only questions that the client can answer.
        _ => {
            let has = context.client_capabilities().unwrap_or_default();
            let mut questions = serde_json::Map::new();
            if has.elicitation.is_some() {
                let question = elicitation_request("What is your name?", "name", "string");
                questions.insert("user_name".to_owned(), question);
            }
            if has.sampling.is_some() {
                questions
                    .insert("greeting".to_owned(), sampling_request("Generate a greeting", 50));
            }
            if answers.is_some() || questions.is_empty() {
                Ok("There is nothing to ask.".to_owned())
            } else {
                Err((Value::Object(questions), None))
            }
        }
    };

    match round {
        Ok(text) => Ok(CallToolResult::success(vec![ContentBlock::text(text)]).into()),
        Err((questions, state)) => Ok(ask_client(questions, state)?.into()),
    }
}

/// The final text, or the next questions and the state to send with them.
type Round = Result<String, (Value, Option<String>)>;

/// Asks two questions, one after the other, and keeps the first answer in the request state.
fn ask_two_questions(
    fixtures: &Fixtures,
    params: &CallToolRequestParams,
) -> Result<Round, ErrorData> {
    let answers = params.input_responses.as_ref();
    let known = match &params.request_state {
        Some(state) => open_state(fixtures, state, "")?,
        None => String::new(),
    };

    let name = known.strip_prefix("name=").map(str::to_owned).filter(|name| !name.is_empty());
    let Some(name) = name.or_else(|| elicited_value(answers, "step1", "name")) else {
        let question = elicitation_request("Step 1: What is your name?", "name", "string");
        return Ok(Err((json!({"step1": question}), Some(fixtures.state.seal(b"name=")))));
    };

    match elicited_value(answers, "step2", "color") {
        Some(color) => Ok(Ok(format!("{name} likes {color}."))),
        None => {
            let question =
                elicitation_request("Step 2: What is your favorite color?", "color", "string");
            let state = fixtures.state.seal(format!("name={name}").as_bytes());
            Ok(Err((json!({"step2": question}), Some(state))))
        }
    }
}

/// Returns the content of a request state, after verifying that this server made it and nobody has
/// changed it.
fn open_state(fixtures: &Fixtures, state: &str, expected: &str) -> Result<String, ErrorData> {
    let invalid = || {
        ErrorData::invalid_params(
            "`requestState` was not issued by this server, or was changed",
            None,
        )
    };
    let bytes = fixtures.state.open(state).map_err(|_| invalid())?;
    let text = String::from_utf8(bytes).map_err(|_| invalid())?;
    if expected.is_empty() || text == expected { Ok(text) } else { Err(invalid()) }
}

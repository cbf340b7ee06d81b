//! Reads prompts and resource contents of hosted servers, so that an item that is not understood
//! does not make the rest unreadable ([`crate::kept_items`]).

use fleet_job::number;
use rmcp::model::{
    GetPromptResponse, GetPromptResult, InputRequiredResult, MetaObject, PromptMessage,
    ReadResourceResponse, ReadResourceResult, ResourceContents, ServerResult,
};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Map, Value};

use crate::{
    inbound::raw_result,
    kept_items::{keep_unreadable_items, remove_forged},
};

/// The longest part of an unreadable result that is quoted, in bytes.
const SHOWN: usize = 200;

/// Reads a hosted server's answer to `prompts/get`.
///
/// # Errors
///
/// Returns what is wrong if the answer is not a prompt.
pub(crate) fn read_prompt(result: ServerResult) -> Result<GetPromptResponse, String> {
    match result {
        ServerResult::GetPromptResult(mut result) => {
            remove_forged(&mut result.meta);
            return Ok(GetPromptResponse::Complete(result));
        }
        ServerResult::InputRequiredResult(result) => {
            return Ok(GetPromptResponse::InputRequired(result));
        }
        _ => {}
    }

    let mut result = raw_result(result);
    // An invalid description must not make the messages unreadable.
    if result.get("description").is_some_and(|description| !description.is_string()) {
        result.remove("description");
    }
    Ok(match read::<GetPromptResult, PromptMessage>(result, "messages")? {
        Read::Complete(result) => GetPromptResponse::Complete(result),
        Read::InputRequired(result) => GetPromptResponse::InputRequired(result),
    })
}

/// Reads a hosted server's answer to `resources/read`.
///
/// # Errors
///
/// Returns what is wrong if the answer is not the contents of a resource.
pub(crate) fn read_resource(result: ServerResult) -> Result<ReadResourceResponse, String> {
    match result {
        ServerResult::ReadResourceResult(mut result) => {
            remove_forged(&mut result.meta);
            return Ok(ReadResourceResponse::Complete(result));
        }
        ServerResult::InputRequiredResult(result) => {
            return Ok(ReadResourceResponse::InputRequired(result));
        }
        _ => {}
    }

    let mut result = raw_result(result);
    // Invalid hints for caches must not make the contents unreadable.
    for (hint, is_valid) in
        [("ttlMs", Value::is_u64 as fn(&Value) -> bool), ("cacheScope", Value::is_string)]
    {
        if result.get(hint).is_some_and(|value| !is_valid(value)) {
            result.remove(hint);
        }
    }
    Ok(match read::<ReadResourceResult, ResourceContents>(result, "contents")? {
        Read::Complete(result) => ReadResourceResponse::Complete(result),
        Read::InputRequired(result) => ReadResourceResponse::InputRequired(result),
    })
}

enum Read<T> {
    Complete(T),
    InputRequired(InputRequiredResult),
}

/// Reads a result `T` whose list `member` has items `I`. Unreadable items are kept.
fn read<T: DeserializeOwned, I: DeserializeOwned + Serialize>(
    mut result: Map<String, Value>,
    member: &str,
) -> Result<Read<T>, String> {
    let shown = fleet_wire::quote(&Value::Object(result.clone()).to_string(), SHOWN);
    let explained = |problem: serde_json::Error| format!("{problem}: {shown}");
    match result.get("resultType").unwrap_or(&Value::Null) {
        Value::Null => {}
        Value::String(kind) if kind == "complete" => {}
        Value::String(kind) if kind == "input_required" => {
            return number::read(result.into()).map(Read::InputRequired).map_err(explained);
        }
        other => {
            let other = fleet_wire::quote(&other.to_string(), SHOWN);
            return Err(format!("its resultType {other} is unknown: {shown}"));
        }
    }

    let Some(Value::Array(items)) = result.shift_remove(member) else {
        return Err(format!("its {member} is not a list: {shown}"));
    };
    let mut meta = match result.shift_remove("_meta") {
        Some(Value::Object(meta)) => Some(MetaObject(meta)),
        _ => None,
    };
    let held: Vec<I> = keep_unreadable_items(member, items, &mut meta);
    result.insert(member.to_owned(), serde_json::to_value(held).map_err(explained)?);
    if let Some(meta) = meta {
        result.insert("_meta".to_owned(), meta.0.into());
    }
    number::read(result.into()).map(Read::Complete).map_err(explained)
}

#[cfg(test)]
mod tests {
    use rmcp::model::CustomResult;
    use serde_json::json;

    use super::*;
    use crate::kept_items::restore;

    fn custom(result: Value) -> ServerResult {
        ServerResult::CustomResult(CustomResult(result))
    }

    /// The result that a caller gets.
    fn passed_on(result: impl Serialize) -> Value {
        let mut message = json!({ "result": result });
        restore(&mut message);
        message["result"].take()
    }

    fn prompt(result: Value) -> Result<Value, String> {
        match read_prompt(custom(result))? {
            GetPromptResponse::Complete(result) => Ok(passed_on(result)),
            other => panic!("{other:?}"),
        }
    }

    fn resource(result: Value) -> Result<Value, String> {
        match read_resource(custom(result))? {
            ReadResourceResponse::Complete(result) => Ok(passed_on(result)),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn items_of_any_kind_pass_unchanged_in_their_places() {
        let fine = json!({"role": "user", "content": {"type": "text", "text": "fine"}});
        for odd in [
            json!({"role": "user", "content": {"type": "video", "url": "x"}}),
            json!({"role": "system", "content": {"type": "text", "text": "x"}}),
            json!({"role": "user", "content": "just a string"}),
            Value::Null,
        ] {
            let messages = json!([odd, fine, odd]);
            let found = prompt(json!({"messages": messages, "description": 42, "_meta": {"a": 1}}))
                .unwrap();
            assert_eq!((&found["messages"], &found["_meta"]), (&messages, &json!({"a": 1})));
        }

        let fine = json!({"uri": "x://1", "text": "fine"});
        for odd in [json!({"uri": "x://2", "stream": "y"}), json!({"text": "no URI"}), json!("x")] {
            let contents = json!([fine, odd, fine]);
            let found =
                resource(json!({"resultType": "complete", "contents": contents, "ttlMs": "1h"}));
            assert_eq!(found.unwrap()["contents"], contents);
        }
    }

    #[test]
    fn an_answer_of_the_wrong_kind_is_quoted() {
        for result in [
            json!({"x": 1}),
            json!({"messages": {}}),
            json!({"resultType": "novel", "messages": []}),
        ] {
            let problem = prompt(result.clone()).unwrap_err();
            assert!(problem.contains(&result.to_string()), "{problem}");
        }
        assert!(
            resource(json!({"messages": []})).unwrap_err().contains("its contents is not a list")
        );
    }
}

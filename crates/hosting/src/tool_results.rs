//! Reads results of hosted tools, so that an item that is not understood does not make the rest
//! unreadable ([`crate::kept_items`]).

use fleet_job::number;
use rmcp::model::{CallToolResponse, CallToolResult, MetaObject, ResultType, ServerResult};
use serde_json::{Map, Value, json};

use crate::{
    inbound::raw_result,
    kept_items::{keep_members, keep_unreadable_items, remove_forged},
};

/// The longest part of an unreadable result that is quoted, in bytes.
const SHOWN: usize = 200;

/// Reads a hosted server's answer to a call.
///
/// # Errors
///
/// Returns what is wrong if the answer is not a result of a tool.
pub(crate) fn read_call_result(result: ServerResult) -> Result<CallToolResponse, String> {
    match result {
        ServerResult::CallToolResult(mut result) => {
            // No item was kept here, so the server must have forged the key.
            remove_forged(&mut result.meta);
            return Ok(result.into());
        }
        ServerResult::InputRequiredResult(result) => {
            return Ok(CallToolResponse::InputRequired(result));
        }
        ServerResult::CreateTaskResult(result) => return Ok(CallToolResponse::Task(result)),
        _ => {}
    }

    let result = raw_result(result);
    let shown = fleet_wire::quote(&Value::Object(result.clone()).to_string(), SHOWN);
    let of_kind = |problem: serde_json::Error| format!("{problem}: {shown}");
    match result.get("resultType").unwrap_or(&Value::Null) {
        Value::Null => read_complete_result(result).map(CallToolResponse::Complete),
        Value::String(kind) => match kind.as_str() {
            "complete" => read_complete_result(result).map(CallToolResponse::Complete),
            "input_required" => {
                number::read(result.into()).map(CallToolResponse::InputRequired).map_err(of_kind)
            }
            "task" => number::read(result.into()).map(CallToolResponse::Task).map_err(of_kind),
            other => Err(format!("its resultType {other:?} is unknown: {shown}")),
        },
        other => Err(format!("its resultType is not a string: {other}")),
    }
}

/// Reads a complete result, in whatever form its content is.
fn read_complete_result(mut result: Map<String, Value>) -> Result<CallToolResult, String> {
    let items = match result.shift_remove("content") {
        None | Some(Value::Null) => Vec::new(),
        Some(Value::Array(items)) => items,
        Some(Value::String(text)) => vec![json!({ "type": "text", "text": text })],
        Some(item) => vec![item],
    };
    let is_error = match result.shift_remove("isError") {
        None | Some(Value::Null) => None,
        Some(Value::Bool(is_error)) => Some(is_error),
        Some(other) => return Err(format!("its isError is neither true nor false: {other}")),
    };
    let structured = result.shift_remove("structuredContent").filter(|content| !content.is_null());
    let mut meta = match result.shift_remove("_meta") {
        Some(Value::Object(meta)) => Some(MetaObject(meta)),
        _ => None,
    };

    result.shift_remove("resultType");

    let content = keep_unreadable_items("content", items, &mut meta);
    keep_members(result, &mut meta);

    let mut read = CallToolResult::default();
    read.result_type = Some(ResultType::COMPLETE);
    read.content = content;
    read.structured_content = structured;
    read.is_error = is_error;
    read.meta = meta;
    Ok(read)
}

#[cfg(test)]
mod tests {
    use rmcp::model::{CustomResult, NumberOrString, ServerJsonRpcMessage};

    use super::*;
    use crate::kept_items::{KEPT_ITEMS, restore, restore_message, restore_text};

    /// Returns the message that a caller gets for a hosted server's result.
    fn passed_on(result: Value) -> Value {
        let CallToolResponse::Complete(result) =
            read_call_result(ServerResult::CustomResult(CustomResult(result))).unwrap()
        else {
            panic!("not complete");
        };
        let mut message = json!({"id": 7, "result": &result});
        let text = message.to_string();
        let is_restored = restore(&mut message);
        assert_eq!(restore_text(text.as_bytes()), is_restored.then(|| message.to_string()));
        let event = format!("id: 3\ndata: {text}\n\n");
        let expected = is_restored.then(|| format!("id: 3\ndata: {message}\n\n"));
        assert_eq!(restore_text(event.as_bytes()), expected);
        let typed = ServerJsonRpcMessage::response(
            ServerResult::CallToolResult(result),
            NumberOrString::Number(7),
        );
        assert_eq!(
            serde_json::to_value(restore_message(typed)).unwrap()["result"],
            message["result"]
        );
        message["result"].take()
    }

    #[test]
    fn items_of_any_kind_pass_unchanged_in_their_places() {
        let fine = json!({"type": "text", "text": "fine"});
        for odd in [
            json!({"type": "video", "url": "x"}),
            json!({"type": "image", "data": "AAAA"}),
            json!({"type": "text", "text": 42}),
            json!({"text": "no type"}),
            json!("just a string"),
            Value::Null,
        ] {
            let content = json!([odd, fine, odd, odd]);
            let found = passed_on(json!({"content": content, "structuredContent": {"a": 1}}));
            let expected = json!({"resultType": "complete", "content": content, "structuredContent": {"a": 1}});
            assert_eq!(found, expected);
        }
        let meta = json!({"trace": 1});
        let found =
            passed_on(json!({"content": [{"type": "video"}], "_meta": meta, "isError": true}));
        assert_eq!((&found["_meta"], &found["isError"]), (&meta, &json!(true)));
    }

    #[test]
    fn content_that_is_not_a_list_becomes_one() {
        let content = |content: Value| passed_on(json!({ "content": content }))["content"].take();
        assert_eq!(content(json!("hello")), json!([{"type": "text", "text": "hello"}]));
        assert_eq!(
            content(json!({"type": "text", "text": "x"})),
            json!([{"type": "text", "text": "x"}])
        );
        assert_eq!(content(Value::Null), json!([]));
        assert_eq!(passed_on(json!({}))["content"], json!([]));
        // rmcp reads a remote's result without content as another type.
        let empty =
            serde_json::from_value(json!({"resultType": "complete", "_meta": {"a": 1}})).unwrap();
        assert!(matches!(empty, ServerResult::TaskAckResult(_)));
        let Ok(CallToolResponse::Complete(empty)) = read_call_result(empty) else {
            panic!("not complete")
        };
        assert!(empty.content.is_empty() && empty.meta.is_some());
    }

    #[test]
    fn an_answer_that_is_not_a_tool_result_is_quoted() {
        let check = |result: Value, expected: &str| {
            let problem =
                read_call_result(ServerResult::CustomResult(CustomResult(result))).unwrap_err();
            assert!(problem.contains(expected), "{problem}");
        };
        check(json!({"resultType": "novel", "x": 1}), "\"novel\" is unknown: {");
        check(json!({"resultType": 3}), "its resultType is not a string: 3");
        check(
            json!({"content": [], "isError": "no"}),
            "its isError is neither true nor false: \"no\"",
        );
        check(json!({"resultType": "task"}), "missing field");
    }

    #[test]
    fn a_hosted_server_can_not_forge_kept_items() {
        let forged = json!({"content": [], "_meta": {KEPT_ITEMS: {"content": {"0": "x"}, "io.mcp-fleet/members": {"x": 1}}}});
        let found = passed_on(forged);
        assert_eq!((&found["content"], found.get("x")), (&json!([]), None));
    }

    /// Numbers and members as a server wrote them, in every part of a result.
    #[test]
    fn what_rmcp_does_not_know_passes_unchanged() {
        let numbers = "[1e+400,12345678901234567890123,1.10,1e+2,0.1000000000000000055,-0,0.00001]";
        let same = |written: String| {
            let found = passed_on(serde_json::from_str(&written).unwrap()).to_string();
            assert_eq!(found, written.replacen('{', r#"{"resultType":"complete","#, 1));
        };
        same(format!(
            r#"{{"content":[],"structuredContent":{numbers},"_meta":{{"z":{numbers},"a":1}}}}"#
        ));
        same(format!(r#"{{"content":[],"z":{numbers},"a":{{"y":1,"b":2}}}}"#));
        for item in [
            format!(r#"{{"type":"text","text":"x","z":{numbers},"a":{{"y":1,"b":2}}}}"#),
            format!(r#"{{"type":"text","text":"x","_meta":{{"z":{numbers},"a":1}}}}"#),
            r#"{"type":"text","text":"x","annotations":{"priority":0.50,"novel":1}}"#.to_owned(),
            r#"{"type":"text","text":"x","annotations":{"priority":0.123456789012}}"#.to_owned(),
            r#"{"text":"x","type":"text"}"#.to_owned(),
            format!(r#"{{"type":"image","data":"AA","mimeType":"image/png","width":{numbers}}}"#),
            format!(
                r#"{{"type":"resource_link","uri":"x:y","name":"n","size":1.0,"z":{numbers}}}"#
            ),
            format!(r#"{{"type":"resource","resource":{{"uri":"x:y","text":"t","z":{numbers}}}}}"#),
            format!(r#"{{"type":"video","z":{numbers}}}"#),
        ] {
            same(format!(r#"{{"content":[{{"type":"text","text":"fine"}},{item}]}}"#));
        }
    }
}

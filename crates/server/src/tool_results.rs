//! Results of hosted tools on their way to whoever called them.
//!
//! rmcp's types have no place for a content item of a kind that is not known to them, or with a member missing, and one such
//! item would cost the whole result of a tool that has run. So such items travel in the result's `_meta`, under
//! [`KEPT_ITEMS`], and are put back in their places when the answer is written ([`restore`]).

use rmcp::{
    RoleServer,
    model::{
        CallToolResponse, CallToolResult, ContentBlock, CustomResult, JsonRpcMessage, MetaObject, ResultType,
        ServerJsonRpcMessage, ServerResult,
    },
    service::{RxJsonRpcMessage, TxJsonRpcMessage},
    transport::Transport,
};
use serde_json::{Map, Value, json};

use crate::hosting::inbound::raw;

/// In a result's `_meta`, on its way through this server: content items that rmcp can't hold, by their positions.
pub(crate) const KEPT_ITEMS: &str = "io.mcp-fleet/content";

/// How much of a result that can't be read is quoted.
const SHOWN: usize = 200;

/// Reads what a hosted server answered to a call.
///
/// # Errors
///
/// If it is not a result of a tool: what is wrong with it.
pub(crate) fn read(result: ServerResult) -> Result<CallToolResponse, String> {
    match result {
        ServerResult::CallToolResult(mut result) => {
            // No item was kept aside, whatever the server says.
            result.meta.as_mut().map(|meta| meta.remove(KEPT_ITEMS));
            return Ok(result.into());
        }
        ServerResult::InputRequiredResult(result) => return Ok(CallToolResponse::InputRequired(result)),
        ServerResult::CreateTaskResult(result) => return Ok(CallToolResponse::Task(result)),
        // rmcp has thrown away all but the type of a result that it could not read.
        ServerResult::TaskAckResult(_) => {
            return Err("its content is of a kind that can't be read".to_owned());
        }
        _ => {}
    }

    let result = raw(result);
    let shown = fleet_wire::quote(&Value::Object(result.clone()).to_string(), SHOWN);
    let of_kind = |problem: serde_json::Error| format!("{problem}: {shown}");
    match result.get("resultType").unwrap_or(&Value::Null) {
        Value::Null => complete(result).map(CallToolResponse::Complete),
        Value::String(kind) => match kind.as_str() {
            "complete" => complete(result).map(CallToolResponse::Complete),
            "input_required" => {
                serde_json::from_value(result.into()).map(CallToolResponse::InputRequired).map_err(of_kind)
            }
            "task" => serde_json::from_value(result.into()).map(CallToolResponse::Task).map_err(of_kind),
            other => Err(format!("its resultType {other:?} is not known: {shown}")),
        },
        other => Err(format!("its resultType is not a text: {other}")),
    }
}

/// A complete result, however odd its content is.
fn complete(mut result: Map<String, Value>) -> Result<CallToolResult, String> {
    let items = match result.remove("content") {
        None | Some(Value::Null) => Vec::new(),
        Some(Value::Array(items)) => items,
        Some(Value::String(text)) => vec![json!({ "type": "text", "text": text })],
        Some(item) => vec![item],
    };
    let is_error = match result.remove("isError") {
        None | Some(Value::Null) => None,
        Some(Value::Bool(is_error)) => Some(is_error),
        Some(other) => return Err(format!("its isError is neither true nor false: {other}")),
    };
    let mut meta = match result.remove("_meta") {
        Some(Value::Object(meta)) => Some(MetaObject(meta)),
        _ => None,
    };

    let mut kept = Map::new();
    let mut content = Vec::new();
    for (position, item) in items.into_iter().enumerate() {
        match serde_json::from_value::<ContentBlock>(item.clone()) {
            Ok(block) => content.push(block),
            Err(_) => _ = kept.insert(position.to_string(), item),
        }
    }
    if kept.is_empty() {
        meta.as_mut().map(|meta| meta.remove(KEPT_ITEMS));
    } else {
        meta.get_or_insert_with(MetaObject::new).insert(KEPT_ITEMS.to_owned(), kept.into());
    }

    let mut read = CallToolResult::default();
    read.result_type = Some(ResultType::COMPLETE);
    read.content = content;
    read.structured_content = result.remove("structuredContent").filter(|content| !content.is_null());
    read.is_error = is_error;
    read.meta = meta;
    Ok(read)
}

/// Puts the items that were kept aside back into a JSON-RPC message. Whether there were any.
pub(crate) fn restore(message: &mut Value) -> bool {
    let Some(result) = message.get_mut("result").and_then(Value::as_object_mut) else { return false };
    let Some(meta) = result.get_mut("_meta").and_then(Value::as_object_mut) else { return false };
    let Some(Value::Object(kept)) = meta.remove(KEPT_ITEMS) else { return false };
    let is_empty = meta.is_empty();
    if is_empty {
        result.remove("_meta");
    }

    let Some(content) = result.get_mut("content").and_then(Value::as_array_mut) else { return true };
    let mut kept: Vec<_> = kept
        .into_iter()
        .filter_map(|(position, item)| Some((position.parse::<usize>().ok()?, item)))
        .collect();
    kept.sort_by_key(|(position, _)| *position);
    for (position, item) in kept {
        content.insert(position.min(content.len()), item);
    }
    true
}

/// The same for a message to a client of ours.
pub(crate) fn restored(message: ServerJsonRpcMessage) -> ServerJsonRpcMessage {
    let JsonRpcMessage::Response(response) = &message else { return message };
    let ServerResult::CallToolResult(CallToolResult { meta: Some(meta), .. }) = &response.result else {
        return message;
    };
    if !meta.contains_key(KEPT_ITEMS) {
        return message;
    }

    let id = response.id.clone();
    let mut message = json!({ "result": response.result });
    restore(&mut message);
    let result = CustomResult(message["result"].take());
    ServerJsonRpcMessage::response(ServerResult::CustomResult(result), id)
}

/// A transport whose messages leave with the items that were kept aside.
pub(crate) struct Restoring<T>(pub(crate) T);

impl<T: Transport<RoleServer>> Transport<RoleServer> for Restoring<T> {
    type Error = T::Error;

    fn send(
        &mut self,
        item: TxJsonRpcMessage<RoleServer>,
    ) -> impl Future<Output = Result<(), Self::Error>> + Send + 'static {
        self.0.send(restored(item))
    }

    fn receive(&mut self) -> impl Future<Output = Option<RxJsonRpcMessage<RoleServer>>> + Send {
        self.0.receive()
    }

    fn close(&mut self) -> impl Future<Output = Result<(), Self::Error>> + Send {
        self.0.close()
    }
}

/// The same for a message as text, or as the data of an event. `None` if nothing is to be put back.
pub(crate) fn restore_text(text: &[u8]) -> Option<String> {
    let text = std::str::from_utf8(text).ok().filter(|text| text.contains(KEPT_ITEMS))?;
    let restored = |json: &str| {
        let mut message = serde_json::from_str(json).ok()?;
        restore(&mut message).then(|| message.to_string())
    };
    if text.trim_start().starts_with('{') {
        return restored(text);
    }

    let mut event = String::with_capacity(text.len());
    let mut is_changed = false;
    for line in text.split_inclusive('\n') {
        let data = line.strip_prefix("data:").and_then(restored);
        match data {
            Some(data) => {
                is_changed = true;
                event.push_str("data: ");
                event.push_str(&data);
                event.push('\n');
            }
            None => event.push_str(line),
        }
    }
    is_changed.then_some(event)
}

#[cfg(test)]
mod tests {
    use rmcp::model::NumberOrString;

    use super::*;

    /// The message that a caller gets for a hosted server's result.
    fn passed_on(result: Value) -> Value {
        let CallToolResponse::Complete(result) =
            read(ServerResult::CustomResult(CustomResult(result))).unwrap()
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
        let typed =
            ServerJsonRpcMessage::response(ServerResult::CallToolResult(result), NumberOrString::Number(7));
        assert_eq!(serde_json::to_value(restored(typed)).unwrap()["result"], message["result"]);
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
            let expected =
                json!({"resultType": "complete", "content": content, "structuredContent": {"a": 1}});
            assert_eq!(found, expected);
        }
        let meta = json!({"trace": 1});
        let found = passed_on(json!({"content": [{"type": "video"}], "_meta": meta, "isError": true}));
        assert_eq!((&found["_meta"], &found["isError"]), (&meta, &json!(true)));
    }

    #[test]
    fn content_that_is_no_list_becomes_one() {
        let content = |content: Value| passed_on(json!({ "content": content }))["content"].take();
        assert_eq!(content(json!("hello")), json!([{"type": "text", "text": "hello"}]));
        assert_eq!(content(json!({"type": "text", "text": "x"})), json!([{"type": "text", "text": "x"}]));
        assert_eq!(content(Value::Null), json!([]));
        assert_eq!(passed_on(json!({}))["content"], json!([]));
    }

    #[test]
    fn what_is_no_result_of_a_tool_is_quoted() {
        let check = |result: Value, expected: &str| {
            let problem = read(ServerResult::CustomResult(CustomResult(result))).unwrap_err();
            assert!(problem.contains(expected), "{problem}");
        };
        check(json!({"resultType": "novel", "x": 1}), "\"novel\" is not known: {");
        check(json!({"resultType": 3}), "its resultType is not a text: 3");
        check(json!({"content": [], "isError": "no"}), "its isError is neither true nor false: \"no\"");
        check(json!({"resultType": "task"}), "missing field");
    }

    #[test]
    fn a_hosted_server_can_not_pose_as_us() {
        let posed = json!({"content": [], "_meta": {KEPT_ITEMS: {"0": "x"}}});
        let found = passed_on(posed);
        assert_eq!(found["content"], json!([]));
    }
}

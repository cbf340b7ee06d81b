//! Items of results that rmcp's types have no place for, on their way to whoever asked.
//!
//! A content item of a kind that rmcp does not know, or with a member missing, would cost the whole
//! result of a tool that has run, of a prompt or of a resource. So such items travel in the
//! result's `_meta`, under [`KEPT_ITEMS`], and are put back in their places when the answer is
//! written ([`restore`]).

use rmcp::{
    RoleServer,
    model::{CustomResult, JsonRpcMessage, MetaObject, ServerJsonRpcMessage, ServerResult},
    service::{RxJsonRpcMessage, TxJsonRpcMessage},
    transport::Transport,
};
use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};

/// In a result's `_meta`, on its way through this server: items that rmcp can't hold, by the member
/// whose list they belong to and their positions in it.
pub const KEPT_ITEMS: &str = "io.mcp-fleet/content";

/// The items of a result's `member` that rmcp can hold. The others are kept in `_meta`.
pub fn keep_odd<T: DeserializeOwned>(
    member: &str,
    items: Vec<Value>,
    meta: &mut Option<MetaObject>,
) -> Vec<T> {
    let mut kept = Map::new();
    let mut held = Vec::new();
    for (position, item) in items.into_iter().enumerate() {
        match serde_json::from_value(item.clone()) {
            Ok(item) => held.push(item),
            Err(_) => _ = kept.insert(position.to_string(), item),
        }
    }

    disown(meta);
    if !kept.is_empty() {
        let kept = json!({ member: kept });
        meta.get_or_insert_with(MetaObject::new).insert(KEPT_ITEMS.to_owned(), kept);
    }
    held
}

/// Removes what a hosted server says was kept here.
pub fn disown(meta: &mut Option<MetaObject>) {
    if let Some(meta) = meta {
        meta.remove(KEPT_ITEMS);
    }
}

/// Puts the items that were kept aside back into a JSON-RPC message. Whether there were any.
pub fn restore(message: &mut Value) -> bool {
    let Some(result) = message.get_mut("result").and_then(Value::as_object_mut) else {
        return false;
    };
    let Some(meta) = result.get_mut("_meta").and_then(Value::as_object_mut) else { return false };
    let Some(Value::Object(kept)) = meta.remove(KEPT_ITEMS) else { return false };
    if meta.is_empty() {
        result.remove("_meta");
    }

    for (member, items) in kept {
        let list = result.get_mut(&member).and_then(Value::as_array_mut);
        if let (Some(list), Value::Object(items)) = (list, items) {
            put_back(list, items);
        }
    }
    true
}

fn put_back(list: &mut Vec<Value>, items: Map<String, Value>) {
    let mut items: Vec<_> = items
        .into_iter()
        .filter_map(|(position, item)| Some((position.parse::<usize>().ok()?, item)))
        .collect();
    items.sort_by_key(|(position, _)| *position);
    for (position, item) in items {
        list.insert(position.min(list.len()), item);
    }
}

/// The same for a message to a client of ours.
pub fn restored(message: ServerJsonRpcMessage) -> ServerJsonRpcMessage {
    let JsonRpcMessage::Response(response) = &message else { return message };
    let meta = match &response.result {
        ServerResult::CallToolResult(result) => &result.meta,
        ServerResult::GetPromptResult(result) => &result.meta,
        ServerResult::ReadResourceResult(result) => &result.meta,
        _ => return message,
    };
    if !meta.as_ref().is_some_and(|meta| meta.contains_key(KEPT_ITEMS)) {
        return message;
    }

    let id = response.id.clone();
    let mut message = json!({ "result": response.result });
    restore(&mut message);
    let result = CustomResult(message["result"].take());
    ServerJsonRpcMessage::response(ServerResult::CustomResult(result), id)
}

/// A transport whose messages leave with the items that were kept aside.
pub struct Restoring<T>(pub T);

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
pub fn restore_text(text: &[u8]) -> Option<String> {
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

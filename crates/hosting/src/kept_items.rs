//! Carries items and members of results through rmcp that its types can't represent.
//!
//! A content item of an unknown kind, or without a required member, would make the whole result
//! unreadable, although the tool has run; and members that rmcp does not know would be lost. So
//! they are kept in the result's `_meta` under [`KEPT_ITEMS`], and restored when the answer is
//! written ([`restore`]).

use fleet_job::number;
use rmcp::{
    RoleServer,
    model::{CustomResult, JsonRpcMessage, MetaObject, ServerJsonRpcMessage, ServerResult},
    service::{RxJsonRpcMessage, TxJsonRpcMessage},
    transport::Transport,
};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Map, Value, json};

/// The key in a result's `_meta` under which this server keeps items that rmcp can't represent, by
/// the member whose list contains them and their positions in it.
pub const KEPT_ITEMS: &str = "io.mcp-fleet/content";

/// Beside those lists, the key for members of the result itself.
const MEMBERS: &str = "io.mcp-fleet/members";

/// Returns the items of a result's `member` that rmcp can represent exactly. The others are kept in
/// `_meta`.
pub fn keep_unreadable_items<T: DeserializeOwned + Serialize>(
    member: &str,
    items: Vec<Value>,
    meta: &mut Option<MetaObject>,
) -> Vec<T> {
    let mut kept = Map::new();
    let mut held = Vec::new();
    for (position, item) in items.into_iter().enumerate() {
        match read_whole(&item) {
            Some(item) => held.push(item),
            None => _ = kept.insert(position.to_string(), item),
        }
    }

    remove_forged(meta);
    if !kept.is_empty() {
        let kept = json!({ member: kept });
        meta.get_or_insert_with(MetaObject::new).insert(KEPT_ITEMS.to_owned(), kept);
    }
    held
}

/// Reads an item with rmcp's type, if rmcp would write it exactly as the server did.
fn read_whole<T: DeserializeOwned + Serialize>(item: &Value) -> Option<T> {
    let held: T = number::read(item.clone()).ok()?;
    let is_written_alike =
        || Some(serde_json::to_vec(&held).ok()? == serde_json::to_vec(item).ok()?);
    let is_whole = has_usual_members(item) || is_written_alike().unwrap_or_default();
    is_whole.then_some(held)
}

/// Returns whether an item has only the usual members. Most items do, and need not be serialized to
/// check that.
fn has_usual_members(item: &Value) -> bool {
    item.as_object().is_some_and(|item| {
        item.keys().eq(["type", "text"]) || item.keys().eq(["type", "data", "mimeType"])
    })
}

/// Keeps members of a result in `_meta`. Call this after the items of its lists were kept.
pub fn keep_members(members: Map<String, Value>, meta: &mut Option<MetaObject>) {
    if members.is_empty() {
        return;
    }
    let kept =
        meta.get_or_insert_with(MetaObject::new).entry(KEPT_ITEMS).or_insert_with(|| json!({}));
    if let Value::Object(kept) = kept {
        kept.insert(MEMBERS.to_owned(), members.into());
    }
}

/// Calls `show` for every kept item and member.
pub fn for_each_kept(kept: &mut Value, show: impl FnMut(&mut Value)) {
    let parts = kept.as_object_mut().into_iter().flat_map(Map::values_mut);
    parts.filter_map(Value::as_object_mut).flat_map(Map::values_mut).for_each(show);
}

/// Removes kept items that a hosted server has forged.
pub fn remove_forged(meta: &mut Option<MetaObject>) {
    if let Some(meta) = meta {
        meta.shift_remove(KEPT_ITEMS);
    }
}

/// Restores kept items and members in a JSON-RPC message. Returns whether there were any.
pub fn restore(message: &mut Value) -> bool {
    let Some(result) = message.get_mut("result").and_then(Value::as_object_mut) else {
        return false;
    };
    let Some(meta) = result.get_mut("_meta").and_then(Value::as_object_mut) else { return false };
    let Some(Value::Object(kept)) = meta.shift_remove(KEPT_ITEMS) else { return false };
    if meta.is_empty() {
        result.shift_remove("_meta");
    }

    for (member, items) in kept {
        if let (MEMBERS, Value::Object(members)) = (&*member, &items) {
            members.iter().for_each(|(name, member)| {
                result.entry(name).or_insert_with(|| member.clone());
            });
            continue;
        }
        let list = result.get_mut(&member).and_then(Value::as_array_mut);
        if let (Some(list), Value::Object(items)) = (list, items) {
            insert_items(list, items);
        }
    }
    true
}

fn insert_items(list: &mut Vec<Value>, items: Map<String, Value>) {
    let mut items: Vec<_> = items
        .into_iter()
        .filter_map(|(position, item)| Some((position.parse::<usize>().ok()?, item)))
        .collect();
    items.sort_by_key(|(position, _)| *position);
    for (position, item) in items {
        list.insert(position.min(list.len()), item);
    }
}

/// Restores kept items and members in a message to a client.
pub fn restore_message(message: ServerJsonRpcMessage) -> ServerJsonRpcMessage {
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

/// A transport that restores kept items and members in the messages that it sends.
pub struct Restoring<T>(pub T);

impl<T: Transport<RoleServer>> Transport<RoleServer> for Restoring<T> {
    type Error = T::Error;

    fn send(
        &mut self,
        item: TxJsonRpcMessage<RoleServer>,
    ) -> impl Future<Output = Result<(), Self::Error>> + Send + 'static {
        self.0.send(restore_message(item))
    }

    fn receive(&mut self) -> impl Future<Output = Option<RxJsonRpcMessage<RoleServer>>> + Send {
        self.0.receive()
    }

    fn close(&mut self) -> impl Future<Output = Result<(), Self::Error>> + Send {
        self.0.close()
    }
}

/// Restores kept items and members in a message as text, or in the data of an event. Returns `None`
/// if there are none.
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

//! Items and members of results that rmcp's types have no place for, on their way to whoever asked.
//!
//! A content item of a kind that rmcp does not know, or with a member missing, would cost the whole
//! result of a tool that has run, of a prompt or of a resource, and members that rmcp does not know
//! would be lost. So they travel in the result's `_meta`, under [`KEPT_ITEMS`], and are put back in
//! their places when the answer is written ([`restore`]).

use fleet_job::number;
use rmcp::{
    RoleServer,
    model::{CustomResult, JsonRpcMessage, MetaObject, ServerJsonRpcMessage, ServerResult},
    service::{RxJsonRpcMessage, TxJsonRpcMessage},
    transport::Transport,
};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Map, Value, json};

/// In a result's `_meta`, on its way through this server: items that rmcp can't hold, by the member
/// whose list they belong to and their positions in it.
pub const KEPT_ITEMS: &str = "io.mcp-fleet/content";

/// Beside those lists: members of the result itself.
const MEMBERS: &str = "io.mcp-fleet/members";

/// The items of a result's `member` that rmcp can hold as a whole. The others are kept in `_meta`.
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

/// An item in rmcp's terms, if rmcp writes it as the server did.
fn read_whole<T: DeserializeOwned + Serialize>(item: &Value) -> Option<T> {
    let held: T = number::read(item.clone()).ok()?;
    let is_written_alike =
        || Some(serde_json::to_vec(&held).ok()? == serde_json::to_vec(item).ok()?);
    let is_whole = has_usual_members(item) || is_written_alike().unwrap_or_default();
    is_whole.then_some(held)
}

/// Whether an item that rmcp can read has nothing but what all such items have. Most do, and need
/// not be written to see it.
fn has_usual_members(item: &Value) -> bool {
    item.as_object().is_some_and(|item| {
        item.keys().eq(["type", "text"]) || item.keys().eq(["type", "data", "mimeType"])
    })
}

/// Keeps members of a result in `_meta`, after the items of its lists.
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

/// Shows every item and member in what was kept.
pub fn for_each_kept(kept: &mut Value, show: impl FnMut(&mut Value)) {
    let parts = kept.as_object_mut().into_iter().flat_map(Map::values_mut);
    parts.filter_map(Value::as_object_mut).flat_map(Map::values_mut).for_each(show);
}

/// Removes what a hosted server says was kept here.
pub fn remove_forged(meta: &mut Option<MetaObject>) {
    if let Some(meta) = meta {
        meta.shift_remove(KEPT_ITEMS);
    }
}

/// Puts what was kept aside back into a JSON-RPC message. Whether there was anything.
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

/// The same for a message to a client of ours.
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

/// A transport whose messages leave with the items that were kept aside.
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

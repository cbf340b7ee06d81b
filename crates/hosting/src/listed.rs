//! Reading one page of what a server lists, item by item: an item that can't be read loses itself
//! and not the whole list.
//!
//! What an item can do without (an icon, a hint, an output schema) is left out if it can't be read.
//! An item whose name or schema can't be read is hidden, with the reason.

use fleet_job::number;
use rmcp::model::{
    ClientRequest, ListPromptsRequest, ListResourceTemplatesRequest, ListResourcesRequest,
    ListToolsRequest, PaginatedRequestParams, Prompt, Resource, ResourceTemplate, Tool,
};
use schemars::JsonSchema;
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Map, Value, json};

/// A list that is longer than this is not a server's but an attack.
pub(super) const MAX_ITEMS: usize = 10_000;
/// How many oddities of a page are logged.
const MAX_REMARKS: usize = 20;
/// How much of what can't be read is quoted.
const SHOWN: usize = 120;

/// Something that a server lists and that can't be offered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
pub struct HiddenTool {
    /// Its name at its server.
    pub name: String,
    /// Why it can't be offered.
    pub reason: String,
}

impl HiddenTool {
    /// What can't be offered, with a name that may be anything.
    pub(super) fn new(name: &str, reason: impl Into<String>) -> Self {
        Self { name: name.escape_debug().take(200).collect(), reason: reason.into() }
    }
}

/// One kind of list.
pub(super) trait Listed: Serialize + DeserializeOwned {
    /// The request for it.
    const METHOD: &'static str;
    /// What is waited for while it is asked for.
    const AWAITED: &'static str;
    /// Where the items are in the result.
    const FIELD: &'static str;
    /// What an item must have: texts.
    const TEXTS: &'static [&'static str];

    /// The request for a page.
    fn request(params: PaginatedRequestParams) -> ClientRequest;

    /// Puts in what a server may leave out, or says what is wrong.
    fn complete(item: &mut Map<String, Value>) -> Result<(), String>;
}

macro_rules! listed {
    ($item:ty, $method:literal, $field:literal, $texts:expr, $request:ident, $complete:path) => {
        impl Listed for $item {
            const METHOD: &'static str = $method;
            const AWAITED: &'static str = concat!("an answer to `", $method, "`");
            const FIELD: &'static str = $field;
            const TEXTS: &'static [&'static str] = $texts;

            fn request(params: PaginatedRequestParams) -> ClientRequest {
                ClientRequest::$request($request::with_param(params))
            }

            fn complete(item: &mut Map<String, Value>) -> Result<(), String> {
                $complete(item)
            }
        }
    };
}

listed!(Tool, "tools/list", "tools", &["name"], ListToolsRequest, complete_tool);
listed!(Prompt, "prompts/list", "prompts", &["name"], ListPromptsRequest, require_nothing);
listed!(
    Resource,
    "resources/list",
    "resources",
    &["uri", "name"],
    ListResourcesRequest,
    require_nothing
);
listed!(
    ResourceTemplate,
    "resources/templates/list",
    "resourceTemplates",
    &["uriTemplate", "name"],
    ListResourceTemplatesRequest,
    require_nothing
);

/// Nothing may be left out.
fn require_nothing(_: &mut Map<String, Value>) -> Result<(), String> {
    Ok(())
}

/// A tool that says nothing of its arguments takes an object, like every tool.
fn complete_tool(tool: &mut Map<String, Value>) -> Result<(), String> {
    let schema = tool.entry("inputSchema").or_insert(Value::Null);
    match schema {
        Value::Null => *schema = json!({ "type": "object" }),
        Value::Object(_) => {}
        other => return Err(format!("its inputSchema is not a JSON object: {}", quoted(other))),
    }
    Ok(())
}

/// One page of a list.
#[derive(Debug, PartialEq)]
pub(super) struct Page<T> {
    pub(super) items: Vec<T>,
    pub(super) hidden: Vec<HiddenTool>,
    /// What to ask for the next page with.
    pub(super) next: Option<String>,
    /// What was left out or put up with, for the log.
    pub(super) remarks: Vec<String>,
}

impl<T: Listed> Page<T> {
    /// Reads the result of a request for a list.
    ///
    /// # Errors
    ///
    /// If there is no list in it, or one that is too long.
    pub(super) fn read(mut result: Map<String, Value>) -> Result<Self, String> {
        let items = match result.remove(T::FIELD) {
            Some(Value::Array(items)) => items,
            Some(Value::Null) => Vec::new(),
            Some(other) => return Err(format!("`{}` is not a list: {}", T::FIELD, quoted(&other))),
            None => {
                return Err(format!(
                    "the answer has no `{}`: {}",
                    T::FIELD,
                    quoted(&result.into())
                ));
            }
        };

        if items.len() > MAX_ITEMS {
            return Err(format!("a page of {} items; at most {MAX_ITEMS} are read", items.len()));
        }

        let mut page =
            Self { items: Vec::new(), hidden: Vec::new(), next: None, remarks: Vec::new() };
        page.next = page.read_cursor(result.remove("nextCursor"));
        for item in items {
            page.add_item(item);
        }
        page.remarks.truncate(MAX_REMARKS);
        Ok(page)
    }

    fn read_cursor(&mut self, cursor: Option<Value>) -> Option<String> {
        match cursor? {
            Value::Null => None,
            // Many servers write this at the end of their list.
            Value::String(cursor) if cursor.is_empty() => None,
            Value::String(cursor) => Some(cursor),
            Value::Number(cursor) => Some(cursor.to_string()),
            other => {
                self.remarks.push(format!("nextCursor is not a text: {}", quoted(&other)));
                None
            }
        }
    }

    fn add_item(&mut self, item: Value) {
        let name = item.get(T::TEXTS[0]).and_then(Value::as_str).unwrap_or_default().to_owned();
        match read_item(item, &mut self.remarks) {
            Ok(item) => self.items.push(item),
            Err(reason) => {
                let name = if name.is_empty() { "(without a name)" } else { &name };
                self.hidden.push(HiddenTool::new(name, reason));
            }
        }
    }
}

/// Reads an item, without those of its members that can't be read.
fn read_item<T: Listed>(item: Value, remarks: &mut Vec<String>) -> Result<T, String> {
    let Value::Object(mut item) = item else {
        return Err(format!("it is not an object: {}", quoted(&item)));
    };
    for key in T::TEXTS {
        match item.get(*key) {
            Some(Value::String(text)) if !text.is_empty() => {}
            None => return Err(format!("it has no {key}: {}", quoted(&item.into()))),
            Some(other) => {
                return Err(format!("its {key} is not a text, or empty: {}", quoted(other)));
            }
        }
    }
    T::complete(&mut item)?;
    if let Ok(item) = number::read(Value::Object(item.clone())) {
        return Ok(item);
    }

    let name = item[T::TEXTS[0]].as_str().unwrap_or_default().to_owned();
    let is_needed = |key: &str| T::TEXTS.contains(&key) || key == "inputSchema";
    let (mut kept, optional): (Map<_, _>, Map<_, _>) =
        item.into_iter().partition(|(key, _)| is_needed(key));
    let minimal = minimal_item::<T>();
    for (key, value) in optional {
        let is_readable = |value: &Value| {
            let mut item = minimal.clone();
            item.insert(key.clone(), value.clone());
            number::read::<T>(item.into()).is_ok()
        };
        let Some(found) = readable_part(&value, is_readable) else {
            remarks.push(format!(
                "left {key} of `{name}` out, which can't be read: {}",
                quoted(&value)
            ));
            continue;
        };
        if found != value {
            remarks.push(format!(
                "left a part of {key} of `{name}` out, which can't be read: {}",
                quoted(&value)
            ));
        }
        kept.insert(key, found);
    }
    number::read(kept.into()).map_err(|error| error.to_string())
}

/// An item with nothing but what it must have. Members are tried on it, so that an item costs no
/// more than its size.
fn minimal_item<T: Listed>() -> Map<String, Value> {
    let texts = T::TEXTS.iter().map(|key| ((*key).to_owned(), json!("x")));
    texts.chain([("inputSchema".to_owned(), json!({}))]).collect()
}

/// The value, or those of its elements or members that can be read each by itself, if there are
/// any.
fn readable_part(value: &Value, is_readable: impl Fn(&Value) -> bool) -> Option<Value> {
    if is_readable(value) {
        return Some(value.clone());
    }
    let part = match value {
        Value::Array(elements) => {
            let alone = |element: &&Value| is_readable(&json!([element]));
            Value::Array(elements.iter().filter(alone).cloned().collect())
        }
        Value::Object(members) => {
            let alone = |(key, member): &(&String, &Value)| {
                is_readable(&Value::Object(Map::from_iter([((*key).clone(), (*member).clone())])))
            };
            let members = members.iter().filter(alone);
            Value::Object(members.map(|(key, member)| (key.clone(), member.clone())).collect())
        }
        _ => return None,
    };
    let is_empty = part == json!([]) || part == json!({});
    (!is_empty && is_readable(&part)).then_some(part)
}

fn quoted(value: &Value) -> String {
    fleet_wire::quote(&value.to_string(), SHOWN)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(result: Value) -> Page<Tool> {
        let Value::Object(result) = result else { panic!("no object") };
        Page::read(result).unwrap()
    }

    fn tool(member: &str, value: Value) -> Value {
        let mut tool = json!({"name": "odd", "inputSchema": {"type": "object"}});
        tool[member] = value;
        tool
    }

    #[test]
    fn an_odd_tool_loses_what_can_not_be_read_of_it() {
        let check = |odd: Value, expected: Value| {
            let good = json!({"name": "work", "inputSchema": {"type": "object"}});
            let page = page(json!({"resultType": "complete", "tools": [good, odd]}));
            assert_eq!(page.hidden, [], "{odd}");
            assert_eq!(serde_json::to_value(&page.items[1]).unwrap(), expected, "{odd}");
        };
        let plain = json!({"name": "odd", "inputSchema": {"type": "object"}});
        check(json!({"name": "odd"}), plain.clone());
        check(tool("inputSchema", Value::Null), plain.clone());
        check(tool("outputSchema", json!([])), plain.clone());
        check(tool("_meta", json!("x")), plain.clone());
        check(tool("description", json!(7)), plain.clone());
        check(tool("icons", json!([{"url": "x.png"}])), plain.clone());
        check(tool("annotations", json!({"title": 5})), plain);
        check(
            tool("icons", json!([{"url": "x"}, {"src": "y"}])),
            tool("icons", json!([{"src": "y"}])),
        );
        check(
            tool(
                "annotations",
                json!({"readOnlyHint": "true", "destructiveHint": false, "title": 5}),
            ),
            tool("annotations", json!({"destructiveHint": false})),
        );
    }

    #[test]
    fn a_tool_without_a_name_or_a_schema_is_hidden_with_the_reason() {
        let check = |odd: Value, name: &str, reason: &str| {
            let page = page(json!({"tools": [{"name": "work"}, odd]}));
            assert_eq!(page.items.len(), 1, "{odd}");
            assert_eq!(page.hidden[0].name, name, "{odd}");
            assert!(page.hidden[0].reason.contains(reason), "{odd}: {}", page.hidden[0].reason);
        };
        check(
            json!({"description": "x"}),
            "(without a name)",
            "it has no name: {\"description\":\"x\"}",
        );
        check(json!({"name": ""}), "(without a name)", "its name is not a text, or empty: \"\"");
        check(json!({"name": 7}), "(without a name)", "its name is not a text, or empty: 7");
        check(
            tool("inputSchema", json!(true)),
            "odd",
            "its inputSchema is not a JSON object: true",
        );
        check(
            tool("inputSchema", json!("{}")),
            "odd",
            "its inputSchema is not a JSON object: \"{}\"",
        );
        check(json!("odd"), "(without a name)", "it is not an object: \"odd\"");
    }

    #[test]
    fn cursors_are_read_in_every_form() {
        let check = |cursor: Value, expected: Option<&str>| {
            let page = page(json!({"tools": null, "nextCursor": cursor}));
            assert_eq!(page.next.as_deref(), expected, "{cursor}");
        };
        check(json!("2"), Some("2"));
        check(json!(2), Some("2"));
        check(json!(""), None);
        check(Value::Null, None);
        check(json!({"page": 2}), None);
    }

    #[test]
    fn what_is_no_list_is_quoted() {
        let error =
            |result: Value| Page::<Tool>::read(result.as_object().unwrap().clone()).unwrap_err();
        assert_eq!(error(json!({"tool": []})), "the answer has no `tools`: {\"tool\":[]}");
        assert_eq!(error(json!({"tools": {}})), "`tools` is not a list: {}");
    }
}

//! Reads one page of a server's list item by item, so that an unreadable item does not make the
//! whole list unreadable.
//!
//! Unreadable optional members of an item (an icon, a hint, an output schema) are left out. An item
//! whose name or schema is unreadable is hidden, with the reason.

use fleet_job::number;
use fleet_wire::shorten;
use rmcp::model::{
    ClientRequest, ListPromptsRequest, ListResourceTemplatesRequest, ListResourcesRequest,
    ListToolsRequest, PaginatedRequestParams, Prompt, Resource, ResourceTemplate, Tool,
};
use schemars::JsonSchema;
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Map, Value, json};

/// The most items in a list. No honest server has more.
pub(super) const MAX_ITEMS: usize = 10_000;
/// The most remarks about a page that are logged.
const MAX_REMARKS: usize = 20;
/// The longest part of an unreadable value that is quoted, in bytes.
const SHOWN: usize = 120;

/// The longest part of a hidden item's name that is shown, in characters.
const MAX_NAME: usize = 200;
/// The longest reason for hiding an item, in bytes. A reason may quote the item.
const MAX_REASON: usize = 1024;

/// A listed item that can't be offered.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, JsonSchema)]
pub struct HiddenTool {
    /// The item's name at its server.
    pub name: String,
    /// Why the item can't be offered.
    pub reason: String,
}

impl HiddenTool {
    /// Creates a hidden item; its name and the reason may be any texts.
    pub(super) fn new(name: &str, reason: impl AsRef<str>) -> Self {
        let mut escaped = name.escape_debug();
        let mut name: String = escaped.by_ref().take(MAX_NAME).collect();
        if escaped.next().is_some() {
            name.push('…');
        }
        Self { name, reason: shorten(reason.as_ref(), MAX_REASON).into_owned() }
    }
}

/// An item of one kind of list.
pub(super) trait Listed: Serialize + DeserializeOwned {
    /// The method of the list.
    const METHOD: &'static str;
    /// What is waited for while the list is requested, for people.
    const AWAITED: &'static str;
    /// The member of the result that contains the items.
    const FIELD: &'static str;
    /// The strings that an item must have. The first identifies it.
    const TEXTS: &'static [&'static str];

    /// Creates the request for a page.
    fn request(params: PaginatedRequestParams) -> ClientRequest;

    /// Adds what servers leave out. Returns an error if the item can't be used.
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

/// Adds nothing.
fn require_nothing(_: &mut Map<String, Value>) -> Result<(), String> {
    Ok(())
}

/// Adds an input schema if there is none. The arguments of every tool are an object.
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
    /// The cursor of the next page.
    pub(super) next: Option<String>,
    /// What was left out, for the log.
    pub(super) remarks: Vec<String>,
}

impl<T: Listed> Page<T> {
    /// Reads the result of a request for a list.
    ///
    /// # Errors
    ///
    /// Returns an error if the result contains no list, or a page that is too long.
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
            let items = items.len();
            return Err(format!("a page has {items} items; the limit is {MAX_ITEMS}"));
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
        fleet_wire::cursor::read_cursor(cursor).unwrap_or_else(|other| {
            self.remarks.push(format!("nextCursor is not a string: {}", quoted(&other)));
            None
        })
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

/// Reads an item without its unreadable optional members.
fn read_item<T: Listed>(item: Value, remarks: &mut Vec<String>) -> Result<T, String> {
    let Value::Object(mut item) = item else {
        return Err(format!("it is not an object: {}", quoted(&item)));
    };
    for key in T::TEXTS {
        match item.get(*key) {
            Some(Value::String(text)) if !text.is_empty() => {}
            None => return Err(format!("it has no {key}: {}", quoted(&item.into()))),
            Some(other) => {
                return Err(format!("its {key} is not a non-empty string: {}", quoted(other)));
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
            remarks.push(format!("ignoring the invalid {key} of `{name}`: {}", quoted(&value)));
            continue;
        };
        if found != value {
            remarks.push(format!(
                "ignoring the invalid part of the {key} of `{name}`: {}",
                quoted(&value)
            ));
        }
        kept.insert(key, found);
    }
    number::read(kept.into()).map_err(|error| error.to_string())
}

/// Returns an item with only the required members. Optional members are tried with it, so that the
/// cost of an item is linear in its size.
fn minimal_item<T: Listed>() -> Map<String, Value> {
    let texts = T::TEXTS.iter().map(|key| ((*key).to_owned(), json!("x")));
    texts.chain([("inputSchema".to_owned(), json!({}))]).collect()
}

/// Returns the value if it is readable, or else those of its elements or members that are readable
/// on their own, if any.
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
    fn unreadable_optional_members_of_a_tool_are_left_out() {
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
        check(json!({"name": ""}), "(without a name)", "its name is not a non-empty string: \"\"");
        check(json!({"name": 7}), "(without a name)", "its name is not a non-empty string: 7");
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

    /// Secrets in the name are hidden afterwards.
    #[test]
    fn the_name_and_reason_of_a_hidden_tool_say_that_they_are_cut() {
        let hidden = HiddenTool::new(&"n".repeat(MAX_NAME), "r".repeat(MAX_REASON));
        assert_eq!((hidden.name.len(), hidden.reason.len()), (MAX_NAME, MAX_REASON));
        let hidden = HiddenTool::new(&"n".repeat(MAX_NAME + 1), "r".repeat(MAX_REASON + 1));
        assert!(hidden.name.ends_with("n…") && hidden.reason.ends_with("r…"), "{hidden:?}");
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
    fn a_result_without_a_list_is_quoted() {
        let error =
            |result: Value| Page::<Tool>::read(result.as_object().unwrap().clone()).unwrap_err();
        assert_eq!(error(json!({"tool": []})), "the answer has no `tools`: {\"tool\":[]}");
        assert_eq!(error(json!({"tools": {}})), "`tools` is not a list: {}");
    }
}

//! Reads answers to `initialize` leniently: unreadable members are removed, so that one of them
//! does not make the whole server unusable.

use fleet_job::number;
use fleet_wire::quote;
use rmcp::model::{Implementation, InitializeResult, ProtocolVersion, ServerCapabilities};
use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};

use crate::secrets::Secrets;

/// The longest part of an unreadable member that is quoted, in bytes.
const SHOWN: usize = 80;
/// The longest part of a name that is quoted, in bytes.
const SHOWN_NAME: usize = 40;
/// The most remarks that are logged.
const MAX_REMARKS: usize = 8;

/// Adds what the result of a handshake should contain but nobody needs, and removes what can't be
/// read. Logs what was removed, without the values of `secrets`.
pub(crate) fn forgive_result(result: &mut Map<String, Value>, secrets: &Secrets) {
    let mut remarks = Vec::new();
    forgive_version(result, &mut remarks);
    forgive_capabilities(result, &mut remarks);
    forgive_info(result, &mut remarks);
    forgive_instructions(result);
    remove_unreadable::<InitializeResult>(result, stand_in_result(), "", &mut remarks);

    if !remarks.is_empty() {
        let named = quote(result["serverInfo"]["name"].as_str().unwrap_or_default(), SHOWN_NAME);
        let (named, remarks) = (secrets.hide(named), secrets.hide(summarize_remarks(&remarks)));
        tracing::warn!(
            named = &*named,
            remarks = &*remarks,
            "ignoring invalid parts of a hosted server's answer to `initialize`"
        );
    }
}

/// Does the same for a result that looks like that of a handshake.
pub(crate) fn forgive_handshake(result: &mut Map<String, Value>, secrets: &Secrets) {
    let has = |key: &str| result.contains_key(key);
    let is_handshake = has("serverInfo") || has("protocolVersion") && has("capabilities");
    if is_handshake && !has("supportedVersions") {
        forgive_result(result, secrets);
    }
}

/// Joins the first remarks, and counts the others.
fn summarize_remarks(remarks: &[String]) -> String {
    let shown = remarks[..remarks.len().min(MAX_REMARKS)].join("; ");
    match remarks.len().saturating_sub(MAX_REMARKS) {
        0 => shown,
        more => format!("{shown}; and {more} more"),
    }
}

/// Returns the smallest readable result of `initialize`.
fn stand_in_result() -> Value {
    json!({
        "protocolVersion": ProtocolVersion::LATEST_WITH_INITIALIZE,
        "capabilities": {},
        "serverInfo": stand_in_info(),
    })
}

/// Returns the smallest readable `serverInfo`.
fn stand_in_info() -> Value {
    json!({"name": "unnamed", "version": "unknown"})
}

/// Sets the revision if the server names none: the one in which we sent `initialize`.
fn forgive_version(result: &mut Map<String, Value>, remarks: &mut Vec<String>) {
    let version = result.entry("protocolVersion").or_insert(Value::Null);
    if version.is_string() {
        return;
    }
    let asked = ProtocolVersion::LATEST_WITH_INITIALIZE;
    remarks.push(match *version {
        Value::Null => format!("it names no protocolVersion; assuming {asked}"),
        ref other => format!("its protocolVersion is {}; assuming {asked}", quoted(other)),
    });
    *version = json!(asked);
}

/// Accepts capabilities as a list of names, and each capability as a boolean.
fn forgive_capabilities(result: &mut Map<String, Value>, remarks: &mut Vec<String>) {
    let written = result.remove("capabilities").unwrap_or_default();
    let mut capabilities = match written {
        Value::Object(capabilities) => capabilities,
        Value::Null => Map::new(),
        Value::Array(names) if names.iter().all(Value::is_string) => {
            let name = |name: &Value| name.as_str().map(str::to_owned);
            names.iter().filter_map(name).map(|name| (name, json!({}))).collect()
        }
        other => {
            remarks.push(format!("its capabilities are {}", quoted(&other)));
            Map::new()
        }
    };

    capabilities.retain(|_, value| !matches!(value, Value::Null | Value::Bool(false)));
    for (name, value) in &mut capabilities {
        let is_readable = |value: &Value| is_readable::<ServerCapabilities>(json!({name: value}));
        if is_readable(value) {
            continue;
        }
        if *value != Value::Bool(true) {
            let name = quote(name, SHOWN_NAME);
            remarks.push(format!("`capabilities.{name}` is {}", quoted(value)));
        }
        *value = json!({});
    }
    capabilities.retain(|name, value| is_readable::<ServerCapabilities>(json!({name: value})));
    result.insert("capabilities".to_owned(), capabilities.into());
}

fn forgive_info(result: &mut Map<String, Value>, remarks: &mut Vec<String>) {
    let info = result.entry("serverInfo").or_insert(Value::Null);
    let name = info.as_str().map(str::to_owned);
    if !info.is_object() {
        *info = json!({});
    }
    let Value::Object(info) = info else { return };
    if let Some(name) = name {
        info.insert("name".to_owned(), name.into());
    }
    for (key, stand_in) in [("name", "unnamed"), ("version", "unknown")] {
        let found = match info.get(key) {
            Some(Value::String(_)) => continue,
            Some(Value::Number(number)) => number.to_string(),
            _ => stand_in.to_owned(),
        };
        info.insert(key.to_owned(), found.into());
    }
    remove_unreadable::<Implementation>(info, stand_in_info(), "serverInfo.", remarks);
}

/// Accepts instructions as a list of lines.
fn forgive_instructions(result: &mut Map<String, Value>) {
    if let Some(Value::Array(lines)) = result.get("instructions")
        && lines.iter().all(Value::is_string)
    {
        let lines: Vec<&str> = lines.iter().filter_map(Value::as_str).collect();
        let text = lines.join("\n");
        result.insert("instructions".to_owned(), text.into());
    }
}

/// Removes the members that make a `T` unreadable. Each member is tried beside `stand_in`, the
/// smallest readable `T`, because the server's own members may be large.
fn remove_unreadable<T: DeserializeOwned>(
    members: &mut Map<String, Value>,
    stand_in: Value,
    path: &str,
    remarks: &mut Vec<String>,
) {
    if is_readable::<T>(members.clone().into()) {
        return;
    }
    members.retain(|key, value| {
        let mut tried = stand_in.clone();
        tried[key] = value.clone();
        let is_readable = is_readable::<T>(tried);
        if !is_readable {
            let key = quote(key, SHOWN_NAME);
            remarks.push(format!("`{path}{key}` is {}", quoted(value)));
        }
        is_readable
    });
}

fn is_readable<T: DeserializeOwned>(value: Value) -> bool {
    number::read::<T>(value).is_ok()
}

fn quoted(value: &Value) -> String {
    quote(&value.to_string(), SHOWN)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn forgiven(changes: &Value) -> Value {
        let mut result = json!({"protocolVersion": "2025-06-18", "capabilities": {"tools": {}}, "serverInfo": {"name": "s", "version": "1"}});
        for (key, value) in changes.as_object().unwrap() {
            match value {
                Value::String(text) if text == "remove" => {
                    result.as_object_mut().unwrap().shift_remove(key);
                }
                value => result[key] = value.clone(),
            }
        }
        let Value::Object(mut result) = result else { panic!("no object") };
        forgive_result(&mut result, &Secrets::default());
        let found = number::read::<InitializeResult>(result.clone().into());
        assert!(found.is_ok(), "{result:?}: {found:?}");
        result.into()
    }

    #[test]
    fn an_unreadable_member_does_not_make_the_server_unusable() {
        let check = |changes: Value, pointer: &str, expected: Value| {
            let found = forgiven(&changes);
            assert_eq!(found.pointer(pointer).unwrap_or(&Value::Null), &expected, "{changes}");
        };
        let newest = json!(ProtocolVersion::LATEST_WITH_INITIALIZE);
        check(json!({"protocolVersion": 2025}), "/protocolVersion", newest.clone());
        check(json!({"protocolVersion": "remove"}), "/protocolVersion", newest);
        check(json!({"protocolVersion": "1.0"}), "/protocolVersion", json!("1.0"));
        let tools = json!({"tools": {}});
        check(
            json!({"capabilities": {"tools": true, "prompts": false, "resources": null}}),
            "/capabilities",
            tools.clone(),
        );
        check(json!({"capabilities": ["tools"]}), "/capabilities", tools.clone());
        check(
            json!({"capabilities": {"tools": {"listChanged": "yes"}}}),
            "/capabilities",
            tools.clone(),
        );
        for odd in [json!(null), json!("remove"), json!(true), json!([3])] {
            check(json!({"capabilities": odd}), "/capabilities", json!({}));
        }
        check(json!({"instructions": ["be", "nice"]}), "/instructions", json!("be\nnice"));
        check(json!({"instructions": {"a": 1}}), "/instructions", Value::Null);
        let icons = json!({"serverInfo": {"name": "s", "icons": "x", "title": "t"}});
        check(icons, "/serverInfo", json!({"name": "s", "title": "t", "version": "unknown"}));
        check(json!({"serverInfo": "odd 1.0"}), "/serverInfo/name", json!("odd 1.0"));
        check(json!({"serverInfo": {"name": 7}}), "/serverInfo/name", json!("7"));
        check(json!({"_meta": "x"}), "/_meta", Value::Null);
        check(json!({"novel": [1]}), "/novel", json!([1]));
    }

    /// If the server's own capabilities were read again for each member, this test would run for
    /// more than an hour.
    #[test]
    fn many_members_beside_large_ones_are_read_once_each() {
        let large: Map<String, Value> =
            (0..20_000).map(|number| (format!("a{number}"), json!({"b": "c"}))).collect();
        let mut changes = json!({"_meta": "x", "capabilities": {"experimental": large}});
        for number in 0..20_000 {
            changes[format!("m{number}")] = json!(number);
        }
        let found = forgiven(&changes);
        assert_eq!((found.get("_meta"), &found["m19999"]), (None, &json!(19_999)));
        assert_eq!(found["capabilities"]["experimental"]["a19999"], json!({"b": "c"}));
    }

    #[test]
    fn remarks_are_few_and_short() {
        let remarks = vec!["odd".to_owned(); 10];
        assert_eq!(summarize_remarks(&remarks[..2]), "odd; odd");
        assert!(summarize_remarks(&remarks).ends_with("; odd; and 2 more"));
    }

    #[test]
    fn only_results_of_handshakes_are_changed() {
        let check = |result: Value, is_changed: bool| {
            let Value::Object(mut found) = result.clone() else { panic!("no object") };
            forgive_handshake(&mut found, &Secrets::default());
            assert_eq!(result != Value::Object(found), is_changed, "{result}");
        };
        check(json!({"serverInfo": {"name": "s"}}), true);
        check(json!({"protocolVersion": "2025-06-18", "capabilities": null}), true);
        check(json!({"supportedVersions": [], "capabilities": {}, "serverInfo": {}}), false);
        check(json!({"content": [], "capabilities": null}), false);
    }
}

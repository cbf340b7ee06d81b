//! Finding the servers in a configuration. Programs keep them under different keys.

use serde_json::{Map, Value};

use super::{
    ConfigError, ROOT, ROOT_VSCODE,
    entry::looks_like_entry,
    fields::{kind_of, wrong_type},
};

/// Keys for servers by name: the usual one, VS Code's in `mcp.json` and in its settings, Zed's,
/// Codex's and Amp's.
const ROOTS: [&str; 6] =
    [ROOT, ROOT_VSCODE, "mcp.servers", "context_servers", "mcp_servers", "amp.mcpServers"];
/// The key that contains `servers` in VS Code's settings, and the servers themselves in OpenCode's.
const NESTED: &str = "mcp";

/// The servers of a configuration as written.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RawServers<'a> {
    /// The path of the servers, for messages.
    pub path: &'static str,
    /// The root key that the servers are under.
    pub(super) key: &'static str,
    /// The unread entries by name.
    pub entries: &'a Map<String, Value>,
}

/// Finds the servers of a configuration.
///
/// # Errors
///
/// Returns an error if there are no servers, if they are under two root keys, or if the value of
/// the root key is not an object.
pub fn find(object: &Map<String, Value>) -> Result<RawServers<'_>, ConfigError> {
    let mut present = ROOTS.into_iter().chain([NESTED]).filter(|key| object.contains_key(*key));
    let Some(key) = present.next() else { return Err(explain_missing_root(object)) };
    if let Some(second) = present.next() {
        return Err(ConfigError::TwoRoots { first: key, second });
    }

    let entries = read_entries(key, &object[key])?;
    if key != NESTED {
        return Ok(RawServers { path: key, key, entries });
    }

    for (inner, path) in [(ROOT_VSCODE, "mcp.servers"), (ROOT, "mcp.mcpServers")] {
        if let Some(value) = entries.get(inner).filter(|value| !looks_like_entry(value)) {
            return Ok(RawServers { path, key, entries: read_entries(path, value)? });
        }
    }
    Ok(RawServers { path: NESTED, key, entries })
}

fn read_entries<'a>(path: &str, value: &'a Value) -> Result<&'a Map<String, Value>, ConfigError> {
    match value {
        Value::Object(entries) => Ok(entries),
        Value::Array(_) => Err(ConfigError::List { path: path.to_owned() }),
        other => Err(wrong_type(path.to_owned(), "an object", other)),
    }
}

/// Returns why there is no root key, with what the object seems to be instead.
fn explain_missing_root(object: &Map<String, Value>) -> ConfigError {
    if looks_like_entry(&Value::Object(object.clone())) {
        return ConfigError::OneEntry;
    }

    match object.iter().next() {
        Some((name, _)) if object.values().all(looks_like_entry) => {
            ConfigError::OnlyEntries { example: name.clone() }
        }
        _ => ConfigError::NoRoot,
    }
}

/// Returns the configuration as an object.
pub(super) fn object(value: &Value) -> Result<&Map<String, Value>, ConfigError> {
    value.as_object().ok_or_else(|| ConfigError::WrongType {
        path: "the configuration".to_owned(),
        expected: "an object",
        found: kind_of(value),
    })
}

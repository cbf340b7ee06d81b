//! Taking typed fields out of a JSON object, with errors that name the path of the field.
//!
//! serde's errors tell what is wrong but not where, which does not help a person who wrote ten
//! servers.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use super::ConfigError;

/// An object whose fields are taken out one by one. Fields that remain at the end are unknown.
pub(super) struct Fields<'a> {
    path: &'a str,
    left: Map<String, Value>,
    /// The first field that had an empty string, which counts as absent.
    empty: Option<&'static str>,
}

impl<'a> Fields<'a> {
    pub(super) fn new(value: &Value, path: &'a str) -> Result<Self, ConfigError> {
        match value {
            Value::Object(object) => Ok(Self { path, left: object.clone(), empty: None }),
            other => Err(wrong_type(path.to_owned(), "an object", other)),
        }
    }

    /// Returns the path of the field `key`.
    pub(super) fn path_of(&self, key: &str) -> String {
        format!("{}.{key}", self.path)
    }

    /// Takes a field of any type. `null` counts as absent.
    pub(super) fn take(&mut self, key: &str) -> Option<Value> {
        self.left.remove(key).filter(|value| !value.is_null())
    }

    /// Takes an optional string. `null` and an empty string count as absent.
    pub(super) fn string(&mut self, key: &'static str) -> Result<Option<String>, ConfigError> {
        match self.take(key) {
            None => Ok(None),
            Some(Value::String(text)) if text.is_empty() => {
                self.note_empty(key);
                Ok(None)
            }
            Some(Value::String(text)) => Ok(Some(text)),
            Some(other) => Err(wrong_type(self.path_of(key), "a string", &other)),
        }
    }

    /// Records that the field `key` was empty, for the error if it turns out to be required.
    pub(super) fn note_empty(&mut self, key: &'static str) {
        self.empty = self.empty.or(Some(key));
    }

    pub(super) fn boolean(&mut self, key: &str) -> Result<Option<bool>, ConfigError> {
        match self.take(key) {
            None => Ok(None),
            Some(Value::Bool(value)) => Ok(Some(value)),
            Some(other) => Err(wrong_type(self.path_of(key), "true or false", &other)),
        }
    }

    /// Takes an array of strings. Numbers and booleans become strings.
    pub(super) fn texts(&mut self, key: &str) -> Result<Vec<String>, ConfigError> {
        match self.take(key) {
            None => Ok(Vec::new()),
            Some(Value::Array(items)) => texts(&self.path_of(key), items),
            Some(other) => Err(wrong_type(self.path_of(key), "an array of strings", &other)),
        }
    }

    /// Takes an object of strings under whichever of `keys` is present. Numbers and booleans become
    /// strings, and members that are `null` are left out.
    pub(super) fn text_map(
        &mut self,
        keys: &[&'static str],
    ) -> Result<BTreeMap<String, String>, ConfigError> {
        let mut found = keys.iter().filter_map(|key| Some((*key, self.take(key)?)));
        let Some((key, value)) = found.next() else { return Ok(BTreeMap::new()) };

        if let Some((second, _)) = found.next() {
            return Err(self.conflict(key, second));
        }

        let Value::Object(object) = value else {
            return Err(wrong_type(self.path_of(key), "an object of strings", &value));
        };

        let set = object.into_iter().filter(|(_, value)| !value.is_null());
        set.map(|(name, value)| {
            let text = text(&format!("{}.{name}", self.path_of(key)), value)?;
            Ok((name, text))
        })
        .collect()
    }

    /// Returns the value of a required field.
    pub(super) fn required<T>(
        &self,
        key: &'static str,
        value: Option<T>,
    ) -> Result<T, ConfigError> {
        value.ok_or_else(|| match self.empty {
            Some(empty) if empty == key => ConfigError::Empty { path: self.path_of(key) },
            _ => ConfigError::Missing { path: self.path_of(key) },
        })
    }

    /// Returns the error for an entry with neither a program to start nor a server to connect to.
    pub(super) fn no_endpoint(&self) -> ConfigError {
        match self.empty {
            Some(key @ ("command" | "url" | "serverUrl" | "httpUrl")) => {
                ConfigError::Empty { path: self.path_of(key) }
            }
            _ => ConfigError::NoEndpoint { path: self.path.to_owned() },
        }
    }

    pub(super) fn conflict(&self, first: &'static str, second: &'static str) -> ConfigError {
        ConfigError::Conflict { path: self.path.to_owned(), first, second }
    }

    /// Returns the fields that were not taken.
    pub(super) fn rest(self) -> BTreeMap<String, Value> {
        self.left.into_iter().collect()
    }
}

/// Converts the items of an array to strings.
pub(super) fn texts(path: &str, items: Vec<Value>) -> Result<Vec<String>, ConfigError> {
    items
        .into_iter()
        .enumerate()
        .map(|(index, item)| text(&format!("{path}[{index}]"), item))
        .collect()
}

/// Returns a string as it is, and a number or boolean as it is written, as a shell would.
fn text(path: &str, value: Value) -> Result<String, ConfigError> {
    match value {
        Value::String(text) => Ok(text),
        Value::Number(number) => Ok(number.to_string()),
        Value::Bool(value) => Ok(value.to_string()),
        other => Err(wrong_type(path.to_owned(), "a string", &other)),
    }
}

/// Returns the type of a JSON value in words.
pub(super) fn kind_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    }
}

pub(super) fn wrong_type(path: String, expected: &'static str, found: &Value) -> ConfigError {
    ConfigError::WrongType { path, expected, found: kind_of(found) }
}

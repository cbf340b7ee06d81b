//! Taking typed fields out of a JSON object with the place of each in its error.
//!
//! serde's own errors say what is wrong but not where, and a person who wrote ten servers needs the where.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use super::ConfigError;

/// An object whose fields are taken one by one. What is left over at the end is unknown.
pub(super) struct Fields<'a> {
    path: &'a str,
    left: Map<String, Value>,
}

impl<'a> Fields<'a> {
    pub(super) fn new(value: &Value, path: &'a str) -> Result<Self, ConfigError> {
        match value {
            Value::Object(object) => Ok(Self { path, left: object.clone() }),
            other => Err(wrong(path.to_owned(), "an object", other)),
        }
    }

    /// Where the field `key` stands.
    pub(super) fn place(&self, key: &str) -> String {
        format!("{}.{key}", self.path)
    }

    /// An optional string; `null` counts as absent.
    pub(super) fn string(&mut self, key: &str) -> Result<Option<String>, ConfigError> {
        match self.left.remove(key) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::String(text)) if text.is_empty() => Err(ConfigError::Empty { path: self.place(key) }),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(other) => Err(wrong(self.place(key), "a string", &other)),
        }
    }

    pub(super) fn strings(&mut self, key: &str) -> Result<Vec<String>, ConfigError> {
        match self.left.remove(key) {
            None | Some(Value::Null) => Ok(Vec::new()),
            Some(Value::Array(items)) => items
                .into_iter()
                .enumerate()
                .map(|(index, item)| match item {
                    Value::String(text) => Ok(text),
                    other => Err(wrong(format!("{}[{index}]", self.place(key)), "a string", &other)),
                })
                .collect(),
            Some(other) => Err(wrong(self.place(key), "an array of strings", &other)),
        }
    }

    pub(super) fn string_map(&mut self, key: &str) -> Result<BTreeMap<String, String>, ConfigError> {
        match self.left.remove(key) {
            None | Some(Value::Null) => Ok(BTreeMap::new()),
            Some(Value::Object(object)) => object
                .into_iter()
                .map(|(name, value)| match value {
                    Value::String(text) => Ok((name, text)),
                    other => Err(wrong(format!("{}.{name}", self.place(key)), "a string", &other)),
                })
                .collect(),
            Some(other) => Err(wrong(self.place(key), "an object of strings", &other)),
        }
    }

    pub(super) fn required(&self, key: &str, value: Option<String>) -> Result<String, ConfigError> {
        value.ok_or_else(|| ConfigError::Missing { path: self.place(key) })
    }

    pub(super) fn conflict(&self, first: &'static str, second: &'static str) -> ConfigError {
        ConfigError::Conflict { path: self.path.to_owned(), first, second }
    }

    pub(super) fn rest(self) -> BTreeMap<String, Value> {
        self.left.into_iter().collect()
    }
}

/// What a JSON value is, in words.
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

fn wrong(path: String, expected: &'static str, found: &Value) -> ConfigError {
    ConfigError::WrongType { path, expected, found: kind_of(found) }
}

//! Arguments without what is nobody's business.

use serde_json::{Map, Value};

use super::cut;
use crate::pattern::Pattern;

/// What stands in for a value that is left out.
const REDACTED: &str = "[redacted]";

/// Names of members whose values are always left out.
const SECRETS: [&str; 10] = [
    "*password*",
    "*passwd*",
    "*secret*",
    "*token*",
    "*api?key*",
    "*apikey*",
    "*authorization*",
    "*credential*",
    // What hosted servers are configured with.
    "env",
    "headers",
];

/// Leaves out the values of members with certain names, and cuts long texts. Names are compared in
/// lower case.
#[derive(Debug)]
pub struct Redaction(Vec<Pattern>);

impl Default for Redaction {
    fn default() -> Self {
        Self::new(&[])
    }
}

impl Redaction {
    /// A redaction of the names that usually hold secrets, and of those that match these patterns.
    pub fn new(names: &[String]) -> Self {
        let names = names.iter().map(String::as_str);
        Self(
            SECRETS
                .into_iter()
                .chain(names)
                .map(|name| Pattern::new(&name.to_lowercase()))
                .collect(),
        )
    }

    /// A copy of an object with what is left out replaced.
    pub fn apply_to_object(&self, members: &Map<String, Value>) -> Map<String, Value> {
        let members = members.iter().map(|(name, value)| {
            let lower = name.to_lowercase();
            let is_secret = self.0.iter().any(|pattern| pattern.matches(&lower));
            let value = if is_secret { REDACTED.into() } else { self.apply(value) };
            (cut(name), value)
        });
        members.collect()
    }

    /// A copy of a value with what is left out replaced.
    pub fn apply(&self, value: &Value) -> Value {
        match value {
            Value::Object(members) => self.apply_to_object(members).into(),
            Value::Array(values) => values.iter().map(|value| self.apply(value)).collect(),
            Value::String(text) => cut(text).into(),
            Value::Null | Value::Bool(_) | Value::Number(_) => value.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn secrets_are_left_out_at_any_depth() {
        let redaction = Redaction::new(&["ssn".to_owned()]);
        let value = json!({
            "a": [{"API_Key": 1, "Authorization": {"x": 1}}], "dbPassword": "x", "SSN": 5, "n": 1.10,
        });
        let expected = json!({
            "a": [{"API_Key": REDACTED, "Authorization": REDACTED}], "dbPassword": REDACTED,
            "SSN": REDACTED, "n": 1.10,
        });
        assert_eq!(redaction.apply(&value), expected);
    }
}

//! Reads as much of the JSON Schema of a tool's arguments as a command line needs. Pure.
//!
//! A schema comes from somebody's server, so nothing here recurses further than [`MAX_DEPTH`].
//! Where a schema is too clever, the answer is "anything": the server checks the arguments itself.

use serde_json::Value;

/// How many references and alternatives are followed.
const MAX_DEPTH: usize = 8;
/// How many alternatives of a value are looked at.
const MAX_ALTERNATIVES: usize = 64;

/// A type of JSON values.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Null,
    Boolean,
    Integer,
    Number,
    Array,
    Object,
    String,
}

impl Kind {
    const ALL: [Self; 7] = [
        Self::Null,
        Self::Boolean,
        Self::Integer,
        Self::Number,
        Self::Array,
        Self::Object,
        Self::String,
    ];

    /// Returns the name in a schema.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Null => "null",
            Self::Boolean => "boolean",
            Self::Integer => "integer",
            Self::Number => "number",
            Self::Array => "array",
            Self::Object => "object",
            Self::String => "string",
        }
    }

    fn of_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.as_str() == name)
    }

    fn of_value(value: &Value) -> Self {
        match value {
            Value::Null => Self::Null,
            Value::Bool(_) => Self::Boolean,
            Value::Number(_) => Self::Number,
            Value::String(_) => Self::String,
            Value::Array(_) => Self::Array,
            Value::Object(_) => Self::Object,
        }
    }
}

/// One argument of a tool.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Parameter<'a> {
    pub(crate) name: &'a str,
    pub(crate) schema: Schema<'a>,
    pub(crate) is_required: bool,
}

/// A schema, and the document that its references point into.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Schema<'a> {
    root: &'a Value,
    value: &'a Value,
}

impl<'a> Schema<'a> {
    /// The schema that is a whole document.
    pub(crate) fn document(root: &'a Value) -> Self {
        Self { root, value: root }
    }

    fn at(self, value: &'a Value) -> Self {
        Self { root: self.root, value }
    }

    /// Returns the arguments that an object schema declares, required ones first.
    pub(crate) fn parameters(self) -> Vec<Parameter<'a>> {
        let schema = self.resolved();
        let required = self.required();
        let properties = schema.value.get("properties").and_then(Value::as_object);
        let declared = properties.into_iter().flatten().map(|(name, value)| Parameter {
            name,
            schema: schema.at(value),
            is_required: required.contains(&name.as_str()),
        });
        let mut parameters: Vec<_> = declared.collect();
        parameters.sort_by_key(|parameter| !parameter.is_required);
        parameters
    }

    /// Returns the names of the arguments that must be given.
    pub(crate) fn required(self) -> Vec<&'a str> {
        let required = self.resolved().value.get("required").and_then(Value::as_array);
        required.into_iter().flatten().filter_map(Value::as_str).collect()
    }

    /// Returns whether arguments that the schema does not declare are invalid.
    pub(crate) fn is_closed(self) -> bool {
        self.resolved().value.get("additionalProperties") == Some(&Value::Bool(false))
    }

    /// Returns the types that a value may have; empty if any.
    pub(crate) fn kinds(self) -> Vec<Kind> {
        self.kinds_within(MAX_DEPTH)
    }

    fn kinds_within(self, depth: usize) -> Vec<Kind> {
        let schema = self.resolved();
        let Some(deeper) = depth.checked_sub(1) else { return Vec::new() };

        let mut kinds: Vec<Kind> = match schema.value.get("type") {
            Some(Value::String(name)) => Kind::of_name(name).into_iter().collect(),
            Some(Value::Array(names)) => {
                names.iter().filter_map(Value::as_str).filter_map(Kind::of_name).collect()
            }
            _ => Vec::new(),
        };
        if kinds.is_empty() {
            for alternative in schema.alternatives() {
                let of_alternative = alternative.kinds_within(deeper);
                if of_alternative.is_empty() {
                    // One of the alternatives is anything.
                    return Vec::new();
                }
                kinds.extend(of_alternative);
            }
        }
        if kinds.is_empty() {
            kinds.extend(schema.own_choices().map(Kind::of_value));
        }

        let mut seen = Vec::new();
        kinds.retain(|kind| {
            !seen.contains(kind) && {
                seen.push(*kind);
                true
            }
        });
        kinds
    }

    /// Returns the values that are allowed; empty if they are not listed.
    pub(crate) fn choices(self) -> Vec<&'a Value> {
        self.choices_within(MAX_DEPTH).unwrap_or_default()
    }

    /// `None` if values other than the listed ones are allowed.
    fn choices_within(self, depth: usize) -> Option<Vec<&'a Value>> {
        let schema = self.resolved();
        let deeper = depth.checked_sub(1)?;
        let own: Vec<_> = schema.own_choices().collect();
        if !own.is_empty() {
            return Some(own);
        }

        let alternatives: Vec<_> = schema.alternatives().collect();
        if alternatives.is_empty() {
            return None;
        }
        let choices: Option<Vec<_>> =
            alternatives.into_iter().map(|schema| schema.choices_within(deeper)).collect();
        Some(choices?.into_iter().flatten().take(MAX_ALTERNATIVES).collect())
    }

    fn own_choices(self) -> impl Iterator<Item = &'a Value> {
        let listed = self.value.get("enum").and_then(Value::as_array);
        let only = self.value.get("const");
        listed.into_iter().flatten().chain(only).take(MAX_ALTERNATIVES)
    }

    fn alternatives(self) -> impl Iterator<Item = Self> {
        let lists = ["anyOf", "oneOf"].into_iter();
        let lists = lists.filter_map(move |name| self.value.get(name)?.as_array());
        lists.flatten().take(MAX_ALTERNATIVES).map(move |value| self.at(value))
    }

    /// Returns the schema of an array's items.
    pub(crate) fn items(self) -> Self {
        let schema = self.resolved();
        let own = schema.value.get("items");
        let of_alternative =
            || schema.alternatives().find_map(|schema| schema.resolved().value.get("items"));
        schema.at(own.or_else(of_alternative).unwrap_or(&Value::Null))
    }

    /// Returns what the schema says about itself.
    pub(crate) fn description(self) -> Option<&'a str> {
        let text = |schema: Self| schema.value.get("description")?.as_str();
        text(self).or_else(|| text(self.resolved()))
    }

    /// Returns the value of an argument that is left out.
    pub(crate) fn default(self) -> Option<&'a Value> {
        self.value.get("default").or_else(|| self.resolved().value.get("default"))
    }

    /// Describes the allowed values in a few words.
    pub(crate) fn describe(self) -> String {
        let choices = self.choices();
        if !choices.is_empty() {
            let texts = choices.iter().map(|choice| match choice {
                Value::String(text) => text.clone(),
                other => other.to_string(),
            });
            return texts.collect::<Vec<_>>().join(" | ");
        }

        let kinds = self.kinds();
        let names = kinds.iter().map(|kind| match kind {
            Kind::Array => match self.items().kinds().as_slice() {
                [] => "array".to_owned(),
                [kind] => format!("array of {}", kind.as_str()),
                _ => "array".to_owned(),
            },
            kind => kind.as_str().to_owned(),
        });
        let text = names.collect::<Vec<_>>().join(" | ");
        if text.is_empty() { "any".to_owned() } else { text }
    }

    /// Follows references within the document. A schema whose references lead nowhere allows
    /// anything.
    fn resolved(self) -> Self {
        let mut schema = self;
        for _ in 0..MAX_DEPTH {
            let reference = schema.value.get("$ref").and_then(Value::as_str);
            let Some(reference) = reference else { return schema };
            let target = reference.strip_prefix('#').and_then(|at| self.root.pointer(at));
            let Some(target) = target else { break };
            schema = self.at(target);
        }
        self.at(&Value::Null)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn describe(schema: &Value) -> String {
        Schema::document(schema).describe()
    }

    #[test]
    fn types_are_described() {
        let check = |schema: Value, expected: &str| assert_eq!(describe(&schema), expected);
        check(json!({"type": "string"}), "string");
        check(json!({"type": ["integer", "null"]}), "integer | null");
        check(json!({"type": "array", "items": {"type": "string"}}), "array of string");
        check(json!({"anyOf": [{"type": "number"}, {"type": "null"}]}), "number | null");
        check(json!({"enum": ["a", 2]}), "a | 2");
        check(json!({"oneOf": [{"const": "a"}, {"const": "b"}]}), "a | b");
        check(json!({"anyOf": [{"enum": ["a"]}, {"type": "string"}]}), "string");
        check(json!({}), "any");
        check(json!(true), "any");
        check(json!({"$ref": "#/$defs/A", "$defs": {"A": {"enum": ["x"]}}}), "x");
    }

    #[test]
    fn references_in_a_circle_and_deep_alternatives_allow_anything() {
        assert_eq!(describe(&json!({"$ref": "#"})), "any");
        assert_eq!(describe(&json!({"$ref": "https://example.com/s"})), "any");
        let circle =
            json!({"$ref": "#/$defs/A", "$defs": {"A": {"anyOf": [{"$ref": "#/$defs/A"}]}}});
        assert_eq!(describe(&circle), "any");
        let mut deep = json!({"type": "string"});
        for _ in 0..100 {
            deep = json!({"anyOf": [deep]});
        }
        assert_eq!(describe(&deep), "any");
    }

    #[test]
    fn parameters_that_are_required_come_first() {
        let schema = json!({
            "properties": {"b": {"type": "string"}, "a": {"type": "integer", "default": 3}, "c": {}},
            "required": ["c"],
        });
        let schema = Schema::document(&schema);
        let names: Vec<_> = schema.parameters().iter().map(|parameter| parameter.name).collect();
        assert_eq!(names, ["c", "b", "a"]);
        assert_eq!(schema.parameters()[2].schema.default(), Some(&json!(3)));
        assert!(!schema.is_closed());
    }
}

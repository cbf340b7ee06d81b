//! Makes a tool's arguments of what a user types. Pure.

use fleet_codes as codes;
use serde_json::{Map, Value};

use crate::{
    dlq::text::shorten,
    near_names::{did_you_mean, near_names},
    tool_schema::{Kind, Schema},
};

/// The longest part of a value that an error repeats.
const SHOWN: usize = 60;

/// One argument as typed: `key=value`, or `key:=JSON`.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Assignment {
    key: String,
    value: Typed,
}

#[derive(Debug, Clone, PartialEq)]
enum Typed {
    /// Text whose meaning the tool's schema decides.
    Text(String),
    /// JSON, whatever the schema says.
    Json(Value),
}

impl Assignment {
    /// Parses a word of the command line.
    pub(super) fn parse(word: &str) -> Result<Self, String> {
        let Some((key, text)) = word.split_once('=') else {
            return Err("expected key=value, or key:=JSON for a value of any type".to_owned());
        };

        let (key, value) = match key.strip_suffix(':') {
            Some(key) => {
                let value = serde_json::from_str(text);
                let value = value.map_err(|error| format!("the value is not JSON: {error}"))?;
                (key, Typed::Json(value))
            }
            None => (key, Typed::Text(text.to_owned())),
        };
        if key.is_empty() {
            return Err("the name of the argument is missing".to_owned());
        }
        Ok(Self { key: key.to_owned(), value })
    }
}

/// Why arguments do not suit a tool.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ArgumentError {
    #[error("{tool} has no argument `{name}`{hint} [{code}]", code = codes::TOOL_ARGUMENTS)]
    Unknown { tool: String, name: String, hint: String },
    #[error(
        "argument `{name}` of {tool} must be {expected}; `{found}` is not [{code}]",
        code = codes::TOOL_ARGUMENTS
    )]
    Value { tool: String, name: String, expected: String, found: String },
    #[error(
        "argument `{name}` of {tool} is given more than once, but is not an array [{code}]",
        code = codes::TOOL_ARGUMENTS
    )]
    Repeated { tool: String, name: String },
    #[error(
        "{tool} needs {}; see `mcp-fleet tools show {tool}` [{code}]",
        list_names(names),
        code = codes::TOOL_ARGUMENTS
    )]
    Missing { tool: String, names: Vec<String> },
}

fn list_names(names: &[String]) -> String {
    let names: Vec<_> = names.iter().map(|name| format!("`{name}`")).collect();
    names.join(" and ")
}

/// Builds the arguments of `tool`, whose arguments have this schema.
pub(super) fn build(
    tool: &str,
    schema: Schema<'_>,
    typed: &[Assignment],
) -> Result<Map<String, Value>, ArgumentError> {
    let mut arguments = Map::new();
    for assignment in typed {
        add_argument(tool, schema, assignment, &mut arguments)?;
    }
    Ok(arguments)
}

/// Checks that the arguments contain everything that the tool requires.
pub(super) fn check_complete(
    tool: &str,
    schema: Schema<'_>,
    arguments: &Map<String, Value>,
) -> Result<(), ArgumentError> {
    let missing = schema.required().into_iter().filter(|name| !arguments.contains_key(*name));
    let names: Vec<_> = missing.map(str::to_owned).collect();
    match names.is_empty() {
        true => Ok(()),
        false => Err(ArgumentError::Missing { tool: tool.to_owned(), names }),
    }
}

fn add_argument(
    tool: &str,
    schema: Schema<'_>,
    Assignment { key, value }: &Assignment,
    arguments: &mut Map<String, Value>,
) -> Result<(), ArgumentError> {
    let parameters = schema.parameters();
    let parameter = parameters.iter().find(|parameter| parameter.name == key);
    if parameter.is_none() && schema.is_closed() {
        let names = parameters.iter().map(|parameter| parameter.name);
        let hint = match near_names(key, names.clone()).as_slice() {
            [] => match names.collect::<Vec<_>>().as_slice() {
                [] => "; it has none".to_owned(),
                names => format!("; it has `{}`", names.join("`, `")),
            },
            near => did_you_mean(near),
        };
        return Err(ArgumentError::Unknown { tool: tool.to_owned(), name: key.clone(), hint });
    }

    let schema = parameter.map_or(Schema::document(&Value::Null), |parameter| parameter.schema);
    let value = match value {
        Typed::Json(value) => value.clone(),
        Typed::Text(text) => {
            parse_value(schema, text).map_err(|expected| ArgumentError::Value {
                tool: tool.to_owned(),
                name: key.clone(),
                expected,
                found: shorten(text, SHOWN),
            })?
        }
    };

    match (arguments.get_mut(key), value) {
        (None, value) => _ = arguments.insert(key.clone(), value),
        (Some(Value::Array(earlier)), Value::Array(more)) => earlier.extend(more),
        (Some(_), _) => {
            return Err(ArgumentError::Repeated { tool: tool.to_owned(), name: key.clone() });
        }
    }
    Ok(())
}

/// Reads a value by its schema. The error says what is expected.
fn parse_value(schema: Schema<'_>, text: &str) -> Result<Value, String> {
    let choices = schema.choices();
    if !choices.is_empty() {
        let is_it = |choice: &&&Value| match choice {
            Value::String(choice) => choice == text,
            other => other.to_string() == text,
        };
        let chosen = choices.iter().find(is_it).map(|choice| (*choice).clone());
        return chosen.ok_or_else(|| format!("one of {}", schema.describe()));
    }

    let kinds = schema.kinds();
    if kinds.is_empty() {
        return Ok(guess_value(text));
    }

    // Text is tried last, since everything is text.
    let mut others = kinds.iter().filter(|kind| **kind != Kind::String);
    let read = others.find_map(|kind| parse_as(*kind, schema, text));
    match read {
        Some(value) => Ok(value),
        None if kinds.contains(&Kind::String) => Ok(text.into()),
        None => Err(expectation(schema, &kinds)),
    }
}

fn expectation(schema: Schema<'_>, kinds: &[Kind]) -> String {
    let described = schema.describe();
    let article = if described.starts_with(['a', 'i', 'o']) { "an" } else { "a" };
    match kinds {
        [Kind::Boolean] => "true or false".to_owned(),
        [Kind::Object] => "a JSON object".to_owned(),
        _ => format!("{article} {described}"),
    }
}

fn parse_as(kind: Kind, schema: Schema<'_>, text: &str) -> Option<Value> {
    let json = || serde_json::from_str::<Value>(text).ok();
    match kind {
        Kind::Null => json().filter(Value::is_null),
        Kind::Boolean => json().filter(Value::is_boolean),
        Kind::Integer => json().filter(|value| value.is_i64() || value.is_u64()),
        Kind::Number => json().filter(Value::is_number),
        Kind::Object => json().filter(Value::is_object),
        Kind::Array if text.trim_start().starts_with('[') => json().filter(Value::is_array),
        // One item: repeating the argument adds further ones.
        Kind::Array => parse_value(schema.items(), text).ok().map(|item| vec![item].into()),
        Kind::String => Some(text.into()),
    }
}

/// Reads a value of which no type is known.
fn guess_value(text: &str) -> Value {
    match serde_json::from_str::<Value>(text) {
        Ok(value) if !value.is_string() => value,
        _ => text.into(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn schema() -> Value {
        json!({
            "properties": {
                "path": {"type": "string"},
                "limit": {"type": "integer"},
                "ratio": {"type": "number"},
                "deep": {"type": "boolean"},
                "maybe": {"type": ["integer", "null"]},
                "either": {"anyOf": [{"type": "integer"}, {"type": "string"}]},
                "mode": {"$ref": "#/$defs/Mode"},
                "tags": {"type": "array", "items": {"type": "string"}},
                "counts": {"type": ["array", "null"], "items": {"type": "integer"}},
                "options": {"type": "object"},
                "free": {},
            },
            "required": ["path"],
            "additionalProperties": false,
            "$defs": {"Mode": {"enum": ["fast", "slow"]}},
        })
    }

    fn arguments(words: &[&str]) -> Result<Value, String> {
        let typed: Result<Vec<_>, _> = words.iter().map(|word| Assignment::parse(word)).collect();
        let schema = schema();
        let built = build("t", Schema::document(&schema), &typed?);
        built.map(Value::from).map_err(|error| error.to_string())
    }

    #[test]
    fn text_becomes_what_the_schema_asks_for() {
        let check = |words: &[&str], expected: Value| {
            assert_eq!(arguments(words), Ok(expected), "{words:?}");
        };
        check(&["path=17"], json!({"path": "17"}));
        check(&["path=a=b"], json!({"path": "a=b"}));
        check(&["path="], json!({"path": ""}));
        check(&["limit=17", "deep=true"], json!({"limit": 17, "deep": true}));
        check(&["maybe=null"], json!({"maybe": null}));
        check(&["either=5"], json!({"either": 5}));
        check(&["either=five"], json!({"either": "five"}));
        check(&["mode=slow"], json!({"mode": "slow"}));
        check(&["tags=a", "tags=b"], json!({"tags": ["a", "b"]}));
        check(&[r#"tags=["a","b"]"#, "tags=c"], json!({"tags": ["a", "b", "c"]}));
        check(&["counts=1", "counts=2"], json!({"counts": [1, 2]}));
        check(&[r#"options={"a":1}"#], json!({"options": {"a": 1}}));
        check(&["free=1"], json!({"free": 1}));
        check(&["free=one"], json!({"free": "one"}));
        check(&[r#"path:={"any":1}"#], json!({"path": {"any": 1}}));
    }

    #[test]
    fn numbers_keep_their_spelling() {
        let built = arguments(&["ratio=1.50", "limit=12345678901234567890"]).unwrap();
        assert_eq!(built.to_string(), r#"{"ratio":1.50,"limit":12345678901234567890}"#);
    }

    #[test]
    fn errors_say_what_is_expected() {
        let check = |words: &[&str], expected: &str| {
            let error = arguments(words).unwrap_err();
            assert!(error.contains(expected), "{words:?}: {error}");
        };
        check(
            &["limit=ten"],
            "`limit` of t must be an integer; `ten` is not [FLEET-TOOL-ARGUMENTS]",
        );
        check(&["limit=1.5"], "must be an integer");
        check(&["deep=yes"], "must be true or false");
        check(&["mode=medium"], "must be one of fast | slow");
        check(&["options=a"], "must be a JSON object");
        check(&["counts=a"], "must be an array of integer | null");
        check(&["limit=1", "limit=2"], "more than once");
        check(&["lmit=1"], "no argument `lmit`; did you mean `limit`?");
        check(&["q=1"], "it has `path`, `limit`");
        check(&["path"], "expected key=value");
        check(&["=x"], "name of the argument is missing");
        check(&["path:=x"], "is not JSON");
    }

    #[test]
    fn required_arguments_are_missed() {
        let schema = json!({"required": ["a", "b"]});
        let missing = check_complete("t", Schema::document(&schema), &Map::new()).unwrap_err();
        let text = missing.to_string();
        assert!(text.starts_with("t needs `a` and `b`; see `mcp-fleet tools show t`"), "{text}");
        let given = json!({"a": 1, "b": null});
        let given = given.as_object().unwrap();
        assert_eq!(check_complete("t", Schema::document(&schema), given), Ok(()));
        assert_eq!(check_complete("t", Schema::document(&Value::Null), &Map::new()), Ok(()));
    }

    #[test]
    fn a_schema_that_says_nothing_takes_everything() {
        let typed = [Assignment::parse("a=1").unwrap(), Assignment::parse("b=x").unwrap()];
        let built = build("t", Schema::document(&Value::Null), &typed).unwrap();
        assert_eq!(Value::from(built), json!({"a": 1, "b": "x"}));
    }
}

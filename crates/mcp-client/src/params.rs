//! Arguments that a tool requires as headers too (`x-mcp-header` in its input schema).
//!
//! A modern server may refuse a call whose annotated arguments are not in `Mcp-Param-*` headers.
//! Few tools are annotated, so the schema is fetched only after a server has refused a call because
//! of its headers.

use http::{HeaderMap, HeaderName};
use serde_json::{Map, Value};

use crate::wire::header_value;

/// An argument and its header.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct ParamHeader {
    path: Vec<String>,
    header: HeaderName,
}

/// Why a tool's annotations are invalid. Such a tool must not be used over HTTP (SEP-2243).
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub(crate) enum BadAnnotation {
    #[error("`x-mcp-header` of `{0}` is not a valid header name")]
    Name(String),
    #[error("`x-mcp-header` of `{0}` is on something other than a string, integer or boolean")]
    Type(String),
    #[error("two arguments require the header `{0}`")]
    Twice(String),
}

/// Returns the annotations in a tool's input schema, including those of nested properties.
pub(crate) fn annotations(schema: &Value) -> Result<Vec<ParamHeader>, BadAnnotation> {
    let mut found = Vec::new();
    collect(schema, &mut Vec::new(), &mut found)?;
    Ok(found)
}

/// Adds the annotations below `path` to `found`.
fn collect(
    schema: &Value,
    path: &mut Vec<String>,
    found: &mut Vec<ParamHeader>,
) -> Result<(), BadAnnotation> {
    let Some(properties) = schema.get("properties").and_then(Value::as_object) else {
        return Ok(());
    };

    for (name, property) in properties {
        path.push(name.clone());
        if let Some(annotation) = property.get("x-mcp-header") {
            let named = annotation.as_str().filter(|header| !header.is_empty());
            let header =
                named.and_then(|header| HeaderName::try_from(format!("mcp-param-{header}")).ok());
            let header = header.ok_or_else(|| BadAnnotation::Name(path.join(".")))?;

            if !is_primitive(property.get("type")) {
                return Err(BadAnnotation::Type(path.join(".")));
            }

            // `HeaderName` is in lower case, so this comparison ignores case.
            if found.iter().any(|other| other.header == header) {
                return Err(BadAnnotation::Twice(header.to_string()));
            }
            found.push(ParamHeader { path: path.clone(), header });
        }

        collect(property, path, found)?;
        path.pop();
    }
    Ok(())
}

/// Returns whether the values of a schema's `type` have an obvious text. Among numbers, only
/// integers do. A schema without a type is accepted.
fn is_primitive(kind: Option<&Value>) -> bool {
    let primitive = |kind: &Value| matches!(kind.as_str(), Some("string" | "integer" | "boolean"));
    match kind {
        None => true,
        Some(Value::Array(kinds)) => {
            kinds.iter().any(primitive)
                && kinds.iter().all(|kind| primitive(kind) || kind == "null")
        }
        Some(kind) => primitive(kind),
    }
}

/// Returns the headers for a call with these arguments. Arguments that are absent, null or not
/// primitive have no header.
pub(crate) fn headers(annotations: &[ParamHeader], arguments: &Map<String, Value>) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for ParamHeader { path, header } in annotations {
        let mut steps = path.iter();
        let first = steps.next().and_then(|step| arguments.get(step));
        let value = steps.try_fold(first, |value, step| value.map(|value| value.get(step)));

        let text = match value.flatten() {
            Some(Value::String(text)) => text.clone(),
            Some(value @ (Value::Bool(_) | Value::Number(_))) => value.to_string(),
            _ => continue,
        };

        if let Ok(value) = header_value(&text) {
            headers.insert(header.clone(), value);
        }
    }
    headers
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn annotated_arguments_become_headers() {
        let schema = json!({"properties": {
            "region": {"type": "string", "x-mcp-header": "Region"},
            "plain": {"type": "string"},
            "absent": {"type": ["string", "null"], "x-mcp-header": "Absent"},
            "nested": {"properties": {"n": {"type": "integer", "x-mcp-header": "N"}}},
        }});
        let arguments = json!({"region": "é", "plain": "x", "absent": null, "nested": {"n": 3}});

        let headers = headers(&annotations(&schema).unwrap(), arguments.as_object().unwrap());

        assert_eq!(headers.len(), 2);
        assert_eq!(headers["mcp-param-region"], "=?base64?w6k=?=");
        assert_eq!(headers["mcp-param-n"], "3");
        assert_eq!(annotations(&json!({})), Ok(Vec::new()));
    }

    #[test]
    fn invalid_annotations_are_refused() {
        let of = |property: Value| annotations(&json!({"properties": {"a": property}}));

        let name = Err(BadAnnotation::Name("a".to_owned()));
        for header in [
            json!(""),
            json!("My Region"),
            json!("Region:Primary"),
            json!("R\t1"),
            json!("Ré"),
            json!(1),
        ] {
            assert_eq!(of(json!({"type": "string", "x-mcp-header": header})), name, "{header}");
        }

        for kind in ["object", "array", "null", "number"] {
            let refused = Err(BadAnnotation::Type("a".to_owned()));
            assert_eq!(of(json!({"type": kind, "x-mcp-header": "A"})), refused, "{kind}");
        }

        let twice = annotations(&json!({"properties": {
            "a": {"type": "string", "x-mcp-header": "MyField"}, "b": {"type": "string", "x-mcp-header": "myfield"}}}));
        assert_eq!(twice, Err(BadAnnotation::Twice("mcp-param-myfield".to_owned())));
    }
}

//! Arguments that a tool wants to see as headers too (`x-mcp-header` in its input schema).
//!
//! A modern server may refuse a call whose annotated arguments do not stand in `Mcp-Param-*`
//! headers. Few tools are annotated, so the schema is looked up only when a server has refused a
//! call for its headers.

use http::{HeaderMap, HeaderName};
use serde_json::{Map, Value};

use crate::wire::header_value;

/// Which argument goes into which header.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct ParamHeader {
    path: Vec<String>,
    header: HeaderName,
}

/// Why a tool's annotations can't be followed. Such a tool must not be used over HTTP (SEP-2243).
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub(crate) enum BadAnnotation {
    #[error("`x-mcp-header` of `{0}` is no name of a header")]
    Name(String),
    #[error("`x-mcp-header` of `{0}` is on something that is no string, integer or boolean")]
    Type(String),
    #[error("two arguments want the header `{0}`")]
    Twice(String),
}

/// The annotations in a tool's input schema, nested properties included.
pub(crate) fn annotations(schema: &Value) -> Result<Vec<ParamHeader>, BadAnnotation> {
    let mut found = Vec::new();
    collect(schema, &mut Vec::new(), &mut found)?;
    Ok(found)
}

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
            // Names of headers are in lower case here, as comparing them asks for.
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

/// Whether a schema's `type`, if there is one, is of those whose values have one obvious text. Of
/// numbers only integers do.
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

/// The headers for a call with these arguments. Arguments that are absent, null or not primitive
/// have none.
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
    fn annotations_that_can_not_be_followed_are_refused() {
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

//! Arguments that a tool wants to see as headers too (`x-mcp-header` in its input schema).
//!
//! A modern server may refuse a call whose annotated arguments do not stand in `Mcp-Param-*` headers. Few tools are
//! annotated, so the schema is looked up only when a server has refused a call for its headers.

use http::{HeaderMap, HeaderName};
use serde_json::{Map, Value};

use crate::wire::header_value;

/// Which argument goes into which header.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct ParamHeader {
    path: Vec<String>,
    header: HeaderName,
}

/// The annotations in a tool's input schema, nested properties included.
pub(crate) fn annotations(schema: &Value) -> Vec<ParamHeader> {
    let mut found = Vec::new();
    collect(schema, &mut Vec::new(), &mut found);
    found
}

fn collect(schema: &Value, path: &mut Vec<String>, found: &mut Vec<ParamHeader>) {
    let Some(properties) = schema.get("properties").and_then(Value::as_object) else { return };
    for (name, property) in properties {
        path.push(name.clone());
        if let Some(header) = property.get("x-mcp-header").and_then(Value::as_str)
            && let Ok(header) = HeaderName::try_from(format!("mcp-param-{header}"))
        {
            found.push(ParamHeader { path: path.clone(), header });
        }
        collect(property, path, found);
        path.pop();
    }
}

/// The headers for a call with these arguments. Arguments that are absent, null or not primitive have none.
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
            "absent": {"type": "string", "x-mcp-header": "Absent"},
            "bad": {"type": "string", "x-mcp-header": "not a token"},
            "nested": {"properties": {"n": {"type": "integer", "x-mcp-header": "N"}}},
        }});
        let arguments = json!({"region": "é", "plain": "x", "bad": "y", "nested": {"n": 3}});
        let headers = headers(&annotations(&schema), arguments.as_object().unwrap());
        assert_eq!(headers.len(), 2);
        assert_eq!(headers["mcp-param-region"], "=?base64?w6k=?=");
        assert_eq!(headers["mcp-param-n"], "3");
        assert!(annotations(&json!({})).is_empty());
    }
}

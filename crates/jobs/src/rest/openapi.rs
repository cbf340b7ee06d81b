//! The OpenAPI document, made from the table of operations.

use std::collections::BTreeMap;

use schemars::{SchemaGenerator, generate::SchemaSettings};
use serde_json::{Map, Value, json};

use super::{
    operation::{ALWAYS, Answer, Content, Operation, RequestBody},
    problem::{self, Problem, ProblemKind},
    routes::operations,
};

const ABOUT: &str = "Jobs over plain HTTP: calls of MCP tools that workers make later and durably.\n\n\
    A server that is configured to tell callers apart takes an API key or an OAuth 2.1 access token as \
    `Authorization: Bearer …` and answers 401 without one; other servers serve everybody who reaches them. A job is \
    visible only to the caller that submitted it: the principal that the key or token stands for or, where callers are \
    not told apart, whoever sends the same credentials.\n\n\
    Every error is a problem (RFC 9457, `application/problem+json`) with a `type` that programs can rely on and a `detail` \
    for people.";

/// Builds the document.
pub(super) fn build_document(more: &[Operation]) -> Value {
    let settings = SchemaSettings::draft2020_12().with(|settings| {
        settings.definitions_path = "/components/schemas".into();
        settings.meta_schema = None;
    });
    let mut schemas = settings.into_generator();
    let mut paths: Map<String, Value> = Map::new();
    for operation in operations().iter().chain(more) {
        let about = describe_operation(operation, &mut schemas);
        let path = paths.entry(operation.path).or_insert_with(|| json!({}));
        path[operation.method.as_str().to_lowercase()] = about;
    }

    let problem = schemas.subschema_for::<Problem>();
    let problem = json!({
        "description": "An error.",
        "content": {problem::CONTENT_TYPE: {"schema": problem}},
    });

    let mut schemas = schemas.take_definitions(true);
    // What callers see of a job never names its owner.
    for shown in ["JobView", "WireEnvelope"] {
        let schema = schemas.get_mut(shown).and_then(|schema| schema.get_mut("properties"));
        if let Some(Value::Object(properties)) = schema {
            properties.shift_remove("owner");
        }
    }
    schemas.sort_keys();

    json!({
        "openapi": "3.1.0",
        "jsonSchemaDialect": "https://json-schema.org/draft/2020-12/schema",
        "info": {
            "title": "mcp-fleet",
            "version": env!("CARGO_PKG_VERSION"),
            "description": ABOUT,
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": "/"}],
        // Servers on loopback, and those with MCP_ACCESS=open, need no credentials.
        "security": [{"bearer": []}, {}],
        "paths": paths,
        "components": {
            "schemas": schemas,
            "responses": {"Problem": problem},
            "securitySchemes": {"bearer": {
                "type": "http",
                "scheme": "bearer",
                "description": "An API key or an OAuth 2.1 access token.",
            }},
        },
    })
}

fn describe_operation(operation: &Operation, schemas: &mut SchemaGenerator) -> Value {
    let parameters: Vec<Value> = operation
        .params
        .iter()
        .map(|param| {
            let mut about = json!({
                "name": param.name,
                "in": param.location.as_str(),
                "description": param.description,
                "required": param.required,
                "schema": (param.schema)(schemas),
            });
            about["example"] = match param.example.parse::<u64>() {
                Ok(number) => number.into(),
                Err(_) if param.many => json!([param.example]),
                Err(_) if ["true", "false"].contains(&param.example) => {
                    json!(param.example == "true")
                }
                Err(_) => param.example.into(),
            };
            about
        })
        .collect();

    let mut about = json!({
        "operationId": operation.id,
        "summary": operation.summary,
        "description": operation.description,
    });
    if !parameters.is_empty() {
        about["parameters"] = parameters.into();
    }
    if let Some(RequestBody { schema, examples, is_required }) = &operation.body {
        let examples =
            examples.iter().map(|(name, value)| ((*name).to_owned(), json!({ "value": value })));
        about["requestBody"] = json!({
            "required": is_required,
            "content": {"application/json": {"schema": schema(schemas), "examples": examples.collect::<Map<_, _>>()}},
        });
    }

    let mut answers: BTreeMap<String, Value> = BTreeMap::new();
    for answer in &operation.answers {
        answers.insert(answer.status.to_string(), describe_answer(answer, schemas));
    }
    answers.extend(describe_problems(operation));
    about["responses"] = json!(answers);
    about
}

fn describe_answer(answer: &Answer, schemas: &mut SchemaGenerator) -> Value {
    let mut about = json!({ "description": answer.description });
    match &answer.content {
        Content::Nothing => {}
        Content::Json(schema, example) => {
            about["content"] =
                json!({"application/json": {"schema": schema(schemas), "example": example}});
        }
        Content::Lines(types) => {
            let lines = |media_type: &&str| {
                ((*media_type).to_owned(), json!({"schema": {"type": "string"}}))
            };
            about["content"] = types.iter().map(lines).collect::<Map<_, _>>().into();
        }
        Content::Events(events, data) => {
            // Like OpenAPI 3.2, describe each event as an object of its fields, with data as text.
            let data = json!({
                "type": "string",
                "contentMediaType": "application/json",
                "contentSchema": data(schemas),
            });
            let schema = json!({
                "type": "object",
                "description": events,
                "properties": {"id": {"type": "string"}, "event": {"type": "string"}, "data": data},
                "required": ["id", "event", "data"],
            });
            about["content"] = json!({"text/event-stream": {"schema": schema}});
            about["headers"] = json!({
                "Cache-Control": {"schema": {"const": "no-store"}, "description": "Events must not be cached."},
                "X-Accel-Buffering": {"schema": {"const": "no"}, "description": "Proxies must not buffer events."},
            });
        }
    }

    for (name, description) in answer.headers {
        about["headers"][name] = json!({"description": description, "schema": {"type": "string"}});
    }

    if answer.leads_to_job {
        let parameters = json!({"id": "$response.body#/jobs/0/jobID"});
        about["links"] = json!({
            "job": {"operationId": "getJob", "parameters": parameters},
            "cancellation": {"operationId": "cancelJob", "parameters": parameters},
        });
    }
    about
}

/// Describes the problems of an operation, by status.
fn describe_problems(operation: &Operation) -> BTreeMap<String, Value> {
    let mut by_status: BTreeMap<u16, Vec<ProblemKind>> = BTreeMap::new();
    for kind in operation.problems.iter().copied().chain(ALWAYS) {
        by_status.entry(kind.status().as_u16()).or_default().push(kind);
    }
    let describe = |(status, kinds): (u16, Vec<ProblemKind>)| {
        let names: Vec<_> = kinds.iter().map(|kind| format!("`{}`", kind.name())).collect();
        let mut about =
            json!({"$ref": "#/components/responses/Problem", "description": names.join(", ")});
        let headers = match status {
            401 => {
                json!({"WWW-Authenticate": {"description": "Where to get credentials.", "schema": {"type": "string"}}})
            }
            503 => {
                json!({"Retry-After": {"description": "How long to wait, in seconds.", "schema": {"type": "integer", "minimum": 0}}})
            }
            _ => Value::Null,
        };
        if headers.is_object() {
            // A reference can have a description, but no headers.
            about = json!({
                "description": names.join(", "),
                "headers": headers,
                "content": {problem::CONTENT_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}},
            });
        }
        (status.to_string(), about)
    };
    by_status.into_iter().map(describe).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reference_can_be_resolved() {
        fn check(value: &Value, whole: &Value) {
            match value {
                Value::Object(object) => {
                    if let Some(Value::String(to)) = object.get("$ref") {
                        let pointer = to.strip_prefix('#').expect(to);
                        assert!(whole.pointer(pointer).is_some(), "{to}");
                    }
                    object.values().for_each(|value| check(value, whole));
                }
                Value::Array(array) => array.iter().for_each(|value| check(value, whole)),
                _ => {}
            }
        }
        let document = build_document(&[]);
        check(&document, &document);
        assert!(!document.to_string().contains("\"owner\""));
    }

    #[test]
    fn every_operation_may_want_credentials() {
        let document = build_document(&[]);
        assert_eq!(document["security"], json!([{"bearer": []}, {}]));
        assert!(document["components"]["securitySchemes"]["bearer"].is_object());

        let paths = document["paths"].as_object().unwrap();
        let operations: Vec<_> =
            paths.values().flat_map(|path| path.as_object().unwrap().values()).collect();
        assert_eq!(operations.len(), super::operations().len());
        for operation in operations {
            let answers = &operation["responses"];
            for (status, name, header) in [
                ("401", "`unauthenticated`", "WWW-Authenticate"),
                ("503", "`no-issuer-keys`", "Retry-After"),
            ] {
                let about = answers[status]["description"].as_str().unwrap();
                assert!(about.contains(name), "{}: {about}", operation["operationId"]);
                assert!(answers[status]["headers"][header].is_object(), "{answers}");
            }
        }
    }
}

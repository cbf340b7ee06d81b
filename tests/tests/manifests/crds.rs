//! Checks objects of KEDA and of the Prometheus operator against their published definitions
//! (`tests/schemas`). A cluster silently drops unknown properties; here they are errors.

use std::collections::BTreeMap;

use jsonschema::Validator;
use serde_json::{Value, json};

use super::{assert_no_problems, documents, file, kubernetes::renders, objects::Object};

const DEFINITIONS: [&str; 5] = [
    "keda.sh_scaledobjects.yaml",
    "keda.sh_triggerauthentications.yaml",
    "monitoring.coreos.com_podmonitors.yaml",
    "monitoring.coreos.com_prometheusrules.yaml",
    "monitoring.coreos.com_servicemonitors.yaml",
];

/// Whether an object is of a kind that Kubernetes itself doesn't have.
pub(crate) fn is_custom(object: &Object) -> bool {
    let version = object.0["apiVersion"].as_str().unwrap_or_default();
    version.starts_with("keda.sh/") || version.starts_with("monitoring.coreos.com/")
}

/// A schema for every `apiVersion` and `kind`.
fn schemas() -> BTreeMap<(String, String), Value> {
    let mut schemas = BTreeMap::new();
    for name in DEFINITIONS {
        for definition in documents(&file(&format!("tests/schemas/{name}"))) {
            let spec = &definition["spec"];
            for version in super::list(spec, "/versions") {
                let api =
                    format!("{}/{}", super::text(spec, "/group"), super::text(version, "/name"));
                let schema = strict(&version["schema"]["openAPIV3Schema"]);
                schemas.insert((api, super::text(spec, "/names/kind")), schema);
            }
        }
    }

    schemas
}

/// The OpenAPI schema as a JSON Schema that refuses unknown properties.
fn strict(schema: &Value) -> Value {
    match schema {
        Value::Object(object) => {
            let mut object: serde_json::Map<_, _> =
                object.iter().map(|(key, value)| (key.clone(), strict(value))).collect();
            let keeps_all =
                object.get("x-kubernetes-preserve-unknown-fields") == Some(&json!(true));
            let is_schema = object.get("type") == Some(&json!("object"));
            if is_schema
                && object.contains_key("properties")
                && !object.contains_key("additionalProperties")
                && !keeps_all
            {
                object.insert("additionalProperties".into(), json!(false));
            }
            Value::Object(object)
        }
        Value::Array(values) => values.iter().map(strict).collect(),
        other => other.clone(),
    }
}

fn check(schemas: &BTreeMap<(String, String), Value>, object: &Object) -> Vec<String> {
    let version = object.0["apiVersion"].as_str().unwrap_or_default().to_owned();
    let Some(schema) = schemas.get(&(version, object.kind().to_owned())) else {
        return vec!["no definition".to_owned()];
    };
    let validator = Validator::new(schema).expect("a schema");
    validator
        .iter_errors(&object.0)
        .map(|error| format!("{}: {error}", error.instance_path()))
        .collect()
}

#[test]
fn custom_objects_match_their_definitions() {
    let schemas = schemas();
    let mut problems = vec![];
    for render in renders() {
        for object in render.objects.iter().filter(|object| is_custom(object)) {
            let found = check(&schemas, object);
            problems.extend(
                found.iter().map(|p| format!("{}: {}: {p}", render.name, object.describe())),
            );
        }
    }
    assert_no_problems(&problems);
}

#[test]
fn a_misspelt_property_is_found() {
    let schemas = schemas();
    let Some(production) = renders().iter().find(|render| render.name == "overlays/production")
    else {
        return;
    };
    let scaled = production.get("ScaledObject", "kafka-worker");
    for (pointer, name) in [("/spec", "cooldownPeriods"), ("/spec/triggers/0", "metricsType")] {
        let mut wrong = scaled.clone();
        wrong.0.pointer_mut(pointer).expect(pointer)[name] = json!(1);
        assert!(check(&schemas, &wrong).iter().any(|problem| problem.contains(name)), "{name}");
    }
    let mut wrong = scaled.clone();
    wrong.0["spec"]["maxReplicaCount"] = json!("twelve");
    assert!(!check(&schemas, &wrong).is_empty());
}

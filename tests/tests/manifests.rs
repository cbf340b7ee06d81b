//! The deployment files: `docker-compose.yml`, `k8s/` and the Dockerfiles. They are checked against
//! the schemas of their readers, for dangling references, and against each other and the tables in
//! docs/configuration.md.

#![expect(clippy::expect_used, reason = "a panic is the report of a test")]

mod compose;
mod crds;
mod dockerfiles;
mod drift;
mod environment;
mod images;
mod kubernetes;
mod objects;
mod references;
mod scaling;
mod standalone;

use serde_json::Value;

/// Fails with all of `problems` at once.
fn assert_no_problems(problems: &[String]) {
    assert!(problems.is_empty(), "{} problems:\n  {}", problems.len(), problems.join("\n  "));
}

/// The text of a file of the repository.
fn file(path: &str) -> String {
    let path = fleet_tests::bins::repository().join(path);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The documents of a YAML stream, except empty ones.
fn documents(yaml: &str) -> Vec<Value> {
    use serde::Deserialize as _;
    let documents = serde_norway::Deserializer::from_str(yaml);
    let values = documents.map(|document| Value::deserialize(document).expect("YAML"));
    values.filter(|value| !value.is_null()).collect()
}

/// The text at a JSON pointer, numbers included.
fn text(value: &Value, pointer: &str) -> String {
    match value.pointer(pointer) {
        Some(Value::String(text)) => text.clone(),
        Some(other) => other.to_string(),
        None => panic!("there is nothing at {pointer} of {value:#}"),
    }
}

/// The elements of the list at a JSON pointer; empty if there is no list.
fn list<'v>(value: &'v Value, pointer: &str) -> &'v [Value] {
    value.pointer(pointer).and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

/// Seconds of a duration as the fleet and Compose write them: `45s`, `1m30s`, `250ms`.
fn seconds(text: &str) -> f64 {
    let mut rest = text.trim();
    let mut total = 0.0;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.').expect("a unit");
        let (number, tail) = rest.split_at(digits);
        let end = tail.find(|c: char| c.is_ascii_digit()).unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(end);
        let factor = match unit {
            "ms" => 0.001,
            "s" => 1.0,
            "m" => 60.0,
            "h" => 3600.0,
            other => panic!("{text}: unknown unit {other}"),
        };
        total += number.parse::<f64>().expect("a number") * factor;
        rest = tail;
    }
    total
}

#[test]
fn durations_are_parsed() {
    assert_eq!(seconds("1m30s"), 90.0);
    assert_eq!(seconds("250ms"), 0.25);
}

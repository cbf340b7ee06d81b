//! Environment variables of containers: the program in the container must read each of them,
//! according to the tables in docs/configuration.md.

use std::collections::{BTreeMap, BTreeSet};

use crate::{compose, file, kubernetes::renders, none};

/// What `mcp-fleet` reads; it has no table, its commands have their help.
const CLI: [&str; 5] =
    ["KAFKA_BROKERS", "KAFKA_TOPIC", "MCP_CONSUMER_GROUP", "MCP_SERVER_URL", "MCP_SERVER_TOKEN"];

/// The variables of one of the tables in docs/configuration.md, with their defaults.
pub(crate) fn table(name: &str) -> BTreeMap<String, String> {
    let page = file("docs/configuration.md");
    let (_, rest) = page.split_once(&format!("<!-- {name} -->\n")).expect("the table's begin");
    let (rows, _) = rest.split_once(&format!("<!-- /{name} -->")).expect("the table's end");
    let rows =
        rows.lines().map(|row| row.split('|').map(|cell| cell.trim().trim_matches('`')).collect());
    let rows = rows.filter_map(|cells: Vec<&str>| Some((*cells.get(1)?, *cells.get(3)?)));
    let rows = rows.filter(|(name, _)| {
        !name.is_empty() && name.chars().all(|c| c.is_ascii_uppercase() || c == '_')
    });
    rows.map(|(name, default)| (name.to_owned(), default.to_owned())).collect()
}

/// Whether a container of `program` has a use for `variable`.
fn is_read(program: &str, variable: &str) -> bool {
    let everywhere =
        ["KAFKA_PROPERTY_", "OTEL_", "LOG_"].iter().any(|start| variable.starts_with(start));
    everywhere
        || variable == "RUST_LOG"
        || match program {
            "mcp-server" => table("server").contains_key(variable),
            "kafka-worker" => table("worker").contains_key(variable),
            "mcp-fleet" => CLI.contains(&variable),
            other => panic!("{other} is no program of ours"),
        }
}

/// The program in a container of ours, by its image; nothing for other people's images.
pub(crate) fn program(image: &str) -> Option<&str> {
    let name = image.split(':').next().unwrap_or(image);
    ["mcp-server", "kafka-worker", "mcp-fleet"].into_iter().find(|own| *own == name)
}

#[test]
fn the_tables_are_read() {
    let worker = table("worker");
    assert_eq!(worker.get("PORT").map(String::as_str), Some("8081"));
    assert_eq!(worker.get("MCP_SERVER_URL").map(String::as_str), Some(""));
    assert!(
        table("server").contains_key("MCP_ALLOWED_ORIGINS")
            && !worker.contains_key("MCP_ALLOWED_ORIGINS")
    );
}

#[test]
fn composes_variables_are_read_by_somebody() {
    let Some(project) = compose::project(&[]) else { return };
    let mut problems = vec![];
    for (name, service) in project["services"].as_object().expect("services") {
        let Some(program) = program(service["image"].as_str().unwrap_or_default()) else {
            continue;
        };
        for variable in service["environment"].as_object().expect("an environment").keys() {
            if !is_read(program, variable) {
                problems.push(format!("{name}: {program} knows no {variable}"));
            }
        }
    }
    none(&problems);
}

#[test]
fn pods_variables_are_read_by_somebody_and_given_once() {
    let mut problems = BTreeSet::new();
    for render in renders() {
        for object in &render.objects {
            for container in object.containers() {
                let image = container["image"].as_str().unwrap_or_default();
                let Some(program) = program(image) else { continue };
                let mut seen = BTreeSet::new();
                for (variable, _) in object.variables(render) {
                    if !is_read(program, &variable) {
                        problems.insert(format!(
                            "{}: {program} knows no {variable}",
                            object.describe()
                        ));
                    }
                    if !seen.insert(variable.clone()) {
                        problems.insert(format!("{}: {variable} twice", object.describe()));
                    }
                }
            }
        }
    }
    none(&problems.into_iter().collect::<Vec<_>>());
}

/// What a program can't do without is there: the variables that `--help` shows as required.
#[test]
fn nothing_is_left_out() {
    let required = [
        ("mcp-server", ["MCP_HOST", "PORT", "KAFKA_BROKERS", "KAFKA_TOPIC", "MCP_ALLOWED_HOSTS"]),
        (
            "kafka-worker",
            ["MCP_HOST", "PORT", "KAFKA_BROKERS", "MCP_CONSUMER_GROUP", "MCP_SERVER_URL"],
        ),
    ];
    let mut problems = vec![];
    for (name, variables) in required {
        for variable in variables {
            if let Some(project) = compose::project(&[])
                && project["services"][name]["environment"].get(variable).is_none()
            {
                problems.push(format!("compose: {name} lacks {variable}"));
            }
            for render in renders() {
                if render.get("Deployment", name).variable(render, variable).is_none() {
                    problems.push(format!("{}: {name} lacks {variable}", render.name));
                }
            }
        }
    }
    none(&problems);
}

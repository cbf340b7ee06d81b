//! Environment variables of containers: the program in the container must read each of them,
//! according to the tables in docs/configuration.md.

use std::collections::{BTreeMap, BTreeSet};

use super::{assert_no_problems, compose, file, kubernetes::renders};

/// The variables that `mcp-fleet` reads. It has no table, only the help of its commands.
const CLI: [&str; 7] = [
    "KAFKA_BROKERS",
    "KAFKA_TOPIC",
    "MCP_CONSUMER_GROUP",
    "MCP_SERVER_URL",
    "MCP_SERVER_TOKEN",
    "MCP_SERVER_TOKEN_FILE",
    "MCP_ACCESS_KEYS_FILE",
];

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
            other => panic!("{other} is not one of our programs"),
        }
}

/// The program in a container of ours, by its image; `None` for third-party images.
pub(crate) fn program(image: &str) -> Option<&str> {
    let name = image.split(':').next().unwrap_or(image);
    ["mcp-server", "kafka-worker", "mcp-fleet"].into_iter().find(|own| *own == name)
}

#[test]
fn the_tables_can_be_read() {
    let worker = table("worker");
    assert_eq!(worker.get("PORT").map(String::as_str), Some("8081"));
    assert_eq!(worker.get("MCP_SERVER_URL").map(String::as_str), Some(""));
    assert!(
        table("server").contains_key("MCP_ALLOWED_ORIGINS")
            && !worker.contains_key("MCP_ALLOWED_ORIGINS")
    );
}

#[test]
fn variables_in_compose_are_read_by_a_program() {
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

    assert_no_problems(&problems);
}

#[test]
fn variables_of_pods_are_read_by_a_program_and_set_once() {
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

    assert_no_problems(&problems.into_iter().collect::<Vec<_>>());
}

/// The variables that `--help` shows as required are set.
#[test]
fn required_variables_are_set() {
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
    assert_no_problems(&problems);
}

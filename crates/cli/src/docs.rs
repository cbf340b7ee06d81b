//! Tables in the documentation, made from the code: the README's of the configuration, and that of
//! metrics.

use clap::{Args as _, Command};
use fleet_ops::metrics;

/// The rows of every setting that `command` takes, hidden ones left out.
fn table(command: &Command) -> String {
    let mut text = String::from("| variable | flag | default | meaning |\n|---|---|---|---|\n");
    for argument in command.get_arguments().filter(|argument| !argument.is_hide_set()) {
        let Some(flag) = argument.get_long() else { continue };
        let variable = argument
            .get_env()
            .map_or_else(String::new, |name| format!("`{}`", name.to_string_lossy()));
        let defaults: Vec<_> =
            argument.get_default_values().iter().map(|value| value.to_string_lossy()).collect();
        let shown = match defaults.is_empty() || defaults.iter().any(|value| *value == "false") {
            true => String::new(),
            false => format!("`{}`", defaults.join(" ")),
        };
        let help =
            argument.get_help().map(ToString::to_string).unwrap_or_default().replace('|', "\\|");
        text.push_str(&format!("| {variable} | `--{flag}` | {shown} | {help} |\n"));
    }
    text
}

/// `text` with what stands between the markers called `name` replaced.
fn replaced(text: &str, name: &str, content: &str) -> Option<String> {
    let (open, close) = (format!("<!-- {name} -->\n"), format!("<!-- /{name} -->"));
    let (before, rest) = text.split_once(&open)?;
    let (_, after) = rest.split_once(&close)?;
    Some(format!("{before}{open}{content}{close}{after}"))
}

/// What is to be written to a file between markers must be there already, or `UPDATE_DOCS` writes
/// it.
fn check(path: &str, tables: &[(&str, String)]) {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").join(path);
    let found = std::fs::read_to_string(&path).unwrap();
    let expected = tables
        .iter()
        .fold(found.clone(), |text, (name, table)| replaced(&text, name, table).unwrap());
    if std::env::var_os("UPDATE_DOCS").is_some() {
        std::fs::write(&path, &expected).unwrap();
        return;
    }
    let name = path.display();
    assert!(
        found == expected,
        "{name}'s tables differ from the code: run UPDATE_DOCS=1 cargo test -p mcp-fleet docs"
    );
}

#[test]
fn the_tables_of_metrics_are_those_of_the_code() {
    let tables = [
        ("shared", metrics::markdown(&[metrics::TABLE])),
        ("worker", metrics::markdown(&[kafka_worker::metrics::TABLE])),
        ("server", metrics::markdown(&mcp_server::metrics::TABLES)),
    ];
    check("docs/metrics.md", &tables);
}

#[test]
fn the_readmes_tables_are_those_of_the_flags() {
    let worker = table(&kafka_worker::Args::augment_args(Command::new("kafka-worker")));
    let server = table(&mcp_server::Args::augment_args(Command::new("mcp-server")));
    check("README.md", &[("worker", worker), ("server", server)]);
}

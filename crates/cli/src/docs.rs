//! Generated tables in the documentation: the settings in docs/configuration.md and the metrics in
//! docs/metrics.md.

use clap::{Args as _, Command};
use fleet_ops::metrics;

/// A table of all settings that `command` takes, except hidden ones.
fn settings_table(command: &Command) -> String {
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

/// Returns `text` with `content` in place of what is between the markers called `name`, or `None`
/// if `text` has no such markers.
fn replace_between_markers(text: &str, name: &str, content: &str) -> Option<String> {
    let (open, close) = (format!("<!-- {name} -->\n"), format!("<!-- /{name} -->"));
    let (before, rest) = text.split_once(&open)?;
    let (_, after) = rest.split_once(&close)?;
    Some(format!("{before}{open}{content}{close}{after}"))
}

/// Asserts that the file at `path` has these tables between their markers, or writes them there if
/// `UPDATE_DOCS` is set.
fn check_tables(path: &str, tables: &[(&str, String)]) {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").join(path);
    let found = std::fs::read_to_string(&path).unwrap();
    let expected = tables.iter().fold(found.clone(), |text, (name, table)| {
        replace_between_markers(&text, name, table).unwrap()
    });

    if std::env::var_os("UPDATE_DOCS").is_some() {
        std::fs::write(&path, &expected).unwrap();
        return;
    }

    let name = path.display();
    assert!(
        found == expected,
        "the tables in {name} differ from the code: run UPDATE_DOCS=1 cargo test -p mcp-fleet docs"
    );
}

#[test]
fn metrics_tables_match_the_code() {
    let tables = [
        ("shared", metrics::markdown(&[metrics::TABLE])),
        ("worker", metrics::markdown(&[kafka_worker::metrics::TABLE])),
        ("server", metrics::markdown(&mcp_server::metrics::TABLES)),
    ];
    check_tables("docs/metrics.md", &tables);
}

#[test]
fn settings_tables_match_the_flags() {
    let worker = settings_table(&kafka_worker::Args::augment_args(Command::new("kafka-worker")));
    let server = settings_table(&mcp_server::Args::augment_args(Command::new("mcp-server")));
    check_tables("docs/configuration.md", &[("worker", worker), ("server", server)]);
}

//! The Grafana dashboards in `monitoring/grafana/dashboards`, as far as tests inspect them.

use std::fs;

use serde_json::Value;

use crate::prometheus;

/// A panel other than a heading.
#[derive(Clone, Debug)]
pub struct Panel {
    /// Dashboard and title.
    pub name: String,
    /// The queries, with variables replaced.
    pub queries: Vec<String>,
    /// The whole panel.
    pub json: Value,
}

/// All dashboards, by file name.
pub fn all() -> Vec<(String, Value)> {
    let directory = prometheus::monitoring().join("grafana/dashboards");
    let mut dashboards: Vec<_> = fs::read_dir(directory)
        .expect("the dashboards")
        .map(|entry| {
            let path = entry.expect("a file").path();
            let text = fs::read_to_string(&path).expect("a dashboard");
            let name = path.file_stem().expect("a name").to_string_lossy().into_owned();
            (name, serde_json::from_str(&text).expect("JSON"))
        })
        .collect();
    dashboards.sort_by(|(one, _), (other, _)| one.cmp(other));
    dashboards
}

/// All panels of a dashboard, except headings.
pub fn panels(name: &str, dashboard: &Value) -> Vec<Panel> {
    let panels = dashboard["panels"]
        .as_array()
        .expect("panels")
        .iter()
        .filter(|panel| panel["type"] != "row");
    panels
        .map(|panel| {
            let targets = panel["targets"].as_array().expect("queries");
            let queries =
                targets.iter().map(|target| substituted(target["expr"].as_str().expect("a query")));
            Panel {
                name: format!("{name} / {}", panel["title"].as_str().expect("a title")),
                queries: queries.collect(),
                json: panel.clone(),
            }
        })
        .collect()
}

/// The sources of a dashboard's variables: a query, and the label whose values are listed.
pub fn variables(dashboard: &Value) -> Vec<(String, String)> {
    let list = dashboard["templating"]["list"].as_array().expect("variables");
    let queries = list.iter().filter(|variable| variable["type"] == "query");
    queries
        .map(|variable| {
            let query = variable["query"]["query"].as_str().expect("a query");
            let inner = query.strip_prefix("label_values(").and_then(|rest| rest.strip_suffix(')'));
            let (series, label) =
                inner.and_then(|inner| inner.rsplit_once(',')).expect("label_values");
            (substituted(series), label.trim().to_owned())
        })
        .collect()
}

/// The queries of annotations.
pub fn annotations(dashboard: &Value) -> Vec<String> {
    let list = dashboard["annotations"]["list"].as_array().expect("annotations");
    list.iter().map(|one| substituted(one["expr"].as_str().expect("a query"))).collect()
}

/// A query as Grafana sends it if all values of the variables are selected.
fn substituted(query: &str) -> String {
    let mut made = query.replace("$__rate_interval", "1m");
    for variable in ["namespace", "instance", "tool"] {
        made = made.replace(&format!("${variable}"), ".*");
    }
    assert!(!made.contains('$'), "a variable that the tests do not know: {query}");
    made
}

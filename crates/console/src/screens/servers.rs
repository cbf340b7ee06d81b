//! Hosted servers: how they are, and what others would be.

use askama::Template;
use serde_json::Value;

use crate::{
    Page, format, links,
    parts::{JsonBlock, StateTag},
    views::{ProblemView, ServerCheckView, ServerChecks, ServerView},
};

/// The longest text in a row, in characters.
const ROW_TEXT: usize = 200;
/// The longest end of a standard error, in bytes.
const STDERR: usize = 16 * 1024;
/// The most tools of a server that its page lists.
const MAX_TOOLS: usize = 200;
/// The largest configuration that a page gives back for editing, in bytes.
const MAX_CONFIG: usize = 48 * 1024;

/// A server in a list.
struct ServerRow {
    name: String,
    href: String,
    state: StateTag,
    transport: String,
    tools: usize,
    uptime: String,
    restarts: u32,
    note: String,
}

impl ServerRow {
    fn new(server: &ServerView) -> Self {
        Self {
            name: server.name.clone(),
            href: links::server(&server.name),
            state: StateTag::of_server(&server.state),
            transport: server.transport.clone().unwrap_or_default(),
            tools: server.tools.len(),
            uptime: server.uptime_ms.map(format::duration).unwrap_or_default(),
            restarts: server.restarts,
            note: format::one_line(&describe(server), ROW_TEXT),
        }
    }
}

/// What is wrong with a server, if anything is.
fn describe(server: &ServerView) -> String {
    match server.breaker.state.as_str() {
        "open" => format!("calls fail at once: {}", server.breaker.last_failure),
        _ => server.last_error.clone().unwrap_or_default(),
    }
}

/// The hosted servers.
#[derive(Template)]
#[template(path = "servers.html")]
pub struct ServersScreen {
    page: Page,
    rows: Vec<ServerRow>,
    can_add: bool,
    config: String,
    problem: Option<ProblemView>,
}

/// What the form to add a server begins with.
const EXAMPLE: &str = r#"{
  "mcpServers": {
    "fetch": {"command": "uvx", "args": ["mcp-server-fetch"]}
  }
}"#;

impl ServersScreen {
    /// The list of servers, and the form to add others, with what was refused in it.
    pub fn new(
        page: Page,
        servers: &[ServerView],
        config: Option<String>,
        problem: Option<ProblemView>,
    ) -> Self {
        let config = config.filter(|config| config.len() <= MAX_CONFIG);
        Self {
            rows: servers.iter().map(ServerRow::new).collect(),
            can_add: page.rights().administer,
            config: config.unwrap_or_else(|| EXAMPLE.to_owned()),
            problem,
            page,
        }
    }
}

/// A tool of a server.
struct ToolLine {
    name: String,
    href: String,
    description: String,
}

/// A hosted server.
#[derive(Template)]
#[template(path = "server.html")]
pub struct ServerScreen {
    page: Page,
    server: ServerView,
    state: StateTag,
    uptime: Option<String>,
    problem: String,
    stderr: Option<String>,
    tools: Vec<ToolLine>,
    more_tools: usize,
    hidden: Option<JsonBlock>,
    restart: Option<String>,
    remove: Option<String>,
}

impl ServerScreen {
    /// The page of a server.
    pub fn new(page: Page, server: ServerView) -> Self {
        let line = |tool: &crate::views::OfferedToolView| ToolLine {
            name: format::one_line(&tool.exposed_as, 80),
            href: links::tool(&tool.exposed_as),
            description: format::one_line(
                tool.description.as_deref().unwrap_or_default(),
                ROW_TEXT,
            ),
        };
        let (can_change, url) = (page.rights().administer, links::server(&server.name));
        let stderr = server.stderr_tail.as_deref().filter(|text| !text.trim().is_empty());
        Self {
            state: StateTag::of_server(&server.state),
            uptime: server.uptime_ms.map(format::duration),
            problem: format::cut(&describe(&server), STDERR).to_owned(),
            stderr: stderr.map(|text| last_bytes(text, STDERR).to_owned()),
            tools: server.tools.iter().take(MAX_TOOLS).map(line).collect(),
            more_tools: server.tools.len().saturating_sub(MAX_TOOLS),
            hidden: (!server.hidden_tools.is_empty()).then(|| {
                JsonBlock::new("What can't be offered", &Value::from(server.hidden_tools.clone()))
            }),
            restart: (can_change && server.state != "refused").then(|| format!("{url}/restart")),
            remove: can_change.then(|| format!("{url}/remove")),
            page,
            server,
        }
    }
}

/// The end of a text, of at most `max` bytes.
fn last_bytes(text: &str, max: usize) -> &str {
    let mut start = text.len().saturating_sub(max);
    while !text.is_char_boundary(start) {
        start += 1;
    }
    &text[start..]
}

/// What would happen to one server.
struct CheckRow {
    name: String,
    verdict: &'static str,
    class: &'static str,
    reason: Option<String>,
    rule: Option<String>,
    program: Option<String>,
    environment: String,
    addresses: String,
    warnings: Vec<String>,
    /// The configuration to host; `None` if that would fail.
    config: Option<String>,
}

impl CheckRow {
    fn new(check: &ServerCheckView, config: Option<&Value>, can_add: bool) -> Self {
        let (verdict, class) = match check.verdict.as_str() {
            "allowed" => ("policy allows it", "is-good"),
            "refused" => ("policy refuses it", "is-bad"),
            "fails" => ("it would fail", "is-bad"),
            "disabled" => ("it is disabled", "is-muted"),
            _ => ("unknown", "is-warning"),
        };
        let allowed = check.verdict == "allowed" && can_add;
        Self {
            name: format::one_line(&check.name, 80),
            verdict,
            class,
            reason: check.reason.as_ref().map(|text| format::cut(text, 4_000).to_owned()),
            rule: (!check.rule.is_null()).then(|| format::one_line(&rule_text(&check.rule), 300)),
            program: check.program.as_ref().map(|text| format::one_line(text, 300)),
            environment: format::one_line(
                &check.environment.clone().unwrap_or_default().join(", "),
                500,
            ),
            addresses: format::one_line(&check.addresses.join(", "), 500),
            warnings: check.warnings.iter().map(|text| format::one_line(text, 500)).collect(),
            config: config.filter(|_| allowed).map(ToString::to_string),
        }
    }
}

fn rule_text(rule: &Value) -> String {
    let text = |name: &str| rule.get(name).and_then(Value::as_str).unwrap_or_default();
    let number = |name: &str| rule.get(name).and_then(Value::as_u64);
    let line = number("line").map(|line| format!(", line {line}")).unwrap_or_default();
    let position = number("number").unwrap_or_default();
    format!("[[{}]] {position}{line}: {}", text("table"), text("covers"))
}

/// What would happen to servers if they were hosted.
#[derive(Template)]
#[template(path = "checks.html")]
pub struct ChecksScreen {
    page: Page,
    rows: Vec<CheckRow>,
    warnings: Vec<String>,
    config: String,
}

impl ChecksScreen {
    /// The answer to a configuration, of which these are the servers by name.
    pub fn new(
        page: Page,
        checks: &ServerChecks,
        servers: &serde_json::Map<String, Value>,
        config: String,
    ) -> Self {
        let can_add = page.rights().administer;
        let row = |check: &ServerCheckView| CheckRow::new(check, servers.get(&check.name), can_add);
        Self {
            rows: checks.servers.iter().map(row).collect(),
            warnings: checks.warnings.iter().map(|text| format::one_line(text, 500)).collect(),
            config,
            page,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_a_text_begins_with_a_character() {
        assert_eq!(last_bytes("äöü", 3), "ü");
        assert_eq!(last_bytes("abc", 9), "abc");
    }
}

//! Tools: what can be called, and a form to call it.

use std::collections::BTreeMap;

use askama::Template;
use serde_json::Value;

use super::job::{schema_attribute, shell_word};
use crate::{
    Page,
    content::{Block, Blocks, MediaSource},
    format, links, markdown,
    markdown::Rendered,
    parts::{JsonBlock, TimeTag},
    views::{CallsView, ProblemView, ToolList, ToolView},
};

/// The longest description in a list, in characters.
const LISTED_TEXT: usize = 180;
/// The longest description of a tool, in bytes.
const DESCRIPTION: usize = 16 * 1024;
/// The most tools that a page lists.
const MAX_LISTED: usize = 300;

/// A tool in a list.
struct ToolRow {
    name: String,
    href: String,
    description: String,
    tags: Vec<&'static str>,
    calls: String,
    errors: String,
    p95: String,
}

impl ToolRow {
    fn new(tool: &ToolView) -> Self {
        Self {
            name: format::one_line(&tool.name, 80),
            href: links::tool(&tool.name),
            description: format::one_line(
                first_line(tool.description.as_deref().or(tool.title.as_deref())),
                LISTED_TEXT,
            ),
            tags: tags_of(&tool.annotations),
            calls: format::count(tool.calls.calls),
            errors: error_share(&tool.calls),
            p95: latency(tool.calls.p95_ms),
        }
    }
}

fn first_line(text: Option<&str>) -> &str {
    text.unwrap_or_default().trim().lines().next().unwrap_or_default()
}

fn error_share(calls: &CallsView) -> String {
    calls.error_share.map(|share| format!("{:.1} %", share * 100.0)).unwrap_or_default()
}

fn latency(ms: Option<f64>) -> String {
    ms.map(|ms| format!("≤ {}", format::duration(ms as u64))).unwrap_or_default()
}

/// What a tool says of itself, in words.
fn tags_of(annotations: &Value) -> Vec<&'static str> {
    let says = |name: &str| annotations.get(name).and_then(Value::as_bool);
    let mut tags = Vec::new();
    match (says("readOnlyHint"), says("destructiveHint")) {
        (Some(true), _) => tags.push("only reads"),
        (_, Some(true)) => tags.push("may destroy"),
        _ => {}
    }
    if says("idempotentHint") == Some(true) {
        tags.push("repeatable");
    }
    if says("openWorldHint") == Some(true) {
        tags.push("reaches out");
    }
    tags
}

/// The tools of one server.
struct ToolGroup {
    title: String,
    href: Option<String>,
    rows: Vec<ToolRow>,
}

/// The list of tools.
#[derive(Template)]
#[template(path = "tools.html")]
pub struct ToolsScreen {
    page: Page,
    search: String,
    groups: Vec<ToolGroup>,
    is_cut: bool,
}

impl ToolsScreen {
    /// The tools whose name or description has a text.
    pub fn new(page: Page, search: String, list: &ToolList) -> Self {
        let wanted = search.to_lowercase();
        let matches = |tool: &&ToolView| {
            let description = tool.description.as_deref().unwrap_or_default();
            wanted.is_empty()
                || tool.name.to_lowercase().contains(&wanted)
                || description.to_lowercase().contains(&wanted)
        };
        let found: Vec<_> = list.tools.iter().filter(matches).collect();

        let mut by_server: BTreeMap<Option<&str>, Vec<ToolRow>> = BTreeMap::new();
        for tool in found.iter().take(MAX_LISTED) {
            by_server.entry(tool.server.as_deref()).or_default().push(ToolRow::new(tool));
        }
        // Those of hosted servers first: they are why somebody looks.
        let mut groups: Vec<ToolGroup> = Vec::new();
        for (server, rows) in by_server {
            let group = ToolGroup {
                title: server.unwrap_or("This server's own").to_owned(),
                href: server.map(links::server),
                rows,
            };
            groups.push(group);
        }
        groups.sort_by_key(|group| group.href.is_none());
        Self { page, search, groups, is_cut: !list.complete || found.len() > MAX_LISTED }
    }
}

/// How to call a tool from somewhere else.
struct Snippet {
    label: &'static str,
    text: String,
}

/// What a call has come to.
pub enum CallOutcome {
    /// The tool answered.
    Answered {
        /// Its result.
        result: Value,
        /// How long it took, in milliseconds.
        ms: u64,
    },
    /// The call was refused or failed.
    Failed(ProblemView),
}

/// An answer as the page shows it.
struct ShownAnswer {
    blocks: Blocks,
    is_error: bool,
    took: String,
}

/// A tool, with a form to call it.
#[derive(Template)]
#[template(path = "tool.html")]
pub struct ToolScreen {
    page: Page,
    tool: ToolView,
    action: String,
    description: Rendered,
    tags: Vec<&'static str>,
    server_url: Option<String>,
    calls: String,
    errors: String,
    p50: String,
    p95: String,
    since: Option<TimeTag>,
    schema: String,
    arguments: String,
    input_schema: JsonBlock,
    output_schema: Option<JsonBlock>,
    snippets: Vec<Snippet>,
    answer: Option<ShownAnswer>,
    problem: Option<ProblemView>,
    jobs: String,
}

impl ToolScreen {
    /// The page of a tool that clients reach at `base`, with these arguments in its form.
    pub fn new(
        page: Page,
        tool: ToolView,
        arguments: Option<String>,
        outcome: Option<CallOutcome>,
        base: &str,
    ) -> Self {
        let arguments = arguments.unwrap_or_else(|| {
            serde_json::to_string_pretty(&example_arguments(&tool.input_schema)).unwrap_or_default()
        });
        let (answer, problem) = match outcome {
            None => (None, None),
            Some(CallOutcome::Failed(problem)) => (None, Some(problem)),
            Some(CallOutcome::Answered { result, ms }) => {
                let answer = ShownAnswer {
                    blocks: Blocks::of_result(&result, MediaSource::Inline),
                    is_error: result.get("isError").and_then(Value::as_bool).unwrap_or(false),
                    took: format::duration(ms),
                };
                (Some(answer), None)
            }
        };

        let description = tool.description.as_deref().unwrap_or_default();
        Self {
            action: format!("{}/calls", links::tool(&tool.name)),
            description: markdown::render(format::cut(description, DESCRIPTION)),
            tags: tags_of(&tool.annotations),
            server_url: tool.server.as_deref().map(links::server),
            calls: format::count(tool.calls.calls),
            errors: error_share(&tool.calls),
            p50: latency(tool.calls.p50_ms),
            p95: latency(tool.calls.p95_ms),
            since: tool.calls.since.map(TimeTag::new),
            schema: schema_attribute(&tool.input_schema),
            snippets: snippets(&tool.name, &arguments, base),
            arguments,
            input_schema: JsonBlock::new("Schema of the arguments", &tool.input_schema),
            output_schema: tool
                .output_schema
                .is_object()
                .then(|| JsonBlock::new("Schema of the result", &tool.output_schema)),
            answer,
            problem,
            jobs: links::jobs([("tool", tool.name.as_str())]),
            page,
            tool,
        }
    }
}

/// The required arguments of a schema, with values to begin from.
fn example_arguments(schema: &Value) -> Value {
    let mut arguments = serde_json::Map::new();
    let required = schema.get("required").and_then(Value::as_array);
    for name in required.into_iter().flatten().filter_map(Value::as_str).take(50) {
        let property = schema.get("properties").and_then(|properties| properties.get(name));
        let field = |field: &str| property.and_then(|property| property.get(field));
        let value = match (field("default"), field("type").and_then(Value::as_str)) {
            (Some(default), _) => default.clone(),
            (None, Some("number" | "integer")) => 0.into(),
            (None, Some("boolean")) => false.into(),
            (None, Some("array")) => Value::Array(Vec::new()),
            (None, Some("object")) => Value::Object(serde_json::Map::new()),
            (None, _) => "".into(),
        };
        arguments.insert(name.to_owned(), value);
    }
    Value::Object(arguments)
}

/// The longest arguments in a snippet, in bytes.
const SNIPPET: usize = 4 * 1024;

fn snippets(name: &str, arguments: &str, base: &str) -> Vec<Snippet> {
    let arguments: Value = match serde_json::from_str::<Value>(arguments) {
        Ok(arguments) if arguments.to_string().len() <= SNIPPET => arguments,
        _ => Value::Object(serde_json::Map::new()),
    };
    let message = serde_json::json!({
        "jsonrpc": "2.0", "id": 1, "method": "tools/call",
        "params": {"name": name, "arguments": arguments},
    });
    let json_text = |text: &str| Value::from(text).to_string();
    let url = json_text(&format!("{base}/mcp"));
    let job = serde_json::json!({"tool": name, "arguments": arguments});

    vec![
        Snippet {
            label: "curl, now",
            text: format!(
                "curl {} \\\n  -H 'Content-Type: application/json' \\\n  -d {}",
                shell_word(&format!("{base}/message")),
                shell_word(&message.to_string()),
            ),
        },
        Snippet {
            label: "curl, as a job",
            text: format!(
                "curl {} \\\n  -H 'Content-Type: application/json' \\\n  -d {}",
                shell_word(&format!("{base}/jobs")),
                shell_word(&job.to_string()),
            ),
        },
        Snippet {
            label: "Python",
            text: format!(
                "import asyncio, json\nfrom mcp import ClientSession\n\
                 from mcp.client.streamable_http import streamablehttp_client\n\n\
                 async def main():\n    async with streamablehttp_client({url}) as (read, write, _):\n        \
                 async with ClientSession(read, write) as session:\n            await session.initialize()\n            \
                 arguments = json.loads({})\n            \
                 print(await session.call_tool({}, arguments))\n\nasyncio.run(main())",
                json_text(&arguments.to_string()),
                json_text(name),
            ),
        },
        Snippet {
            label: "TypeScript",
            text: format!(
                "import {{ Client }} from \"@modelcontextprotocol/sdk/client/index.js\";\n\
                 import {{ StreamableHTTPClientTransport }} from \"@modelcontextprotocol/sdk/client/streamableHttp.js\";\n\n\
                 const client = new Client({{ name: \"example\", version: \"1.0.0\" }});\n\
                 await client.connect(new StreamableHTTPClientTransport(new URL({url})));\n\
                 console.log(await client.callTool({{ name: {}, arguments: {arguments} }}));",
                json_text(name),
            ),
        },
    ]
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_form_begins_with_what_is_required() {
        let schema = json!({
            "required": ["a", "n", "d"],
            "properties": {
                "a": {"type": "string"}, "n": {"type": "integer"}, "d": {"default": 7}, "o": {},
            },
        });
        assert_eq!(example_arguments(&schema), json!({"a": "", "n": 0, "d": 7}));
        assert_eq!(example_arguments(&Value::Null), json!({}));
    }

    #[test]
    fn snippets_keep_arguments_from_becoming_code() {
        let arguments = json!({"a": "'; rm -rf / #\"\n"}).to_string();
        let found = snippets("t'; x", &arguments, "http://localhost:8080");
        let curl = &found[0].text;
        assert!(curl.contains(r"'\''; rm -rf / #"), "{curl}");
        assert!(!curl.contains("\n\""), "{curl}");
        let python = &found[2].text;
        assert!(python.contains(r#"json.loads("{\"a\":\"'; rm -rf / #\\\"\\n\"}")"#), "{python}");
    }
}

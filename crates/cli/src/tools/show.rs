//! `mcp-fleet tools show`: describes a tool and its arguments.

use std::process::ExitCode;

use crate::{
    dlq::text::{new_table, shorten},
    error::CliError,
    offered_tool::OfferedTool,
    output,
    result_view::for_terminal,
    server_args::ServerArgs,
    suggestions,
    tool_schema::{Parameter, Schema},
};
use clap_complete::engine::ArgValueCompleter;

/// The maximum lengths of texts in the tables.
const TYPE: usize = 40;
const DESCRIPTION: usize = 80;
/// The maximum length of the tool's description.
const TEXT: usize = 4_096;

const EXAMPLES: &str = "Examples:
  mcp-fleet tools show files__file_read
  mcp-fleet tools show files__file_read --json | jq .inputSchema";

#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    #[command(flatten)]
    server: ServerArgs,

    /// The name of the tool
    #[arg(value_name = "TOOL", add = ArgValueCompleter::new(suggestions::tools))]
    tool: String,

    /// Print one JSON object: the tool as the server describes it
    #[arg(help_heading = "Output", long)]
    json: bool,
}

pub(crate) async fn run(args: Args) -> Result<ExitCode, CliError> {
    let server = args.server.mcp()?;
    let tool = super::find_tool(&server, &args.tool).await?;
    server.close().await;

    if args.json {
        output::json(&tool.entry);
    } else {
        output::line(&render_tool(&tool));
    }
    Ok(ExitCode::SUCCESS)
}

fn render_tool(tool: &OfferedTool) -> String {
    let mut table = new_table(["TOOL", &tool.name]);
    if let Some(title) = tool.title() {
        table.add_row(["title", &shorten(title, DESCRIPTION)]);
    }
    table.add_row(["server", tool.server().unwrap_or("mcp-server itself")]);
    table.add_row(["effect", tool.effect()]);
    let mut parts = vec![table.trim_fmt()];

    if let Some(description) = tool.description() {
        let kept: String = description.trim().chars().take(TEXT).collect();
        parts.push(for_terminal(&kept));
    }

    let parameters = Schema::document(tool.input_schema()).parameters();
    parts.push(match parameters.is_empty() {
        true => "It has no arguments.".to_owned(),
        false => render_parameters("ARGUMENT", &parameters),
    });
    if let Some(schema) = tool.output_schema() {
        let fields = Schema::document(schema).parameters();
        if !fields.is_empty() {
            parts.push(render_parameters("RESULT", &fields));
        }
    }

    parts.push(format!("Example:\n  {}", example(tool, &parameters)));
    parts.join("\n\n")
}

fn render_parameters(kind: &str, parameters: &[Parameter<'_>]) -> String {
    let mut table = new_table([kind, "TYPE", "REQUIRED", "DEFAULT", "DESCRIPTION"]);
    for parameter in parameters {
        let schema = parameter.schema;
        table.add_row([
            shorten(parameter.name, TYPE),
            shorten(&schema.describe(), TYPE),
            if parameter.is_required { "yes" } else { "-" }.to_owned(),
            schema
                .default()
                .map_or_else(|| "-".to_owned(), |value| shorten(&value.to_string(), TYPE)),
            shorten(schema.description().unwrap_or("-"), DESCRIPTION),
        ]);
    }
    table.trim_fmt()
}

/// Returns a command line with the arguments that the tool needs.
fn example(tool: &OfferedTool, parameters: &[Parameter<'_>]) -> String {
    let needed = parameters.iter().filter(|parameter| parameter.is_required);
    let arguments: String = needed.map(|parameter| format!(" {}=…", parameter.name)).collect();
    format!("mcp-fleet tools call {}{}", tool.name, for_terminal(&arguments))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_tool_is_described_with_its_arguments() {
        let tool = OfferedTool::from_listed(json!({
            "name": "files__file_read",
            "description": "Reads a file.\u{1b}[2J",
            "inputSchema": {
                "properties": {
                    "limit": {"type": "integer", "default": 5, "description": "How many lines."},
                    "path": {"type": "string"},
                },
                "required": ["path"],
            },
            "outputSchema": {"properties": {"text": {"type": "string"}}},
        }))
        .unwrap();
        let text = render_tool(&tool);
        for part in [
            "files__file_read",
            "How many lines.",
            "RESULT",
            "mcp-fleet tools call files__file_read path=…",
            "Reads a file.\u{fffd}",
        ] {
            assert!(text.contains(part), "{part}: {text}");
        }
        let rows: Vec<_> = text.lines().filter(|line| line.contains("integer")).collect();
        assert!(rows.len() == 1 && rows[0].contains('5'), "{text}");

        let bare = OfferedTool::from_listed(json!({"name": "ping"})).unwrap();
        let text = render_tool(&bare);
        assert!(text.contains("It has no arguments.") && text.ends_with("call ping"), "{text}");
    }
}

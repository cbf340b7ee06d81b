//! `mcp-fleet tools list`: lists the tools that a server offers.

use std::process::ExitCode;

use clap_complete::engine::ArgValueCompleter;
use fleet_job::glob::Glob;

use crate::{
    dlq::text::{new_table, shorten},
    error::CliError,
    offered_tool::OfferedTool,
    output,
    server_args::ServerArgs,
    suggestions,
};

/// The maximum length of a description in the table.
const DESCRIPTION: usize = 70;

const EXAMPLES: &str = "Columns:
  EFFECT  what the tool says it does: reads, changes, destroys; unknown if it says nothing

Examples:
  mcp-fleet tools list
  mcp-fleet tools list file
  mcp-fleet tools list 'db__*'
  mcp-fleet tools list --of db --json | jq -r .name";

#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    #[command(flatten)]
    server: ServerArgs,

    /// Only tools whose name contains this text, or matches it if it has a `*`
    #[arg(value_name = "PATTERN")]
    pattern: Option<String>,

    /// Only tools of this hosted server
    #[arg(help_heading = "Filters", long, value_name = "NAME", add = ArgValueCompleter::new(suggestions::hosted_servers))]
    of: Option<String>,

    /// Print one JSON object per line: the tool as the server describes it
    #[arg(help_heading = "Output", long)]
    json: bool,
}

pub(crate) async fn run(args: Args) -> Result<ExitCode, CliError> {
    let server = args.server.mcp()?;
    let all = server.list_tools().await?;
    server.close().await;

    let total = all.len();
    let tools: Vec<_> = all
        .into_iter()
        .filter(|tool| is_wanted(tool, args.pattern.as_deref(), args.of.as_deref()))
        .collect();

    if args.json {
        tools.iter().for_each(|tool| output::json(&tool.entry));
    } else if tools.is_empty() {
        output::line(&format!("no matching tools; {} offers {total}", server.name()));
    } else {
        output::line(&render_table(&tools));
    }
    Ok(ExitCode::SUCCESS)
}

fn is_wanted(tool: &OfferedTool, pattern: Option<&str>, server: Option<&str>) -> bool {
    let matches = pattern.is_none_or(|pattern| match pattern.contains('*') {
        true => Glob::new(pattern).matches(&tool.name),
        false => tool.name.to_lowercase().contains(&pattern.to_lowercase()),
    });
    matches && server.is_none_or(|server| tool.server() == Some(server))
}

fn render_table(tools: &[OfferedTool]) -> String {
    let mut table = new_table(["TOOL", "EFFECT", "DESCRIPTION"]);
    for tool in tools {
        let text = tool.description().or_else(|| tool.title()).unwrap_or("-");
        table.add_row([&tool.name, tool.effect(), &shorten(first_sentence(text), DESCRIPTION)]);
    }
    table.trim_fmt()
}

/// Returns the beginning of a description that stands for all of it.
fn first_sentence(text: &str) -> &str {
    let text = text.trim();
    let line = text.lines().next().unwrap_or_default();
    line.find(". ").map_or(line, |end| &line[..end])
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn tools_are_chosen_and_shown_on_one_line() {
        let tool = |name: &str| {
            let description = "Reads a file. Then it\nstops.\u{1b}[2J";
            OfferedTool::from_listed(json!({"name": name, "description": description})).unwrap()
        };
        let check = |pattern, server, expected| {
            assert_eq!(is_wanted(&tool("files__file_read"), pattern, server), expected);
        };
        check(None, None, true);
        check(Some("FILE_R"), None, true);
        check(Some("files__*"), Some("files"), true);
        check(Some("*list"), None, false);
        check(None, Some("db"), false);

        let text = render_table(&[tool("a")]);
        assert_eq!(text.lines().count(), 2, "{text}");
        assert!(text.ends_with("Reads a file"), "{text}");
    }
}

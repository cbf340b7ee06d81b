//! `mcp-fleet servers pins`: tools of hosted servers that are not as they were when they were pinned.
//!
//! Goes through the REST interface. What a server says of its tools is shown as it is, but never to
//! the terminal itself.

use std::{fmt::Write as _, process::ExitCode};

use fleet_pins::{Digest, PinMode, Standing, diff::DefinitionChange};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{
    error::CliError, output, result_view::for_terminal, server_args::ServerArgs, suggestions,
};
use clap_complete::engine::ArgValueCompleter;

const LIST_EXAMPLES: &str = "Examples:
  mcp-fleet servers pins list crm
  mcp-fleet servers pins list crm --json | jq -r 'select(.withheld) | .tool'";

const DIFF_EXAMPLES: &str = "Examples:
  mcp-fleet servers pins diff crm
  mcp-fleet servers pins diff crm customer_get

The exit code is 1 if a tool is not as pinned.";

const APPROVE_EXAMPLES: &str = "Examples:
  mcp-fleet servers pins approve crm customer_get --digest 5f0e…

The digest is the one that `pins diff` shows. If the tool has changed again since then, nothing is
decided. It takes the right `servers.pins`.";

#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// List how a server's tools stand to their pins
    #[command(after_help = LIST_EXAMPLES)]
    List(ListArgs),
    /// Show what differs from the pins, with the digests to decide on
    #[command(after_help = DIFF_EXAMPLES)]
    Diff(DiffArgs),
    /// Accept the definition that a tool has now
    #[command(after_help = APPROVE_EXAMPLES)]
    Approve(DecideArgs),
    /// Reject the definition that a tool has now, so that it stays withheld
    #[command(after_help = APPROVE_EXAMPLES)]
    Reject(DecideArgs),
}

#[derive(Debug, clap::Args)]
pub(crate) struct ListArgs {
    #[command(flatten)]
    server: ServerArgs,

    /// The name of the hosted server
    #[arg(value_name = "NAME", add = ArgValueCompleter::new(suggestions::hosted_servers))]
    name: String,

    /// Print one JSON object per tool
    #[arg(help_heading = "Output", long)]
    json: bool,
}

#[derive(Debug, clap::Args)]
pub(crate) struct DiffArgs {
    #[command(flatten)]
    list: ListArgs,

    /// The tool's own name; all tools that are not as pinned by default
    #[arg(value_name = "TOOL")]
    tool: Option<String>,
}

#[derive(Debug, clap::Args)]
pub(crate) struct DecideArgs {
    #[command(flatten)]
    list: ListArgs,

    /// The tool's own name
    #[arg(value_name = "TOOL")]
    tool: String,

    /// The digest of the definition that you have looked at
    #[arg(long, value_name = "SHA256")]
    digest: Digest,

    /// Why, for the audit log
    #[arg(long, value_name = "TEXT")]
    reason: Option<String>,
}

/// The tools of a server, as the server reports them.
#[derive(Debug, Deserialize)]
struct Review {
    mode: PinMode,
    tools: Vec<Tool>,
}

/// A tool and its pin.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Tool {
    tool: String,
    standing: Standing,
    withheld: bool,
    digest: Digest,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pinned: Option<Digest>,
    #[serde(default)]
    by_file: bool,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    changes: Vec<DefinitionChange>,
}

pub(crate) async fn run(command: Command) -> Result<ExitCode, CliError> {
    match command {
        Command::List(args) => list(args).await,
        Command::Diff(args) => diff(args).await,
        Command::Approve(args) => decide(args, true).await,
        Command::Reject(args) => decide(args, false).await,
    }
}

async fn fetch(args: &ListArgs) -> Result<Review, CliError> {
    let review: Review = args.server.api()?.pins(&args.name).await?;
    if review.mode == PinMode::Off {
        output::note(&format!("the policy file pins no tools of {}", args.name));
    }
    Ok(review)
}

async fn list(args: ListArgs) -> Result<ExitCode, CliError> {
    for tool in fetch(&args).await?.tools {
        match args.json {
            true => output::json(&tool),
            false => output::line(&for_terminal(&one_line(&tool))),
        }
    }
    Ok(ExitCode::SUCCESS)
}

async fn diff(args: DiffArgs) -> Result<ExitCode, CliError> {
    let DiffArgs { list: args, tool } = args;
    let mut tools = fetch(&args).await?.tools;
    if let Some(wanted) = &tool {
        tools.retain(|found| found.tool == *wanted);
        if tools.is_empty() {
            let (server, code) = (&args.name, fleet_codes::NO_SUCH_TOOL);
            return Err(CliError::Usage(format!(
                "server `{server}` has no tool `{wanted}` now [{code}]"
            )));
        }
    }

    tools.retain(|tool| tool.standing.is_unapproved());
    for tool in &tools {
        match args.json {
            true => output::json(tool),
            false => output::line(&for_terminal(&details(tool))),
        }
    }
    if tools.is_empty() && !args.json {
        output::line("everything is as pinned");
    }
    Ok(if tools.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

async fn decide(args: DecideArgs, approve: bool) -> Result<ExitCode, CliError> {
    let DecideArgs { list: args, tool, digest, reason } = args;
    let api = args.server.api()?;
    let decided: Tool =
        api.decide_pin((&args.name, &tool), approve, digest.as_str(), reason.as_deref()).await?;
    match args.json {
        true => output::json(&decided),
        false => output::line(&for_terminal(&one_line(&decided))),
    }
    Ok(ExitCode::SUCCESS)
}

/// A tool in a list. Its name is its server's, so it may not begin a line of its own.
fn one_line(tool: &Tool) -> String {
    let state = if tool.withheld { "withheld" } else { "offered" };
    let by = if tool.by_file { "  by the policy file" } else { "" };
    let name = tool.tool.escape_debug();
    format!("{name}  {}  {state}  {}{by}", tool.standing.as_str(), tool.digest)
}

/// Everything that somebody has to know to decide.
fn details(tool: &Tool) -> String {
    let mut text = one_line(tool);
    for DefinitionChange { path, old, new } in &tool.changes {
        write!(text, "\n  {}", path.escape_debug()).ok();
        for (sign, value) in [('-', old), ('+', new)] {
            let Some(value) = value else { continue };
            // As JSON, a text is one line, whatever it contains.
            write!(text, "\n    {sign} {}", Value::to_string(value)).ok();
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_difference_is_shown_without_what_a_terminal_would_obey() {
        let tool = json!({
            "tool": "get\nlist", "standing": "changed", "withheld": true,
            "digest": "0123456789abcdef".repeat(4), "byFile": false,
            "changes": [
                {"path": "/description", "old": "Gets.", "new": "Gets.\n+ nothing\u{1b}[2J"},
                {"path": "/title", "new": "T"},
            ],
        });
        let shown = details(&serde_json::from_value(tool).unwrap());
        let lines: Vec<_> = shown.lines().collect();
        assert!(lines[0].starts_with(r"get\nlist  changed  withheld  0123"), "{shown}");
        let expected = [
            "  /description",
            "    - \"Gets.\"",
            r#"    + "Gets.\n+ nothing\u001b[2J""#,
            "  /title",
            "    + \"T\"",
        ];
        assert_eq!(lines[1..], expected);
    }
}

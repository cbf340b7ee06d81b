//! `mcp-fleet tools`: lists, describes and calls the tools that an mcp-server offers.
//!
//! A call is made at once, over the server's MCP endpoint; nothing is queued and nothing is tried
//! again. `mcp-fleet submit` makes a job of it.

mod arguments;
mod call;
mod list;
mod show;

use std::process::ExitCode;

pub(crate) use arguments::ArgumentError;

use fleet_codes as codes;

use crate::{
    error::CliError,
    mcp::McpServer,
    near_names::{did_you_mean, near_names},
    offered_tool::{OfferedTool, aliases},
};

#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// List the tools that the server offers
    List(list::Args),
    /// Describe a tool and its arguments
    Show(show::Args),
    /// Call a tool now and print its result
    Call(call::Args),
}

pub(crate) async fn run(command: Command) -> Result<ExitCode, CliError> {
    match command {
        Command::List(args) => list::run(args).await,
        Command::Show(args) => show::run(args).await,
        Command::Call(args) => call::run(args).await,
    }
}

/// The server does not offer the tool.
#[derive(Debug, thiserror::Error)]
#[error(
    "{server} offers you no tool `{tool}`{hint} (`mcp-fleet tools list` lists those that you may \
     call) [{code}]",
    code = codes::UNKNOWN_TOOL
)]
pub(crate) struct UnknownTool {
    server: String,
    tool: String,
    hint: String,
}

/// Asks a server about one of its tools.
async fn find_tool(server: &McpServer, name: &str) -> Result<OfferedTool, CliError> {
    let tools = server.list_tools().await?;
    Ok(choose_tool(tools, name, server.name())?)
}

/// Returns the tool of this name.
fn choose_tool(
    mut tools: Vec<OfferedTool>,
    name: &str,
    server: &str,
) -> Result<OfferedTool, UnknownTool> {
    let position = |name: &str| tools.iter().position(|tool| tool.name == name);
    let found = aliases(name).find_map(|name| position(&name));
    match found {
        Some(index) => Ok(tools.swap_remove(index)),
        None => {
            let near = near_names(name, tools.iter().map(|tool| tool.name.as_str()));
            Err(UnknownTool {
                server: server.to_owned(),
                tool: name.to_owned(),
                hint: did_you_mean(&near),
            })
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn an_unknown_tool_is_told_with_near_names() {
        let tools = ["files__file_read", "server_list"]
            .map(|name| OfferedTool::from_listed(json!({ "name": name })).unwrap());
        let choose = |name| choose_tool(tools.to_vec(), name, "http://a");
        assert_eq!(choose("server_list").unwrap().name, "server_list");
        let error = choose("file_raed").unwrap_err().to_string();
        assert!(error.contains("did you mean `files__file_read`?"), "{error}");
        assert!(error.contains("FLEET-UNKNOWN-TOOL"), "{error}");
    }
}

//! `server_remove`: ends a hosted server.

use std::sync::Arc;

use rmcp::{RoleServer, service::RequestContext};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    hosting::Fleet,
    toolkit::{Effect, ToolFailure, ToolSpec},
};

/// The tool's place in the list.
pub const SPEC: ToolSpec = ToolSpec {
    name: "server_remove",
    title: "Remove a hosted server",
    description: "Ends a hosted MCP server, with all its processes, and takes its tools away.",
    effect: Effect::IdempotentRemoval,
};

/// Which server.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Args {
    /// The server.
    name: String,
}

/// What was done.
#[derive(Debug, Serialize, JsonSchema)]
pub struct Removed {
    /// The server.
    name: String,
    /// Whether there was one of this name.
    removed: bool,
}

/// The tool.
///
/// # Errors
///
/// Never: a server that is not there is as good as removed.
pub async fn server_remove(
    fleet: Arc<Fleet>,
    _context: RequestContext<RoleServer>,
    args: Args,
) -> Result<Removed, ToolFailure> {
    let removed = fleet.remove(&args.name).await;
    Ok(Removed { name: args.name, removed })
}

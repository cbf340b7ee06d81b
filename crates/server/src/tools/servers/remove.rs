//! `server_remove`: ends a hosted server.

use std::sync::Arc;

use fleet_hosting::registry::Shared;
use fleet_ops::errors::chain;
use rmcp::{RoleServer, service::RequestContext};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::toolkit::{Effect, ToolFailure, ToolSpec};

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
/// Where the other replicas can't be told. A server that is not there is as good as removed.
pub async fn server_remove(
    shared: Arc<Shared>,
    _context: RequestContext<RoleServer>,
    args: Args,
) -> Result<Removed, ToolFailure> {
    let removed = shared.remove(&args.name).await.map_err(|error| {
        let message = format!("server {:?} is not removed: {}", args.name, chain(&error));
        if let Some(retry_after) = error.retry_after() {
            return ToolFailure::unavailable(message, &args.name, retry_after);
        }
        if error.is_permanent() {
            ToolFailure::permanent(message)
        } else {
            ToolFailure::transient(message)
        }
    })?;
    Ok(Removed { name: args.name, removed })
}

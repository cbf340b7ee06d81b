//! `server_remove`: removes a hosted server.

use std::sync::Arc;

use fleet_hosting::registry::Shared;
use fleet_ops::errors::chain;
use rmcp::{RoleServer, service::RequestContext};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::toolkit::{Effect, ToolFailure, ToolSpec};

/// The tool's entry in the tool list.
pub const SPEC: ToolSpec = ToolSpec {
    name: "server_remove",
    title: "Remove a hosted server",
    description: "Stops a hosted MCP server with all its processes, and removes its tools.",
    effect: Effect::IdempotentRemoval,
};

/// The server to remove.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Args {
    /// The name of the server.
    name: String,
}

/// The result of the removal.
#[derive(Debug, Serialize, JsonSchema)]
pub struct Removed {
    /// The name of the server.
    name: String,
    /// Whether a server of this name was hosted.
    removed: bool,
}

/// Removes a server. Removing a server that is not hosted succeeds.
///
/// # Errors
///
/// Returns an error if the other replicas can't be informed.
pub async fn server_remove(
    shared: Arc<Shared>,
    _context: RequestContext<RoleServer>,
    args: Args,
) -> Result<Removed, ToolFailure> {
    let removed = shared.remove(&args.name).await.map_err(|error| {
        let message = format!("could not remove server {:?}: {}", args.name, chain(&error));
        if let Some(outage) = error.outage() {
            return ToolFailure::outage(message, &args.name, outage);
        }
        if error.is_permanent() {
            ToolFailure::permanent(message)
        } else {
            ToolFailure::transient(message)
        }
    })?;

    Ok(Removed { name: args.name, removed })
}
